"""GhostNet, a mobile network of ghost bottlenecks, for 32x32 images."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from zoo.layers import GhostModule, SqueezeExcite, conv_bn
from zoo.registry import register_model

# (depthwise kernel, hidden width, outputs, width inside squeeze-and-excite or 0 for none)
Row = tuple[int, int, int, int]

# The squeezed width is a quarter of the hidden one, to the nearest multiple of 4, ties upwards.
GHOSTNET_100: tuple[tuple[Row, ...], ...] = (
    ((3, 16, 16, 0),),
    (
        (3, 48, 24, 0),
        (3, 72, 24, 0),
    ),
    (
        (5, 72, 40, 20),
        (5, 120, 40, 32),
    ),
    (
        (3, 240, 80, 0),
        (3, 200, 80, 0),
        (3, 184, 80, 0),
        (3, 184, 80, 0),
        (3, 480, 112, 120),
        (3, 672, 112, 168),
    ),
    (
        (5, 672, 160, 168),
        (5, 960, 160, 0),
        (5, 960, 160, 240),
        (5, 960, 160, 0),
        (5, 960, 160, 240),
    ),
)


class GhostBottleneck(nn.Module):
    """Widen by a ghost module, narrow by a linear one; add to the shortcut, no activation after.

    Between the two lie a depthwise convolution where `stride` is 2 and, where `squeezed` is not 0,
    squeeze-and-excite of that inner width.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        Han et al. 2020, arXiv:1911.11907, section 3.2, figure 3; the gate is the hard sigmoid of
        Howard et al. 2019, arXiv:1905.02244, section 5.2.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, kernel: int, hidden: int, squeezed: int
    ) -> None:
        super().__init__()
        self.widen = GhostModule(inputs, hidden, kernel=1)
        self.shrink = _depthwise(hidden, kernel, stride) if stride > 1 else nn.Identity()
        self.squeeze = (
            SqueezeExcite(hidden, squeezed, gate=nn.Hardsigmoid) if squeezed else nn.Identity()
        )
        self.narrow = GhostModule(hidden, outputs, kernel=1, act=nn.Identity)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(*_depthwise(inputs, kernel, stride), *conv_bn(inputs, outputs, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        return self.narrow(self.squeeze(self.shrink(self.widen(x)))) + self.shortcut(x)


class GhostNet(nn.Module):
    """A 3x3 stem at full resolution, stages of ghost bottlenecks, mean, two linear layers.

    Each stage but the first halves the map in its first block.

    Shapes:
        (B, 3, H, W) -> (B, K).
    Source:
        Han et al. 2020, arXiv:1911.11907, table 1, with a stem of stride 1 instead of 2; dropout
        before the last layer as in Howard et al. 2019, arXiv:1905.02244, section 6.1.
    """

    def __init__(
        self,
        *,
        stages: Sequence[Sequence[Row]],
        num_classes: int,
        stem_width: int = 16,
        last_width: int = 960,
        feature_width: int = 1280,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        outputs = stages[-1][-1][2]
        self.stem = nn.Sequential(*conv_bn(3, stem_width, 3), nn.ReLU())
        self.stages = nn.Sequential(*_stages(stem_width, stages))
        self.last = nn.Sequential(*conv_bn(outputs, last_width, 1), nn.ReLU())
        self.features = nn.Sequential(
            nn.Linear(last_width, feature_width), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(feature_width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.last(self.stages(self.stem(x)))
        return self.head(self.features(x.mean((2, 3))))  # (B, K)


def _depthwise(width: int, kernel: int, stride: int) -> nn.Sequential:
    return conv_bn(width, width, kernel, stride=stride, groups=width)


def _stages(inputs: int, stages: Sequence[Sequence[Row]]) -> Iterator[nn.Sequential]:
    for stage, rows in enumerate(stages):
        blocks = []
        for position, (kernel, hidden, outputs, squeezed) in enumerate(rows):
            stride = 2 if stage > 0 and position == 0 else 1
            blocks.append(
                GhostBottleneck(
                    inputs, outputs, stride, kernel=kernel, hidden=hidden, squeezed=squeezed
                )
            )
            inputs = outputs
        yield nn.Sequential(*blocks)


@register_model(
    group="lightweight",
    paper="Han et al. 2020, arXiv:1911.11907, section 3.2, table 1",
    params=4_029_608,
    macs=14_051_072,
)
def ghostnet_100(*, num_classes: int) -> GhostNet:
    """GhostNet of width 1.0 with a stem of stride 1: maps of 32, 16, 8, 4 and 2."""
    return GhostNet(stages=GHOSTNET_100, num_classes=num_classes)
