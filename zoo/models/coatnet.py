"""Convolution in the early stages, attention in the late ones."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from zoo.layers import DropPath, SqueezeExcite, TransformerBlock, conv_bn, drop_path_rates
from zoo.registry import ImageSizes, register_model

# (channels, inputs of the block) -> a gate for maps of so many channels
GateBuilder = Callable[[int, int], nn.Module]


class MBConv(nn.Module):
    """Batch norm, 1x1 to 4 times the input, 3x3 depthwise, a channel gate, 1x1; plus a shortcut.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        Dai et al. 2021, arXiv:2106.04803, section 2.2 and appendix A.1. The stride sits on the
        depthwise convolution instead of the first 1x1, and the shortcut averages.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, drop_path: float) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.norm = nn.BatchNorm2d(inputs)
        self.branch = nn.Sequential(
            nn.Sequential(*conv_bn(inputs, hidden, 1), nn.GELU()),
            nn.Sequential(*conv_bn(hidden, hidden, 3, stride=stride, groups=hidden), nn.GELU()),
            SqueezeExcite(hidden, inputs // 4, act=nn.SiLU),
            nn.Conv2d(hidden, outputs, 1),
        )
        self.drop_path = DropPath(drop_path)
        if stride == 1 and inputs == outputs:
            self.shortcut: nn.Module = nn.Identity()
        else:
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        return self.shortcut(x) + self.drop_path(self.branch(self.norm(x)))


class MobileBlock(nn.Module):
    """1x1 to 4 times the input, 3x3 depthwise, a gate, 1x1; added to the input of the same shape.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        Sandler et al. 2018, arXiv:1801.04381, figure 4d, with a gate after the depthwise
        convolution, as in Howard et al. 2019, arXiv:1905.02244, figure 4.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, gate: GateBuilder, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.branch = nn.Sequential(
            nn.Sequential(*conv_bn(inputs, hidden, 1), nn.ReLU6()),
            nn.Sequential(*conv_bn(hidden, hidden, 3, stride=stride, groups=hidden), nn.ReLU6()),
            gate(hidden, inputs),
            conv_bn(hidden, outputs, 1),
        )
        self.is_residual = stride == 1 and inputs == outputs
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the input, where they fit."""
        y = self.branch(x)
        return x + self.drop_path(y) if self.is_residual else y


class CoAtNet(nn.Module):
    """A stem, stages, the mean over the map, a norm or none, one linear layer.

    Shapes:
        (B, 3, H, W) -> (B, K); (B, `width`, h, w) come out of the last stage.
    Source:
        Dai et al. 2021, arXiv:2106.04803, section 2.2.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        *,
        width: int,
        num_classes: int,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity() if norm is None else norm
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.stages(self.stem(x))
        return self.head(self.norm(x.mean((2, 3))))  # (B, K)


def mobile_stage(
    inputs: int, outputs: int, stride: int, rates: Sequence[float], gate: GateBuilder
) -> nn.Sequential:
    """Mobile blocks, one for each drop path rate; the first changes the shape."""
    first = MobileBlock(inputs, outputs, stride, gate=gate, drop_path=rates[0])
    rest = (MobileBlock(outputs, outputs, 1, gate=gate, drop_path=rate) for rate in rates[1:])
    return nn.Sequential(first, *rest)


def plain_transformer_stage(
    enter: nn.Module,
    width: int,
    rates: Sequence[float],
    *,
    heads: int,
    grid: int | None = None,
    dropout: float = 0.0,
    gate: GateBuilder | None = None,
) -> nn.Sequential:
    """A layer that leads to the width, then transformer blocks of one shape, one for each rate."""
    blocks = (
        TransformerBlock(
            width,
            width,
            heads=heads,
            mlp_ratio=4,
            grid=grid,
            dropout=dropout,
            drop_path=rate,
            gate=None if gate is None else gate(width, width),
        )
        for rate in rates
    )
    return nn.Sequential(enter, *blocks)


def _coatnet(
    *, blocks: Sequence[int], mlp_ratio: int, num_classes: int, image_size: int, drop_path: float
) -> CoAtNet:
    """Two convolutions, two stages of MBConv, two of transformer blocks; each stage halves."""
    widths = (64, 96, 192, 384, 768)
    rates = drop_path_rates(sum(blocks), drop_path)

    def block(position: int, inputs: int, stride: int) -> nn.Module:
        width, rate = widths[position], next(rates)
        if position < 3:
            return MBConv(inputs, width, stride, drop_path=rate)
        return TransformerBlock(
            inputs,
            width,
            stride,
            heads=width // 32,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            grid=-(-image_size // 2**position),  # every stage rounds up, so one division does
            drop_path=rate,
        )

    def stage(position: int, depth: int) -> nn.Sequential:
        first = block(position, widths[position - 1], 2)
        return nn.Sequential(
            first, *(block(position, widths[position], 1) for _ in range(depth - 1))
        )

    last = nn.Conv2d(widths[0], widths[0], 3, padding=1)
    return CoAtNet(
        nn.Sequential(*conv_bn(3, widths[0], 3), nn.GELU(), last),
        [stage(position, depth) for position, depth in enumerate(blocks, start=1)],
        width=widths[-1],
        norm=nn.LayerNorm(widths[-1], eps=1e-6),
        num_classes=num_classes,
    )


@register_model(
    group="hybrid",
    paper="Dai et al. 2021, arXiv:2106.04803, table 3, CoAtNet-0, with 4 blocks for 3 in S2",
    params=20_044_608,
    macs=319_822_848,
)
def coatnet_0(*, num_classes: int, image_size: int, drop_path: float = 0.1) -> CoAtNet:
    """Stem at full resolution, stages of 2, 4, 5 and 2 blocks, MLPs 3 times as wide."""
    return _coatnet(
        blocks=(2, 4, 5, 2),
        mlp_ratio=3,
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )


@register_model(
    group="hybrid",
    paper="Dai et al. 2021, arXiv:2106.04803, table 3, CoAtNet-1",
    params=40_617_420,
    macs=648_207_360,
)
def coatnet_1(*, num_classes: int, image_size: int, drop_path: float = 0.1) -> CoAtNet:
    """As coatnet_0 with stages of 2, 6, 14 and 2 blocks, MLPs 4 times as wide."""
    return _coatnet(
        blocks=(2, 6, 14, 2),
        mlp_ratio=4,
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )


@register_model(
    group="hybrid",
    paper="Dai et al. 2021, arXiv:2106.04803, section 2.2, simplified: no offsets, no final norm",
    params=26_312_964,
    macs=328_985_600,
    sizes=ImageSizes(step=16, least=16),
)
def coatnet_0_asrun(*, num_classes: int) -> CoAtNet:
    """Mobile blocks with a squeeze and excite gate, then plain transformer blocks of 4 heads."""

    def gate(channels: int, inputs: int) -> nn.Module:
        return SqueezeExcite(channels, channels // 4, act=nn.ReLU6)

    def enter(inputs: int, outputs: int, kernel: int, depth: int) -> nn.Sequential:
        layer = nn.Conv2d(inputs, outputs, kernel, stride=kernel)
        return plain_transformer_stage(layer, outputs, [0.0] * depth, heads=4)

    return CoAtNet(
        nn.Sequential(*conv_bn(3, 64, 3, stride=2), nn.ReLU()),
        [
            mobile_stage(64, 64, 1, [0.0] * 2, gate),
            mobile_stage(64, 96, 2, [0.0] * 2, gate),
            enter(96, 192, 1, 3),
            enter(192, 384, 2, 5),
            enter(384, 768, 2, 2),
        ],
        width=768,
        num_classes=num_classes,
    )
