"""Networks of patches that mix by multilayer perceptrons alone."""

from torch import Tensor, nn

from zoo.layers import DropPath, Mlp, drop_path_rates
from zoo.registry import ImageSizes, register_model

TOLSTIKHIN_2021 = "Tolstikhin et al. 2021, arXiv:2105.01601, section 2"

PATCHES_OF_4 = ImageSizes(step=4, least=8)


class MixerBlock(nn.Module):
    """Mix across tokens, then across channels, each with its own residual MLP.

    Shapes:
        (B, N, D) -> (B, N, D). N is fixed at construction: the token MLP has N inputs.
    Source:
        Tolstikhin et al. 2021, arXiv:2105.01601, equation 1. Dropout is left out.
    """

    def __init__(
        self, tokens: int, width: int, *, token_hidden: int, channel_hidden: int, drop_path: float
    ) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width, eps=1e-6)
        self.token_mlp = Mlp(tokens, token_hidden)
        self.channel_norm = nn.LayerNorm(width, eps=1e-6)
        self.channel_mlp = Mlp(width, channel_hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels."""
        columns = self.token_norm(x).transpose(1, 2)  # (B, D, N)
        x = x + self.drop_path(self.token_mlp(columns).transpose(1, 2))  # (B, N, D)
        return x + self.drop_path(self.channel_mlp(self.channel_norm(x)))


class Patches(nn.Module):
    """One token for each patch, row by row.

    Shapes:
        (B, 3, H, W) -> (B, N, width); N counts the places where a whole patch fits.
    Source:
        Tolstikhin et al. 2021, arXiv:2105.01601, section 2. Patches closer together than their
        size overlap.
    """

    def __init__(self, width: int, size: int, *, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, size, stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Cut images up."""
        return self.project(x).flatten(2).transpose(1, 2)  # (B, N, D)


class Mixer(nn.Module):
    """Patches, blocks of one shape, layer norm, the mean over tokens, one linear layer.

    Shapes:
        (B, 3, H, W) -> (B, K); H and W must give `tokens` patches.
    Source:
        Tolstikhin et al. 2021, arXiv:2105.01601, section 2 and figure 1.
    """

    def __init__(
        self,
        stem: nn.Module,
        *,
        tokens: int,
        width: int,
        depth: int,
        token_hidden: int,
        channel_hidden: int,
        num_classes: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.stem = stem
        blocks = (
            MixerBlock(
                tokens,
                width,
                token_hidden=token_hidden,
                channel_hidden=channel_hidden,
                drop_path=rate,
            )
            for rate in drop_path_rates(depth, drop_path)
        )
        self.stages = nn.Sequential(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        x = self.norm(self.stages(self.stem(x)))  # (B, N, D)
        return self.head(x.mean(1))  # (B, K)


def _in_patches_of_4(
    *,
    width: int,
    depth: int,
    token_hidden: int,
    channel_hidden: int,
    num_classes: int,
    image_size: int,
    drop_path: float,
) -> Mixer:
    """A Mixer whose patches of 4x4 pixels do not overlap."""
    return Mixer(
        Patches(width, 4, stride=4),
        tokens=(image_size // 4) ** 2,
        width=width,
        depth=depth,
        token_hidden=token_hidden,
        channel_hidden=channel_hidden,
        num_classes=num_classes,
        drop_path=drop_path,
    )


@register_model(
    group="mlp", paper=TOLSTIKHIN_2021, params=3_639_076, macs=236_538_624, sizes=PATCHES_OF_4
)
def mlp_mixer_tiny(*, num_classes: int, image_size: int, drop_path: float = 0.0) -> Mixer:
    """Twelve blocks of width 192, with MLPs of 32 hidden tokens and 768 hidden channels."""
    return _in_patches_of_4(
        width=192,
        depth=12,
        token_hidden=32,
        channel_hidden=768,
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )


@register_model(
    group="mlp", paper=TOLSTIKHIN_2021, params=1_341_924, macs=101_069_312, sizes=PATCHES_OF_4
)
def mlp_mixer_tiny_asrun(*, num_classes: int, image_size: int, drop_path: float = 0.0) -> Mixer:
    """Eight blocks of width 128, with MLPs of 256 hidden tokens and 512 hidden channels."""
    return _in_patches_of_4(
        width=128,
        depth=8,
        token_hidden=256,
        channel_hidden=512,
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )


@register_model(
    group="mlp",
    paper="Tolstikhin et al. 2021, arXiv:2105.01601, table 1, B/16",
    params=59_188_372,
    macs=12_601_076_736,
    sizes=ImageSizes(step=2, least=8),
)
def mlp_mixer_b16(*, num_classes: int, image_size: int, drop_path: float = 0.0) -> Mixer:
    """Mixer-B/16 with patches that overlap: 2 pixels apart, as many as in a 224x224 image."""
    return Mixer(
        Patches(768, 16, stride=2, padding=5),
        tokens=(image_size // 2 - 2) ** 2,  # per side (S + 2 * 5 - 16) / 2 + 1
        width=768,
        depth=12,
        token_hidden=384,
        channel_hidden=3072,
        num_classes=num_classes,
        drop_path=drop_path,
    )


@register_model(
    group="mlp",
    paper="Tolstikhin et al. 2021, arXiv:2105.01601, table 1, B, with patches of 4",
    params=57_417_316,
    macs=4_079_299_584,
    sizes=PATCHES_OF_4,
)
def mlp_mixer_b4(*, num_classes: int, image_size: int, drop_path: float = 0.0) -> Mixer:
    """Mixer-B in patches of 4."""
    return _in_patches_of_4(
        width=768,
        depth=12,
        token_hidden=384,
        channel_hidden=3072,
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )


@register_model(
    group="mlp", paper=TOLSTIKHIN_2021, params=17_948_772, macs=1_612_236_800, sizes=PATCHES_OF_4
)
def mlp_mixer_b16_asrun(*, num_classes: int, image_size: int, drop_path: float = 0.0) -> Mixer:
    """Eight blocks of width 512, with MLPs of 1024 hidden tokens and 2048 hidden channels."""
    return _in_patches_of_4(
        width=512,
        depth=8,
        token_hidden=1024,
        channel_hidden=2048,
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )


@register_model(
    group="mlp", paper=TOLSTIKHIN_2021, params=673_316, macs=42_146_048, sizes=PATCHES_OF_4
)
def mlp_mixer_nano(*, num_classes: int, image_size: int, drop_path: float = 0.0) -> Mixer:
    """Eight blocks of width 64, with MLPs of 128 hidden tokens and 512 hidden channels."""
    return _in_patches_of_4(
        width=64,
        depth=8,
        token_hidden=128,
        channel_hidden=512,
        num_classes=num_classes,
        image_size=image_size,
        drop_path=drop_path,
    )
