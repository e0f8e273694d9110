"""Residual networks whose blocks hold many narrow branches."""

from functools import partial

from torch import nn

from zoo.layers import conv_bn
from zoo.models.resnet import Bottleneck, CifarResNet, bottleneck_resnet
from zoo.registry import register_model


def resnext_block(
    inputs: int, outputs: int, stride: int, *, groups: int, widening: float
) -> nn.Module:
    """A bottleneck of `groups` branches, `widening` times as wide in the middle as at the end.

    Source:
        Xie et al. 2017, arXiv:1611.05431, section 3.3, figure 3c: the branches are one grouped
        convolution.
    """
    width = int(outputs * widening)
    conv = conv_bn(width, width, 3, stride=stride, groups=groups)
    middle = nn.Sequential(*conv, nn.ReLU())
    return Bottleneck(inputs, outputs, stride, width=width, middle=middle)


@register_model(
    group="multi-scale",
    paper="Xie et al. 2017, arXiv:1611.05431, table 1",
    params=23_177_124,
    macs=1_344_151_552,
)
def resnext_50(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """ResNeXt-50 (32x4d): resnet_50 with 32 branches, of 4 channels in the first stage."""
    block = partial(resnext_block, groups=32, widening=0.5)
    return bottleneck_resnet(num_classes=num_classes, block=block, drop_path=drop_path)


@register_model(
    group="multi-scale",
    paper="Xie et al. 2017, arXiv:1611.05431, section 5.3",
    params=34_518_948,
    macs=5_387_358_208,
)
def resnext_29_8x64d(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """ResNeXt-29: three stages of three blocks with 8 branches, of 64 channels in the first."""
    block = partial(resnext_block, groups=8, widening=2)
    return bottleneck_resnet(
        num_classes=num_classes,
        block=block,
        blocks=(3, 3, 3),
        widths=(256, 512, 1024),
        drop_path=drop_path,
    )
