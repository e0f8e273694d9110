import numpy as np
import pytest
import torch
from reference import attention as reference
from reference import layers as reference_layers
from torch import Tensor, nn

from zoo.layers import EfficientChannelAttention, OffsetBias, SelfAttention, TransformerBlock


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def spread_out(layer: nn.Module) -> nn.Module:
    """Float64 with parameters of size one: the tables start small, the norms constant."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1))
    return layer


def linear(part: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    weight = part.weight.detach().numpy()
    bias = np.zeros(len(weight)) if part.bias is None else part.bias.detach().numpy()
    return weight.reshape(len(weight), -1), bias


def affine(part: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return part.weight.detach().numpy(), part.bias.detach().numpy()


def attended(tokens: np.ndarray, layer: SelfAttention) -> np.ndarray:
    return reference.attention(
        tokens,
        qkv=linear(layer.qkv),
        project=linear(layer.project),
        heads=layer.heads,
        table=None if layer.offsets is None else layer.offsets.table.detach().numpy(),
    )


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("grid", [None, 2, 3])
def test_attention(grid: int | None, qkv_bias: bool) -> None:
    x = seeded(2, 5 if grid is None else grid**2, 4)
    layer = spread_out(SelfAttention(6, 3, inputs=4, qkv_bias=qkv_bias, grid=grid))

    found = layer(x).detach().numpy()

    expected = np.array([attended(tokens, layer) for tokens in x.numpy()])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_offsets_tell_two_pixels_apart_and_nothing_else() -> None:
    layer = OffsetBias(2, 3)

    index = layer.index

    assert index.unique().numel() == 25  # all of 5 x 5
    assert index[0, 1] == index[4, 5] == index[7, 8]  # the query is one pixel to the left
    assert index[0, 1] != index[1, 0]
    assert list(layer.state_dict()) == ["table"]


def test_without_offsets_order_means_nothing() -> None:
    x, order = seeded(1, 6, 4), torch.tensor([3, 0, 5, 1, 4, 2])
    layer = spread_out(SelfAttention(4, 2))

    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-12)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="needs a width that 4 heads divide, got 10"):
        SelfAttention(10, 4)


@pytest.mark.parametrize(("outputs", "stride", "grid"), [(4, 1, None), (4, 1, 3), (6, 2, 2)])
def test_transformer_block(outputs: int, stride: int, grid: int | None) -> None:
    x = seeded(1, 4, 3, 3)
    layer = spread_out(
        TransformerBlock(4, outputs, stride, heads=2, mlp_ratio=2, qkv_bias=True, grid=grid)
    )

    found = layer(x).detach().numpy()[0]

    x = x.numpy()[0]
    normed = np.apply_along_axis(reference.layer_norm, 0, x, *affine(layer.attention_norm))
    if stride > 1:
        x, normed = (reference.largest_of_3x3(one, stride) for one in (x, normed))
        x = np.apply_along_axis(reference.linear, 0, x, linear(layer.shortcut[1]))
    y = attended(normed.reshape(4, -1).T, layer.attention) + x.reshape(outputs, -1).T
    for token in y:
        branch = reference.layer_norm(token, *affine(layer.mlp_norm))
        token += reference.mlp(branch, linear(layer.mlp.first), linear(layer.mlp.second))
    np.testing.assert_allclose(found, y.T.reshape(outputs, *found.shape[1:]), rtol=0, atol=1e-12)


def test_the_gate_of_a_transformer_block_sees_its_sum() -> None:
    x = seeded(2, 4, 2, 3)
    gate = EfficientChannelAttention(3).double()
    layer = spread_out(TransformerBlock(4, 4, heads=2, mlp_ratio=2, gate=gate))

    found = layer(x).detach().numpy()

    layer.gate = nn.Identity()
    expected = reference_layers.eca(
        layer(x).detach().numpy(), gate.conv.weight.detach().numpy().ravel()
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
