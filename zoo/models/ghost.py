"""CIFAR residual networks built from ghost modules."""

from torch import Tensor, nn

from zoo.layers import GhostModule, projection
from zoo.models.resnet import CifarResNet
from zoo.registry import register_model


class GhostBasicBlock(nn.Module):
    """A basic block whose 3x3 convolutions are ghost modules, each followed by batch norm.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).
    Source:
        Han et al. 2020, arXiv:1911.11907, section 4.1 (ghost modules in a residual network).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            GhostModule(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        )
        self.second = nn.Sequential(GhostModule(outputs, outputs), nn.BatchNorm2d(outputs))
        self.shortcut = projection(inputs, outputs, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        return self.act(self.second(self.act(self.first(x))) + self.shortcut(x))


@register_model(paper="Han et al. 2020, arXiv:1911.11907, section 4.1", params=149_060)
def ghost_resnet_20(*, num_classes: int) -> CifarResNet:
    """resnet_20 with half of each block's maps made by a cheap depthwise convolution."""
    return CifarResNet(depth=3, num_classes=num_classes, block=GhostBasicBlock)
