"""The one door to the catalogue: every family is imported before anybody can look."""

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import nn

from zoo import timm_registry
from zoo.errors import UnknownModelError, ZooError
from zoo.models import coatnet as coatnet
from zoo.models import coatnet_cifar as coatnet_cifar
from zoo.models import convnext as convnext
from zoo.models import coordatt as coordatt
from zoo.models import cspnet as cspnet
from zoo.models import eca as eca
from zoo.models import edgenext as edgenext
from zoo.models import ghost as ghost
from zoo.models import ghostnet as ghostnet
from zoo.models import hornet as hornet
from zoo.models import hyaresnet as hyaresnet
from zoo.models import improved as improved
from zoo.models import lsknet as lsknet
from zoo.models import mixer as mixer
from zoo.models import res2net as res2net
from zoo.models import resnest as resnest
from zoo.models import resnet as resnet
from zoo.models import resnext as resnext
from zoo.models import segnext as segnext
from zoo.models import vit as vit
from zoo.neighbours import Neighbour, is_neighbour, neighbour
from zoo.own import build_own, is_own
from zoo.registry import MODELS, ModelSpec

__all__ = ["MODELS", "ModelSpec", "create_model", "list_models", "model_spec"]


def list_models() -> tuple[str, ...]:
    """Names of all variants, sorted."""
    return tuple(sorted(MODELS))


def model_spec(name: str) -> ModelSpec | Neighbour:
    """The registry entry of one variant, or what is known of timm:NAME.

    Raises:
        UnknownModelError: no variant has this name; the message holds the nearest ones.
        ZooError: it is a network of the user's own, of which nothing is known before it is built,
            or one of timm that is not offered.
    """
    if is_neighbour(name):
        return neighbour(name)
    if is_own(name):
        raise ZooError(f"{name!r} names a network of your own, of which the zoo holds no facts")
    if name not in MODELS:
        raise UnknownModelError(name, MODELS)
    return MODELS[name]


def create_model(
    name: str,
    *,
    num_classes: int = 100,
    image_size: int = 32,
    pretrained: bool = False,
    weights: Path | str | None = None,
    **options: object,
) -> nn.Module:
    """Build a freshly initialised or, with `pretrained`, a trained variant, in training mode.

    `name` is a variant of the catalogue, timm:NAME for a network of timm (`zoo.neighbours`), or
    package.module:function for one of the caller's own (`zoo.own`): that module is imported.
    `options` are those that the variant's builder takes, such as `drop_path`.

    Trained weights come from the first place that has them: the package (`zoo.pretrained`), the
    one that ZOO_WEIGHTS names. `weights` names a place in their stead, and implies `pretrained`: a
    folder with NAME.safetensors and NAME.json, a run folder, or hub:OWNER/REPO@COMMIT. With
    another `num_classes` than that of the weights the classifier stays freshly initialised. Those
    of timm:NAME are of ImageNet and come from the Hub.

    Shapes:
        The module maps (B, 3, S, S) normalised images to (B, K) logits; B is free and S is
        `image_size`. A network without a fixed number of tokens takes other sizes too.

    Raises:
        UnknownModelError: no variant has this name.
        ZooError: the variant takes no images of this size or no option of this name, an option is
            out of range, or `num_classes` is below 1; no place has weights of the variant, or
            they are for another image size.
        CheckpointError: the weights or their card are damaged.
    """
    build = partial(_build, name, image_size=image_size, options=options)
    if pretrained and weights is None and is_neighbour(name):
        from zoo import adopt

        found = adopt.from_hub(neighbour(name), image_size=image_size)
        model = build(num_classes=num_classes)
        adopt.adopt(model, found, name=name)
        return model
    if pretrained or weights is not None:
        from zoo.pretrained import load_pretrained

        return load_pretrained(name, build, num_classes=num_classes, weights=weights)
    return build(num_classes=num_classes)


def _build(
    name: str, *, num_classes: int, image_size: int, options: Mapping[str, object]
) -> nn.Module:
    """What `create_model` builds before any weights are loaded."""
    if num_classes < 1:
        raise ZooError(f"num_classes must be 1 or more, got {num_classes}")
    if is_own(name):
        return build_own(name, num_classes=num_classes, image_size=image_size, options=options)
    spec = model_spec(name)
    taken = [
        key
        for key in inspect.signature(spec.build).parameters
        if key not in ("num_classes", "image_size")
    ]
    for key in options:
        if key not in taken:
            known = ", ".join(taken) if taken else "none but num_classes and image_size"
            raise ZooError(f"model {name!r} has no option {key!r}: it takes {known}")
    if image_size not in spec.sizes:
        raise ZooError(f"model {name!r} takes images of {spec.sizes}, got {image_size}")
    if "image_size" in inspect.signature(spec.build).parameters:
        options = {**options, "image_size": image_size}
    try:
        return spec.build(num_classes=num_classes, **options)
    except ValueError as reason:
        raise ZooError(f"model {name!r}: {reason}") from None


timm_registry.announce()  # the catalogue is complete here
