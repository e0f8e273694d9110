"""CIFAR residual networks built from ghost modules."""

from functools import partial

from torch import Tensor, nn

from zoo.layers import GhostModule, projection
from zoo.models.resnet import CifarResNet
from zoo.registry import register_model

HAN_2020 = "Han et al. 2020, arXiv:1911.11907, section 4.1"


class GhostBasicBlock(nn.Module):
    """A basic block whose 3x3 convolutions are ghost modules, each followed by batch norm.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).
    Source:
        Han et al. 2020, arXiv:1911.11907, section 4.1 (ghost modules in a residual network).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, ratio: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(
            GhostModule(inputs, outputs, stride=stride, ratio=ratio), nn.BatchNorm2d(outputs)
        )
        self.second = nn.Sequential(
            GhostModule(outputs, outputs, ratio=ratio), nn.BatchNorm2d(outputs)
        )
        self.shortcut = projection(inputs, outputs, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        return self.act(self.second(self.act(self.first(x))) + self.shortcut(x))


@register_model(group="lightweight", paper=HAN_2020, params=149_060, macs=21_539_072)
def ghost_resnet_20(*, num_classes: int) -> CifarResNet:
    """resnet_20 with half of each block's maps made by a cheap depthwise convolution."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=GhostBasicBlock)


@register_model(group="ablation", paper=HAN_2020, params=108_980, macs=16_060_160)
def ghost_resnet_20_r3(*, num_classes: int) -> CifarResNet:
    """ghost_resnet_20 with two thirds of the maps made cheaply."""
    block = partial(GhostBasicBlock, ratio=3)
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=block)


@register_model(group="ablation", paper=HAN_2020, params=83_756, macs=11_899_136)
def ghost_resnet_20_r4(*, num_classes: int) -> CifarResNet:
    """ghost_resnet_20 with three quarters of the maps made cheaply."""
    block = partial(GhostBasicBlock, ratio=4)
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes, block=block)


@register_model(group="lightweight", paper=HAN_2020, params=249_636, macs=36_210_944)
def ghost_resnet_32(*, num_classes: int) -> CifarResNet:
    """ghost_resnet_20 with five blocks a stage."""
    return CifarResNet(blocks=(5, 5, 5), num_classes=num_classes, block=GhostBasicBlock)
