"""Who takes part, and what each has to train."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from zoo.errors import ZooError, nearest

SEED = 0
PREFETCH = 2  # batches that each data worker prepares ahead: what torch's DataLoader does

# The same augmentation for all: crop, flip, TrivialAugmentWide, normalise, erase.
CROP_PADDING, FLIP_P, ERASE_P = 4, 0.5, 0.5
# The same optimiser for all: SGD without Nesterov's step.
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to train a network."""

    name: str
    loop: str  # module of this package that builds it
    compile: bool = False
    precision: str = "auto"  # of the matrix products; "auto": what its users get without asking
    runtime: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    devices: tuple[str, ...] = ("cpu", "cuda")  # where it takes part without being named


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What every contender has to train."""

    model: str
    dataset: str
    batch: int
    device: str  # "cpu" or "cuda"
    data_workers: int  # processes of a peer's data loader


class Loop(Protocol):
    """A training loop that takes one step each time it is asked for the next loss.

    Losses are numbers, or tensors of one number that still lie on the device.
    """

    precision: str  # of the matrix products
    layout: str  # memory format of images and weights
    data_s: float  # seconds it has waited for batches, in all
    uses_data_workers: bool

    def __iter__(self) -> Iterator[Any]: ...

    def augment(self, batches: int) -> bool:
        """Only prepare batches, without a step; False where that cannot be had apart."""


def _all() -> Iterator[Contender]:
    cuda, cpu = ("cuda",), ("cpu",)
    eager_launches = MappingProxyType({"cuda_graphs": "off"})
    yield Contender(name="ours-eager", loop="ours")
    yield Contender(name="ours-compile", loop="ours", compile=True)
    yield Contender(
        name="ours-compile-fp32", loop="ours", compile=True, precision="fp32", devices=cpu
    )
    yield Contender(name="ours-eager-nograph", loop="ours", runtime=eager_launches, devices=cuda)
    yield Contender(
        name="ours-compile-nograph",
        loop="ours",
        compile=True,
        runtime=eager_launches,
        devices=cuda,
    )
    for peer in ("torchvision", "timm"):
        loop = f"{peer}_loop"
        yield Contender(name=f"{peer}-eager", loop=loop)
        yield Contender(name=f"{peer}-compile", loop=loop, compile=True)
    yield Contender(
        name="timm-compile-bf16", loop="timm_loop", compile=True, precision="bf16", devices=cpu
    )


CONTENDERS = MappingProxyType({contender.name: contender for contender in _all()})


def chosen(names: tuple[str, ...] | None, device: str) -> list[Contender]:
    """The contenders of these names, or those of the device.

    Raises:
        ZooError: there is no contender of a name.
    """
    if names is None:
        return [one for one in CONTENDERS.values() if device in one.devices]
    for name in names:
        if name not in CONTENDERS:
            raise ZooError(f"no contender named {name!r}: {nearest(name, CONTENDERS)}")
    return [CONTENDERS[name] for name in names]
