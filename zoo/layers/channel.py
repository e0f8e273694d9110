"""Attention over channels: gates that scale whole maps."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class EfficientChannelAttention(nn.Module):
    """Scale each channel by a gate that sees its `kernel` nearest channels.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Wang et al. 2020, arXiv:1910.03151, equation 9 and figure 3.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of `x`."""
        means = x.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
        gate = torch.sigmoid(self.conv(means)).transpose(1, 2)  # (B, C, 1)
        return x * gate.unsqueeze(-1)


def adaptive_kernel(channels: int) -> int:
    """Odd kernel size of efficient channel attention, growing with log2 of the channels.

    Source:
        Wang et al. 2020, arXiv:1910.03151, equation 12 with gamma 2 and b 1.
    """
    size = int(abs((math.log2(channels) + 1) / 2))
    return size if size % 2 else size + 1


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that sees the means of all channels.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Hu et al. 2018, arXiv:1709.01507, section 3; `act` and `gate` are the inner and the outer
        non-linearity, ReLU and sigmoid in the paper.
    """

    def __init__(
        self,
        channels: int,
        reduced: int,
        *,
        act: Callable[[], nn.Module] = nn.ReLU,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.act = act()
        self.expand = nn.Conv2d(reduced, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of `x`."""
        means = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * self.gate(self.expand(self.act(self.reduce(means))))
