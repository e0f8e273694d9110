import pytest
import torch
from reference.weights import randomise_norms, transplant
from torch import Tensor, nn

from zoo.layers import GhostModule, SqueezeExcite
from zoo.models import create_model

RESNETS = ("ghost_resnet_20", "ghost_resnet_20_r3", "ghost_resnet_20_r4", "ghost_resnet_32")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def map_sizes(model: nn.Module, x: Tensor) -> list[int]:
    x = model.stem(x)
    sizes = [x.shape[-1]]
    for stage in model.stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    return sizes


def modules_of(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, kind)]


@pytest.mark.parametrize("name", RESNETS)
def test_maps_of_the_residual_networks(name: str, images: Tensor) -> None:
    model = create_model(name).eval()

    assert map_sizes(model, images) == [32, 32, 16, 8]


@pytest.mark.parametrize(
    ("name", "intrinsic", "surplus"),
    [
        ("ghost_resnet_20", [8, 16, 32], [0, 0, 0]),
        ("ghost_resnet_20_r3", [6, 11, 22], [2, 1, 2]),
        ("ghost_resnet_20_r4", [4, 8, 16], [0, 0, 0]),
    ],
)
def test_ratio_sets_how_many_maps_are_intrinsic(
    name: str, intrinsic: list[int], surplus: list[int]
) -> None:
    model = create_model(name)

    last = [stage[-1].second[0] for stage in model.stages]

    assert [module.primary[0].out_channels for module in last] == intrinsic
    made = [module.primary[0].out_channels + module.cheap[0].out_channels for module in last]
    assert [a - b for a, b in zip(made, (16, 32, 64), strict=True)] == surplus


def test_thirty_two_layers_are_five_blocks_a_stage() -> None:
    assert [len(stage) for stage in create_model("ghost_resnet_32").stages] == [5, 5, 5]


def test_batch_norm_follows_each_ghost_module_of_a_residual_block() -> None:
    block = create_model("ghost_resnet_20").stages[1][0]

    for half in (block.first, block.second):
        assert [type(part) for part in half] == [GhostModule, nn.BatchNorm2d]
    assert [type(part) for part in block.shortcut] == [nn.Conv2d, nn.BatchNorm2d]


def test_maps_of_ghostnet(images: Tensor) -> None:
    model = create_model("ghostnet_100").eval()

    assert map_sizes(model, images) == [32, 32, 16, 8, 4, 2]


def test_rows_of_ghostnet() -> None:
    model = create_model("ghostnet_100")

    blocks = [block for stage in model.stages for block in stage]

    hidden = [16, 48, 72, 72, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960, 960, 960]
    assert [block.widen.outputs for block in blocks] == hidden
    outputs = [16, 24, 24, 40, 40, 80, 80, 80, 80, 112, 112, 160, 160, 160, 160, 160]
    assert [block.narrow.outputs for block in blocks] == outputs
    strided = [i for i, block in enumerate(blocks) if not isinstance(block.shrink, nn.Identity)]
    assert strided == [1, 3, 5, 11]
    assert [blocks[i].shrink[0].kernel_size[0] for i in strided] == [3, 5, 3, 5]
    projected = [i for i, block in enumerate(blocks) if not isinstance(block.shortcut, nn.Identity)]
    assert projected == [1, 3, 5, 9, 11]
    squeezed = {
        i: block.squeeze.reduce.out_channels
        for i, block in enumerate(blocks)
        if isinstance(block.squeeze, SqueezeExcite)
    }
    assert squeezed == {3: 20, 4: 32, 9: 120, 10: 168, 11: 168, 13: 240, 15: 240}


def test_ghostnet_narrows_linearly_and_gates_by_a_hard_sigmoid() -> None:
    model = create_model("ghostnet_100")

    for stage in model.stages:
        for block in stage:
            assert len(modules_of(block.widen, nn.ReLU)) == 2
            assert not modules_of(block.narrow, nn.ReLU)
    assert all(isinstance(part.gate, nn.Hardsigmoid) for part in modules_of(model, SqueezeExcite))


def test_ghostnet_agrees_with_timm(images: Tensor) -> None:
    import timm

    theirs = timm.create_model("ghostnet_100", num_classes=100)
    theirs.conv_stem.stride = (1, 1)
    randomise_norms(theirs, images)
    ours = create_model("ghostnet_100").eval()
    rows = [f"{i}.{j}" for i, stage in enumerate(theirs.blocks[:-1]) for j in range(len(stage))]
    places = [f"{i}.{j}" for i, stage in enumerate(ours.stages) for j in range(len(stage))]
    names = {
        **{rf"^blocks\.{a}\.": f"stages.{b}." for a, b in zip(rows, places, strict=True)},
        r"\.ghost1\.": ".widen.",
        r"\.ghost2\.": ".narrow.",
        r"\.primary_conv\.": ".primary.",
        r"\.cheap_operation\.": ".cheap.",
        r"\.conv_dw\.": ".shrink.0.",
        r"\.bn_dw\.": ".shrink.1.",
        r"\.se\.conv_": ".squeeze.",
        r"^conv_stem\.": "stem.0.",
        r"^bn1\.": "stem.1.",
        r"^blocks\.9\.0\.conv\.": "last.0.",
        r"^blocks\.9\.0\.bn1\.": "last.1.",
        r"^conv_head\.": "features.0.",
        r"^classifier\.": "head.",
    }

    transplant(theirs, ours, names)

    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    print(expected.std(0).min(), expected.abs().max(), (found - expected).abs().max())
    assert expected.std(0).min() > 1e-3  # the images matter
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
