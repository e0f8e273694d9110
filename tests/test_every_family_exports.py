"""The smallest network of each family in every format but AOTInductor's, and in int8."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from model_checks import smallest_of_each_family
from network_exports import (
    assert_file_agrees,
    assert_images_matter,
    assert_int8_agrees,
    assert_norms_are_folded,
    assert_one_graph,
    prepared,
    write,
)
from torch import Tensor, nn

from zoo.data import Dataset

pytest_plugins = ["network_fixtures"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=smallest_of_each_family())
def model(request: pytest.FixtureRequest, images: Tensor) -> nn.Module:
    return prepared(request.param, images)


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


def test_int8(model: nn.Module, mini: Dataset, tmp_path: Path) -> None:
    assert_int8_agrees(model, mini, tmp_path)
