"""What the zoo promises about each variant; used by the family files only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from zoo.reported import Reported

Builder = Callable[..., nn.Module]

GROUPS = (
    *("baseline", "attention", "lightweight", "modern conv", "hybrid", "mlp"),
    *("transformer", "multi-scale", "ablation"),
)


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Heights (= widths) that a variant can be built for: multiples of `step` from `least` on."""

    step: int = 1
    least: int = 8

    def __contains__(self, size: int) -> bool:
        return size >= self.least and size % self.step == 0

    def __str__(self) -> str:
        what = "any size" if self.step == 1 else f"multiples of {self.step}"
        return f"{what} from {self.least} on"


ANY_SIZE = ImageSizes()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What the zoo promises about one variant."""

    name: str
    build: Builder  # keyword-only num_classes (and image_size, drop_path where they matter)
    family: str  # module under zoo/models/ that defines it
    group: str  # one of GROUPS
    paper: str  # authors, year, arXiv id, section
    params: int  # trainable parameters with 100 classes; a test counts them
    macs: int  # of one 32x32 image, convolutions and matrix products; a test counts them
    own_design: bool = False  # a design of one of the two studies, not of its paper
    sizes: ImageSizes = ANY_SIZE

    @property
    def reported(self) -> "Reported | None":
        """The accuracy that others published for it, never ours: see `zoo.reported`."""
        from zoo.reported import headline

        return headline(self.name)


_SPECS: dict[str, ModelSpec] = {}
MODELS: Mapping[str, ModelSpec] = MappingProxyType(_SPECS)  # read-only for everyone else


def register_model(
    *,
    group: str,
    paper: str,
    params: int,
    macs: int,
    own_design: bool = False,
    sizes: ImageSizes = ANY_SIZE,
) -> Callable[[Builder], Builder]:
    """Register the decorated builder under its own function name.

    Raises:
        ValueError: the name is taken, since registration never overwrites, or the group unknown.
    """

    def register(build: Builder) -> Builder:
        name, family = build.__name__, build.__module__.rpartition(".")[2]
        if name in _SPECS:
            raise ValueError(f"model {name!r} is already defined in family {_SPECS[name].family!r}")
        if group not in GROUPS:
            raise ValueError(f"model {name!r} has the unknown group {group!r}")
        _SPECS[name] = ModelSpec(
            name=name,
            build=build,
            family=family,
            group=group,
            paper=paper,
            params=params,
            macs=macs,
            own_design=own_design,
            sizes=sizes,
        )
        return build

    return register
