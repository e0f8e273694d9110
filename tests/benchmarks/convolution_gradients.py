"""Whether every kind of convolution in the catalogue has right gradients in bf16 on this CPU.

Each runs as `zoo-train` has it, or with --plain as torch does, on channels-last images with memory
full of large numbers, and is held against float64. A kernel that reads what is not its own, as in
docs/decisions/0014, is off by orders of magnitude, where rounding is off by a hundredth.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.precision import DepthwiseInFp32, keep_depthwise_in_fp32
from zoo import command
from zoo.environment import capture
from zoo.errors import MachineError
from zoo.models import MODELS, create_model
from zoo.text import counted

COMMAND = "convolution_gradients"
CPU = torch.device("cpu")
LIMIT = 0.1  # error of a gradient as a share of its largest value
REPEATS = 3
BATCHES = (2, 16)  # images: kernels are chosen by it


@dataclass(frozen=True, slots=True)
class Kind:
    """A convolution and the maps that it is given."""

    in_fp32: bool
    channels: tuple[int, int]  # in, out
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    size: tuple[int, ...]  # height and width of its images

    @classmethod
    def of(cls, module: nn.Conv2d, images: Tensor) -> "Kind":
        """What `module` is when it is given `images`."""
        return cls(
            in_fp32=isinstance(module, DepthwiseInFp32),
            channels=(module.in_channels, module.out_channels),
            kernel=module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            size=tuple(images.shape[2:]),
        )

    def build(self) -> nn.Conv2d:
        """One with random weights; biases are of no interest."""
        module = DepthwiseInFp32 if self.in_fp32 else nn.Conv2d
        return module(
            *self.channels,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=False,
        ).to(memory_format=torch.channels_last)


def main(argv: Sequence[str] | None = None) -> int:
    """Check every kind; name those that are wrong."""
    parser = command.Parser(COMMAND, "Hold the gradients of convolutions in bf16 against float64.")
    parser.add_argument("--models", type=command.names, default=tuple(MODELS), metavar="NAMES")
    parser.add_argument("--plain", action="store_true", help="all convolutions as torch has them")
    args = parser.parse_args(argv)
    return command.run(COMMAND, lambda: check(args.models, plain=args.plain))


def check(models: Sequence[str], *, plain: bool) -> int:
    """Print each kind that is wrong and a summary.

    Raises:
        MachineError: a gradient is wrong.
    """
    found = dict.fromkeys(kind for name in models for kind in kinds(name, plain=plain))
    wrong = 0
    for kind, batch in itertools.product(found, BATCHES):
        error = max(error_of(kind, batch) for _ in range(REPEATS))
        if not error <= LIMIT:
            wrong += 1
            print(f"{error:.1e} of the largest value: {batch} images, {kind}", flush=True)
    where = f"{capture().cpu}, torch {torch.__version__}"
    if wrong:
        raise MachineError(f"{wrong} of {len(found) * len(BATCHES)} gradients are wrong: {where}")
    sizes = " and ".join(map(str, BATCHES))
    number = counted(len(found), "kind")
    print(f"the gradients of {number} of convolution are right with {sizes} images: {where}")
    return 0


def kinds(model: str, *, plain: bool) -> Iterator[Kind]:
    """The convolutions of a network that is fed with 32x32 images."""
    with torch.device("meta"):
        network, images = create_model(model).eval(), torch.empty(2, 3, 32, 32)
    seen: list[tuple[nn.Conv2d, Tensor]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda module, given: seen.append((module, given[0])))
    with torch.no_grad():
        network(images)
    if not plain:
        keep_depthwise_in_fp32(network, "bf16", CPU)
    for module, maps in seen:
        yield Kind.of(module, maps)


def error_of(kind: Kind, batch: int) -> float:
    """Of the gradients of weights and images, as a share of the largest value."""
    module = kind.build().bfloat16()  # weights that it does not have to round
    images = torch.randn(batch, kind.channels[0], *kind.size)
    images = images.bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    exact = nn.Conv2d.forward(module.double(), images.double())
    ahead = torch.randn_like(exact).bfloat16()
    wanted = torch.autograd.grad(exact, (module.weight, images), ahead.double())
    module.float()
    soil()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = module(images)
    gradients = torch.autograd.grad(answer, (module.weight, images), ahead)
    return max(_share(*pair) for pair in zip(gradients, wanted, strict=True))


def soil() -> None:
    """Leave large numbers in the memory that is taken next."""
    for exponent in range(8, 22):
        _ = [torch.full((2**exponent,), 1e30) for _ in range(4)]


def _share(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
