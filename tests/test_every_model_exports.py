"""Every variant through compilers and exporters: the full matrix, one program a network."""

import copy
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from batch_norms import batch_norms_after_convolutions, batch_norms_that_stay
from model_checks import (
    EXAMPLE,
    random_images,
    seeded,
    smallest_of_each_family,
    with_values_everywhere,
)
from sample_run import stored
from torch import nn

from export import load_target
from export.program import traced
from export.target import ExportOptions
from export.to_openvino import read_graph, save_network
from export.to_torchexport import save_program
from zoo.data import load_dataset
from zoo.models import MODELS

pytestmark = pytest.mark.slow

# Names of one and the same network: exported once.
ALIASES = {
    "ecanet20_adaptive": "eca_resnet_20",
    "ecanet20_fixed_k3": "eca_resnet_20",
    "improved_resnet20_convnext_no_droppath": "improved_resnet20_convnext",
}
NETWORKS = sorted(MODELS.keys() - ALIASES.keys())
METADATA = {"cifar_zoo_version": "0"}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Real ones."""
    data = load_dataset("cifar100-mini")
    return stored(data.test.images[:32], data)


def prepared(name: str, images: torch.Tensor) -> nn.Module:
    """A variant whose batch norms hold the statistics of these images."""
    model = with_values_everywhere(seeded(name)).train()
    with torch.no_grad():
        model(images)
    return model.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest, images: torch.Tensor) -> nn.Module:
    return prepared(request.param, images)


@pytest.fixture(scope="module")
def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(images)
    return found


@pytest.fixture(scope="module")
def program(model: nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    return traced(model, images[:EXAMPLE])


@pytest.fixture(scope="module")
def onnx_file(
    program: torch.export.ExportedProgram,
    images: torch.Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    load_target("onnx").export(
        program,
        images[:EXAMPLE],
        path,
        precision="fp32",
        metadata=METADATA,
        options=ExportOptions(),
    )
    yield path
    path.unlink()


def limit(expected: torch.Tensor) -> float:
    return 1e-4 * max(1.0, expected.abs().max().item())


def assert_agrees(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=limit(expected))


def assert_file_agrees(target: str, path: Path, images: torch.Tensor, logits: torch.Tensor) -> None:
    """At three batch sizes, each with other images."""
    session = load_target(target).open(path, device="cpu")
    for batch in (1, 5, 26):
        part = slice(batch // 5, batch // 5 + batch)
        assert_agrees(session.run(images[part]), logits[part])


def test_the_images_matter(logits: torch.Tensor) -> None:
    """Otherwise two networks of nothing but biases would agree below."""
    assert logits.std(0).max() > 100 * limit(logits)


def test_one_graph_under_compile(
    model: nn.Module, images: torch.Tensor, logits: torch.Tensor
) -> None:
    torch._dynamo.reset()

    with torch.no_grad():
        found = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")(images[:3])

    assert_agrees(found, logits[:3])


def test_torchexport(
    program: torch.export.ExportedProgram,
    images: torch.Tensor,
    logits: torch.Tensor,
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.export.pt2"

    save_program(program, path, METADATA)

    assert_file_agrees("torchexport", path, images, logits)
    path.unlink()


def test_onnx(
    onnx_file: Path,
    program: torch.export.ExportedProgram,
    images: torch.Tensor,
    logits: torch.Tensor,
) -> None:
    proto = onnx.load(onnx_file)

    found = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    assert found == batch_norms_that_stay(program)
    assert batch_norms_after_convolutions(proto) == 0
    assert_file_agrees("onnx", onnx_file, images, logits)


def test_openvino(
    onnx_file: Path, images: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "model.xml"

    save_network(read_graph(onnx_file.read_bytes()), path, precision="fp32", metadata=METADATA)

    assert_file_agrees("openvino", path, images, logits)
    path.with_suffix(".bin").unlink()


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_aoti(name: str, images: torch.Tensor, tmp_path: Path) -> None:
    """What Inductor makes of each family, in the form that outlives the process."""
    model, path = prepared(name, images), tmp_path / "model.aoti.pt2"

    load_target("aoti").export(
        model,
        images[:EXAMPLE],
        path,
        precision="fp32",
        metadata=METADATA,
        options=ExportOptions(),
    )

    with torch.no_grad():
        assert_file_agrees("aoti", path, images, model(images))


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_aliases_are_one_network(alias: str) -> None:
    first, second = seeded(ALIASES[alias]).eval(), seeded(alias).eval()

    second.load_state_dict(first.state_dict())

    with torch.no_grad():
        images = random_images(2)
        torch.testing.assert_close(second(images), first(images), rtol=0, atol=0)
