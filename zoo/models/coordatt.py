"""Residual networks with coordinate attention, and what its gate and its pooling are worth."""

from collections.abc import Callable
from functools import partial

from torch import nn

from zoo.layers import CoordAttention, mean_l1_pool, mean_l2_pool, mean_max_pool
from zoo.models.resnet import (
    BasicBlock,
    Bottleneck,
    CifarResNet,
    basic_resnet,
    bottleneck_resnet,
)
from zoo.registry import register_model

HOU_2021 = "Hou et al. 2021, arXiv:2103.02907, section 3.2"


def coord_resnet_18(
    *,
    num_classes: int,
    drop_path: float,
    attention: Callable[[int], nn.Module] = CoordAttention,
) -> CifarResNet:
    """resnet_18 whose blocks end in an attention of their outputs, before the sum."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return BasicBlock(inputs, outputs, stride, gate=attention(outputs))

    return basic_resnet(num_classes=num_classes, block=block, drop_path=drop_path)


def coord_bottleneck(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A bottleneck with coordinate attention on its outputs, before the sum."""
    return Bottleneck(inputs, outputs, stride, gate=CoordAttention(outputs))


@register_model(group="attention", paper=HOU_2021, params=11_294_868, macs=556_124_160)
def resnet_18_ca(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_18 with coordinate attention in each block."""
    return coord_resnet_18(num_classes=num_classes, drop_path=drop_path)


@register_model(group="attention", paper=HOU_2021, params=25_623_084, macs=1_313_480_704)
def resnet_50_ca(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_50 with coordinate attention in each block."""
    return bottleneck_resnet(num_classes=num_classes, drop_path=drop_path, block=coord_bottleneck)


@register_model(group="ablation", paper=HOU_2021, params=11_294_868, macs=556_124_160)
def resnet_18_ca_relu(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_18_ca with ReLU for the sigmoid of the gates."""
    attention = partial(CoordAttention, gate=nn.ReLU)
    return coord_resnet_18(num_classes=num_classes, drop_path=drop_path, attention=attention)


@register_model(group="ablation", paper=HOU_2021, params=11_294_868, macs=556_124_160)
def resnet_18_ca_elu(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_18_ca with ELU for the sigmoid of the gates."""
    attention = partial(CoordAttention, gate=nn.ELU)
    return coord_resnet_18(num_classes=num_classes, drop_path=drop_path, attention=attention)


@register_model(group="ablation", paper=HOU_2021, params=11_294_868, macs=556_124_160)
def resnet_18_ca_softmax(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_18_ca with a softmax over the channels for the sigmoid of the gates."""
    # Each gate starts near 1 / C, so the branches add next to nothing at first.
    attention = partial(CoordAttention, gate=partial(nn.Softmax, dim=1))
    return coord_resnet_18(num_classes=num_classes, drop_path=drop_path, attention=attention)


@register_model(group="ablation", paper=HOU_2021, params=11_294_868, macs=556_124_160)
def resnet_18_ca_avg_max(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_18_ca that pools rows and columns by the mean plus the largest value."""
    attention = partial(CoordAttention, pool=mean_max_pool)
    return coord_resnet_18(num_classes=num_classes, drop_path=drop_path, attention=attention)


@register_model(group="ablation", paper=HOU_2021, params=11_294_868, macs=556_124_160)
def resnet_18_ca_avg_l1(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_18_ca that pools rows and columns by the mean plus the mean magnitude."""
    attention = partial(CoordAttention, pool=mean_l1_pool)
    return coord_resnet_18(num_classes=num_classes, drop_path=drop_path, attention=attention)


@register_model(group="ablation", paper=HOU_2021, params=11_294_868, macs=556_124_160)
def resnet_18_ca_avg_l2(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """resnet_18_ca that pools rows and columns by the mean plus the root mean square."""
    attention = partial(CoordAttention, pool=mean_l2_pool)
    return coord_resnet_18(num_classes=num_classes, drop_path=drop_path, attention=attention)
