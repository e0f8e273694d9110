from collections.abc import Callable, Iterator

import numpy as np
import pytest
import timm
import torch
from reference import gates, layers
from reference.weights import randomise_norms
from torch import Tensor, nn

from zoo.layers import CoordAttention, SplitAttention
from zoo.models import create_model
from zoo.models.res2net import ScaleChain, ScaleStart

FOUR_STAGES = (
    *("res2net_50", "res2net_50_v1b", "res2net_ca_v1b"),
    *("resnext_50", "resnest50d", "cspresnet50"),
)


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Fill `target`, whose modules of each kind stand in the order of those of `source`."""
    for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
        pairs = zip(of_kind(source, kind), of_kind(target, kind), strict=True)
        for theirs, ours in pairs:
            ours.load_state_dict(theirs.state_dict())


def of_kind(module: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    return (part for part in module.modules() if isinstance(part, kind))


def plain_stem(model: nn.Module) -> None:
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()


def deep_stem(model: nn.Module) -> None:
    for conv in of_kind(model.conv1, nn.Conv2d):
        conv.stride = (1, 1)
    model.maxpool = nn.Identity()


def meta_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name).eval()


def blocks_of(name: str) -> list[nn.Module]:
    return [block for stage in meta_model(name).stages for block in stage]


@pytest.mark.parametrize(
    ("name", "theirs", "stem"),
    [
        ("res2net_50", "res2net50_26w_4s", plain_stem),
        ("res2net_50_v1b", "res2net50d", deep_stem),
        ("resnext_50", "resnext50_32x4d", plain_stem),
        ("resnest50d", "resnest50d", deep_stem),
    ],
)
def test_logits_are_those_of_timm(
    name: str, theirs: str, stem: Callable[[nn.Module], None]
) -> None:
    images = seeded(4, 3, 32, 32)
    peer = timm.create_model(theirs, num_classes=100)
    stem(peer)
    model, peer = create_model(name).double().eval(), peer.double().eval()
    randomise_norms(peer, images)
    copy_weights(peer, model)

    with torch.inference_mode():
        found, expected = model(images), peer(images)

    assert 0.01 < expected.std(0).mean() < 100  # else an absolute tolerance says nothing
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_cspresnet50_differs_from_timm_in_its_stem_only() -> None:
    images, maps = seeded(4, 3, 64, 64), seeded(2, 64, 32, 32)
    peer = timm.create_model("cspresnet50", num_classes=100).double()
    model = create_model("cspresnet50").double().eval()
    randomise_norms(peer, images)
    shapes = {key: tensor.shape for key, tensor in peer.state_dict().items()}
    changed = [key for key, tensor in model.state_dict().items() if tensor.shape != shapes.pop(key)]

    model.load_state_dict({**peer.state_dict(), changed[0]: model.state_dict()[changed[0]]})
    with torch.inference_mode():
        found, expected = model.head(model.stages(maps)), peer.head(peer.stages(maps))

    assert shapes == {}
    assert changed == ["stem.conv1.conv.weight"]
    assert expected.std(0).mean() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("names", "size", "expected"),
    [
        (FOUR_STAGES, 32, [32, 32, 16, 8, 4]),
        (FOUR_STAGES, 33, [33, 33, 17, 9, 5]),
        (("resnext_29_8x64d",), 32, [32, 32, 16, 8]),
        (("resnext_29_8x64d",), 9, [9, 9, 5, 3]),
        (("cspresnet50_asrun",), 32, [8, 8, 4, 2, 1]),
        (("cspresnet50_asrun",), 33, [9, 9, 5, 3, 2]),
    ],
)
def test_maps_halve_from_the_second_stage_on(
    names: tuple[str, ...], size: int, expected: list[int]
) -> None:
    for name in names:
        model = meta_model(name)
        x = model.stem(torch.empty(1, 3, size, size, device="meta"))
        sizes = [x.shape[-1]]
        for stage in model.stages:
            x = stage(x)
            sizes.append(x.shape[-1])

        assert sizes == expected, name


def test_split_attention() -> None:
    x = seeded(2, 4, 3, 5)
    layer = SplitAttention(4).double().eval()
    randomise_norms(layer, x)

    found = layer(x).detach().numpy()

    conv, norm, inner_norm = layer.splits[0], layer.splits[1], layer.reduce[1]
    maps = layers.norm(
        layers.conv(x.numpy(), conv.weight.detach().numpy(), 1, 2), *norm_arrays(norm)
    )
    expected = gates.split(
        np.maximum(maps, 0).reshape(2, 2, 4, 3, 5),
        reduce=pointwise(layer.reduce[0]),
        norms=norm_arrays(inner_norm),
        expand=pointwise(layer.expand[0]),
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def norm_arrays(part: nn.BatchNorm2d) -> list[np.ndarray]:
    tensors = (part.running_mean, part.running_var, part.weight, part.bias)
    return [tensor.detach().numpy() for tensor in tensors]


def pointwise(part: nn.Conv2d) -> tuple[np.ndarray, np.ndarray]:
    return part.weight.detach().numpy()[:, :, 0, 0], part.bias.detach().numpy()


def test_split_attention_shares_one_whole_between_the_splits() -> None:
    layer = SplitAttention(4).double().eval()

    weights = layer.expand(seeded(2, 32, 1, 1))

    torch.testing.assert_close(weights.sum(1), torch.ones(2, 4, 1, 1, dtype=torch.float64))


def test_resnest_halves_maps_by_means_alone() -> None:
    blocks = blocks_of("resnest50d")

    pooled = [i for i, block in enumerate(blocks) if isinstance(block.middle[1], nn.AvgPool2d)]

    assert pooled == [3, 7, 13]
    assert all(conv.stride == (1, 1) for block in blocks for conv in of_kind(block, nn.Conv2d))


def test_each_scale_sees_those_before_it() -> None:
    seen = influence(ScaleChain(8))

    assert seen.tolist() == [  # row: the part that was changed; column: the part that answers
        [True, True, True, False],
        [False, True, True, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


@pytest.mark.parametrize("stride", [1, 2])
def test_scales_stay_apart_in_the_first_block_of_a_stage(stride: int) -> None:
    seen = influence(ScaleStart(8, stride))

    assert seen.tolist() == torch.eye(4, dtype=torch.bool).tolist()


def influence(layer: nn.Module) -> Tensor:
    """Which of four parts of two channels answer when one of them changes."""
    torch.manual_seed(0)
    layer = layer.double().eval()
    x = seeded(1, 8, 4, 4)
    answers = []
    for part in range(4):
        changed = x.clone()
        changed[:, 2 * part : 2 * part + 2] += 1
        moved = (layer(changed) - layer(x)).abs().amax((0, 2, 3))  # (C,)
        answers.append(moved.unflatten(0, (4, 2)).amax(1) > 0)
    return torch.stack(answers)


@pytest.mark.parametrize("name", ["res2net_50", "res2net_50_v1b", "res2net_ca_v1b"])
def test_res2net_has_four_scales_of_base_width_26(name: str) -> None:
    blocks = blocks_of(name)

    starts = [i for i, block in enumerate(blocks) if isinstance(block.middle, ScaleStart)]
    widths = [[conv[0].out_channels for conv in blocks[i].middle.convs] for i in starts]

    assert starts == [0, 3, 7, 13]
    assert widths == [[26] * 3, [52] * 3, [104] * 3, [208] * 3]


@pytest.mark.parametrize(
    ("name", "groups", "branches"),
    [("resnext_50", 32, [4, 8, 16, 32]), ("resnext_29_8x64d", 8, [64, 128, 256])],
)
def test_resnext_branches(name: str, groups: int, branches: list[int]) -> None:
    convs = [stage[0].middle[0] for stage in meta_model(name).stages]

    assert [conv.groups for conv in convs] == [groups] * len(branches)
    assert [conv.out_channels // groups for conv in convs] == branches


def test_only_the_own_design_has_coordinate_attention() -> None:
    def count(name: str) -> int:
        return sum(isinstance(part, CoordAttention) for part in meta_model(name).modules())

    assert [count("res2net_50_v1b"), count("res2net_ca_v1b")] == [0, 16]


@pytest.mark.parametrize("name", ["resnest50d", "cspresnet50_asrun"])
def test_a_batch_of_one_cannot_train_where_a_norm_sees_one_pixel(name: str) -> None:
    model = meta_model(name).train()

    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.empty(1, 3, 32, 32, device="meta"))


def test_half_of_a_partial_stage_goes_around_its_blocks() -> None:
    stages = meta_model("cspresnet50_asrun").stages

    assert [len(stage.branch) - 2 for stage in stages] == [3, 4, 6, 3]
    assert [stage.bypass[0].out_channels for stage in stages] == [64, 128, 256, 512]
    assert [stage.join[0].in_channels for stage in stages] == [128, 256, 512, 1024]
