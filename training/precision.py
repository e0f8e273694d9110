"""The number format of the matrix products, by the chip."""

import torch
from torch import Tensor, nn

from training.recipe import Recipe
from zoo.environment import cpu_flags, has_bf16_units
from zoo.errors import ZooError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_SCALE = 1e-4  # of a loss in fp16; fairseq too gives up below it


def resolve_precision(wanted: str, device: torch.device) -> str:
    """Turn "auto" into a format and check one that was asked for.

    bf16 from compute capability 8.0 and on CPUs with bf16 units, fp16 (with loss scaling) on older
    GPUs from 7.0, fp32 elsewhere. The capability is tested, since `is_bf16_supported()` may say yes
    to emulation.

    Raises:
        ZooError: the device cannot train in the format that was asked for, or a GPU has no units
            for it; a CPU without them computes in bf16 all the same, see `slow_format`.
    """
    native = _native(device)
    if wanted == "auto":
        return native
    if device.type == "cpu" and wanted == "fp16":
        raise ZooError(
            f"precision fp16 needs a GPU: begin with --set precision={native} on this CPU"
        )
    if device.type == "cuda" and wanted == "bf16" and native != "bf16":
        raise ZooError(
            f"precision bf16 needs compute capability 8.0 or later, this GPU has none: "
            f"begin with --set precision={native}"
        )
    return wanted


def slow_format(precision: str, device: torch.device) -> str | None:
    """What to say of a format that this CPU has no units for."""
    if device.type != "cpu" or precision != "bf16" or _native(device) == "bf16":
        return None
    return (
        "this CPU has no units for bf16 and computes in it many times slower than in fp32: "
        "--set precision=fp32"
    )


class DepthwiseInFp32(nn.Conv2d):
    """A convolution that computes in fp32 and answers in the format of its surroundings."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        device = input.device.type
        with torch.autocast(device, enabled=False):
            y = super().forward(input.float())
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y


def keep_depthwise_in_fp32(network: nn.Module, precision: str, device: torch.device) -> None:
    """Have depthwise convolutions of a network that trains in bf16 on a CPU compute in fp32.

    All but 3x3 ones with stride 1, which oneDNN does well. For others it takes up to seven times as
    long in bf16, and where they have dilation it reads foreign memory for the weights' gradient
    (docs/decisions/0014). Parameters and names stay as they are.
    """
    if device.type != "cpu" or precision != "bf16":
        return
    for module in network.modules():
        if type(module) is not nn.Conv2d or not module.groups == module.in_channels > 1:
            continue
        if (module.kernel_size, module.stride, module.dilation) != ((3, 3), (1, 1), (1, 1)):
            module.__class__ = DepthwiseInFp32


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context in which the forward pass runs."""
    dtype = DTYPES.get(recipe.precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def is_sound(loss: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    """Whether a step came to something: () -> () bool, on the device.

    Its loss has to be finite. A scaler leaves out a step whose gradients are not, and halves the
    scale for the next: below LEAST_SCALE none has made them so, and the run would stand still.
    """
    is_finite = loss.isfinite()
    if not scaler.is_enabled():
        return is_finite
    assert scaler._scale is not None  # there since the first loss was scaled
    return is_finite & (scaler._scale >= LEAST_SCALE)


def _native(device: torch.device) -> str:
    if device.type == "cpu":
        return "bf16" if has_bf16_units(cpu_flags()) else "fp32"
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return "bf16"
    return "fp16" if capability >= (7, 0) else "fp32"
