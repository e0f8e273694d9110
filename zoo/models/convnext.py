"""ConvNeXt, built by timm, with a stem for small images."""

from typing import cast

from torch import nn

from zoo.layers import DropPath
from zoo.registry import ImageSizes, register_model


@register_model(
    group="modern conv",
    paper="Liu et al. 2022, arXiv:2201.03545, section 2, ConvNeXt-T",
    params=27_897_028,
    macs=363_730_944,
    sizes=ImageSizes(step=16, least=16),
)
def convnext_tiny(*, num_classes: int, drop_path: float = 0.1) -> nn.Module:
    """ConvNeXt-T whose 4x4 stem has stride 2 and padding 1; drop path rises to `drop_path`.

    The paper's stride 4 would leave one pixel of a 32x32 image to the last stage. timm's own
    `patch_size=2` will not do: it moves the second stride into the first stage.
    """
    import timm

    rate = DropPath(drop_path).rate  # checked: timm takes any number
    model = timm.create_model("convnext_tiny", num_classes=num_classes, drop_path_rate=rate)
    stem = cast(nn.Conv2d, model.get_submodule("stem.0"))
    stem.stride, stem.padding = (2, 2), (1, 1)
    return model
