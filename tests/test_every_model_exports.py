"""Every network in every format, the smallest of each family in AOTInductor's."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from model_checks import random_images, seeded, smallest_of_each_family
from network_exports import (
    ALIASES,
    NETWORKS,
    assert_file_agrees,
    assert_images_matter,
    assert_norms_are_folded,
    assert_one_graph,
    prepared,
    write,
)
from sample_run import stored
from torch import Tensor, nn

from zoo.data import load_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Real ones."""
    data = load_dataset("cifar100-mini")
    return stored(data.test.images[:32], data)


@pytest.fixture(scope="module", params=NETWORKS)
def model(request: pytest.FixtureRequest, images: Tensor) -> nn.Module:
    return prepared(request.param, images)


@pytest.fixture(scope="module")
def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(images)
    return found


def test_the_images_matter(logits: Tensor) -> None:
    assert_images_matter(logits)


def test_one_graph_under_compile(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    assert_one_graph(model, images, logits)


def test_onnx(model: nn.Module, images: Tensor, logits: Tensor, tmp_path: Path) -> None:
    path = write("onnx", model, images, tmp_path)

    assert_norms_are_folded(path, model, images)
    assert_file_agrees("onnx", path, images, logits)


@pytest.mark.parametrize("target", ["torchexport", "openvino"])
def test_other_formats(
    target: str, model: nn.Module, images: Tensor, logits: Tensor, tmp_path: Path
) -> None:
    if target == "openvino" and find_spec("openvino") is None:
        pytest.skip("needs the extra openvino")

    path = write(target, model, images, tmp_path)

    assert_file_agrees(target, path, images, logits)


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_aoti(name: str, images: Tensor, tmp_path: Path) -> None:
    """What Inductor makes of each family, in the form that outlives the process."""
    network = prepared(name, images)

    path = write("aoti", network, images, tmp_path)

    with torch.no_grad():
        assert_file_agrees("aoti", path, images, network(images))


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_aliases_are_one_network(alias: str) -> None:
    first, second = seeded(ALIASES[alias]).eval(), seeded(alias).eval()

    second.load_state_dict(first.state_dict())

    with torch.no_grad():
        images = random_images(2)
        torch.testing.assert_close(second(images), first(images), rtol=0, atol=0)
