"""CIFAR residual networks gated by channels and by neighbourhoods of two sizes."""

import torch
from torch import Tensor, nn

from zoo.layers import EfficientChannelAttention, adaptive_kernel
from zoo.models.resnet import BasicBlock, CifarResNet
from zoo.registry import register_model


class MultiScaleGate(nn.Module):
    """Scale each value by a gate that sees its 3x3 and 5x5 neighbourhood in all channels.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Guo et al. 2022, arXiv:2209.08575, equations 1 and 2, cut down to two square depthwise
        kernels side by side, with a sigmoid on the mixed map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.far = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate every value of `x`."""
        return x * torch.sigmoid(self.mix(self.near(x) + self.far(x)))


def spatial_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A basic block with the multi-scale gate before the sum."""
    return BasicBlock(inputs, outputs, stride, gate=MultiScaleGate(outputs))


def hybrid_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A basic block gated by channels, then at multiple scales, before the sum."""
    channels = EfficientChannelAttention(adaptive_kernel(outputs))
    gate = nn.Sequential(channels, MultiScaleGate(outputs))
    return BasicBlock(inputs, outputs, stride, gate=gate)


@register_model(
    group="attention",
    paper="Wang et al. 2020, arXiv:1910.03151, and Guo et al. 2022, arXiv:2209.08575, equations "
    "1 and 2, on He et al. 2015, arXiv:1512.03385",
    params=306_911,
    macs=46_103_792,
    own_design=True,
)
def hyaresnet_20(*, num_classes: int) -> CifarResNet:
    """resnet_20 with channel attention and a multi-scale gate in each block."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=hybrid_block)


@register_model(
    group="ablation",
    paper="Guo et al. 2022, arXiv:2209.08575, equations 1 and 2, on He et al. 2015, "
    "arXiv:1512.03385",
    params=306_884,
    macs=46_102_784,
    own_design=True,
)
def resnet_20_msca(*, num_classes: int) -> CifarResNet:
    """hyaresnet_20 without its channel attention."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=spatial_block)
