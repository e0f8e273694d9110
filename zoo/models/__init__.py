"""The one door to the catalogue: every family is imported before anybody can look."""

import inspect

from torch import nn

from zoo.errors import UnknownModelError, ZooError
from zoo.models import eca as eca
from zoo.models import ghost as ghost
from zoo.models import improved as improved
from zoo.models import resnet as resnet
from zoo.registry import MODELS, ModelSpec

__all__ = ["MODELS", "ModelSpec", "create_model", "list_models", "model_spec"]


def list_models() -> tuple[str, ...]:
    """Names of all variants, sorted."""
    return tuple(sorted(MODELS))


def model_spec(name: str) -> ModelSpec:
    """The registry entry of one variant.

    Raises:
        UnknownModelError: no variant has this name; the message holds the nearest ones.
    """
    if name not in MODELS:
        raise UnknownModelError(name, MODELS)
    return MODELS[name]


def create_model(name: str, *, num_classes: int = 100, **options: object) -> nn.Module:
    """Build a freshly initialised variant, in training mode.

    `options` are those that the variant's builder takes, such as `drop_path`.

    Shapes:
        The module maps (B, 3, 32, 32) normalised images to (B, K) logits; B is free.

    Raises:
        UnknownModelError: no variant has this name.
        ZooError: the variant takes no option of this name, or `num_classes` is below 1.
    """
    spec = model_spec(name)
    taken = [key for key in inspect.signature(spec.build).parameters if key != "num_classes"]
    for key in options:
        if key not in taken:
            known = ", ".join(taken) if taken else "none but num_classes"
            raise ZooError(f"model {name!r} has no option {key!r}: it takes {known}")
    if num_classes < 1:
        raise ZooError(f"num_classes must be 1 or more, got {num_classes}")
    return spec.build(num_classes=num_classes, **options)
