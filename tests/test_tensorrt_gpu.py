"""Engines that run, which takes a GPU."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from explicit_int8 import FOR_TENSORRT, quantised
from model_checks import random_images, seeded, with_values_everywhere
from torch import nn

from export.target import MAX_BATCH, ExportOptions
from export.tensorrt_api import Flavor, check_gpu, installed, load_flavor
from export.tensorrt_run import KEPT, TensorRtSession
from export.to_onnx import onnx_graph
from export.to_tensorrt import TensorRtTarget, write_engine
from export.typed import typed_fp16
from zoo.errors import MachineError
from zoo.machine import torch_facts
from zoo.session import EagerSession

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def flavor() -> Flavor:
    if not installed(device="cuda"):
        pytest.skip("needs one of the extras trt, v100-trt and trt-rtx")
    found = load_flavor(None, device="cuda")
    try:
        check_gpu(found, torch_facts().gpu)
    except MachineError as reason:
        pytest.skip(str(reason))
    return found


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return with_values_everywhere(seeded("resnet_20"))


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> onnx.ModelProto:
    metadata = {"cifar_zoo_version": "0", "model": "resnet_20"}
    return onnx_graph(model, random_images(2), metadata=metadata)


@pytest.fixture
def session(graph: onnx.ModelProto, flavor: Flavor, tmp_path: Path) -> TensorRtSession:
    path = tmp_path / "trt.engine"
    options = ExportOptions(device="cuda")
    write_engine(graph, path, flavor, precision="fp32", options=options, gpu=torch_facts().gpu)
    return TensorRtSession(path, device="cuda")


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 2e-2), ("int8", 0.1)]
)
def test_engines_run_on_a_gpu(
    graph: onnx.ModelProto,
    model: nn.Module,
    flavor: Flavor,
    precision: str,
    tolerance: float,
    tmp_path: Path,
) -> None:
    images = random_images(300).cuda()
    expected = EagerSession(copy.deepcopy(model), device="cuda").run(images)
    source = quantised(graph, tmp_path, **FOR_TENSORRT) if precision == "int8" else graph
    path = tmp_path / "trt.engine"
    facts = write_engine(
        source if precision == "fp32" else typed_fp16(source),
        path,
        flavor,
        precision=precision,
        options=ExportOptions(device="cuda"),
        gpu=torch_facts().gpu,
    )

    session = TensorRtTarget().open(path, device="cuda")
    slices = [slice(0, 1), slice(1, 6), slice(6, 7), slice(7, 300), slice(0, 1)]
    parts = [session.run(images[part]) for part in slices]

    assert isinstance(session, TensorRtSession)
    assert session.precision == precision
    assert facts["engine_layers"] == session.layer_types
    assert any(precision in counts for counts in session.layer_types.values())
    for part, found in zip(slices, parts, strict=True):  # graphs share nothing
        limit = tolerance * expected.abs().max().item()
        torch.testing.assert_close(found, expected[part], rtol=0, atol=limit)
    assert torch.equal(parts[0], parts[-1])


def test_a_batch_larger_than_the_profile_is_refused(session: TensorRtSession) -> None:
    with pytest.raises(MachineError) as caught:
        session.run(torch.zeros(MAX_BATCH + 1, 3, 32, 32, device="cuda"))

    assert f"does not take images of shape ({MAX_BATCH + 1}, 3, 32, 32): " in str(caught.value)


def test_more_batch_sizes_than_graphs_are_kept_give_the_same_answers(
    session: TensorRtSession,
) -> None:
    images = random_images(KEPT + 2).cuda()
    whole = session.run(images)

    parts = [session.run(images[:size]) for size in range(1, KEPT + 2)]

    for part in [*parts, session.run(images)]:
        torch.testing.assert_close(part, whole[: len(part)], rtol=1e-3, atol=1e-3)
