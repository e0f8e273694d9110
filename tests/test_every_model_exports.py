"""Every variant through compilers and exporters: the full matrix, one program a network."""

import copy
from pathlib import Path

import pytest
import torch
from model_checks import (
    EXAMPLE,
    random_images,
    seeded,
    smallest_of_each_family,
    with_values_everywhere,
)
from torch import nn

from export import load_target
from zoo.models import MODELS

pytestmark = pytest.mark.slow

# Names of one and the same network: exported once.
ALIASES = {
    "ecanet20_adaptive": "eca_resnet_20",
    "ecanet20_fixed_k3": "eca_resnet_20",
    "improved_resnet20_convnext_no_droppath": "improved_resnet20_convnext",
}
NETWORKS = sorted(MODELS.keys() - ALIASES.keys())


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return with_values_everywhere(seeded(request.param))


@pytest.fixture(scope="module")
def program(model: nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(
        model, (random_images(EXAMPLE),), dynamic_shapes=({0: batch},), strict=False
    )


def limit(expected: torch.Tensor) -> float:
    return 1e-4 * max(1.0, expected.abs().max().item())


def assert_agrees(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=limit(expected))


def test_the_images_matter(model: nn.Module) -> None:
    """Otherwise two networks of nothing but biases would agree below."""
    with torch.no_grad():
        logits = model(random_images(32))

    assert logits.std(0).max() > 100 * limit(logits)


def test_one_graph_under_compile(model: nn.Module) -> None:
    torch._dynamo.reset()
    images = random_images(3)

    with torch.no_grad():
        found = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")(images)

        assert_agrees(found, model(images))


@pytest.mark.parametrize("batch", [1, 5])
def test_torch_export(program: torch.export.ExportedProgram, model: nn.Module, batch: int) -> None:
    images = random_images(batch)

    with torch.no_grad():
        assert_agrees(program.module()(images), model(images))


def test_onnx(program: torch.export.ExportedProgram, model: nn.Module, tmp_path: Path) -> None:
    target, path = load_target("onnx"), tmp_path / "model.onnx"
    images = random_images(32)

    target.export(
        program, images[:EXAMPLE], path, precision="fp32", metadata={"cifar_zoo_version": "0"}
    )

    session = target.open(path, device="cpu")
    with torch.no_grad():
        expected = model(images)
    for batch in (1, 5, 26):
        part = slice(batch // 5, batch // 5 + batch)
        assert_agrees(session.run(images[part]), expected[part])


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_inductor(name: str) -> None:
    model = with_values_everywhere(seeded(name))
    torch._dynamo.reset()
    images = random_images(4)

    with torch.no_grad():
        found = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=False)(images)

        assert_agrees(found, model(images))


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_aliases_are_one_network(alias: str) -> None:
    first, second = seeded(ALIASES[alias]).eval(), seeded(alias).eval()

    second.load_state_dict(first.state_dict())

    with torch.no_grad():
        images = random_images(2)
        torch.testing.assert_close(second(images), first(images), rtol=0, atol=0)
