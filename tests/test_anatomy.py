import copy

import pytest
import torch
from model_checks import seeded, smallest_of_each_family
from reference.receptive_field import seen_rows
from torch import Tensor, nn

from zoo.anatomy import Part, ReceptiveField, describe, parts, receptive_field, stages
from zoo.models import MODELS, create_model

FAMILIES = pytest.mark.parametrize("name", smallest_of_each_family())


class Staged(nn.Module):
    """Any stages, then the mean over whatever is left and a linear layer."""

    def __init__(self, *parts: nn.Module, width: int = 3) -> None:
        super().__init__()
        self.stages = nn.Sequential(*parts)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).flatten(2).mean(2))


class Twice(nn.Module):
    """A convolution with a shortcut around it, which makes it no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Gate(nn.Module):
    """A scale that depends on the mean of the map, through a sigmoid that is saturated."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1000 + x.mean((2, 3), keepdim=True))


class OneSize(nn.Module):
    """Mixes all pixels of a map of 8x8 and takes no other."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.flatten(2)).unflatten(2, (8, 8))


class Tokens(nn.Module):
    """A token for each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Windows(nn.Module):
    """Mixes neighbouring pairs of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (-1, 2))
        return (pairs + pairs.mean(2, keepdim=True)).flatten(1, 2)


class ChannelsLast(nn.Module):
    """Hands on (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


@FAMILIES
def test_each_stage_is_called_once_in_order_and_returns_a_tensor(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name).eval()
    called: list[tuple[str, type]] = []
    for key, part in stages(model):
        part.register_forward_hook(
            lambda module, args, out, key=key: called.append((key, type(out)))
        )

    model(torch.empty(2, 3, 32, 32, device="meta"))

    assert called == [(key, Tensor) for key, _ in stages(model)]
    assert len(called) >= 3


@FAMILIES
def test_parts_add_up_to_what_the_registry_promises(name: str) -> None:
    with torch.device("meta"):
        made = parts(create_model(name))

    spec = MODELS[name]
    assert sum(part.params for part in made) == spec.params
    assert sum(part.macs for part in made) == spec.macs
    assert all(part.params >= 0 <= part.macs for part in made)
    (*_, last) = (part for part in made if part.name != "rest")
    assert last.outputs == (100,)


def test_stages_have_the_names_of_the_network() -> None:
    resnet = [name for name, _ in stages(create_model("resnet_20"))]
    with torch.device("meta"):
        vit = [name for name, _ in stages(create_model("vit_tiny"))]

    assert resnet == ["stem", "stages.0", "stages.1", "stages.2", "head"]
    assert vit == ["patch_embed", *(f"blocks.{i}" for i in range(12)), "norm", "head"]


def test_any_network_has_stages() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))

    assert [name for name, _ in stages(model)] == ["0", "3"]


def test_parts_of_resnet_20_by_hand() -> None:
    stem, first, second, _, head = parts(create_model("resnet_20"))

    assert stem == Part(
        name="stem",
        blocks="conv 3x3, BatchNorm2d, ReLU",
        inputs=(3, 32, 32),
        outputs=(16, 32, 32),
        params=3 * 16 * 9 + 2 * 16,
        macs=3 * 16 * 9 * 32**2,
    )
    assert first.blocks == "3 x BasicBlock"
    assert first.params == 6 * (16 * 16 * 9 + 2 * 16)
    assert first.macs == 6 * 16 * 16 * 9 * 32**2
    assert (second.inputs, second.outputs) == ((16, 32, 32), (32, 16, 16))
    assert (head.params, head.macs) == (6500, 6400)


def test_what_belongs_to_no_stage_is_the_rest() -> None:
    with torch.device("meta"):
        rest = parts(create_model("vit_tiny"))[-1]

    assert rest == Part(
        name="rest",
        blocks="cls_token, pos_embed",
        inputs=None,
        outputs=None,
        params=192 + 65 * 192,
        macs=0,
    )


def test_parts_at_another_size() -> None:
    small, large = parts(create_model("resnet_20")), parts(create_model("resnet_20"), 64)

    assert large[3].outputs == (64, 16, 16)
    assert large[3].macs == 4 * small[3].macs


def test_the_network_is_left_as_it_is() -> None:
    model = create_model("resnet_20").train()
    before = copy.deepcopy(model.state_dict())

    parts(model)
    receptive_field(model)

    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.stem._forward_hooks


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Conv2d(3, 8, (1, 7)), "conv 1x7"),
        (nn.Conv2d(8, 8, 3, stride=2, groups=8), "depthwise conv 3x3 stride 2"),
        (nn.Sequential(nn.Identity(), nn.Linear(2, 2)), "Linear"),
        (nn.Sequential(nn.ReLU(), nn.ReLU(), nn.GELU()), "2 x ReLU, GELU"),
        (
            nn.Sequential(*(nn.Sequential(nn.ReLU(), nn.GELU()) for _ in range(2))),
            "2 x (ReLU, GELU)",
        ),
        (Gate(), "Gate"),
    ],
)
def test_modules_are_described(module: nn.Module, text: str) -> None:
    assert describe(module) == text


def test_a_stage_of_timm_names_its_blocks() -> None:
    with torch.device("meta"):
        _, first, *_ = parts(create_model("convnext_tiny"))

    assert first.blocks == "ConvNeXtStage of 3 x ConvNeXtBlock"


# ---- receptive field -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("resnet_20", 96, 81),
        ("improved_resnet20_convnext", 128, 111),
        ("ghost_resnet_20", 192, 165),
        ("segnext_mscan_tiny_s1", 384, 317),  # strips, and a gate that they reach through
        ("hornet_tiny", 512, 422),  # unpadded 2x2 between the stages
        ("res2net_50_v1b", 320, 287),  # pooled shortcuts
        ("cspresnet50", 128, 107),  # stages that are no chain of blocks
    ],
)
def test_the_receptive_field_is_that_of_the_gradient(name: str, rows: int, expected: int) -> None:
    model = seeded(name)

    found = receptive_field(model)

    assert found == ReceptiveField(pixels=expected)
    assert seen_rows(model, rows, 8) == expected


def test_the_receptive_field_of_resnet_20_by_hand() -> None:
    stem, first = 3, 6 * 2
    second, third = 2 + 5 * 4, 4 + 5 * 8  # of each, the first convolution still sees the map before

    assert receptive_field(create_model("resnet_20")).pixels == stem + first + second + third


@pytest.mark.parametrize(
    ("name", "whole_from"),
    [
        ("eca_resnet_20", "stages.0.0"),  # a gate that looks at means
        ("resnet_18_ca", "stages.0.0"),  # at means of rows and columns
        ("ghostnet_100", "stages.2.0"),  # squeeze and excite, from the third stage on
        ("coatnet_cifar_opt_noattn", "stages.3.1"),  # attention behind convolutions
        ("edgenext_small", "stages.1.blocks.2"),  # attention between channels
        ("mlp_mixer_tiny", "stages.0.0"),
        ("vit_tiny", "blocks.0"),
    ],
)
def test_attention_mixing_and_gates_see_everything(name: str, whole_from: str) -> None:
    with torch.device("meta"):
        model = create_model(name)

    assert receptive_field(model) == ReceptiveField(whole_from=whole_from)


def conv(kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(3, 3, kernel, stride, padding=padding, dilation=dilation)


@pytest.mark.parametrize(
    ("blocks", "pixels"),
    [
        ([conv(1)], 1),
        ([conv(7, dilation=3)], 19),
        ([conv(3, dilation=20)], 41),  # over the end of the smallest map that is tried
        ([conv(3, stride=2), conv(3), nn.MaxPool2d(2)], 3 + 2 * 2 + 2),
        ([nn.Conv2d(3, 3, 4, stride=4), nn.ReLU(), conv(3)], 4 + 2 * 4),
        ([Twice(), Twice()], 9),
        ([conv(1, stride=2), conv(3)], 5),  # it skips rows inside
        ([conv(3), *(conv(33) for _ in range(3))], 3 + 3 * 32),
    ],
)
def test_receptive_fields_by_hand(blocks: list[nn.Module], pixels: int) -> None:
    assert receptive_field(Staged(*blocks)).pixels == pixels


def test_zero_weights_and_saturated_gates_hide_nothing() -> None:
    block = Twice()
    nn.init.zeros_(block.conv.weight)

    assert receptive_field(Staged(block)).pixels == 5
    assert receptive_field(Staged(block, Gate())).whole_from == "stages.1"


def test_a_block_that_is_tied_to_its_size() -> None:
    assert receptive_field(Staged(conv(3, stride=4), OneSize())).whole_from == "stages.1"


def test_what_cannot_be_told_is_not_known() -> None:
    assert receptive_field(Staged(ChannelsLast(), width=32)) == ReceptiveField()
    assert receptive_field(Staged(Tokens(), Windows(), width=1024)) == ReceptiveField()


def test_receptive_fields_as_text() -> None:
    assert str(ReceptiveField(pixels=81)) == "81 x 81 pixels"
    assert str(ReceptiveField(whole_from="stages.1")) == "global, from stages.1 on"
    assert str(ReceptiveField()) == "not known"
