"""Networks of timm under the name timm:NAME, their stems adapted to small images.

timm's networks are made for images of 224 pixels: they give 1/32 of the height to their last
stage. Up to SMALL pixels the first two reductions are taken out, which leaves 1/8: of a 32x32
image the last stage but one sees 8x8 pixels. Larger images meet the network as timm has it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.errors import UnknownModelError, ZooError, closest
from zoo.layers import DropPath
from zoo.preprocess import INTERPOLATIONS, STORED_SIZE, Preprocessing
from zoo.registry import ANY_SIZE, Builder, ImageSizes

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

    from zoo.cost import Cost

PREFIX = "timm:"
SMALL = 64  # pixels of height; up to here the stem is adapted
PATCH = 4  # pixels of height of a patch, up to SMALL


@dataclass(frozen=True, slots=True)
class Family:
    """The networks of one module of timm."""

    title: str
    shrink: Callable[[nn.Module], None] | None = None  # adapts the stem; None: made of patches
    takes_drop_path: bool = True


@dataclass(frozen=True)
class PatchSizes:
    """Heights that a network of patches takes."""

    name: str

    @cached_property
    def patch(self) -> int:
        """Pixels of height of a patch, as timm has it."""
        with torch.device("meta"):
            return int(_patches(_timm_model(self.name)).patch_size[0])

    def __contains__(self, size: int) -> bool:
        return size >= 2 * PATCH and size % (PATCH if size <= SMALL else self.patch) == 0

    def __str__(self) -> str:
        return f"multiples of {PATCH} from {2 * PATCH} to {SMALL}, above them of {self.patch}"


@dataclass(frozen=True)
class Neighbour:
    """What is known of a network of timm; parameters and MACs are counted when asked for."""

    name: str  # with its prefix, and a tag of pretrained weights where one was given
    family: str  # module under timm.models that defines it

    group = "timm"
    own_design = False

    @property
    def timm_name(self) -> str:
        """Without the prefix."""
        return self.name.removeprefix(PREFIX)

    @property
    def config(self) -> "PretrainedCfg":
        """What timm knows of the weights that it would load."""
        from timm.models import get_pretrained_cfg

        found = get_pretrained_cfg(self.timm_name)
        assert found is not None  # `neighbour` has asked before
        return found

    @property
    def paper(self) -> str:
        """Title, identifier and address, as far as timm states them."""
        config = self.config
        stated = (config.paper_name, config.paper_ids, config.origin_url)
        return ", ".join(str(part) for part in stated if part) or f"timm, models/{self.family}.py"

    @property
    def sizes(self) -> ImageSizes | PatchSizes:
        """Heights (= widths) that it can be built for."""
        return ANY_SIZE if FAMILIES[self.family].shrink else PatchSizes(self.timm_name)

    @property
    def build(self) -> Builder:
        """A function of num_classes and image_size, and of drop_path where the family takes it."""
        name, family = self.timm_name, FAMILIES[self.family]

        def build(*, num_classes: int, image_size: int = STORED_SIZE) -> nn.Module:
            """A network of timm; up to 64 pixels its stem is adapted to small images."""
            return _build(name, family, image_size, num_classes=num_classes)

        def build_with_drop_path(
            *, num_classes: int, image_size: int = STORED_SIZE, drop_path: float = 0.0
        ) -> nn.Module:
            """A network of timm; up to 64 pixels its stem is adapted to small images."""
            rate = DropPath(drop_path).rate  # timm takes any number, ours refuses
            return _build(name, family, image_size, num_classes=num_classes, drop_path_rate=rate)

        return build_with_drop_path if family.takes_drop_path else build

    @property
    def params(self) -> int:
        """Trainable parameters with 100 classes, for 32x32 images."""
        assert self._cost.params is not None
        return self._cost.params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one 32x32 image."""
        assert self._cost.macs is not None
        return self._cost.macs

    @property
    def pretrained_size(self) -> int:
        """Height of the images that timm's weights were trained on."""
        return int(self.config.input_size[1])

    def pretrained_preprocessing(self, image_size: int) -> Preprocessing:
        """What timm's weights expect of images, at this height."""
        config = self.config
        wanted = config.interpolation
        return Preprocessing(
            image_size=image_size,
            mean=_channels(config.mean),
            std=_channels(config.std),
            interpolation=wanted if wanted in INTERPOLATIONS else INTERPOLATIONS[0],
            crop_pct=config.crop_pct,
        )

    @cached_property
    def _cost(self) -> "Cost":
        from zoo.cost import cost_of_model

        with torch.device("meta"):
            network = self.build(num_classes=100)
        return cost_of_model(network)


def is_neighbour(name: str) -> bool:
    """Whether a model's name means a network of timm."""
    return name.startswith(PREFIX)


def is_adapted(image_size: int) -> bool:
    """Whether images of this height meet another stem than timm's."""
    return image_size <= SMALL


def neighbour(name: str) -> Neighbour:
    """The facts of timm:NAME or timm:NAME.TAG, found without building it.

    Raises:
        UnknownModelError: timm has no network of this name; the message holds the nearest.
        ZooError: its family is not among those with an adapted stem, or there is no such tag.
    """
    from timm.models import get_arch_pretrained_cfgs, list_models, model_entrypoint

    arch, _, tag = name.removeprefix(PREFIX).partition(".")
    known = list_models()
    if arch not in known:
        if closest(arch, known):
            raise UnknownModelError(name, [PREFIX + one for one in known])
        raise ZooError(f"timm has no network named {arch!r}: choose one of {_listed()}")
    family = model_entrypoint(arch).__module__.rpartition(".")[2]
    if arch.startswith("zoo_"):
        raise ZooError(f"{name} is a model of the zoo: write {arch.removeprefix('zoo_')}")
    if family not in FAMILIES:
        raise ZooError(
            f"{name} is of timm's family {family}, whose stem nobody has adapted to small images: "
            f"choose one of {_listed()}"
        )
    tags = [key.partition(".")[2] for key in get_arch_pretrained_cfgs(arch)]
    if tag and tag not in tags:
        raise ZooError(f"timm:{arch} has no weights named {tag!r}: it has {', '.join(tags)}")
    return Neighbour(name, family)


def _channels(figures: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = figures
    return red, green, blue


def _listed() -> str:
    return "; ".join(f"{family.title} ({module})" for module, family in FAMILIES.items())


def _build(name: str, family: Family, image_size: int, **options: Any) -> nn.Module:
    if family.shrink is None:
        return _build_of_patches(name, image_size, options)
    network = _timm_model(name, **options)
    if is_adapted(image_size):
        family.shrink(network)
    return network


def _build_of_patches(name: str, image_size: int, options: Mapping[str, Any]) -> nn.Module:
    """Tell timm the size; the number of patches decides the shape of weights."""
    if not is_adapted(image_size):
        return _timm_model(name, img_size=image_size, **options)
    try:
        return _timm_model(name, img_size=image_size, patch_size=PATCH, **options)
    except TypeError:  # the mixers fix their patch: build as many of those, then change the stem
        patch = PatchSizes(name).patch
        network = _timm_model(name, img_size=image_size * patch // PATCH, **options)
        _patches(network).set_input_size(img_size=image_size, patch_size=PATCH)
        return network


def _timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, **options)


def _patches(network: nn.Module) -> Any:
    """The layer that cuts images into patches; its methods are timm's own."""
    return network.get_submodule("patch_embed" if hasattr(network, "patch_embed") else "stem")


# What each family does about its first two reductions.


def _resnet(network: nn.Module) -> None:
    """A 3x3 stem of stride 1, whether one convolution or three, and no pooling."""
    if isinstance(network.get_submodule("conv1"), nn.Sequential):
        _thin(network, "conv1.0")
    else:
        _thin(network, "conv1")
    network.set_submodule("maxpool", nn.Identity())


def _densenet(network: nn.Module) -> None:
    """A 3x3 stem of stride 1 and no pooling."""
    _thin(network, "features.conv0")
    network.set_submodule("features.pool0", nn.Identity())


def _patch_stem(network: nn.Module) -> None:
    """Where the stem cuts 4x4 patches, or halves twice: 3x3 convolutions of stride 1."""
    for name, part in list(network.get_submodule("stem").named_children()):
        if isinstance(part, nn.Conv2d):
            _thin(network, f"stem.{name}")


def _regnet(network: nn.Module) -> None:
    """The stem, and the first block of the first stage with its shortcut, at stride 1."""
    _unstride(network, "stem")
    _unstride(network, "s1.b1")


def _mobile(network: nn.Module) -> None:
    """The stem, and the first block that halves, at stride 1."""
    _unstride(network, "conv_stem")
    for stage, part in network.get_submodule("blocks").named_children():
        for block, _ in part.named_children():
            if _unstride(network, f"blocks.{stage}.{block}"):
                return


def _thin(network: nn.Module, name: str) -> None:
    """Replace a convolution by one of 3x3 and stride 1."""
    old = network.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=old.bias is not None)
    network.set_submodule(name, new)


def _unstride(network: nn.Module, name: str) -> bool:
    """Let one module keep the size of its map: convolutions at stride 1, no pooling."""
    found = list(_halving(network, name))
    for path, part in found:
        if hasattr(part, "weight"):
            part.stride = (1, 1)
        else:
            network.set_submodule(path, nn.Identity())
    return bool(found)


def _halving(network: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    for inner, part in network.get_submodule(name).named_modules():
        if getattr(part, "stride", 1) in (2, (2, 2)) and not list(part.children()):
            yield f"{name}.{inner}".rstrip("."), part


# By the module of timm. Each has a test that builds, trains and exports one of its networks.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "resnet": Family("ResNet, ResNeXt, SE-ResNet", _resnet),
        "convnext": Family("ConvNeXt", _patch_stem),
        "vision_transformer": Family("ViT"),
        "deit": Family("DeiT"),
        "mlp_mixer": Family("MLP-Mixer, gMLP, ResMLP"),
        "mobilenetv3": Family("MobileNetV3 and V4", _mobile),
        "efficientnet": Family("EfficientNet, MobileNetV2, MixNet", _mobile),
        "regnet": Family("RegNet", _regnet),
        "densenet": Family("DenseNet", _densenet, takes_drop_path=False),
        "ghostnet": Family("GhostNet", _mobile, takes_drop_path=False),
        "edgenext": Family("EdgeNeXt", _patch_stem),
    }
)
