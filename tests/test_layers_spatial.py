from collections.abc import Iterable

import numpy as np
import pytest
import torch
from reference import spatial as reference
from torch import nn

from zoo.layers import GatedConv, LargeSelectiveKernel, MultiScaleAttention


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def arrays(conv: nn.Conv2d) -> reference.Conv:
    return conv.weight.detach().numpy(), conv.bias.detach().numpy()


def pairs(strips: Iterable[nn.Sequential]) -> list[tuple[reference.Conv, reference.Conv]]:
    return [(arrays(strip[0]), arrays(strip[1])) for strip in strips]


@pytest.mark.parametrize(
    ("kernels", "concatenated", "expected"),
    [
        ((7, 11), False, reference.summed_attention),
        ((3, 5), True, reference.concatenated_attention),
    ],
)
def test_multi_scale_attention(kernels, concatenated: bool, expected) -> None:
    x = seeded(2, 4, 6, 8)
    layer = MultiScaleAttention(4, kernels=kernels, concatenated=concatenated).double()

    found = layer(x).detach().numpy()

    wanted = expected(x.numpy(), arrays(layer.near), pairs(layer.strips), arrays(layer.mix))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_multi_scale_attention_sees_along_rows_first() -> None:
    layer = MultiScaleAttention(2, kernels=(7, 11))

    kernels = [[conv.kernel_size for conv in strip] for strip in layer.strips]

    assert kernels == [[(1, 7), (7, 1)], [(1, 11), (11, 1)]]


def test_large_selective_kernel() -> None:
    x = seeded(2, 4, 11, 12)  # so that taps 9 pixels away exist
    layer = LargeSelectiveKernel(4).double()

    found = layer(x).detach().numpy()

    convs = {name: arrays(conv) for name, conv in layer.named_children()}
    expected = reference.selective_kernel(x.numpy(), convs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_large_selective_kernel_sees_23_pixels() -> None:
    x = torch.zeros(1, 2, 31, 31, dtype=torch.float64, requires_grad=True)
    layer = LargeSelectiveKernel(2).double()

    layer.far(layer.near(x))[0, 0, 15, 15].backward()

    rows = x.grad[0, 0].abs().sum(1).nonzero().ravel().tolist()
    assert rows == list(range(15 - 11, 15 + 12))


def test_large_selective_kernel_refuses_odd_channels() -> None:
    with pytest.raises(ValueError, match="needs an even number of channels, got 5"):
        LargeSelectiveKernel(5)


@pytest.mark.parametrize("order", [1, 3])
def test_gated_conv(order: int) -> None:
    x = seeded(2, 8, 5, 8)
    layer = GatedConv(8, order).double()

    found = layer(x).detach().numpy()

    expected = reference.gated_conv(
        x.numpy(),
        arrays(layer.enter),
        arrays(layer.see),
        [arrays(conv) for conv in layer.widen],
        arrays(layer.leave),
        alpha=3.0,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_gated_conv_doubles_its_width_at_each_step() -> None:
    assert GatedConv(256, 5).widths == [16, 32, 64, 128, 256]


def test_gated_conv_refuses_channels_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="order 4 needs a multiple of 8 channels, got 12"):
        GatedConv(12, 4)
