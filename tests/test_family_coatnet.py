"""CoAtNet and the study's design for small images: blocks, maps, ablations."""

import numpy as np
import pytest
import torch
from reference import attention as reference
from reference import layers as reference_layers
from reference.weights import randomise_norms
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.errors import ZooError
from zoo.layers import (
    EfficientChannelAttention,
    LargeSelectiveKernel,
    SqueezeExcite,
    TransformerBlock,
)
from zoo.models import MODELS, create_model
from zoo.models.coatnet import MBConv, MobileBlock
from zoo.models.coatnet_cifar import PartialStage

OURS = sorted(name for name in MODELS if name.startswith("coatnet"))
CIFAR = [name for name in OURS if "cifar" in name]
OPT = "coatnet_cifar_opt"


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def linear(part: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    weight = part.weight.detach().numpy()
    bias = np.zeros(len(weight)) if part.bias is None else part.bias.detach().numpy()
    return weight.reshape(len(weight), -1), bias


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options).eval()


def maps(name: str, size: int = 32) -> list[tuple[int, int]]:
    """(channels, side) behind the stem and behind every stage."""
    model = on_meta(name, image_size=size)
    x = model.stem(torch.empty(1, 3, size, size, device="meta"))
    found = [x.shape]
    for stage in model.stages:
        x = stage(x)
        found.append(x.shape)
    assert all(shape[2] == shape[3] for shape in found)
    return [(shape[1], shape[2]) for shape in found]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in on_meta(name).state_dict().items()}


def blocks(model: nn.Module) -> list[int]:
    kinds = (MBConv, MobileBlock, TransformerBlock)
    return [sum(isinstance(part, kinds) for part in stage.modules()) for stage in model.stages]


def convolved(x: np.ndarray, part: nn.Sequential) -> np.ndarray:
    """A convolution and its batch norm."""
    conv, norm = part[0], part[1]
    weight = conv.weight.detach().numpy()
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    y = reference_layers.conv(x, weight, conv.stride[0], conv.groups)
    return reference_layers.norm(y, *(tensor.detach().numpy() for tensor in tensors))


@pytest.mark.parametrize(("outputs", "stride", "is_residual"), [(3, 1, True), (3, 2, False)])
def test_mobile_block(outputs: int, stride: int, is_residual: bool) -> None:
    x = seeded(2, 3, 4, 4)
    layer = MobileBlock(3, outputs, stride, gate=lambda *_: EfficientChannelAttention(3)).double()
    randomise_norms(layer, x)

    found = layer(x).detach().numpy()

    y = x.numpy()
    for part in layer.branch[:2]:
        y = np.clip(convolved(y, part), 0, 6)
    y = reference_layers.eca(y, layer.branch[2].conv.weight.detach().numpy().ravel())
    y = convolved(y, layer.branch[3])
    expected = x.numpy() + y if is_residual else y
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (6, 2)])
def test_mbconv(outputs: int, stride: int) -> None:
    x = seeded(2, 4, 3, 3)
    layer = MBConv(4, outputs, stride, drop_path=0.0).double()
    randomise_norms(layer, x)

    found = layer(x).detach().numpy()

    widen, deep, gate, narrow = layer.branch
    norm = layer.norm
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    y = reference_layers.norm(x.numpy(), *(tensor.detach().numpy() for tensor in tensors))
    for part in (widen, deep):
        y = np.apply_along_axis(reference.gelu, 1, convolved(y, part))
    hidden = np.array([reference.linear(one, linear(gate.reduce)) for one in y.mean((2, 3))])
    hidden = hidden / (1 + np.exp(-hidden))  # SiLU
    gates = np.array([reference.linear(one, linear(gate.expand)) for one in hidden])
    y = y / (1 + np.exp(-gates))[:, :, None, None]
    y = np.apply_along_axis(reference.linear, 1, y, linear(narrow))
    shortcut = x.numpy()
    if stride == 2:  # windows of 2x2, of 2x1, of 1x2 and of 1 at the odd border
        windows = [[shortcut[:, :, i : i + 2, j : j + 2] for j in (0, 2)] for i in (0, 2)]
        pooled = [[window.mean((2, 3)) for window in row] for row in windows]
        shortcut = np.stack([np.stack(row, axis=-1) for row in pooled], axis=2)
        shortcut = np.apply_along_axis(reference.linear, 1, shortcut, linear(layer.shortcut[1]))
    np.testing.assert_allclose(found, y + shortcut, rtol=0, atol=1e-12)


def test_half_of_a_partial_stage_passes_by() -> None:
    x = seeded(2, 4, 6, 6)
    layer = PartialStage(4, 8, 2, [0.0] * 3, lambda *_: nn.Identity()).double().eval()

    found = layer(x)

    entered = layer.enter(x)
    assert entered.shape == (2, 8, 3, 3)
    joined = torch.cat((entered[:, :4], layer.blocks(entered[:, 4:])), dim=1)
    torch.testing.assert_close(found, layer.join(joined), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coatnet_0", [(64, 32), (96, 16), (192, 8), (384, 4), (768, 2)]),
        ("coatnet_1", [(64, 32), (96, 16), (192, 8), (384, 4), (768, 2)]),
        ("coatnet_0_asrun", [(64, 16), (64, 16), (96, 8), (192, 8), (384, 4), (768, 2)]),
        (OPT, [(64, 16), (64, 16), (96, 8), (192, 4), (384, 2), (512, 1)]),
        (f"{OPT}_large_stem", [(64, 16), (64, 16), (96, 8), (192, 4), (384, 2), (512, 1)]),
        (f"{OPT}_s1", [(64, 32), (64, 32), (96, 16), (192, 8), (384, 4), (512, 2)]),
        (f"{OPT}_rel", [(64, 32), (64, 32), (96, 16), (192, 8), (384, 4), (512, 2)]),
        (f"{OPT}_full", [(64, 16), (64, 16), (96, 8), (192, 4), (384, 2), (768, 1)]),
        (f"{OPT}_csp", [(64, 16), (64, 16), (96, 8), (192, 4), (384, 2), (512, 1)]),
        (f"{OPT}_lsk", [(64, 16), (64, 16), (96, 8), (192, 4), (384, 2), (512, 1)]),
    ],
)
def test_maps(name: str, expected: list[tuple[int, int]]) -> None:
    assert maps(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coatnet_0", [2, 4, 5, 2]),
        ("coatnet_1", [2, 6, 14, 2]),
        ("coatnet_0_asrun", [2, 2, 3, 5, 2]),
        (OPT, [2, 2, 6, 10, 2]),
        (f"{OPT}_full", [2, 2, 6, 14, 2]),
        (f"{OPT}_csp", [2, 2, 6, 10, 2]),
    ],
)
def test_blocks(name: str, expected: list[int]) -> None:
    assert blocks(on_meta(name)) == expected


def test_coatnet_has_heads_of_32_and_gates_of_a_quarter() -> None:
    model = on_meta("coatnet_0")

    heads = {(p.project.out_features, p.heads) for p in model.modules() if hasattr(p, "heads")}
    gates = [(p.expand.out_channels, p.reduce.out_channels) for p in gates_of(model, SqueezeExcite)]

    assert heads == {(384, 12), (768, 24)}
    assert gates == [(256, 16), (384, 24), (384, 24), (768, 48), (768, 48), (768, 48)]


def gates_of(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, kind)]


# In millions, convolutions and linear layers alone; then the products of the attention.
@pytest.mark.parametrize(
    ("name", "dense", "attended"),
    [
        ("coatnet_0", 318.8, 1_032_192),
        ("coatnet_1", 645.4, 2_801_664),
        ("coatnet_0_asrun", 323.2, 5_750_784),
        (OPT, 136.1, 124_928),
        (f"{OPT}_large_stem", 137.3, 124_928),
    ],
)
def test_costs_without_and_with_attention(name: str, dense: float, attended: int) -> None:
    with FlopCounterMode(display=False) as counter:
        on_meta(name)(torch.empty(1, 3, 32, 32, device="meta"))

    # On the meta device attention is two batched products, and nothing else is.
    products = counter.get_flop_counts()["Global"][torch.ops.aten.bmm] // 2

    assert products == attended
    assert round((MODELS[name].macs - products) / 1e6, 1) == dense


@pytest.mark.parametrize(("name", "matter"), [(OPT, False), (f"{OPT}_s1", True)])
def test_a_single_token_needs_no_queries_and_keys(name: str, matter: bool) -> None:
    model = create_model(name, num_classes=7).double().train()

    model(seeded(2, 3, 32, 32)).square().sum().backward()

    for block in model.stages[4][1:]:
        queries_and_keys, values = block.attention.qkv.weight.grad.split((2 * 512, 512))
        assert (queries_and_keys.abs().max() > 1e-12 * values.abs().max()) == matter


def test_a_stem_of_stride_1_has_the_same_tensors() -> None:
    assert shapes(f"{OPT}_s1") == shapes(OPT)


def test_offsets_and_a_norm_are_all_that_rel_adds() -> None:
    base, arm = shapes(f"{OPT}_s1"), shapes(f"{OPT}_rel")

    added = {key: shape for key, shape in arm.items() if key not in base}

    assert {key: shape for key, shape in arm.items() if key in base} == base
    assert sorted(added.values()) == [(8, 9)] * 2 + [(8, 49)] * 10 + [(512,)] * 2
    assert {"norm.weight", "norm.bias"} < added.keys()


@pytest.mark.parametrize(("arm", "kind"), [("se", SqueezeExcite), ("noattn", nn.Identity)])
def test_every_gate_is_replaced(arm: str, kind: type[nn.Module]) -> None:
    base, model = on_meta(OPT), on_meta(f"{OPT}_{arm}")

    for stage, own in zip(base.stages, model.stages, strict=True):
        for part, other in zip(stage, own, strict=True):
            match part:
                case MobileBlock():
                    assert isinstance(part.branch[2], EfficientChannelAttention)
                    assert type(other.branch[2]) is kind
                case TransformerBlock():
                    assert isinstance(part.gate, EfficientChannelAttention)
                    assert type(other.gate) is kind
    assert len(gates_of(base, EfficientChannelAttention)) == 22


def test_se_squeezes_to_a_quarter_of_the_inputs() -> None:
    gates = gates_of(on_meta(f"{OPT}_se"), SqueezeExcite)

    reduced = [gate.reduce.out_channels for gate in gates]

    assert reduced == [16] * 3 + [24] * 2 + [48] * 5 + [96] * 10 + [128] * 2


def test_partial_blocks_are_half_as_wide() -> None:
    model = on_meta(f"{OPT}_csp")

    widths = [[block.branch[0][0].in_channels for block in model.stages[i].blocks] for i in (1, 2)]

    assert widths == [[48], [96] * 5]
    assert {type(model.stages[i]) for i in (1, 2)} == {PartialStage}
    assert not any(isinstance(model.stages[i], PartialStage) for i in (0, 3, 4))


def test_lsk_adds_one_selective_kernel_to_the_stem() -> None:
    base, arm = shapes(OPT), shapes(f"{OPT}_lsk")

    added = {key for key in arm if key not in base}

    assert {key: arm[key] for key in base} == base
    assert isinstance(on_meta(f"{OPT}_lsk").stem[-1], LargeSelectiveKernel)
    assert all(key.startswith("stem.3.") for key in added)


@pytest.mark.parametrize("name", [n for n in OURS if n != "coatnet_0_asrun"])
def test_drop_path_rises_linearly(name: str) -> None:
    model = on_meta(name, drop_path=0.3)

    rates = [part.rate for part in model.modules() if type(part).__name__ == "DropPath"]

    last = len(rates) - 1
    assert rates == pytest.approx([0.3 * i / last for i in range(len(rates))])
    with pytest.raises(ZooError, match=r"rate must lie in \[0, 1\), got 1.0"):
        create_model(name, drop_path=1.0)


@pytest.mark.parametrize("name", CIFAR)
def test_dropout_is_an_option(name: str) -> None:
    rates = {p.p for p in on_meta(name, dropout=0.4).modules() if isinstance(p, nn.Dropout)}
    usual = {p.p for p in on_meta(name).modules() if isinstance(p, nn.Dropout)}

    assert (rates, usual) == ({0.4}, {0.1})


@pytest.mark.parametrize("name", OURS)
def test_another_size(name: str) -> None:
    model = create_model(name, image_size=64, num_classes=7).eval()

    with torch.inference_mode():
        logits = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))

    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["coatnet_0", "coatnet_1"])
@pytest.mark.parametrize("size", [8, 9, 28, 33])
def test_maps_of_any_size_are_rounded_up(name: str, size: int) -> None:
    assert [side for _, side in maps(name, size)] == [-(-size // 2**i) for i in range(5)]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(
            (name, size)
            for name in ("coatnet_0_asrun", f"{OPT}_s1", f"{OPT}_rel")
            for size in (8, 40)
        ),
        *((name, size) for name in (OPT, f"{OPT}_csp", f"{OPT}_lsk") for size in (16, 28, 48)),
        ("coatnet_0", 7),
    ],
)
def test_sizes_that_would_lose_pixels_are_refused(name: str, size: int) -> None:
    with pytest.raises(ZooError, match=f"takes images of .*, got {size}"):
        create_model(name, image_size=size)


@pytest.mark.parametrize("name", ["coatnet_0", f"{OPT}_rel"])
def test_offsets_belong_to_one_size(name: str) -> None:
    model = on_meta(name)

    with pytest.raises(RuntimeError, match="16"):  # tokens of the stage that refuses
        model(torch.empty(2, 3, 64, 64, device="meta"))
