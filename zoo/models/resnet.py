"""Residual networks for 32x32 images."""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from zoo.layers import conv_bn, projection
from zoo.registry import register_model

# (inputs, outputs, stride) -> a residual block with its last activation
BlockBuilder = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, with an optional gate before the sum.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).
    Source:
        He et al. 2015, arXiv:1512.03385, figure 2 and section 4.2.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, gate: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride=stride)
        self.second = conv_bn(outputs, outputs, 3)
        self.gate = nn.Identity() if gate is None else gate
        self.shortcut = projection(inputs, outputs, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        y = self.second(self.act(self.first(x)))
        return self.act(self.gate(y) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of residual blocks, mean over the map, one linear layer.

    Shapes:
        (B, 3, H, W) -> (B, K); H and W divisible by 4.
    Source:
        He et al. 2015, arXiv:1512.03385, section 4.2.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_classes: int,
        block: BlockBuilder = BasicBlock,
        widths: tuple[int, ...] = (16, 32, 64),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, widths[0], 3), nn.ReLU())
        self.stages = nn.Sequential(*_stages(block, widths, depth))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.stages(self.stem(x))
        return self.head(x.mean((2, 3)))  # (B, K)


def _stages(block: BlockBuilder, widths: tuple[int, ...], depth: int) -> Iterator[nn.Sequential]:
    inputs = widths[0]
    for stage, width in enumerate(widths):
        blocks = []
        for position in range(depth):
            blocks.append(block(inputs, width, 2 if stage > 0 and position == 0 else 1))
            inputs = width
        yield nn.Sequential(*blocks)


HE_2015 = "He et al. 2015, arXiv:1512.03385, section 4.2"


@register_model(paper=HE_2015, params=278_324)
def resnet_20(*, num_classes: int) -> CifarResNet:
    """Three blocks a stage, widths 16, 32 and 64; 1x1 projection shortcuts."""
    return CifarResNet(depth=3, num_classes=num_classes)


@register_model(paper=HE_2015, params=472_756)
def resnet_32(*, num_classes: int) -> CifarResNet:
    """Five blocks a stage, otherwise resnet_20."""
    return CifarResNet(depth=5, num_classes=num_classes)


@register_model(paper=HE_2015, params=861_620)
def resnet_56(*, num_classes: int) -> CifarResNet:
    """Nine blocks a stage, otherwise resnet_20."""
    return CifarResNet(depth=9, num_classes=num_classes)
