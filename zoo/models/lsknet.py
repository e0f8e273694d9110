"""LSKNet: each pixel chooses how far it looks."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from zoo.layers import DropPath, LargeSelectiveKernel, LayerNorm2d, LayerScale, drop_path_rates
from zoo.registry import register_model

SCALE_AT_START = 1e-2


class LskBlock(nn.Module):
    """Large kernel selection and a feed-forward network, each scaled and added to its input.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Li et al. 2023, arXiv:2303.09030, section 3.1. The selection's own shortcut starts
        behind the norm.
    """

    def __init__(self, channels: int, *, ratio: int, drop_path: float) -> None:
        super().__init__()
        hidden = ratio * channels
        self.select_norm = nn.BatchNorm2d(channels)
        self.select = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.GELU(),
            LargeSelectiveKernel(channels),
            nn.Conv2d(channels, channels, 1),
        )
        self.select_scale = LayerScale(channels, SCALE_AT_START)
        self.feed = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, channels, 1),
        )
        self.feed_scale = LayerScale(channels, SCALE_AT_START)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Select, then mix channels."""
        y = self.select_norm(x)
        x = x + self.drop_path(self.select_scale(y + self.select(y)))
        return x + self.drop_path(self.feed_scale(self.feed(x)))


class LskNet(nn.Module):
    """Stages of blocks behind overlapping 3x3 convolutions, mean over the map, one linear layer.

    Shapes:
        (B, 3, H, W) -> (B, K).
    Source:
        Li et al. 2023, arXiv:2303.09030, section 3.1; the stem is a 3x3 convolution of
        stride 1, where the paper's, for large images, is 7x7 of stride 4.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        ratios: Sequence[int],
        num_classes: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        rates = drop_path_rates(sum(depths), drop_path)
        self.stem = _embed(3, widths[0], 1)
        self.stages = nn.Sequential(*_stages(widths, depths, ratios, rates))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.stages(self.stem(x))
        return self.head(x.mean((2, 3)))  # (B, K)


def _stages(
    widths: Sequence[int], depths: Sequence[int], ratios: Sequence[int], rates: Iterator[float]
) -> Iterator[nn.Sequential]:
    for stage, (width, depth, ratio) in enumerate(zip(widths, depths, ratios, strict=True)):
        down = _embed(widths[stage - 1], width, 2) if stage > 0 else nn.Identity()
        blocks = [LskBlock(width, ratio=ratio, drop_path=next(rates)) for _ in range(depth)]
        yield nn.Sequential(down, *blocks, LayerNorm2d(width))


def _embed(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Overlapping patches: 3x3 convolution with bias, then batch norm."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


@register_model(
    group="attention",
    paper="Li et al. 2023, arXiv:2303.09030, section 3.1, LSKNet-T",
    params=4_012_050,
    macs=287_317_376,
)
def lsknet_tiny(*, num_classes: int, drop_path: float = 0.1) -> LskNet:
    """LSKNet-T at full resolution; drop path rises to `drop_path`."""
    return LskNet(
        widths=(32, 64, 160, 256),
        depths=(3, 3, 5, 2),
        ratios=(8, 8, 4, 4),
        num_classes=num_classes,
        drop_path=drop_path,
    )
