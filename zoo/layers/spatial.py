"""Mixing of neighbouring pixels by large depthwise kernels, with gates that differ by pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MultiScaleAttention(nn.Module):
    """Scale each value by a gate that sees its map through strips of several lengths.

    A 5x5 depthwise convolution, then side by side the identity and, for each of `kernels`, a 1xk
    and a kx1 depthwise convolution in a row. A 1x1 convolution mixes the branches, either their
    sum or, where `concatenated`, all their channels.

    Shapes:
        (B, C, H, W) -> the same; odd kernels.
    Source:
        Guo et al. 2022, arXiv:2209.08575, equations 1 and 2. The paper sums three strips of 7, 11
        and 21 pixels and multiplies by the mixed map itself; here a sigmoid bounds it.
    """

    def __init__(
        self, channels: int, *, kernels: Sequence[int] = (7, 11), concatenated: bool = False
    ) -> None:
        super().__init__()
        self.concatenated = concatenated
        self.near = _depthwise(channels, (5, 5))
        self.strips = nn.ModuleList(
            nn.Sequential(_depthwise(channels, (1, kernel)), _depthwise(channels, (kernel, 1)))
            for kernel in kernels
        )
        branches = 1 + len(kernels) if concatenated else 1
        self.mix = nn.Conv2d(branches * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the values of `x`."""
        near = self.near(x)
        branches = [near, *(strip(near) for strip in self.strips)]
        joined = torch.cat(branches, dim=1) if self.concatenated else sum(branches[1:], near)
        return x * torch.sigmoid(self.mix(joined))


class LargeSelectiveKernel(nn.Module):
    """Scale each value by a gate that chooses, pixel by pixel, between a small and a large view.

    Two depthwise convolutions in a row, 5x5 and 7x7 with dilation 3, see 5 and 23 pixels across.

    Shapes:
        (B, C, H, W) -> the same; even C.
    Source:
        Li et al. 2023, arXiv:2303.09030, sections 3.2 and 3.3.

    Raises:
        ValueError: the number of channels is odd, so it cannot be halved.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"a selective kernel needs an even number of channels, got {channels}")
        half = channels // 2
        self.near = _depthwise(channels, (5, 5))
        self.far = _depthwise(channels, (7, 7), dilation=3)
        self.narrow_near = nn.Conv2d(channels, half, 1)
        self.narrow_far = nn.Conv2d(channels, half, 1)
        self.select = nn.Conv2d(2, 2, 7, padding=3)
        self.widen = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the values of `x`."""
        near = self.near(x)
        far = self.far(near)
        near, far = self.narrow_near(near), self.narrow_far(far)  # (B, C / 2, H, W) each
        both = torch.cat((near, far), dim=1)  # (B, C, H, W)
        seen = torch.cat((both.mean(1, keepdim=True), both.amax(1, keepdim=True)), dim=1)
        weights = torch.sigmoid(self.select(seen))  # (B, 2, H, W)
        chosen = near * weights[:, :1] + far * weights[:, 1:]  # (B, C / 2, H, W)
        return x * self.widen(chosen)  # (B, C, H, W)


class GatedConv(nn.Module):
    """Multiply `order` times by what a 7x7 depthwise convolution saw, each time twice as wide.

    Shapes:
        (B, C, H, W) -> the same; C must be a multiple of 2 ** (order - 1).
    Source:
        Rao et al. 2022, arXiv:2207.14284, section 3.1, recursive gated convolution with alpha 3:
        one depthwise convolution serves all steps.

    Raises:
        ValueError: the channels cannot be halved order - 1 times.
    """

    def __init__(self, channels: int, order: int) -> None:
        super().__init__()
        if channels % 2 ** (order - 1):
            raise ValueError(
                f"gated convolution of order {order} needs a multiple of {2 ** (order - 1)} "
                f"channels, got {channels}"
            )
        self.widths = [channels // 2 ** (order - 1 - step) for step in range(order)]
        self.scale = 1 / 3  # 1 / alpha: keeps products of ever more factors small
        # The first gate has widths[0] channels and the views sum(widths): together twice as many.
        self.enter = nn.Conv2d(channels, 2 * channels, 1)
        self.see = _depthwise(sum(self.widths), (7, 7))
        self.widen = nn.ModuleList(nn.Conv2d(width, 2 * width, 1) for width in self.widths[:-1])
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate again and again."""
        gated, rest = self.enter(x).split((self.widths[0], sum(self.widths)), dim=1)
        views = (self.see(rest) * self.scale).split(self.widths, dim=1)
        gated = gated * views[0]
        for widen, view in zip(self.widen, views[1:], strict=True):
            gated = widen(gated) * view
        return self.leave(gated)


def _depthwise(channels: int, kernel: tuple[int, int], *, dilation: int = 1) -> nn.Conv2d:
    """Each map by itself, H and W kept."""
    rows, columns = (dilation * (size - 1) // 2 for size in kernel)
    return nn.Conv2d(
        channels, channels, kernel, padding=(rows, columns), dilation=dilation, groups=channels
    )
