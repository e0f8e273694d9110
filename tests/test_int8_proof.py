"""int8 by way of the command: what the files are, and what keeps a bad one from being written."""

import json
import re
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import own_network
import pytest
import torch
from export_helpers import files
from few_images import picture_folder
from onnx import numpy_helper
from sample_run import sample_run, stored

from export.artifact import read_manifest
from export.cli import main
from export.proof import Reference
from export.ranges import Range
from export.simulate import SimulatedSession
from export.target import INT8, ExportOptions
from export.to_onnx import OnnxTarget
from export.write import write_artifact
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, load_dataset
from zoo.errors import MachineError

MODEL = "own_network:small"
OPTIONS = ["--precision", "int8", "--model", MODEL, "--int8-images", "40"]
NEEDS_TENSORRT = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None, reason="needs the extra trt-rtx"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Real images of three classes."""
    folder = tmp_path_factory.mktemp("pictures")
    return load_dataset(picture_folder(load_dataset("cifar100-mini"), folder, each=40))


@pytest.fixture(scope="module")
def trained(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is right more often than chance."""
    path = tmp_path_factory.mktemp("runs") / "small-s0"
    return sample_run(path, data, model=MODEL, change=lambda network: learn(network, data)).path


def learn(network: own_network.Small, data: Dataset) -> None:
    """Let the head choose the class whose mean is the nearest."""
    images, labels = stored(data.train.images, data), torch.from_numpy(data.train.fine.copy())
    with torch.no_grad():
        features = network.body(images)
        means = torch.stack([features[labels == k].mean(0) for k in range(data.num_classes)])
        network.head.weight.copy_(means)
        network.head.bias.copy_(-means.square().sum(1) / 2)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / trained.name)


def manifest(run: Path, name: str) -> Mapping[str, object]:
    found: Mapping[str, object] = json.loads((run / "artifacts" / f"{name}-int8.json").read_text())
    return found


def test_int8_for_cpus_is_written_proven_and_proven_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = ["onnx"] + ["openvino"] * (find_spec("openvino") is not None)

    code = main([str(run), "--to", ",".join(targets), *OPTIONS, "--int8-max-drop", "0.2"])

    out, err = capsys.readouterr()
    assert code == 0, err
    assert [Path(line).name.partition(".")[0] for line in out.splitlines()] == [
        f"{name}-int8" for name in targets
    ]
    for name in targets:
        said = manifest(run, name)
        facts = said["facts"]["int8"]
        assert (said["proof"], said["pending"]) == ("passed", None)
        assert (facts["preset"], facts["layers"], facts["kept_float"]) == ("cpu", 3, [])
        assert facts["weight_bits"] == 7
        assert (facts["calibration_images"], facts["max_drop"]) == (40, 0.2)
        assert facts["validation_drop"] <= 0.2
        assert 0 < said["parity"]["noise"] < said["parity"]["noise_limit"] == 0.75
        assert (said["comparison"]["max_drop"], said["comparison"]["is_lossy"]) == (0.2, True)
        line = next(line for line in err.splitlines() if f"{name} int8 agrees" in line)
        assert re.search(r"largest error of a logit \S+ \(\d\.\d% noise, allowed 75%\), same", line)
    if "openvino" in targets:
        assert manifest(run, "openvino")["facts"]["computed_in"]["u8"] >= 3
    before = read_manifest(run / "artifacts" / "onnx-int8.json")

    code = main(["--prove", str(run / "artifacts" / "onnx-int8.onnx"), "--model", MODEL])

    assert code == 0
    after = read_manifest(run / "artifacts" / "onnx-int8.json")
    assert (after.parity, after.comparison) == (before.parity, before.comparison)


@NEEDS_TENSORRT
def test_int8_for_tensorrt_waits_with_a_graph_that_is_held_to_as_much(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(run), "--to", "trt", *OPTIONS, "--int8-max-drop", "0.2"])

    assert code == 0, capsys.readouterr().err
    said = manifest(run, "trt")
    assert said["proof"] == "pending"
    assert 0 < said["proxy_parity"]["noise"] < said["proxy_parity"]["noise_limit"] == 0.75
    assert (said["facts"]["int8"]["preset"], said["facts"]["int8"]["layers"]) == ("trt", 3)
    assert said["facts"]["network_layers"]["convolution"] == {"int8": 2}
    assert files(run) == ["trt-int8.engine", "trt-int8.json", "trt-int8.onnx"]


def test_too_large_a_drop_leaves_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absurd(
        graph: onnx.ModelProto, *_: object, **__: object
    ) -> Mapping[str, Mapping[str, Range]]:
        """Ranges in which everything real is rounded to zero."""
        values = {name for node in graph.graph.node for name in (*node.input, *node.output)}
        return {"minmax": dict.fromkeys(values, (-1e6, 1e6))}

    monkeypatch.setattr("export.quantize.value_ranges", absurd)

    code = main([str(run), *OPTIONS, "--int8-max-drop", "0"])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert re.search(
        r"zoo-export: int8 \(minmax, 40 images\): top-1 on 9 validation images fell from \S+% to "
        r"\S+%, more than the 0\.00 points allowed, with all but one of 3 layers in float "
        r"\(the most sensitive: \S+, \S+\): nothing was written; try another --int8-method",
        err,
    )
    assert files(run) == []


# Spoiled after it was quantised: every number is finite, and says nothing


def spoiled(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are all zero, so that it answers every image alike."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        if len(tensor.dims) > 1:
            zeros = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    return copy


class SpoilingTarget(OnnxTarget):
    def export(self, model: object, example: object, path: Path, **options: object) -> object:
        facts = super().export(model, example, path, **options)
        onnx.save(spoiled(onnx.load(path)), path)
        return facts


def test_graph_that_says_nothing_is_no_int8(run: Path, data: Dataset) -> None:
    """Whatever the drop that is allowed."""
    reference = Reference(Checkpoint.open(run), data, allow=MODEL)

    with pytest.raises(MachineError) as caught:
        write_artifact(
            reference,
            SpoilingTarget(),
            precision="int8",
            options=ExportOptions(int8_images=40, int8_max_drop=1.0),
        )

    assert re.fullmatch(
        r".*/onnx-int8\.onnx: parity with eager failed: the error of a logit is \d{3}% of what "
        r"tells one image from another, where 75% is allowed, and \S+% of 24 images keep their "
        r"class; the first layer that is off is \S+ \(by \S+ where \S+ is allowed\): it was not "
        r"written",
        str(caught.value),
    )
    assert files(run) == []


@NEEDS_TENSORRT
def test_drop_is_judged_on_the_graph_that_tensorrt_builds(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In fp16 beside the integers, not as it was before."""
    monkeypatch.setattr("export.to_tensorrt.typed_fp16", spoiled)

    code = main([str(run), "--to", "trt", *OPTIONS, "--int8-max-drop", "0.1"])

    assert code == 1
    fell = r"int8 \((minmax|percentile|entropy), 40 images\): top-1 on 9 validation images fell"
    assert re.search(fell, capsys.readouterr().err)
    assert files(run) == []


def test_int8_is_held_to_a_bound() -> None:
    assert (INT8.noise, INT8.max_drop, INT8.is_lossy) == (0.75, 0.005, True)


def test_simulation_that_fails_is_one_line() -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["images"], ["logits"])],
        "same",
        [value("images", onnx.TensorProto.FLOAT, ["batch", 3, 2, 2])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", 3, 2, 2])],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    session = SimulatedSession(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10))

    with pytest.raises(MachineError, match="^ONNX Runtime does not run the graph: .+") as caught:
        session.run(torch.zeros(1, 3, 4, 4))

    assert "\n" not in str(caught.value)
