"""Vision transformers in patches of 4, as timm builds them."""

from torch import nn

from zoo.layers import DropPath
from zoo.registry import ImageSizes, register_model

PATCHES_OF_4 = ImageSizes(step=4, least=8)


def _in_patches_of_4(
    name: str, *, num_classes: int, image_size: int, drop_path: float
) -> nn.Module:
    import timm

    return timm.create_model(
        name,
        img_size=image_size,
        patch_size=4,
        num_classes=num_classes,
        drop_path_rate=DropPath(drop_path).rate,  # timm takes any number, ours refuses
    )


@register_model(
    group="transformer",
    paper="Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1; Touvron et al. 2020, "
    "arXiv:2012.12877, table 1, Ti",
    params=5_380_132,
    macs=365_124_864,
    sizes=PATCHES_OF_4,
)
def vit_tiny(*, num_classes: int, image_size: int, drop_path: float = 0.0) -> nn.Module:
    """Twelve blocks of width 192 with 3 heads, a class token and learned positions."""
    return _in_patches_of_4(
        "vit_tiny_patch16_224",
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )


@register_model(
    group="transformer",
    paper="Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1; Touvron et al. 2020, "
    "arXiv:2012.12877, table 1, S",
    params=21_376_996,
    macs=1_420_343_808,
    sizes=PATCHES_OF_4,
)
def vit_small(*, num_classes: int, image_size: int, drop_path: float = 0.0) -> nn.Module:
    """As vit_tiny with a width of 384 and 6 heads."""
    return _in_patches_of_4(
        "vit_small_patch16_224",
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )
