"""What every variant of the zoo keeps, whatever its family: the cheap checks."""

import re

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from model_checks import (
    CATALOGUE,
    HIGHEST_LOSS,
    macs_without_fused_attention,
    outputs_of,
    promised,
    random_images,
    seeded,
    with_values_everywhere,
    without_dropping,
    zero_gradients,
)

from zoo.anatomy import stages
from zoo.checkpoint import load_weights
from zoo.cost import cost_of_model
from zoo.errors import ZooError
from zoo.models import MODELS, create_model, list_models

ALL = pytest.mark.parametrize("name", sorted(MODELS))

# Parameters that cannot matter: pattern of the variant -> pattern of the parameter -> the reason.
BEFORE_NORM = "a bias of a convolution, which the batch norm behind it subtracts again"
SHIFT = "a shift that only batch norms see, which subtract it again"
WITHOUT_INFLUENCE: dict[str, dict[str, str]] = {
    r"segnext_mscan_tiny(_s1)?": {
        r"stem\.0\.bias": BEFORE_NORM,
        r"stages\.[12]\.0\.0\.bias": BEFORE_NORM,
        r"stages\.\d\.\d\.mlp\.0\.bias": BEFORE_NORM,
        r"stages\.2\.0\.1\.bias": SHIFT,
        r"stages\.2\.\d\.mlp\.3\.bias": SHIFT,
    },
    r"segnext_mscan_tiny_asrun": {
        r"stem\.0\.bias": BEFORE_NORM,
        r"stages\.[123]\.0\.0\.bias": BEFORE_NORM,
        r"stages\.\d\.\d\.mlp\.0\.bias": BEFORE_NORM,
        r"stages\.[123]\.0\.1\.bias": SHIFT,
        r"stages\.\d\.\d\.mlp\.3\.bias": SHIFT,
    },
    r"resnet_(18|50)_ca.*|res2net_ca_v1b": {
        r"stages\.\d\.\d\.gate\.reduce\.0\.bias": BEFORE_NORM,
    },
    r"resnest50d": {r"stages\.\d\.\d\.middle\.0\.reduce\.0\.bias": BEFORE_NORM},
    r"ghostnet_100": {
        r"stages\.[13]\.0\.shrink\.1\.bias": SHIFT,
        r"stages\.[1-4]\.\d\.shortcut\.1\.bias": SHIFT,
        r"stages\.4\.\d\.narrow\.cheap\.1\.bias": SHIFT,
        r"stages\.4\.0\.shortcut\.3\.bias": SHIFT,
    },
    r"coatnet_[01]": {r"stages\.[01]\.\d\.norm\.bias": SHIFT},
    r"coatnet_0_asrun": {r"stages\.0\.\d\.branch\.3\.1\.bias": SHIFT},
    r"coatnet_cifar_opt(?!_csp).*": {r"stages\.[01]\.\d\.branch\.3\.1\.bias": SHIFT},
    r"coatnet_cifar_opt_csp": {
        r"stages\.0\.\d\.branch\.3\.1\.bias": SHIFT,
        r"stages\.[12]\.(enter|blocks\.\d)\.branch\.3\.1\.bias": SHIFT,
        r"stages\.1\.join\.1\.bias": SHIFT,
    },
    r"mlp_mixer_.*": {
        r"stages\.\d+\.\d+\.token_mlp\.second\.bias": "one number for all channels of a token, "
        "which every layer norm behind it subtracts",
    },
    r"lsknet_tiny": {
        r"stem\.0\.bias": BEFORE_NORM,
        r"stages\.[123]\.0\.0\.bias": BEFORE_NORM,
    },
}

# Variants whose networks, built as the studies describe them, start outside of the usual range.
UNUSUAL_START: dict[str, str] = {}


def excused(name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for variant, parameters in WITHOUT_INFLUENCE.items():
        if re.fullmatch(variant, name):
            found |= parameters
    return found


def test_the_catalogue_holds_the_promised_names() -> None:
    assert list_models() == tuple(sorted(promised()))
    assert len(promised()) == 69, CATALOGUE


@ALL
def test_promises_are_the_published_facts(name: str) -> None:
    row, spec = promised()[name], MODELS[name]

    assert spec.group == row["group"]
    if row["params"]:
        assert spec.params == int(row["params"])
    if row["macs_m"]:  # in millions, rounded or cut after the first decimal
        counted = macs_without_fused_attention(create_model(name)) / 1e6
        assert counted == pytest.approx(float(row["macs_m"]), abs=0.06)


@ALL
def test_costs_are_exactly_as_promised(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)

    cost = cost_of_model(model)

    assert (cost.params, cost.macs) == (MODELS[name].params, MODELS[name].macs)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@ALL
def test_logits_shape(name: str) -> None:
    model = seeded(name, num_classes=7).eval()

    with torch.inference_mode():
        one, five = model(random_images(1)), model(random_images(5))

    assert one.shape == (1, 7)
    assert five.shape == (5, 7)
    assert five.isfinite().all()
    # An image's logits do not depend on its neighbours in the batch.
    torch.testing.assert_close(five[:1], one, rtol=1e-3, atol=1e-4 * max(1, five.abs().max()))


@ALL
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = seeded(name)

    zero = zero_gradients(model, random_images(4))

    unexplained = [p for p in zero if not any(re.fullmatch(r, p) for r in excused(name))]
    assert not unexplained
    for pattern, reason in excused(name).items():
        assert any(re.fullmatch(pattern, p) for p in zero), f"{pattern} matters by now: {reason}"


@ALL
def test_the_start_is_sane(name: str) -> None:
    model = without_dropping(seeded(name)).train()
    labels = torch.arange(8)

    with outputs_of(stages(model)) as outputs, torch.no_grad():
        loss = F.cross_entropy(model(random_images(8)), labels).item()

    spread = {stage: output.std().item() for stage, output in outputs.items()}
    usual = loss < HIGHEST_LOSS and all(1e-2 < std < 1e2 for std in spread.values())
    assert usual != (name in UNUSUAL_START), f"loss {loss:.3g}, {spread}"
    assert len(spread) >= 3


@ALL
def test_weights_survive_a_round_trip(name: str, tmp_path) -> None:
    first, second = seeded(name).eval(), create_model(name).eval()
    path = tmp_path / "weights.safetensors"

    safetensors.torch.save_file(first.state_dict(), path)
    load_weights(second, safetensors.torch.load_file(path), source=path, name=name)

    with torch.inference_mode():
        images = random_images(2)
        torch.testing.assert_close(second(images), first(images), rtol=0, atol=0)


@ALL
def test_channels_last_gives_the_same_logits(name: str) -> None:
    model = with_values_everywhere(seeded(name))
    images = random_images(3)

    with torch.inference_mode():
        expected = model(images)
        model = model.to(memory_format=torch.channels_last)
        logits = model(images.contiguous(memory_format=torch.channels_last))

    torch.testing.assert_close(
        logits, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item())
    )


@ALL
def test_training_and_inference_differ_only_where_they_should(name: str) -> None:
    model = seeded(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    with torch.no_grad():
        model.eval()(random_images(2))
        unchanged = all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        model.train()(random_images(4))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}

    assert unchanged
    assert all("running_" in key or "num_batches" in key for key in changed)


@ALL
def test_other_sizes_are_taken_or_refused(name: str) -> None:
    sizes = MODELS[name].sizes
    taken = next(size for size in (40, 48, 64) if size in sizes)

    with torch.device("meta"):
        logits = create_model(name, image_size=taken)(torch.empty(2, 3, taken, taken))

    assert logits.shape == (2, 100)
    for size in {sizes.least - 1, sizes.least + sizes.step // 2} - {sizes.least}:
        with pytest.raises(ZooError, match=f"{name!r} takes images of {sizes}, got {size}"):
            create_model(name, image_size=size)
