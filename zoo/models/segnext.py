"""Encoders of SegNeXt that classify: gates from long thin convolutions, everything else 1x1."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from zoo.layers import MultiScaleAttention
from zoo.registry import ImageSizes, register_model

BlockBuilder = Callable[[int], nn.Module]  # channels -> a block that keeps the shape


class MscanBlock(nn.Module):
    """Multi-scale attention and a 1x1 MLP, each added to its input.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Guo et al. 2022, arXiv:2209.08575, figure 2, simplified: no 1x1 convolutions around the
        attention, no layer scale, and the MLP has its norm inside and no depthwise convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.BatchNorm2d(channels), MultiScaleAttention(channels))
        self.mlp = _mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Gate, then mix channels."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class SharedNormBlock(nn.Module):
    """Multi-scale attention and a 1x1 MLP behind one and the same batch norm.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Guo et al. 2022, arXiv:2209.08575, figure 2, with strips of 3 and 5 pixels, concatenated.

    Note:
        In training the norm's running statistics follow both of its inputs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.attention = MultiScaleAttention(channels, kernels=(3, 5), concatenated=True)
        self.mlp = _mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Gate, then mix channels."""
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.norm(x))


def _mlp(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4 * channels, 1),
        nn.BatchNorm2d(4 * channels),
        nn.GELU(),
        nn.Conv2d(4 * channels, channels, 1),
    )


class Mscan(nn.Module):
    """A stem, stages of blocks with a strided convolution between them, norm, mean, linear layer.

    Shapes:
        (B, 3, H, W) -> (B, K).
    Source:
        Guo et al. 2022, arXiv:2209.08575, section 3.1 and table 2.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        widths: Sequence[int],
        depths: Sequence[int],
        num_classes: int,
        block: BlockBuilder = MscanBlock,
        down_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*_stages(block, widths, depths, down_kernel))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.norm(self.stages(self.stem(x)))
        return self.head(x.mean((2, 3)))  # (B, K)


def _stages(
    block: BlockBuilder, widths: Sequence[int], depths: Sequence[int], down_kernel: int
) -> Iterator[nn.Sequential]:
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        down = _embed(widths[stage - 1], width, down_kernel, 2) if stage > 0 else nn.Identity()
        yield nn.Sequential(down, *(block(width) for _ in range(depth)))


def _embed(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution with bias, then batch norm; an even kernel is not padded."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _simplified(*, kernel: int, stride: int, num_classes: int) -> Mscan:
    stem = nn.Sequential(*_embed(3, 32, kernel, stride), nn.ReLU())
    return Mscan(stem=stem, widths=(32, 64, 128), depths=(2, 2, 4), num_classes=num_classes)


GUO_2022 = "Guo et al. 2022, arXiv:2209.08575, section 3.1, simplified"


@register_model(group="attention", paper=GUO_2022, params=850_404, macs=6_121_984)
def segnext_mscan_tiny(*, num_classes: int) -> Mscan:
    """Widths 32, 64 and 128 behind a 7x7 stem of stride 4: maps of 8, 4 and 2 pixels."""
    return _simplified(kernel=7, stride=4, num_classes=num_classes)


@register_model(group="attention", paper=GUO_2022, params=846_564, macs=93_827_584)
def segnext_mscan_tiny_s1(*, num_classes: int) -> Mscan:
    """segnext_mscan_tiny with a 3x3 stem of stride 1: maps of 32, 16 and 8 pixels."""
    return _simplified(kernel=3, stride=1, num_classes=num_classes)


@register_model(
    group="attention",
    paper=GUO_2022,
    params=3_359_556,
    macs=49_798_656,
    sizes=ImageSizes(step=16, least=16),
)
def segnext_mscan_tiny_asrun(*, num_classes: int) -> Mscan:
    """The widths and depths of MSCAN-T with concatenated strips and a shared norm in each block."""
    return Mscan(
        stem=nn.Sequential(*_embed(3, 32, 3, 2), nn.ReLU()),
        widths=(32, 64, 160, 256),
        depths=(3, 3, 5, 2),
        num_classes=num_classes,
        block=SharedNormBlock,
        down_kernel=2,
    )
