from functools import partial

import numpy as np
import pytest
import torch
from reference import gates as reference
from reference.weights import randomise_norms
from torch import Tensor, nn

from zoo.layers import CoordAttention, mean_l1_pool, mean_l2_pool, mean_max_pool, mean_pool
from zoo.models import create_model

POOLS = {
    "mean": mean_pool,
    "mean_max": mean_max_pool,
    "mean_l1": mean_l1_pool,
    "mean_l2": mean_l2_pool,
}
GATES = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "softmax": partial(nn.Softmax, dim=1),
}
ABLATIONS = ("relu", "elu", "softmax", "avg_max", "avg_l1", "avg_l2")


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def pointwise(part: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(part, nn.Conv2d)
    return part.weight.detach().numpy()[:, :, 0, 0], part.bias.detach().numpy()


def coordinates(name: str) -> list[CoordAttention]:
    with torch.device("meta"):
        model = create_model(name)
    return [block.gate for stage in model.stages for block in stage]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("pool", POOLS)
def test_coordinate_attention(pool: str, gate: str) -> None:
    x = seeded(2, 6, 3, 5)
    layer = CoordAttention(6, gate=GATES[gate], pool=POOLS[pool]).double()
    randomise_norms(layer, x)

    found = layer(x).detach().numpy()

    norm = layer.reduce[1]
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    expected = reference.coordinate(
        x.numpy(),
        reduce=pointwise(layer.reduce[0]),
        norms=[tensor.detach().numpy() for tensor in tensors],
        rows=pointwise(layer.rows[0]),
        columns=pointwise(layer.columns[0]),
        pool=pool,
        gate=gate,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_a_map_of_zeros_gives_a_finite_gradient(pool) -> None:
    x = torch.zeros(1, 4, 3, 3, requires_grad=True)

    pool(x, 3).sum().backward()

    assert x.grad.isfinite().all()


def test_softmax_gates_of_one_row_sum_to_one_over_the_channels() -> None:
    layer = CoordAttention(6, gate=GATES["softmax"]).double()

    gates = layer.rows(seeded(2, 8, 5, 1))  # (B, C, H, 1)

    torch.testing.assert_close(gates.sum(1), torch.ones(2, 5, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "inner"), [("resnet_18_ca", [8, 16]), ("resnet_50_ca", [8, 16, 32, 64])]
)
def test_the_inner_width_is_a_32nd_but_at_least_8(name: str, inner: list[int]) -> None:
    widths = [gate.reduce[0].out_channels for gate in coordinates(name)]

    assert list(dict.fromkeys(widths)) == inner


@pytest.mark.parametrize("base", ["resnet_18", "resnet_50"])
def test_nothing_but_the_gates_is_added(base: str) -> None:
    torch.manual_seed(0)
    plain, gated = create_model(base).eval(), create_model(f"{base}_ca").eval()
    images = torch.randn(2, 3, 32, 32)

    missing, unknown = gated.load_state_dict(plain.state_dict(), strict=False)
    for stage in gated.stages:
        for block in stage:
            block.gate = nn.Identity()

    assert unknown == []
    assert all(".gate." in key for key in missing)
    torch.testing.assert_close(gated(images), plain(images), rtol=0, atol=0)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_keep_every_tensor(ablation: str) -> None:
    with torch.device("meta"):
        base, arm = create_model("resnet_18_ca"), create_model(f"resnet_18_ca_{ablation}")

    shapes = {key: tensor.shape for key, tensor in arm.state_dict().items()}

    assert shapes == {key: tensor.shape for key, tensor in base.state_dict().items()}


@pytest.mark.parametrize(
    ("ablation", "kind", "pool"),
    [
        ("", nn.Sigmoid, mean_pool),
        ("_relu", nn.ReLU, mean_pool),
        ("_elu", nn.ELU, mean_pool),
        ("_softmax", nn.Softmax, mean_pool),
        ("_avg_max", nn.Sigmoid, mean_max_pool),
        ("_avg_l1", nn.Sigmoid, mean_l1_pool),
        ("_avg_l2", nn.Sigmoid, mean_l2_pool),
    ],
)
def test_ablations_differ_in_one_thing(ablation: str, kind: type[nn.Module], pool) -> None:
    gates = coordinates(f"resnet_18_ca{ablation}")

    assert len(gates) == 8
    for gate in gates:
        assert type(gate.rows[1]) is kind
        assert type(gate.columns[1]) is kind
        assert gate.pool is pool
