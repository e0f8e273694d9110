import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from batch_norms import batch_norms_after_convolutions, batch_norms_that_stay
from export_helpers import NAMES, files, run_of
from onnx import TensorProto
from sample_run import stored
from torch import nn

from export import export_model, load_target
from export.artifact import Artifact, read_manifest
from export.opening import open_artifact
from export.target import ExportOptions
from export.to_onnx import IR_VERSION, OPSET, OnnxTarget
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset
from zoo.errors import MachineError, ZooError
from zoo.files import sha256_file
from zoo.models import create_model
from zoo.preprocess import Preprocessing

pytest_plugins = ["export_fixtures"]

ROOT = Path(__file__).parents[1]


def test_run_holds_one_file_and_its_manifest(exported: Artifact) -> None:
    assert files(run_of(exported)) == NAMES
    assert read_manifest(exported.path.with_suffix(".json")) == exported


def test_manifest_states_where_the_file_came_from(exported: Artifact, data: Dataset) -> None:
    run = Checkpoint.open(run_of(exported))

    manifest = json.loads(exported.path.with_suffix(".json").read_text())

    assert manifest["file"] == "onnx-fp32.onnx"
    assert manifest["sha256"] == sha256_file(exported.path)
    assert manifest["size_bytes"] == exported.path.stat().st_size
    assert manifest["build_s"] > 0
    assert manifest["source_weights_sha256"] == run.meta.weights_sha256
    assert manifest["dataset"]["name"] == "cifar100-mini"
    assert manifest["dataset"]["digest"] == data.digest
    assert manifest["environment"]["torch"] == torch.__version__
    assert manifest["versions"]["onnxruntime"] == onnxruntime.__version__
    assert {"cifar-zoo", "torch", "onnx", "onnxscript"} <= manifest["versions"].keys()
    assert manifest["facts"] == {"opset": OPSET}


def test_manifest_states_the_proof(exported: Artifact) -> None:
    manifest = json.loads(exported.path.with_suffix(".json").read_text())

    assert (manifest["schema"], manifest["proof"], manifest["pending"]) == (2, "passed", None)
    assert manifest["proven_by"] == f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"
    assert manifest["comparison"] is None  # of fp32 the logits say it all
    assert manifest["files"] == {"onnx-fp32.onnx": exported.sha256}


def test_parity_was_measured_on_the_test_split(exported: Artifact, data: Dataset) -> None:
    parity = exported.parity

    assert parity.passed
    assert parity.images == len(data.test.fine) == 1000
    assert 0 < parity.max_abs_error <= parity.limit
    assert 0 <= parity.mean_kl < 1e-9
    assert parity.top1_agreement == 1


def test_accuracy_is_that_of_the_file_itself(exported: Artifact, data: Dataset) -> None:
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])

    (logits,) = session.run(None, {"images": stored(data.test.images, data).contiguous().numpy()})

    best = np.argsort(-logits, axis=1)[:, :5]
    hits = best == data.test.fine[:, None]
    assert exported.accuracy.top1 == hits[:, 0].mean()
    assert exported.accuracy.top5 == hits.any(1).mean()
    assert exported.accuracy.images == 1000


def test_graph_is_what_was_asked_for(exported: Artifact) -> None:
    model = onnx.load(exported.path, load_external_data=False)

    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    images, logits = model.graph.input[0], model.graph.output[0]
    assert "BatchNormalization" not in operators
    assert [shape(images), shape(logits)] == [["batch", 3, 32, 32], ["batch", 100]]
    assert (images.name, logits.name) == ("images", "logits")
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_metadata_says_how_to_use_the_file(exported: Artifact, data: Dataset) -> None:
    run = Checkpoint.open(run_of(exported))

    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map

    assert json.loads(metadata["class_names"]) == list(data.class_names)
    assert json.loads(metadata["mean"]) == list(data.mean)
    assert json.loads(metadata["std"]) == list(data.std)
    assert metadata["input_layout"] == "NCHW float32 normalised"
    assert metadata["model"] == "resnet_20"
    assert metadata["precision"] == "fp32"
    assert metadata["dataset"] == "cifar100-mini"
    assert metadata["dataset_sha256"] == data.digest
    assert metadata["weights_sha256"] == run.meta.weights_sha256
    assert metadata["recipe_sha256"] == exported.recipe_sha256
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", metadata["cifar_zoo_version"])


def test_file_names_no_folder_of_this_machine(exported: Artifact) -> None:
    content = exported.path.read_bytes()

    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize("opset", [18, 23])
def test_opset_is_as_asked_for(tmp_path: Path, opset: int) -> None:
    path = tmp_path / "linear.onnx"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten()).eval()
    images = torch.randn(2, 3, 8, 8)

    write(model, images, path, opset=opset)

    proto = onnx.load(path)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", opset)]
    assert proto.ir_version == (10 if opset < 23 else 11)
    logits = load_target("onnx").open(path, device="cpu").run(images)
    torch.testing.assert_close(logits, model(images).detach())


@pytest.mark.parametrize("opset", [17, 24])
def test_opset_that_torch_does_not_write_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ZooError, match=f"--opset {opset}: torch writes opsets 18 to 23; 20 is"):
        write(nn.Flatten(), torch.zeros(2, 3, 8, 8), tmp_path / "x.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("provider", "precision", "reason"),
    [
        ("cuda", "fp32", "ONNX Runtime offers no CUDAExecutionProvider here"),
        ("tensorrt", "fp16", "ONNX Runtime offers no TensorrtExecutionProvider here"),
        ("tensorrt", "int8", "is int8 for CPUs, which TensorRT does not take"),
    ],
)
def test_file_that_its_provider_will_not_run_is_refused_before_it_is_made(
    tmp_path: Path, provider: str, precision: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MachineError, match=reason):
        OnnxTarget(provider=provider).export(
            nn.Flatten(),
            torch.zeros(2, 3, 8, 8),
            tmp_path / "x.onnx",
            precision=precision,
            metadata={},  # the trace would miss the version
            options=ExportOptions(device="cuda"),  # without what int8 is searched on
        )
    assert list(tmp_path.iterdir()) == []


def write(
    model: nn.Module, images: torch.Tensor, path: Path, *, opset: int | None = None
) -> onnx.ModelProto:
    load_target("onnx").export(
        model,
        images,
        path,
        precision="fp32",
        metadata={"cifar_zoo_version": "0"},
        options=ExportOptions(opset=opset),
    )
    return onnx.load(path)


class PreNorm(nn.Module):
    """Batch norms before a convolution, between two, and after one that a shortcut needs too."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.first = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        self.between, self.second = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.after = nn.BatchNorm2d(4)
        for norm in (self.before, self.between, self.after):
            nn.init.uniform_(norm.running_mean)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.between(self.first(self.before(images)))
        y = self.second(x)
        return (self.after(y) * y).mean((2, 3))


def test_batch_norms_stay_where_no_convolution_could_take_them(tmp_path: Path) -> None:
    """For every network of the zoo: network_exports.py."""
    model = PreNorm().eval()
    images = torch.randn(2, 3, 8, 8)

    proto = write(model, images, tmp_path / "model.onnx")

    found = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    assert found == batch_norms_that_stay(torch.export.export(model, (images,))) == 2
    assert batch_norms_after_convolutions(proto) == 0


# Half precision


@pytest.fixture(scope="module")
def half(exported: Artifact, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Of a copy of the same run, whose files nobody else counts."""
    run = shutil.copytree(run_of(exported), tmp_path_factory.mktemp("half") / "run")
    return export_model(run, precision="fp16", data=data)


def test_half_precision_lies_in_the_graph(half: Artifact) -> None:
    proto = onnx.load(half.path)

    weights = [tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16}
    for value in (proto.graph.input[0], proto.graph.output[0]):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert half.size_bytes < 600_000


def test_half_precision_is_compared_with_eager_image_by_image(
    half: Artifact, exported: Artifact
) -> None:
    beside = half.comparison

    assert beside is not None
    assert half.parity is not None
    assert half.parity.max_abs_error > exported.parity.max_abs_error
    assert (beside.images, beside.is_gate) == (1000, False)
    assert (beside.eager_top1, beside.top1) == (exported.accuracy.top1, half.accuracy.top1)
    assert beside.max_drop == 0.0015


# From bytes to probabilities


def test_raw_file_lies_beside_the_other_and_has_its_own_label(
    raw: Artifact, exported: Artifact
) -> None:
    assert raw.path.name == "onnx-fp32-raw.onnx"
    assert files(run_of(raw)) == sorted([*NAMES, "onnx-fp32-raw.json", "onnx-fp32-raw.onnx"])
    assert (raw.backend, exported.backend) == ("onnx-raw", "onnx")
    assert read_manifest(raw.path.with_suffix(".json")) == raw
    assert raw.accuracy == exported.accuracy
    assert raw.parity.max_abs_error < 1e-6  # of a probability


def test_raw_file_takes_bytes_and_gives_probabilities(
    raw: Artifact, exported: Artifact, data: Dataset
) -> None:
    images = data.test.images[:7]
    runtime = onnxruntime.InferenceSession(raw.path, providers=["CPUExecutionProvider"])

    (found,) = runtime.run(["probabilities"], {"images": images})

    logits = open_artifact(str(exported.path), "cpu").run(stored(images, data))
    np.testing.assert_allclose(found, logits.softmax(1).numpy(), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    metadata = runtime.get_modelmeta().custom_metadata_map
    assert (metadata["input_layout"], metadata["output"]) == ("NHWC uint8", "probabilities")
    assert shape(onnx.load(raw.path).graph.input[0]) == ["batch", 32, 32, 3]


@pytest.mark.parametrize("target", ["aoti", "openvino", "torchexport"])
def test_raw_is_for_onnx_alone(run: Path, data: Dataset, target: str) -> None:
    with pytest.raises(ZooError) as caught:
        export_model(run, target=target, data=data, raw=True)

    assert str(caught.value) == (
        f"from bytes to probabilities is for .onnx files, not for {target}: use --to onnx"
    )
    assert files(run) == []


def test_raw_session_takes_normalised_images_too(raw: Artifact, data: Dataset) -> None:
    session = open_artifact(str(raw.path), "cpu")
    images = data.test.images[:256]  # every byte from 0 to 255 is among them

    fed = session.feed(stored(images, data))

    assert session.backend == "onnx-raw"
    np.testing.assert_array_equal(fed.numpy(), images)
    torch.testing.assert_close(
        session.run(stored(images, data)), session.run(torch.from_numpy(images.copy()))
    )


def test_raw_file_of_larger_images_is_compared_on_the_same_bytes(data: Dataset) -> None:
    """What a resize puts between two bytes is rounded for both sides."""
    from export.raw import Bytes, RawModel, RawReference
    from zoo.session import EagerSession

    torch.manual_seed(0)
    model = create_model("resnet_20").eval()
    large = Preprocessing.of(data, image_size=48)
    images = large.to_batch(data.test.images[:3])

    expected = RawReference(EagerSession(model), large).run(images)

    with torch.no_grad():
        found = RawModel(model, large)(Bytes(large.mean, large.std).restore(images))
    torch.testing.assert_close(found, expected)
