"""Residual networks with split attention."""

from torch import nn

from zoo.layers import SplitAttention, pooled_projection
from zoo.models.resnet import Bottleneck, CifarResNet, bottleneck_resnet, deep_stem
from zoo.registry import register_model


def resnest_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A bottleneck around split attention, which keeps the size: 3x3 means halve it.

    Source:
        Zhang et al. 2022, arXiv:2004.08955, sections 3.1 and 4.1.
    """
    width = outputs // 4
    shrink = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)
    return Bottleneck(
        inputs,
        outputs,
        stride,
        middle=nn.Sequential(SplitAttention(width), shrink),
        shortcut=pooled_projection(inputs, outputs, stride),
    )


@register_model(
    group="hybrid",
    paper="Zhang et al. 2022, arXiv:2004.08955, sections 3.1 and 4.1",
    params=25_639_140,
    macs=1_667_065_856,
)
def resnest50d(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """ResNeSt-50 with radix 2 and cardinality 1; its stem keeps the full resolution.

    Note:
        Training takes at least two images a batch.
    """
    return bottleneck_resnet(
        num_classes=num_classes, drop_path=drop_path, block=resnest_block, stem=deep_stem(64)
    )
