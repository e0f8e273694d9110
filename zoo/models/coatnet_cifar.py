"""CoAtNet for small images with efficient channel attention: a study's own design, taken apart."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zoo.layers import (
    EfficientChannelAttention,
    LargeSelectiveKernel,
    SqueezeExcite,
    conv_bn,
    drop_path_rates,
)
from zoo.models.coatnet import (
    CoAtNet,
    GateBuilder,
    MobileBlock,
    mobile_stage,
    plain_transformer_stage,
)
from zoo.registry import ImageSizes, register_model

# (inputs, outputs, stride, drop path rate of each block, gate) -> a convolutional stage
StageBuilder = Callable[[int, int, int, Sequence[float], GateBuilder], nn.Module]

BLOCKS, WIDTHS = (2, 2, 6, 10, 2), (64, 96, 192, 384, 512)

# After five halvings, of which the last two, unpadded 2x2 convolutions, want an even map.
HALVED_FIVE_TIMES = ImageSizes(step=32, least=32)
HALVED_FOUR_TIMES = ImageSizes(step=16, least=16)

DESIGN = "Dai et al. 2021, arXiv:2106.04803, section 2.2, with Wang et al. 2020, arXiv:1910.03151"


class PartialStage(nn.Module):
    """A stage whose blocks, after the first, see half of the channels; the others pass by.

    The first block changes the shape, and a 1x1 convolution joins the halves in the end.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)); even outputs.
    Source:
        Wang et al. 2019, arXiv:1911.11929, section 3.1, with one transition, after the halves are
        joined.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, rates: Sequence[float], gate: GateBuilder
    ) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = MobileBlock(inputs, outputs, stride, gate=gate, drop_path=rates[0])
        self.blocks = mobile_stage(half, half, 1, rates[1:], gate)
        self.join = conv_bn(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Send one half through the blocks."""
        past, through = self.enter(x).chunk(2, dim=1)  # (B, outputs / 2, H / stride, W / stride)
        return self.join(torch.cat((past, self.blocks(through)), dim=1))


def efficient(channels: int, inputs: int) -> nn.Module:
    """A gate that sees three neighbouring channels, whatever the inputs."""
    return EfficientChannelAttention(3)


def squeezed(channels: int, inputs: int) -> nn.Module:
    """A gate that sees all channels, squeezed to a quarter of the block's inputs."""
    return SqueezeExcite(channels, inputs // 4)


def no_gate(channels: int, inputs: int) -> nn.Module:
    """Nothing in place of a gate."""
    return nn.Identity()


def plain_stem(stride: int) -> nn.Sequential:
    """One 3x3 convolution to the first width."""
    return nn.Sequential(*conv_bn(3, WIDTHS[0], 3, stride=stride), nn.ReLU())


def large_stem() -> nn.Sequential:
    """3x3, then 5x5 depthwise with stride 2, then 1x1 to the first width."""
    spread = nn.Conv2d(32, 32, 5, stride=2, padding=2, groups=32, bias=False)
    return nn.Sequential(
        nn.Sequential(*conv_bn(3, 32, 3), nn.ReLU()),
        spread,
        nn.Sequential(*conv_bn(32, WIDTHS[0], 1), nn.ReLU()),
    )


def _coatnet_cifar(
    *,
    num_classes: int,
    dropout: float,
    drop_path: float,
    stem: nn.Module | None = None,
    blocks: Sequence[int] = BLOCKS,
    widths: Sequence[int] = WIDTHS,
    gate: GateBuilder = efficient,
    partial: StageBuilder = mobile_stage,
    grids: Sequence[int | None] = (None, None),
    norm: nn.Module | None = None,
) -> CoAtNet:
    """Three stages of mobile blocks, the last two built by `partial`, two of transformer blocks."""
    rising = drop_path_rates(sum(blocks), drop_path)
    rates = [[next(rising) for _ in range(depth)] for depth in blocks]

    def attend(position: int, grid: int | None) -> nn.Sequential:
        inputs, width = widths[position - 1], widths[position]
        return plain_transformer_stage(
            nn.Conv2d(inputs, width, 2, stride=2),
            width,
            rates[position],
            heads=8,
            grid=grid,
            dropout=dropout,
            gate=gate,
        )

    stages = [
        mobile_stage(widths[0], widths[0], 1, rates[0], gate),
        partial(widths[0], widths[1], 2, rates[1], gate),
        partial(widths[1], widths[2], 2, rates[2], gate),
        attend(3, grids[0]),
        attend(4, grids[1]),
    ]
    return CoAtNet(
        plain_stem(2) if stem is None else stem,
        stages,
        width=widths[-1],
        norm=norm,
        num_classes=num_classes,
    )


@register_model(
    group="hybrid",
    paper=DESIGN,
    params=27_008_486,
    macs=136_237_056,
    own_design=True,
    sizes=HALVED_FIVE_TIMES,
)
def coatnet_cifar_opt(*, num_classes: int, dropout: float = 0.1, drop_path: float = 0.0) -> CoAtNet:
    """Stages of 2, 2, 6, 10 and 2 blocks; at 32x32 attention sees four tokens, then one."""
    return _coatnet_cifar(num_classes=num_classes, dropout=dropout, drop_path=drop_path)


@register_model(
    group="hybrid",
    paper=DESIGN,
    params=27_010_534,
    macs=137_408_512,
    own_design=True,
    sizes=HALVED_FIVE_TIMES,
)
def coatnet_cifar_opt_large_stem(
    *, num_classes: int, dropout: float = 0.1, drop_path: float = 0.0
) -> CoAtNet:
    """As coatnet_cifar_opt with a stem of three convolutions, one of them 5x5 depthwise."""
    return _coatnet_cifar(
        num_classes=num_classes, dropout=dropout, drop_path=drop_path, stem=large_stem()
    )


@register_model(
    group="hybrid",
    paper=DESIGN,
    params=27_008_486,
    macs=546_201_600,
    own_design=True,
    sizes=HALVED_FOUR_TIMES,
)
def coatnet_cifar_opt_s1(
    *, num_classes: int, dropout: float = 0.1, drop_path: float = 0.0
) -> CoAtNet:
    """As coatnet_cifar_opt with a stem of stride 1: attention sees 16 tokens, then four."""
    return _coatnet_cifar(
        num_classes=num_classes, dropout=dropout, drop_path=drop_path, stem=plain_stem(1)
    )


@register_model(
    group="ablation",
    paper="Dai et al. 2021, arXiv:2106.04803, equation 3, in coatnet_cifar_opt_s1",
    params=27_013_574,
    macs=546_201_600,
    own_design=True,
    sizes=HALVED_FOUR_TIMES,
)
def coatnet_cifar_opt_rel(
    *, num_classes: int, image_size: int, dropout: float = 0.1, drop_path: float = 0.0
) -> CoAtNet:
    """As coatnet_cifar_opt_s1 with attention that knows offsets, and a last layer norm."""
    return _coatnet_cifar(
        num_classes=num_classes,
        dropout=dropout,
        drop_path=drop_path,
        stem=plain_stem(1),
        grids=(image_size // 8, image_size // 16),
        norm=nn.LayerNorm(WIDTHS[-1], eps=1e-6),
    )


@register_model(
    group="ablation",
    paper="Hu et al. 2018, arXiv:1709.01507, section 3, in coatnet_cifar_opt",
    params=28_449_716,
    macs=137_635_840,
    own_design=True,
    sizes=HALVED_FIVE_TIMES,
)
def coatnet_cifar_opt_se(
    *, num_classes: int, dropout: float = 0.1, drop_path: float = 0.0
) -> CoAtNet:
    """As coatnet_cifar_opt with squeeze and excite gates."""
    return _coatnet_cifar(
        num_classes=num_classes, dropout=dropout, drop_path=drop_path, gate=squeezed
    )


@register_model(
    group="ablation",
    paper="Dai et al. 2021, arXiv:2106.04803, section 2.2, in coatnet_cifar_opt",
    params=27_008_420,
    macs=136_206_336,
    own_design=True,
    sizes=HALVED_FIVE_TIMES,
)
def coatnet_cifar_opt_noattn(
    *, num_classes: int, dropout: float = 0.1, drop_path: float = 0.0
) -> CoAtNet:
    """As coatnet_cifar_opt without channel attention."""
    return _coatnet_cifar(
        num_classes=num_classes, dropout=dropout, drop_path=drop_path, gate=no_gate
    )


@register_model(
    group="ablation",
    paper="Dai et al. 2021, arXiv:2106.04803, table 3, CoAtNet-1, in coatnet_cifar_opt",
    params=42_390_258,
    macs=172_888_064,
    own_design=True,
    sizes=HALVED_FIVE_TIMES,
)
def coatnet_cifar_opt_full(
    *, num_classes: int, dropout: float = 0.1, drop_path: float = 0.0
) -> CoAtNet:
    """As coatnet_cifar_opt with the 14 blocks and the width of 768 that CoAtNet-1 ends with."""
    return _coatnet_cifar(
        num_classes=num_classes,
        dropout=dropout,
        drop_path=drop_path,
        blocks=(2, 2, 6, 14, 2),
        widths=(64, 96, 192, 384, 768),
    )


@register_model(
    group="ablation",
    paper="Wang et al. 2019, arXiv:1911.11929, section 3.1, in coatnet_cifar_opt",
    params=25_865_414,
    macs=115_789_632,
    own_design=True,
    sizes=HALVED_FIVE_TIMES,
)
def coatnet_cifar_opt_csp(
    *, num_classes: int, dropout: float = 0.1, drop_path: float = 0.0
) -> CoAtNet:
    """As coatnet_cifar_opt with cross-stage-partial stages of 96 and 192 channels."""
    return _coatnet_cifar(
        num_classes=num_classes, dropout=dropout, drop_path=drop_path, partial=PartialStage
    )


@register_model(
    group="ablation",
    paper="Li et al. 2023, arXiv:2303.09030, section 3.3, in coatnet_cifar_opt",
    params=27_019_820,
    macs=139_072_512,
    own_design=True,
    sizes=HALVED_FIVE_TIMES,
)
def coatnet_cifar_opt_lsk(
    *, num_classes: int, dropout: float = 0.1, drop_path: float = 0.0
) -> CoAtNet:
    """As coatnet_cifar_opt with a selective kernel at the end of the stem."""
    stem = nn.Sequential(*plain_stem(2), LargeSelectiveKernel(WIDTHS[0]))
    return _coatnet_cifar(num_classes=num_classes, dropout=dropout, drop_path=drop_path, stem=stem)
