"""Which convolutions of a network train faster with our kernels than with cuDNN: measured."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import first_line
from zoo.session import cudnn_benchmark

MARGIN = 0.95  # of cuDNN's time; what gains less stays with cuDNN
AGREEMENT = 0.02  # largest relative distance from cuDNN's result and gradients, in 16 bits
REPLAYS = 5
ROUNDS = 3
ADDRESSABLE = 2**31  # numbers of one tensor: Triton's kernels count in 32 bits

Kernel = Callable[[Tensor, Tensor], Tensor]  # (images, weight) -> result


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One kind of convolution of a network: who computes it while training, and both times."""

    layers: tuple[str, ...]  # names of modules
    kernel: str  # "depthwise" or "conv3x3"
    shape: tuple[int, ...]  # of the input
    cudnn_ms: float  # median time of forward and backward pass
    ours_ms: float | None  # layout changes included; None where ours failed
    swapped: bool
    failure: str | None = None


class DepthwiseTraining(nn.Conv2d):
    """A depthwise convolution that trains by banded matrix products."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, with 16-bit images on a GPU in training mode by our kernel."""
        dtype = _sixteen_bits(self, input)
        if dtype is None:
            return super().forward(input)
        from training.depthwise import depthwise

        y = depthwise(input.to(dtype), self.weight.to(dtype), int(self.stride[0]))
        return _with_bias(y, self.bias)


class Conv3x3Training(nn.Conv2d):
    """A 3x3 convolution of few channels that trains by one product over gathered neighbours."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, with 16-bit images on a GPU in training mode by our kernel."""
        dtype = _sixteen_bits(self, input)
        if dtype is None:
            return super().forward(input)
        from training.conv3x3 import conv3x3

        return _with_bias(conv3x3(input.to(dtype), self.weight.to(dtype)), self.bias)


CLASSES: dict[str, type[nn.Conv2d]] = {"depthwise": DepthwiseTraining, "conv3x3": Conv3x3Training}


def use_fast_kernels(
    network: nn.Module, example: tuple[int, ...], dtype: torch.dtype
) -> list[Choice]:
    """Swap each convolution that our kernels train at least 5% faster than cuDNN does.

    Parameters and names stay as they are. Both are timed as CUDA graphs on inputs of the shapes
    that a batch of shape `example` (B, 3, H, W) gives them under autocast to `dtype`. Nothing
    happens, and nothing is returned, on a CPU, on GPUs before compute capability 8.0, without
    Triton and in 32 bits.
    """
    device = next(network.parameters()).device
    if not _is_supported(device, dtype):
        return []
    found = _candidates(network, example, dtype)
    choices = []
    for case, names in found.items():
        choice = _compare(case, tuple(names), device, dtype)
        choices.append(choice)
        if choice.swapped:
            for name in names:
                network.get_submodule(name).__class__ = CLASSES[case.kernel]
    return choices


def restore(network: nn.Module) -> None:
    """Give every convolution back to cuDNN."""
    for module in network.modules():
        if isinstance(module, tuple(CLASSES.values())):
            module.__class__ = nn.Conv2d


def kernel_for(conv: nn.Conv2d) -> str | None:
    """Name the kernel that computes what `conv` does, if one does."""
    size, pad = conv.kernel_size, conv.padding
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
        return None
    if size[0] != size[1] or size[0] % 2 == 0 or pad not in ("same", (size[0] // 2,) * 2):
        return None
    if conv.groups == conv.in_channels == conv.out_channels > 1:
        return "depthwise" if conv.stride[0] == conv.stride[1] and size[0] >= 3 else None
    few = max(conv.in_channels, conv.out_channels) <= 64
    is_plain = conv.groups == 1 and size == (3, 3) and conv.stride == (1, 1)
    return "conv3x3" if few and is_plain else None


@dataclass(frozen=True, slots=True)
class _Case:
    kernel: str
    shape: tuple[int, ...]  # of the input
    outputs: int
    size: int
    stride: int
    needs_input_gradient: bool


def _is_supported(device: torch.device, dtype: torch.dtype) -> bool:
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and dtype in (torch.float16, torch.bfloat16)
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _sixteen_bits(conv: nn.Conv2d, images: Tensor) -> torch.dtype | None:
    """The format in which our kernel is to compute; None where it is not its turn."""
    if not (conv.training and images.is_cuda):
        return None
    if torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    is_short = images.dtype in (torch.float16, torch.bfloat16)
    return images.dtype if is_short and images.dtype == conv.weight.dtype else None


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def _candidates(
    network: nn.Module, example: tuple[int, ...], dtype: torch.dtype
) -> dict[_Case, list[str]]:
    """The convolutions that a kernel fits, by what they compute; each that is called once."""
    seen: dict[str, list[_Case]] = {}

    def hook(name: str, kernel: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, nn.Conv2d)
            shape = (example[0], *inputs[0].shape[1:])
            size, stride = module.kernel_size[0], module.stride[0]
            case = _Case(kernel, shape, module.out_channels, size, stride, inputs[0].requires_grad)
            largest = math.prod(shape) // shape[1] * max(shape[1], case.outputs)
            if kernel == "depthwise" or largest < ADDRESSABLE:
                seen.setdefault(name, []).append(case)

        return note

    handles = []
    for name, module in network.named_modules():
        kernel = kernel_for(module) if isinstance(module, nn.Conv2d) else None
        if kernel is not None:
            handles.append(module.register_forward_pre_hook(hook(name, kernel)))
    device = next(network.parameters()).device
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()  # running statistics stay as they are
        with torch.autocast(device.type, dtype), torch.enable_grad():
            network(torch.zeros(2, *example[1:], device=device))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    cases: dict[_Case, list[str]] = {}
    for name, calls in seen.items():
        if len(calls) == 1:
            cases.setdefault(calls[0], []).append(name)
    return cases


def _compare(
    case: _Case, layers: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> Choice:
    groups = case.outputs if case.kernel == "depthwise" else 1

    def cudnn(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, case.stride, case.size // 2, groups=groups)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        if case.kernel == "depthwise":
            from training.depthwise import depthwise

            return depthwise(x, weight, case.stride)
        from training.conv3x3 import conv3x3

        return conv3x3(x, weight)

    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, device=device, dtype=dtype, generator=generator)
        return values.contiguous(memory_format=torch.channels_last)

    x = normal(*case.shape).requires_grad_(case.needs_input_gradient)
    weight = normal(case.outputs, case.shape[1] // groups, case.size, case.size).requires_grad_()
    with cudnn_benchmark(True):
        theirs = _Step(cudnn, x, weight)
        failure = None
        try:
            mine = _Step(ours, x, weight)
            if (distance := mine.distance(theirs)) > AGREEMENT:
                failure = f"differs from cuDNN by {distance:.3g}"
            times = [(theirs.milliseconds(), mine.milliseconds()) for _ in range(ROUNDS)]
            cudnn_ms, ours_ms = (sorted(column)[ROUNDS // 2] for column in zip(*times, strict=True))
        except Exception as reason:  # no compiler, no memory: training goes on with cuDNN
            failure = first_line(reason)
    if failure is not None:
        cudnn_ms, ours_ms = theirs.milliseconds(), None
    return Choice(
        layers=layers,
        kernel=case.kernel,
        shape=case.shape,
        cudnn_ms=cudnn_ms,
        ours_ms=ours_ms,
        swapped=ours_ms is not None and ours_ms < MARGIN * cudnn_ms,
        failure=failure,
    )


class _Step:
    """Forward and backward pass of one convolution as a CUDA graph."""

    def __init__(self, kernel: Kernel, x: Tensor, weight: Tensor) -> None:
        wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]

        def step() -> tuple[Tensor, ...]:
            y = kernel(x, weight)
            return y, *torch.autograd.grad(y, wanted, y.detach())

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets cuDNN choose
                step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = step()
        self.graph.replay()

    def distance(self, other: "_Step") -> float:
        """The largest relative distance of result and gradients."""
        pairs = zip(self.results, other.results, strict=True)
        with torch.no_grad():
            found = [(a.float() - b.float()).norm() / b.float().norm() for a, b in pairs]
        return float(torch.stack(found).nan_to_num(torch.inf).max())

    def milliseconds(self) -> float:
        """Mean over a few replays."""
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        self.graph.replay()
        begin.record()
        for _ in range(REPLAYS):
            self.graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / REPLAYS
