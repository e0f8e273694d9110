"""Attention over coordinates: one gate for each row of a map and one for each column."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# (x, axis) -> x with that axis pooled to length 1
AxisPool = Callable[[Tensor, int], Tensor]


def mean_pool(x: Tensor, axis: int) -> Tensor:
    """The mean along one axis, which keeps length 1."""
    return x.mean(axis, keepdim=True)


def mean_max_pool(x: Tensor, axis: int) -> Tensor:
    """The mean plus the largest value along one axis, which keeps length 1."""
    return mean_pool(x, axis) + x.amax(axis, keepdim=True)


def mean_l1_pool(x: Tensor, axis: int) -> Tensor:
    """The mean plus the mean magnitude along one axis, which keeps length 1."""
    return mean_pool(x, axis) + mean_pool(x.abs(), axis)


def mean_l2_pool(x: Tensor, axis: int) -> Tensor:
    """The mean plus the root mean square along one axis, which keeps length 1.

    Note:
        1e-12 under the root keeps its gradient finite where a row holds zeros only.
    """
    return mean_pool(x, axis) + (mean_pool(x.square(), axis) + 1e-12).sqrt()


class CoordAttention(nn.Module):
    """Scale each pixel by the gate of its row and that of its column, for each channel.

    Shapes:
        (B, C, H, W) -> the same; H and W are free.
    Source:
        Hou et al. 2021, arXiv:2103.02907, section 3.2, equations 4 to 9, with reduction 32 but at
        least 8 channels inside, and h-swish between. `gate` and `pool` are the outer non-linearity
        and what sums up a row or a column: sigmoid and the mean in the paper.
    """

    def __init__(
        self,
        channels: int,
        *,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
        pool: AxisPool = mean_pool,
    ) -> None:
        super().__init__()
        reduced = max(8, channels // 32)
        self.pool = pool
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), nn.BatchNorm2d(reduced), nn.Hardswish()
        )
        self.rows = nn.Sequential(nn.Conv2d(reduced, channels, 1), gate())
        self.columns = nn.Sequential(nn.Conv2d(reduced, channels, 1), gate())

    def forward(self, x: Tensor) -> Tensor:
        """Gate the pixels of `x`."""
        sizes = x.shape[2:]
        rows = self.pool(x, 3)  # (B, C, H, 1)
        columns = self.pool(x, 2).transpose(2, 3)  # (B, C, W, 1)
        # One norm sees rows and columns together, hence one tensor.
        both = self.reduce(torch.cat((rows, columns), dim=2))  # (B, reduced, H + W, 1)
        rows, columns = both.split(tuple(sizes), dim=2)
        columns = columns.transpose(2, 3)  # (B, reduced, 1, W)
        return x * self.rows(rows) * self.columns(columns)
