from pathlib import Path

import numpy as np
import pytest
import torch
from reference import layers as reference
from reference.weights import randomise_norms, transplant
from torch import Tensor, nn

from zoo.checkpoint import Checkpoint
from zoo.layers import EfficientChannelAttention
from zoo.models import create_model
from zoo.models.hyaresnet import MultiScaleGate
from zoo.models.resnet import BasicBlock

COMMITTED_RUN = Path(__file__).parents[1] / "bench_results" / "runs" / "resnet_20-s0"
IMPROVED = "improved_resnet20_convnext"
BLOCKS = {
    "resnet_20": [3, 3, 3],
    "resnet_32": [5, 5, 5],
    "resnet_56": [9, 9, 9],
    "resnet_18": [2, 2, 2, 2],
    "resnet_50": [3, 4, 6, 3],
    "eca_resnet_20": [3, 3, 3],
    "eca_resnet_32": [5, 5, 5],
    "eca_resnet_20_pos1": [3, 3, 3],
    "eca_resnet_20_pos3": [3, 3, 3],
    "ecanet20_fixed_k9": [3, 3, 3],
    "hyaresnet_20": [3, 3, 3],
    "resnet_20_msca": [3, 3, 3],
    IMPROVED: [3, 3, 3],
    f"{IMPROVED}_std_conv": [3, 3, 3],
    f"{IMPROVED}_no_inverted": [3, 3, 3],
}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def blocks_of(name: str) -> list[nn.Module]:
    return [block for stage in create_model(name).stages for block in stage]


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [part for part in model.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize("name", BLOCKS)
def test_each_stage_but_the_first_halves_the_map(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        x = model.stem(torch.empty(2, 3, 32, 32))
        sizes = [x.shape[-1]]
        for stage in model.stages:
            x = stage(x)
            sizes.append(x.shape[-1])

    assert sizes == [32, 32, 16, 8, 4][: 1 + len(model.stages)]
    assert [len(stage) for stage in model.stages] == BLOCKS[name]


@pytest.mark.parametrize(
    ("name", "projected"),
    [("resnet_56", [9, 18]), ("resnet_18", [2, 4, 6]), ("resnet_50", [0, 3, 7, 13])],
)
def test_shortcuts_are_projections_only_where_the_shape_changes(
    name: str, projected: list[int]
) -> None:
    shortcuts = [block.shortcut for block in blocks_of(name)]

    found = [i for i, module in enumerate(shortcuts) if not isinstance(module, nn.Identity)]

    assert found == projected


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("resnet_18", {1: "first", 2: "second"}),
        ("resnet_50", {1: "reduce", 2: "middle", 3: "expand"}),
    ],
)
def test_wide_networks_agree_with_torchvision(
    name: str, branch: dict[int, str], images: Tensor
) -> None:
    import torchvision

    theirs = torchvision.models.get_model(name.replace("_", ""), num_classes=100)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    randomise_norms(theirs, images)
    ours = create_model(name).eval()
    names = {
        r"^conv1\.": "stem.0.",
        r"^bn1\.": "stem.1.",
        r"^fc\.": "head.",
        **{rf"^layer{stage + 1}\.": f"stages.{stage}." for stage in range(4)},
        **{rf"\.conv{i}\.": f".{part}.0." for i, part in branch.items()},
        **{rf"\.bn{i}\.": f".{part}.1." for i, part in branch.items()},
        r"\.downsample\.": ".shortcut.",
    }

    transplant(theirs, ours, names)

    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    assert expected.std(0).min() > 1e-3  # the images matter
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_committed_run_still_loads(images: Tensor) -> None:
    model = Checkpoint.open(COMMITTED_RUN).model()

    assert model(images).isfinite().all()


def test_places_of_a_gate() -> None:
    class Negate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -x

    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    inner, middle, outer = (
        BasicBlock(8, 8, 1, **{place: Negate()}).eval()
        for place in ("inner_gate", "gate", "outer_gate")
    )
    for block in (middle, outer):
        block.load_state_dict(inner.state_dict())
    first, second, relu = inner.first, inner.second, torch.relu

    torch.testing.assert_close(inner(x), relu(second(relu(-first(x))) + x))
    torch.testing.assert_close(middle(x), relu(-second(relu(first(x))) + x))
    torch.testing.assert_close(outer(x), relu(-(second(relu(first(x))) + x)))


@pytest.mark.parametrize(
    ("name", "place", "kernel"),
    [
        ("eca_resnet_20", "gate", 3),
        ("eca_resnet_32", "gate", 5),
        ("ecanet20_fixed_k3", "gate", 3),
        ("ecanet20_fixed_k5", "gate", 5),
        ("ecanet20_fixed_k7", "gate", 7),
        ("ecanet20_fixed_k9", "gate", 9),
        ("ecanet20_adaptive", "gate", 3),
        ("eca_resnet_20_pos1", "inner_gate", 3),
        ("eca_resnet_20_pos3", "outer_gate", 3),
    ],
)
def test_every_block_has_one_channel_gate(name: str, place: str, kernel: int) -> None:
    for block in blocks_of(name):
        gates = {
            key: part.conv.kernel_size
            for key, part in block.named_modules()
            if isinstance(part, EfficientChannelAttention)
        }
        assert gates == {place: (kernel,)}


def test_three_names_are_one_network(images: Tensor) -> None:
    first = create_model("eca_resnet_20").eval()
    for name in ("ecanet20_fixed_k3", "ecanet20_adaptive"):
        other = create_model(name).eval()

        other.load_state_dict(first.state_dict())

        torch.testing.assert_close(other(images), first(images), rtol=0, atol=0)


def test_places_and_kernels_are_different_networks(images: Tensor) -> None:
    torch.manual_seed(0)
    names = ("eca_resnet_20", "eca_resnet_20_pos1", "eca_resnet_20_pos3")
    first, inner, outer = (create_model(name).eval() for name in names)
    transplant(first, inner, {r"\.gate\.": ".inner_gate."})
    transplant(first, outer, {r"\.gate\.": ".outer_gate."})

    for one, other in ((first, inner), (first, outer), (inner, outer)):
        assert (one(images) - other(images)).abs().max() > 1e-4


def test_multi_scale_gate() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 6, 4, generator=generator, dtype=torch.float64)
    layer = MultiScaleGate(3).double()

    found = layer(x).detach().numpy()

    def conv(x: np.ndarray, part: nn.Conv2d) -> np.ndarray:
        weight, bias = part.weight.detach().numpy(), part.bias.detach().numpy()
        return reference.conv(x, weight, 1, part.groups) + bias[:, None, None]

    mixed = conv(conv(x.numpy(), layer.near) + conv(x.numpy(), layer.far), layer.mix)
    expected = x.numpy() / (1 + np.exp(-mixed))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_hybrid_gates_channels_first() -> None:
    for block in blocks_of("hyaresnet_20"):
        assert [type(part) for part in block.gate] == [EfficientChannelAttention, MultiScaleGate]
        assert block.gate[0].conv.kernel_size == (3,)


def test_the_spatial_gate_alone_lacks_only_the_channel_gate() -> None:
    hybrid = create_model("hyaresnet_20").state_dict()
    spatial = create_model("resnet_20_msca").state_dict()

    rest = {
        key.replace(".gate.1.", ".gate."): value.shape
        for key, value in hybrid.items()
        if ".gate.0." not in key
    }

    assert rest == {key: value.shape for key, value in spatial.items()}


@pytest.mark.parametrize("name", [IMPROVED, f"{IMPROVED}_std_conv", f"{IMPROVED}_no_inverted"])
def test_drop_path_rises_linearly(name: str) -> None:
    model = create_model(name, drop_path=0.4)

    rates = [block.drop_path.rate for stage in model.stages for block in stage]

    assert rates == pytest.approx([0.05 * i for i in range(9)])


@pytest.mark.parametrize(
    "name", ["resnet_18", "resnet_18_ca", "resnet_50", "resnext_29_8x64d", "res2net_50"]
)
def test_drop_path_drops_branches_of_large_networks(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    whole = create_model(name)
    dropped = create_model(name, drop_path=0.5)
    dropped.load_state_dict(whole.state_dict())

    rates = [block.drop_path.rate for stage in dropped.stages for block in stage]

    assert rates == pytest.approx([0.5 * i / (len(rates) - 1) for i in range(len(rates))])
    with torch.no_grad():
        assert torch.equal(dropped.eval()(images), whole.eval()(images))
        assert not torch.equal(dropped.train()(images), whole.train()(images))


def test_without_drop_path_only_the_rates_differ(images: Tensor) -> None:
    with_drops, without = create_model(IMPROVED), create_model(f"{IMPROVED}_no_droppath")
    without.load_state_dict(with_drops.state_dict())

    rates = [block.drop_path.rate for stage in without.stages for block in stage]

    assert rates == [0.0] * 9
    torch.testing.assert_close(without.eval()(images), with_drops.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "kernels", "hidden", "depthwise"),
    [
        (IMPROVED, [1, 7, 1], [64, 64, 64, 64, 128, 128, 128, 256, 256], True),
        (f"{IMPROVED}_std_conv", [1, 3, 1], [64, 64, 64, 64, 128, 128, 128, 256, 256], False),
        (f"{IMPROVED}_no_inverted", [7, 1], [16, 16, 16, 16, 32, 32, 32, 64, 64], True),
    ],
)
def test_branches_of_the_improved_block(
    name: str, kernels: list[int], hidden: list[int], depthwise: bool
) -> None:
    branches = [convolutions(block.branch) for block in blocks_of(name)]

    for branch, width in zip(branches, hidden, strict=True):
        assert [conv.kernel_size[0] for conv in branch] == kernels
        mixing = branch[-2]
        assert (mixing.in_channels, mixing.out_channels) == (width, width)
        assert mixing.groups == (width if depthwise else 1)
        assert all(conv.groups == 1 for conv in branch if conv is not mixing)
    assert [i for i, branch in enumerate(branches) if branch[-2].stride == (2, 2)] == [3, 6]
