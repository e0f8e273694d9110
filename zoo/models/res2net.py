"""Residual networks whose blocks hold several scales at once."""

import torch
from torch import Tensor, nn

from zoo.layers import CoordAttention, conv_bn, pooled_projection
from zoo.models.resnet import Bottleneck, CifarResNet, bottleneck_resnet, deep_stem
from zoo.registry import register_model

GAO_2019 = "Gao et al. 2019, arXiv:1904.01169, section 3.1"
SCALES = 4  # parts that the middle of a block is cut into


class ScaleChain(nn.Module):
    """Cut the channels into parts and let each 3x3 convolution see the sums of those before it.

    Shapes:
        (B, C, H, W) -> the same; `SCALES` divides C.
    Source:
        Gao et al. 2019, arXiv:1904.01169, section 3.1, equation 1. The part without a convolution
        is the last instead of the first, which only renames channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = _convs(channels, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the parts, each with a wider view than the one before it."""
        first, *others, untouched = x.chunk(SCALES, dim=1)
        outputs = [self.convs[0](first)]
        for conv, part in zip(self.convs[1:], others, strict=True):
            outputs.append(conv(part + outputs[-1]))
        return torch.cat((*outputs, untouched), dim=1)


class ScaleStart(nn.Module):
    """The parts of a stage's first block: side by side, since their sizes may change.

    Shapes:
        (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)); `SCALES` divides C.
    Source:
        Gao et al. 2019, arXiv:1904.01169; the paper leaves out how a block changes its size. As in
        its networks no part is added to another, and the last is averaged over 3x3 at any stride.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.convs = _convs(channels, stride=stride)
        self.pool = nn.AvgPool2d(3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the parts."""
        *parts, last = x.chunk(SCALES, dim=1)
        outputs = [conv(part) for conv, part in zip(self.convs, parts, strict=True)]
        return torch.cat((*outputs, self.pool(last)), dim=1)


def _convs(channels: int, *, stride: int) -> nn.ModuleList:
    width = channels // SCALES
    return nn.ModuleList(
        nn.Sequential(*conv_bn(width, width, 3, stride=stride), nn.ReLU())
        for _ in range(SCALES - 1)
    )


def res2net_block(
    inputs: int,
    outputs: int,
    stride: int,
    *,
    gate: nn.Module | None = None,
    shortcut: nn.Module | None = None,
) -> nn.Module:
    """A bottleneck with parts of 26 channels in the middle for 64 of the plain one."""
    width = outputs // 4 * 26 // 64 * SCALES
    # Only the first block of a stage changes the number of channels.
    middle = ScaleChain(width) if inputs == outputs else ScaleStart(width, stride)
    return Bottleneck(
        inputs, outputs, stride, width=width, middle=middle, gate=gate, shortcut=shortcut
    )


def res2net_v1b_block(
    inputs: int, outputs: int, stride: int, *, gate: nn.Module | None = None
) -> nn.Module:
    """The same with a shortcut that averages before its 1x1."""
    shortcut = pooled_projection(inputs, outputs, stride)
    return res2net_block(inputs, outputs, stride, gate=gate, shortcut=shortcut)


def res2net_ca_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A v1b block with coordinate attention on its outputs, before the sum."""
    return res2net_v1b_block(inputs, outputs, stride, gate=CoordAttention(outputs))


@register_model(group="multi-scale", paper=GAO_2019, params=23_847_340, macs=1_352_212_480)
def res2net_50(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_50 with four scales of base width 26 in each block."""
    return bottleneck_resnet(num_classes=num_classes, drop_path=drop_path, block=res2net_block)


@register_model(group="multi-scale", paper=GAO_2019, params=23_874_252, macs=1_379_639_296)
def res2net_50_v1b(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """res2net_50 with a stem of three 3x3 convolutions and averaging shortcuts."""
    return bottleneck_resnet(
        num_classes=num_classes, drop_path=drop_path, block=res2net_v1b_block, stem=deep_stem(64)
    )


@register_model(
    group="multi-scale",
    paper=f"{GAO_2019}; Hou et al. 2021, arXiv:2103.02907, section 3.2",
    params=25_792_084,
    macs=1_395_105_792,
    own_design=True,
)
def res2net_ca_v1b(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """res2net_50_v1b with coordinate attention in each block."""
    return bottleneck_resnet(
        num_classes=num_classes, drop_path=drop_path, block=res2net_ca_block, stem=deep_stem(64)
    )
