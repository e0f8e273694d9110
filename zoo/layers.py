"""Small blocks that two or more families use."""

import math

import torch
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


class GhostModule(nn.Module):
    """Make part of the maps by a convolution and the rest from those by a cheap 3x3 depthwise one.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        Han et al. 2020, arXiv:1911.11907, section 3.1, equation 4, with the identity as one of the
        linear operations. Where `ratio` does not divide `outputs` the surplus maps are cut off.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, ratio: int = 2
    ) -> None:
        super().__init__()
        intrinsic = math.ceil(outputs / ratio)
        cheap = intrinsic * (ratio - 1)
        self.outputs = outputs
        self.primary = nn.Sequential(*conv_bn(inputs, intrinsic, kernel, stride=stride), nn.ReLU())
        self.cheap = nn.Sequential(*conv_bn(intrinsic, cheap, 3, groups=intrinsic), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate intrinsic and ghost maps."""
        intrinsic = self.primary(x)
        return torch.cat((intrinsic, self.cheap(intrinsic)), dim=1)[:, : self.outputs]
