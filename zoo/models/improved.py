"""CIFAR residual networks with inverted bottlenecks and 7x7 depthwise convolutions."""

from collections.abc import Iterator

from torch import Tensor, nn

from zoo.layers import DropPath, conv_bn, projection
from zoo.models.resnet import CifarResNet
from zoo.registry import register_model


class InvertedBlock(nn.Module):
    """Widen by 4 times the input, mix each map by 7x7, narrow; add to the shortcut.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).
    Source:
        The inverted bottleneck of Sandler et al. 2018, arXiv:1801.04381, figure 3b, with the 7x7
        depthwise kernel of Liu et al. 2022, arXiv:2201.03545, section 2.5; batch norm and ReLU as
        in He et al. 2015, and the hidden width counts from the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, drop_path: float) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.branch = nn.Sequential(
            nn.Sequential(*conv_bn(inputs, hidden, 1), nn.ReLU()),
            nn.Sequential(*conv_bn(hidden, hidden, 7, stride=stride, groups=hidden), nn.ReLU()),
            conv_bn(hidden, outputs, 1),
        )
        self.drop_path = DropPath(drop_path)
        self.shortcut = projection(inputs, outputs, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        return self.act(self.drop_path(self.branch(x)) + self.shortcut(x))


def _rates(blocks: int, last: float) -> Iterator[float]:
    """Drop path rates that rise linearly from 0 to `last`."""
    return (last * position / (blocks - 1) for position in range(blocks))


@register_model(
    paper="Liu et al. 2022, arXiv:2201.03545, section 2 on He et al. 2015, arXiv:1512.03385",
    params=174_868,
)
def improved_resnet20_convnext(*, num_classes: int, drop_path: float = 0.05) -> CifarResNet:
    """resnet_20 with inverted 7x7 depthwise blocks; drop path rises to `drop_path`."""
    rates = _rates(9, drop_path)

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return InvertedBlock(inputs, outputs, stride, drop_path=next(rates))

    return CifarResNet(depth=3, num_classes=num_classes, block=block)
