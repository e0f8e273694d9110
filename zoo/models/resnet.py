"""Residual networks for 32x32 images."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from torch import Tensor, nn

from zoo.layers import DropPath, conv_bn, drop_path_rates, projection
from zoo.registry import register_model

# (inputs, outputs, stride) -> a residual block with its last activation
BlockBuilder = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, with an optional gate before the sum.

    Two other places can hold a gate: `inner_gate` before the first activation, `outer_gate`
    between the sum and the last one.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).
    Source:
        He et al. 2015, arXiv:1512.03385, figure 2 and section 4.2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        gate: nn.Module | None = None,
        inner_gate: nn.Module | None = None,
        outer_gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride=stride)
        self.inner_gate = nn.Identity() if inner_gate is None else inner_gate
        self.second = conv_bn(outputs, outputs, 3)
        self.gate = nn.Identity() if gate is None else gate
        self.drop_path = DropPath(0.0)
        self.shortcut = projection(inputs, outputs, stride)
        self.outer_gate = nn.Identity() if outer_gate is None else outer_gate
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        y = self.second(self.act(self.inner_gate(self.first(x))))
        return self.act(self.outer_gate(self.drop_path(self.gate(y)) + self.shortcut(x)))


class Bottleneck(nn.Module):
    """1x1, a spatial convolution, 1x1 around a shortcut, with an optional gate before the sum.

    `width` is that of the middle, a quarter of the outputs by default. `middle` maps
    (B, width, H, W) to (B, width, H / stride, W / stride), its activation included; a 3x3
    convolution by default.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).
    Source:
        He et al. 2015, arXiv:1512.03385, figure 5; the stride sits on the spatial convolution, as
        in torchvision and timm.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        width: int | None = None,
        middle: nn.Module | None = None,
        gate: nn.Module | None = None,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        width = outputs // 4 if width is None else width
        if middle is None:
            middle = nn.Sequential(*conv_bn(width, width, 3, stride=stride), nn.ReLU())
        self.reduce = nn.Sequential(*conv_bn(inputs, width, 1), nn.ReLU())
        self.middle = middle
        self.expand = conv_bn(width, outputs, 1)
        self.gate = nn.Identity() if gate is None else gate
        self.drop_path = DropPath(0.0)
        self.shortcut = projection(inputs, outputs, stride) if shortcut is None else shortcut
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        y = self.expand(self.middle(self.reduce(x)))
        return self.act(self.drop_path(self.gate(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A stem at full resolution, stages of residual blocks, mean over the map, one linear layer.

    Stage i has `blocks[i]` blocks of `widths[i]` outputs; each stage but the first halves the map.
    `stem` takes the images to (B, `stem_width`, H, W); one 3x3 convolution by default. The drop
    path of the blocks, which then need one, rises to `drop_path`.

    Shapes:
        (B, 3, H, W) -> (B, K).
    Source:
        He et al. 2015, arXiv:1512.03385, section 4.2.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        num_classes: int,
        block: BlockBuilder = BasicBlock,
        widths: Sequence[int] = (16, 32, 64),
        stem_width: int = 16,
        stem: nn.Module | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, stem_width, 3), nn.ReLU()) if stem is None else stem
        self.stages = nn.Sequential(*_stages(block, stem_width, widths, blocks))
        self.head = nn.Linear(widths[-1], num_classes)
        if drop_path:
            rates = drop_path_rates(sum(blocks), drop_path)
            for residual, rate in zip(chain(*self.stages), rates, strict=True):
                residual.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.stages(self.stem(x))
        return self.head(x.mean((2, 3)))  # (B, K)


def deep_stem(width: int) -> nn.Sequential:
    """Three 3x3 convolutions at full resolution, the first two half as wide.

    Shapes:
        (B, 3, H, W) -> (B, width, H, W).
    Source:
        He et al. 2018, arXiv:1812.01187, section 4.2, ResNet-C, without its stride.
    """
    half = width // 2
    parts = [conv_bn(3, half, 3), conv_bn(half, half, 3), conv_bn(half, width, 3)]
    return nn.Sequential(*(nn.Sequential(*part, nn.ReLU()) for part in parts))


def _stages(
    block: BlockBuilder, inputs: int, widths: Sequence[int], blocks: Sequence[int]
) -> Iterator[nn.Sequential]:
    for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
        built = []
        for position in range(depth):
            built.append(block(inputs, width, 2 if stage > 0 and position == 0 else 1))
            inputs = width
        yield nn.Sequential(*built)


HE_2015 = "He et al. 2015, arXiv:1512.03385, section 4.2"
HE_2015_WIDE = "He et al. 2015, arXiv:1512.03385, table 1"


@register_model(group="baseline", paper=HE_2015, params=278_324, macs=40_818_944)
def resnet_20(*, num_classes: int) -> CifarResNet:
    """Three blocks a stage, widths 16, 32 and 64; 1x1 projection shortcuts."""
    return CifarResNet(blocks=(3, 3, 3), num_classes=num_classes)


@register_model(group="baseline", paper=HE_2015, params=472_756, macs=69_130_496)
def resnet_32(*, num_classes: int) -> CifarResNet:
    """Five blocks a stage, otherwise resnet_20."""
    return CifarResNet(blocks=(5, 5, 5), num_classes=num_classes)


@register_model(group="baseline", paper=HE_2015, params=861_620, macs=125_753_600)
def resnet_56(*, num_classes: int) -> CifarResNet:
    """Nine blocks a stage, otherwise resnet_20."""
    return CifarResNet(blocks=(9, 9, 9), num_classes=num_classes)


@register_model(group="baseline", paper=HE_2015_WIDE, params=11_220_132, macs=555_468_800)
def resnet_18(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """The 18-layer network of ImageNet with a 3x3 stem of stride 1 and no pooling."""
    return basic_resnet(num_classes=num_classes, drop_path=drop_path)


@register_model(group="baseline", paper=HE_2015_WIDE, params=23_705_252, macs=1_298_014_208)
def resnet_50(*, num_classes: int, drop_path: float = 0.0) -> CifarResNet:
    """The 50-layer network of ImageNet with a 3x3 stem of stride 1 and no pooling."""
    return bottleneck_resnet(num_classes=num_classes, drop_path=drop_path)


def basic_resnet(
    *, num_classes: int, block: BlockBuilder = BasicBlock, drop_path: float = 0.0
) -> CifarResNet:
    """The shape of the 18-layer network, with other blocks."""
    return CifarResNet(
        blocks=(2, 2, 2, 2),
        widths=(64, 128, 256, 512),
        block=block,
        stem_width=64,
        num_classes=num_classes,
        drop_path=drop_path,
    )


def bottleneck_resnet(
    *,
    num_classes: int,
    block: BlockBuilder = Bottleneck,
    stem: nn.Module | None = None,
    blocks: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (256, 512, 1024, 2048),
    drop_path: float = 0.0,
) -> CifarResNet:
    """The shape of the 50-layer network, with other blocks or another stem."""
    return CifarResNet(
        blocks=blocks,
        widths=widths,
        block=block,
        stem=stem,
        stem_width=64,
        num_classes=num_classes,
        drop_path=drop_path,
    )
