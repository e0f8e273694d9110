"""Attention over splits: copies of a map that compete channel by channel."""

from torch import Tensor, nn

from zoo.layers.basic import conv_bn


class SplitAttention(nn.Module):
    """Make `radix` maps by a grouped 3x3 convolution and sum them, weighted channel by channel.

    Shapes:
        (B, C, H, W) -> the same; `radix` divides C.
    Source:
        Zhang et al. 2022, arXiv:2004.08955, section 3.1, with cardinality 1; the inner width is a
        quarter of the channels of all splits, but at least 32.

    Note:
        Its second norm sees one pixel, so a batch of one image cannot train.
    """

    def __init__(self, channels: int, *, radix: int = 2) -> None:
        super().__init__()
        wide = channels * radix
        reduced = max(32, wide // 4)
        self.splits = nn.Sequential(
            *conv_bn(channels, wide, 3, groups=radix),
            nn.ReLU(),
            nn.Unflatten(1, (radix, channels)),
        )
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), nn.BatchNorm2d(reduced), nn.ReLU()
        )
        self.expand = nn.Sequential(
            nn.Conv2d(reduced, wide, 1), nn.Unflatten(1, (radix, channels)), nn.Softmax(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Sum the weighted splits of `x`."""
        splits = self.splits(x)  # (B, radix, C, H, W)
        means = splits.sum(1).mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        weights = self.expand(self.reduce(means))  # (B, radix, C, 1, 1)
        return (splits * weights).sum(1)  # (B, C, H, W)
