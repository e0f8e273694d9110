"""HorNet: recursive gated convolutions in the place of attention."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from zoo.layers import DropPath, GatedConv, LayerNorm2d, LayerScale, drop_path_rates
from zoo.registry import ImageSizes, register_model

SCALE_AT_START = 1e-6


class HorBlock(nn.Module):
    """Gated convolution and a 1x1 MLP, each normalised, scaled and added to its input.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Rao et al. 2022, arXiv:2207.14284, figure 2.
    """

    def __init__(self, channels: int, *, order: int, drop_path: float) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            LayerNorm2d(channels),
            GatedConv(channels, order),
            LayerScale(channels, SCALE_AT_START),
        )
        self.mlp = nn.Sequential(
            LayerNorm2d(channels),
            nn.Conv2d(channels, 4 * channels, 1),
            nn.GELU(),
            nn.Conv2d(4 * channels, channels, 1),
            LayerScale(channels, SCALE_AT_START),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Gate, then mix channels."""
        x = x + self.drop_path(self.gate(x))
        return x + self.drop_path(self.mlp(x))


class HorNet(nn.Module):
    """A stem at full resolution, stages of blocks, mean over the map, norm and one linear layer.

    Each stage but the first halves the map by an unpadded 2x2 convolution.

    Shapes:
        (B, 3, H, W) -> (B, K); H and W must be multiples of 8.
    Source:
        Rao et al. 2022, arXiv:2207.14284, section 3.2; the stem is a 1x1 convolution, where the
        paper's, for large images, is 4x4 of stride 4.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        orders: Sequence[int],
        num_classes: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        rates = drop_path_rates(sum(depths), drop_path)
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 1), LayerNorm2d(widths[0]))
        self.stages = nn.Sequential(*_stages(widths, depths, orders, rates))
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.stages(self.stem(x))
        return self.head(self.norm(x.mean((2, 3))))  # (B, K)


def _stages(
    widths: Sequence[int], depths: Sequence[int], orders: Sequence[int], rates: Iterator[float]
) -> Iterator[nn.Sequential]:
    for stage, (width, depth, order) in enumerate(zip(widths, depths, orders, strict=True)):
        down = _halve(widths[stage - 1], width) if stage > 0 else nn.Identity()
        blocks = [HorBlock(width, order=order, drop_path=next(rates)) for _ in range(depth)]
        yield nn.Sequential(down, *blocks)


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(LayerNorm2d(inputs), nn.Conv2d(inputs, outputs, 2, stride=2))


@register_model(
    group="hybrid",
    paper="Rao et al. 2022, arXiv:2207.14284, section 3.2, half as wide as HorNet-T",
    params=4_630_692,
    macs=245_234_944,
    sizes=ImageSizes(step=8, least=8),
)
def hornet_tiny(*, num_classes: int, drop_path: float = 0.2) -> HorNet:
    """Widths 32 to 256, orders 2 to 5 at full resolution; drop path rises to `drop_path`."""
    return HorNet(
        widths=(32, 64, 128, 256),
        depths=(3, 3, 9, 3),
        orders=(2, 3, 4, 5),
        num_classes=num_classes,
        drop_path=drop_path,
    )
