import math

import numpy as np
import pytest
import torch
from reference import layers as reference
from torch import nn

from zoo.layers import (
    DropPath,
    EfficientChannelAttention,
    GhostModule,
    SqueezeExcite,
    adaptive_kernel,
    conv_bn,
)


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def warm_norms(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for tensor, low in (
                (part.running_mean, -1),
                (part.running_var, 0.5),
                (part.weight.data, 0.5),
                (part.bias.data, -1),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)


def reference_norm(x: np.ndarray, part: torch.nn.BatchNorm2d) -> np.ndarray:
    tensors = (part.running_mean, part.running_var, part.weight, part.bias)
    return reference.norm(x, *(tensor.detach().numpy() for tensor in tensors))


@pytest.mark.parametrize("kernel", [3, 5])
def test_channel_attention(kernel: int) -> None:
    x = seeded(2, 9, 4, 6)
    layer = EfficientChannelAttention(kernel).double()

    found = layer(x).detach().numpy()

    expected = reference.eca(x.numpy(), layer.conv.weight.detach().numpy().ravel())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "kernel"), [(16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (1024, 5)]
)
def test_adaptive_kernel(channels: int, kernel: int) -> None:
    assert adaptive_kernel(channels) == kernel


@pytest.mark.parametrize(
    ("ratio", "kernel", "stride", "outputs"),
    [(2, 3, 1, 8), (2, 3, 2, 7), (3, 3, 1, 8), (2, 1, 1, 7)],
)
@pytest.mark.parametrize("act", [nn.ReLU, nn.Identity])
def test_ghost_module(
    ratio: int, kernel: int, stride: int, outputs: int, act: type[nn.Module]
) -> None:
    x = seeded(2, 3, 6, 6)
    layer = GhostModule(3, outputs, kernel=kernel, stride=stride, ratio=ratio, act=act)
    layer = layer.double().eval()
    warm_norms(layer)

    found = layer(x).detach().numpy()

    floor = 0.0 if act is nn.ReLU else -np.inf
    conv, norm = layer.primary[0], layer.primary[1]
    weight = conv.weight.detach().numpy()
    intrinsic = reference_norm(reference.conv(x.numpy(), weight, stride, 1), norm)
    intrinsic = np.maximum(intrinsic, floor)
    weight = layer.cheap[0].weight.detach().numpy()
    ghosts = reference.conv(intrinsic, weight, 1, intrinsic.shape[1])
    ghosts = np.maximum(reference_norm(ghosts, layer.cheap[1]), floor)
    expected = np.concatenate((intrinsic, ghosts), axis=1)[:, :outputs]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert intrinsic.shape[1] == -(-outputs // ratio)


@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid])
def test_squeeze_excite(gate: type[nn.Module]) -> None:
    x = seeded(2, 8, 3, 5)
    layer = SqueezeExcite(8, 4, gate=gate).double()
    layer.expand.weight.data.mul_(20)  # so that hard sigmoids reach both of their ends

    found = layer(x).detach().numpy()

    parts = (layer.reduce.weight, layer.reduce.bias, layer.expand.weight, layer.expand.bias)
    narrow, shift, widen, offset = (part.detach().numpy() for part in parts)
    for b in range(2):
        inner = [
            max(0.0, shift[r] + sum(narrow[r, c, 0, 0] * x[b, c].mean().item() for c in range(8)))
            for r in range(4)
        ]
        for c in range(8):
            total = offset[c] + sum(widen[c, r, 0, 0] * inner[r] for r in range(4))
            hard = min(1.0, max(0.0, total / 6 + 0.5))
            factor = hard if gate is nn.Hardsigmoid else 1 / (1 + math.exp(-total))
            expected = x[b, c].numpy() * factor
            np.testing.assert_allclose(found[b, c], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 2, 1), (3, 1, 2), (7, 2, 4)])
def test_conv_bn(kernel: int, stride: int, groups: int) -> None:
    x = seeded(2, 4, 7, 7)
    layer = conv_bn(4, 8, kernel, stride=stride, groups=groups).double().eval()
    warm_norms(layer)

    found = layer(x).detach().numpy()

    weight = layer[0].weight.detach().numpy()
    expected = reference_norm(reference.conv(x.numpy(), weight, stride, groups), layer[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()

    out = layer(torch.ones(4000, 2, 3, 3))

    per_sample = out.flatten(1)
    assert ((per_sample == 0).all(1) | (per_sample == 1 / 0.75).all(1)).all()
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)


def test_drop_path_is_an_identity_in_eval() -> None:
    x = seeded(4, 2, 3, 3)

    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_drop_path_rate_is_checked() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got 1.0"):
        DropPath(1.0)
