"""Cheap maps from few."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.layers.basic import conv_bn


class GhostModule(nn.Module):
    """Make part of the maps by a convolution and the rest from those by a cheap 3x3 depthwise one.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        Han et al. 2020, arXiv:1911.11907, section 3.1, equation 4, with the identity as one of the
        linear operations; `act` follows both convolutions. Where `ratio` does not divide
        `outputs` the surplus maps are cut off.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        ratio: int = 2,
        act: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        intrinsic = math.ceil(outputs / ratio)
        cheap = intrinsic * (ratio - 1)
        self.outputs = outputs
        self.primary = nn.Sequential(*conv_bn(inputs, intrinsic, kernel, stride=stride), act())
        self.cheap = nn.Sequential(*conv_bn(intrinsic, cheap, 3, groups=intrinsic), act())

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate intrinsic and ghost maps."""
        intrinsic = self.primary(x)
        return torch.cat((intrinsic, self.cheap(intrinsic)), dim=1)[:, : self.outputs]
