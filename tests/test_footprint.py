from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.liveness import peak_bytes
from torch import Tensor, nn

from profiling.activation import footprint_of
from profiling.footprint import Footprint, intensity
from zoo.models import MODELS, create_model

MAP = 4 * 32 * 32  # bytes of a float32 channel


class Residual(nn.Module):
    """In-place steps, views, a sum with an early value, and a token made of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.table = nn.Parameter(torch.zeros(32 * 32 + 1, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = F.relu_(self.depthwise(x)) + x
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.table.softmax(0)
        return self.head(tokens[:, 0])


class Attention(nn.Module):
    """Two heads over 256 tokens of 16 channels, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(3, 48, 2, stride=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x).flatten(2).transpose(1, 2)  # (B, 256, 48)
        parts = tokens.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts)  # (B, 2, 256, 8)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def test_a_chain_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 10),
    )

    found = footprint_of(model)

    assert found == Footprint(
        buffers=8 + 8 + 1,
        state_bytes=4 * (8 * 27 + 8 + 8 + 8 + 8 + 8 + 2 * 8 + 2 + 2 * 10 + 10) + 8,
        norm_flops=2 * 8 * 1024,
        weights=8 * 27 + 8 + 2 * 8 + 2 + 2 * 10 + 10,
        moved=1024 * (3 + 8 + 8 + 2) + 2 + 10,
        peaks=((0, (3 + 8 + 8) * MAP),),  # the images, what the norm takes and what it makes
    )
    assert found.activation_bytes(5) == 5 * 19 * MAP


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("kind", [Residual, Attention])
def test_the_exported_graph_agrees(kind: type[nn.Module], batch: int) -> None:
    model = kind()

    found = footprint_of(model)

    assert found.activation_bytes(batch) == peak_bytes(model, torch.zeros(batch, 3, 32, 32))


@pytest.mark.parametrize(
    "name",
    [
        "resnet_20",
        pytest.param("coatnet_cifar_opt_rel", marks=pytest.mark.slow),
        pytest.param("segnext_mscan_tiny", marks=pytest.mark.slow),
    ],
)
def test_the_exported_graph_of_the_catalogue_agrees(name: str) -> None:
    model = create_model(name)

    found = footprint_of(model)

    assert found.activation_bytes(2) == peak_bytes(model, torch.zeros(2, 3, 32, 32))


@pytest.mark.slow
def test_every_model_has_a_footprint() -> None:
    for name, spec in MODELS.items():
        with torch.device("meta"):
            model = create_model(name)

        found = footprint_of(model)

        images, logits = 4 * 3 * 32 * 32, 4 * 100
        assert found.activation_bytes(1) > images + logits, name
        assert 0.9 * spec.params < found.weights <= spec.params + found.buffers, name
        few, many = (intensity(found, spec.macs, batch) for batch in (1, 256))
        assert few is not None, name
        assert many is not None, name
        assert 0 < few < many, name


def test_the_allocator_agrees() -> None:
    sizes = (512, 2048, 256, 1024, 64)
    model = nn.Sequential()
    for left, right in zip(sizes, sizes[1:], strict=False):
        model.extend([nn.Linear(left, right), nn.GELU()])
    images = torch.zeros(4, 1, 1, 512)

    # acc_events: torch 2.14 warns where it is not said whether cycles add up.
    options: dict[str, Any] = {"activities": [torch.profiler.ProfilerActivity.CPU]}
    with (
        torch.no_grad(),
        torch.profiler.profile(profile_memory=True, acc_events=True, **options) as p,
    ):
        model(images)

    changes = [e.nbytes() for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = [sum(changes[:end]) for end in range(len(changes) + 1)]
    found = footprint_of(model, (1, 1, 512))
    assert found.activation_bytes(4) == max(live) + images.nbytes


def test_attention_is_one_operator() -> None:
    found = footprint_of(Attention())

    tokens, scores = 256 * 16, 2 * 256 * 256
    assert found.moved == 3 * 1024 + 3 * tokens + 3 * tokens + tokens + 16 + 10
    assert found.activation_bytes(1) < 4 * scores


def test_what_does_not_depend_on_the_images_does_not_grow() -> None:
    found = footprint_of(Residual())

    (fixed, _), *_ = sorted(found.peaks, reverse=True)
    assert fixed == 4 * (32 * 32 + 1) * 8  # the softmax of the table
    assert found.activation_bytes(512) < 512 * found.activation_bytes(1)


# fvcore traces with TorchScript, which torch is about to drop.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["resnet_20", "mlp_mixer_nano", "group", "bare"])
def test_fvcore_counts_the_same_norms(name: str) -> None:
    analysis = pytest.importorskip("fvcore.nn", reason="needs fvcore").FlopCountAnalysis
    norms = {
        "group": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)),
        "bare": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False)),
    }
    model = norms[name]() if name in norms else create_model(name)
    counted = analysis(model.eval(), torch.zeros(1, 3, 32, 32))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)

    by_operator = counted.by_operator()

    kinds = ("batch_norm", "layer_norm", "group_norm")
    assert footprint_of(model).norm_flops == sum(by_operator[kind] for kind in kinds) > 0


def test_the_model_is_left_as_it_is() -> None:
    model = create_model("resnet_20").train()

    footprint_of(model)

    assert model.training
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_bytes_follow_the_precision() -> None:
    found = Footprint(
        buffers=0, state_bytes=4, norm_flops=0, weights=100, moved=50, peaks=((0, 40), (80, 8))
    )

    assert found.moved_bytes(2) == 4 * (100 + 2 * 50)
    assert found.moved_bytes(2, "int8") == 100 + 2 * 50
    assert found.moved_bytes(2, "fp7") is None
    assert (found.activation_bytes(1), found.activation_bytes(10)) == (88, 400)
    assert found.working_set_bytes(10, "fp16") == 2 * (100 + 100)
    assert found.working_set_bytes(10, "fp7") is None
    assert intensity(found, 300, 2) == 2 * 300 * 2 / 800
    assert intensity(found, 300, 2, "fp7") is None
