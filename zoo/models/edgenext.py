"""EdgeNeXt, built by timm, with a stem for small images."""

from typing import cast

from torch import nn

from zoo.layers import DropPath
from zoo.registry import ImageSizes, register_model

MAAZ_2022 = "Maaz et al. 2022, arXiv:2206.10589, section 3"
SIZES = ImageSizes(step=16, least=16)  # four unpadded 2x2 convolutions


@register_model(group="hybrid", paper=MAAZ_2022, params=5_310_604, macs=77_896_208, sizes=SIZES)
def edgenext_small(*, num_classes: int, drop_path: float = 0.1) -> nn.Module:
    """Widths 48 to 304; drop path rises to `drop_path`."""
    return _small_images("edgenext_small", num_classes, drop_path)


@register_model(group="hybrid", paper=MAAZ_2022, params=17_981_912, macs=238_553_144, sizes=SIZES)
def edgenext_base(*, num_classes: int, drop_path: float = 0.1) -> nn.Module:
    """Widths 80 to 584, otherwise edgenext_small."""
    return _small_images("edgenext_base", num_classes, drop_path)


def _small_images(name: str, num_classes: int, drop_path: float) -> nn.Module:
    """A network of timm with a 2x2 stem of stride 2, where the paper's is 4x4 of stride 4."""
    import timm

    rate = DropPath(drop_path).rate  # checked: timm takes any number
    model = timm.create_model(name, num_classes=num_classes, drop_path_rate=rate)
    stem = cast(nn.Conv2d, model.get_submodule("stem.0"))
    model.set_submodule("stem.0", nn.Conv2d(3, stem.out_channels, 2, stride=2))
    return model
