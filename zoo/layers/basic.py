"""What nearly every family is built from: convolutions, norms, shortcuts, residual scales."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias that keeps H and W up to the stride, then batch norm.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)); odd kernels.
    """
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut of a residual block: nothing where the shape stays, else 1x1 and norm.

    Source:
        He et al. 2015, arXiv:1512.03385, section 3.3, option B.
    """
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return conv_bn(inputs, outputs, 1, stride=stride)


def pooled_projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A shortcut that averages before its 1x1, so that a stride skips no pixel.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        He et al. 2018, arXiv:1812.01187, section 4.2, ResNet-D. At an odd size the last window
        averages the pixels that exist.
    """
    if stride == 1:
        return projection(inputs, outputs, 1)
    pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, *conv_bn(inputs, outputs, 1))


def drop_path_rates(blocks: int, last: float) -> Iterator[float]:
    """Rates of a network's blocks, rising linearly from 0 to `last`.

    Source:
        Huang et al. 2016, arXiv:1603.09382, section 3, linear decay of the survival.
    """
    return (last * position / max(1, blocks - 1) for position in range(blocks))


class DropPath(nn.Module):
    """Drop the residual branch of whole samples while training; identity in eval.

    Shapes:
        (B, ...) -> the same.
    Source:
        Huang et al. 2016, arXiv:1603.09382, section 3; kept branches are scaled by 1 / keep, so
        that nothing is left to scale at test time.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate must lie in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop each sample's branch with probability `rate`."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        """Show the rate in the module's printout."""
        return f"rate={self.rate:.3f}"


class LayerScale(nn.Module):
    """Scale each channel by a learned factor that starts near zero.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Touvron et al. 2021, arXiv:2103.17239, section 3, equation 4.
    """

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`."""
        return x * self.scale


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel.

    Shapes:
        (B, C, H, W) -> the same.
    Source:
        Ba et al. 2016, arXiv:1607.06450; per pixel as in Liu et al. 2022, arXiv:2201.03545.
    """

    def __init__(self, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel."""
        y = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return y.permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers around GELU, over the last axis.

    Shapes:
        (..., D) -> (..., D).
    """

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.second = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, activate, narrow; dropout after either linear layer."""
        return self.dropout(self.second(self.dropout(self.act(self.first(x)))))
