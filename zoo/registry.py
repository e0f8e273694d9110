"""What the zoo promises about each variant; used by the family files only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

Builder = Callable[..., nn.Module]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the zoo promises about one variant."""

    name: str
    build: Builder  # keyword-only num_classes (and image_size, drop_path where they matter)
    family: str  # module under zoo/models/ that defines it
    paper: str  # authors, year, arXiv id, section
    params: int  # trainable parameters with 100 classes; a test counts them


_SPECS: dict[str, ModelSpec] = {}
MODELS: Mapping[str, ModelSpec] = MappingProxyType(_SPECS)  # read-only for everyone else


def register_model(*, paper: str, params: int) -> Callable[[Builder], Builder]:
    """Register the decorated builder under its own function name.

    Raises:
        ValueError: the name is taken; registration never overwrites.
    """

    def register(build: Builder) -> Builder:
        name, family = build.__name__, build.__module__.rpartition(".")[2]
        if name in _SPECS:
            raise ValueError(f"model {name!r} is already defined in family {_SPECS[name].family!r}")
        _SPECS[name] = ModelSpec(name, build, family, paper, params)
        return build

    return register
