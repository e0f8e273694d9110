import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sample_run import sample_run, stored

import export
from export import export_model, load_target
from export.artifact import Artifact, find_artifacts, open_artifact, open_foreign, read_manifest
from export.cli import main
from export.to_onnx import IR_VERSION, OPSET, OnnxSession, OnnxTarget
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, load_dataset
from zoo.errors import ArtifactError, DataError, MachineError, MissingPackageError, ZooError
from zoo.files import sha256_file

ROOT = Path(__file__).parents[1]
NAMES = ["onnx-fp32.json", "onnx-fp32.onnx"]


@pytest.fixture(scope="session")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="session")
def exported(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    run = sample_run(tmp_path_factory.mktemp("runs") / "resnet_20-s0", data)
    return export_model(run.path, data=data)


@pytest.fixture(scope="session")
def bare(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without its artifact."""
    run = tmp_path_factory.mktemp("bare") / "runs" / "resnet_20-s0"
    return shutil.copytree(run_of(exported), run, ignore=shutil.ignore_patterns("artifacts"))


@pytest.fixture
def run(bare: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bare, tmp_path / "runs" / bare.name)


@pytest.fixture
def copied(exported: Artifact, tmp_path: Path) -> Path:
    """The exported file in a copy of its run."""
    run = shutil.copytree(run_of(exported), tmp_path / "runs" / "copy")
    return run / "artifacts" / exported.path.name


def run_of(artifact: Artifact) -> Path:
    return artifact.path.parents[1]


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "artifacts").glob("*"))


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What an export leaves


def test_run_holds_one_file_and_its_manifest(exported: Artifact) -> None:
    assert files(run_of(exported)) == NAMES
    assert read_manifest(exported.path.with_suffix(".json")) == exported


def test_manifest_states_where_the_file_came_from(exported: Artifact, data: Dataset) -> None:
    run = Checkpoint.open(run_of(exported))

    manifest = json.loads(exported.path.with_suffix(".json").read_text())

    assert manifest["file"] == "onnx-fp32.onnx"
    assert manifest["sha256"] == sha256_file(exported.path)
    assert manifest["size_bytes"] == exported.path.stat().st_size
    assert manifest["source_weights_sha256"] == run.meta.weights_sha256
    assert manifest["dataset"]["name"] == "cifar100-mini"
    assert manifest["dataset"]["digest"] == data.digest
    assert manifest["environment"]["torch"] == torch.__version__
    assert manifest["versions"]["onnxruntime"] == onnxruntime.__version__
    assert {"cifar-zoo", "torch", "onnx", "onnxscript", "opset"} <= manifest["versions"].keys()


def test_parity_was_measured_on_the_test_split(exported: Artifact, data: Dataset) -> None:
    parity = exported.parity

    assert parity.passed
    assert parity.images == len(data.test.fine) == 1000
    assert 0 < parity.max_abs_error <= parity.limit
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


# Running it


def test_opened_artifact_says_what_runs_it(exported: Artifact) -> None:
    session = open_artifact(str(exported.path), "cpu")

    assert (session.backend, session.precision, session.device) == ("onnx", "fp32", "cpu")
    assert session.runtime == f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"


def test_session_uses_as_many_threads_as_torch(exported: Artifact) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        session = OnnxSession(exported.path)
    finally:
        torch.set_num_threads(before)

    assert session._session.get_session_options().intra_op_num_threads == 2


def test_gpu_is_never_replaced_by_the_cpu(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def providers() -> list[str]:
        return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", providers)

    with pytest.raises(MachineError, match="offers no CUDAExecutionProvider here.*extra `gpu`"):
        open_artifact(str(exported.path), "cuda")


def test_provider_that_falls_back_is_refused(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's GPU wheel lists CUDA on a machine without a GPU, and then runs on the CPU."""
    real = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, **_: object) -> onnxruntime.InferenceSession:
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)

    with pytest.raises(MachineError, match="does not run on the CPU in its place"):
        open_artifact(str(exported.path), "cuda:0")


@pytest.mark.gpu
def test_gpu_agrees_with_eager(exported: Artifact, data: Dataset) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    images = stored(data.test.images[:300], data)
    session = open_artifact(str(exported.path), "cuda")

    logits = session.run(images.cuda()).cpu()

    expected = open_artifact(str(exported.path), "cpu").run(images)
    assert session.runtime.endswith("CUDAExecutionProvider")
    torch.testing.assert_close(logits, expected, rtol=0, atol=exported.parity.limit)


# Files that are not what they should be


def test_changed_byte_is_refused(copied: Path) -> None:
    content = bytearray(copied.read_bytes())
    content[len(content) // 2] ^= 1
    copied.write_bytes(content)

    assert [artifact.path for artifact in find_artifacts(copied.parents[1])] == [copied]
    with pytest.raises(ArtifactError, match="its manifest promises .* changed or damaged; write"):
        open_artifact(str(copied), "cpu")


def test_missing_file_is_refused(copied: Path) -> None:
    copied.unlink()

    assert len(find_artifacts(copied.parents[1])) == 1
    with pytest.raises(ArtifactError, match="there is no artifact .*: write it again with zoo-exp"):
        open_artifact(str(copied), "cpu")


def test_file_without_manifest_is_no_artifact(copied: Path) -> None:
    copied.with_suffix(".json").unlink()

    assert find_artifacts(copied.parents[1]) == []
    with pytest.raises(ArtifactError, match="has no manifest onnx-fp32.json beside it"):
        open_artifact(str(copied), "cpu")


def test_temporary_files_are_no_artifacts(copied: Path) -> None:
    shutil.copy(copied.with_suffix(".json"), copied.with_name(".part-1.json"))

    assert len(find_artifacts(copied.parents[1])) == 1


@pytest.mark.parametrize("name", ["onnx-fp16.onnx", "../weights.safetensors", "/etc/hostname"])
def test_manifest_of_another_file_is_refused(copied: Path, name: str) -> None:
    edit(copied.with_suffix(".json"), file=name)

    with pytest.raises(ArtifactError, match="is the manifest of another file"):
        find_artifacts(copied.parents[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not the manifest of an artifact"),
        ('{"schema": 1}', "is not the manifest of an artifact"),
        ('{"schema": 99}', "has schema 99, this version reads up to 1: update cifar-zoo"),
    ],
)
def test_damaged_manifest_is_refused(copied: Path, text: str, message: str) -> None:
    copied.with_suffix(".json").write_text(text)

    with pytest.raises(ArtifactError, match=message):
        find_artifacts(copied.parents[1])


def test_artifact_of_older_weights_is_refused(copied: Path) -> None:
    edit(copied.parents[1] / "meta.json", weights_sha256="0" * 64)

    with pytest.raises(ArtifactError, match="from other weights than its run holds now"):
        open_artifact(str(copied), "cpu")


def test_artifact_opens_outside_its_run(copied: Path, tmp_path: Path) -> None:
    for suffix in (".onnx", ".json"):
        shutil.move(copied.with_suffix(suffix), tmp_path)

    assert open_artifact(str(tmp_path / copied.name), "cpu").precision == "fp32"


def test_foreign_file_needs_no_manifest(copied: Path, tmp_path: Path) -> None:
    path = shutil.move(copied, tmp_path / "theirs.onnx")

    session = open_foreign(str(path), "cpu")

    assert session.run(torch.zeros(3, 3, 32, 32)).shape == (3, 100)


def test_external_data_is_refused(exported: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "outside.onnx"
    model = onnx.load(exported.path)
    onnx.save_model(model, path, save_as_external_data=True, location="w", size_threshold=0)

    with pytest.raises(ArtifactError, match="keeps tensors in other files, which is refused"):
        open_foreign(str(path), "cpu")


def test_external_data_inside_a_node_is_refused(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.ones((1, 3, 2, 2), np.float32))
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="../../etc/hostname")
    constant = helper.make_node("Constant", [], ["c"], value=value)
    path = small_onnx(
        tmp_path / "node.onnx", [constant, helper.make_node("Add", ["x", "c"], ["y"])]
    )

    with pytest.raises(ArtifactError, match="keeps tensors in other files"):
        open_foreign(str(path), "cpu")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match="is not an ONNX model"):
        open_foreign(str(path), "cpu")


def test_truncated_file_is_refused(exported: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.path.read_bytes()[:-100_000])

    with pytest.raises(ArtifactError, match=r"model.onnx is not an ONNX model, or it is truncated"):
        open_foreign(str(path), "cpu")


def test_other_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an .onnx file: only those are opened without"):
        open_foreign(str(tmp_path / "net.engine"), "cpu")


def test_unknown_operator_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"])
    path = small_onnx(tmp_path / "odd.onnx", [node])

    with pytest.raises(ArtifactError, match=r"cannot open .*odd\.onnx: .*Frobnicate") as caught:
        open_foreign(str(path), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "kind"), [([1, 3, 2], TensorProto.FLOAT), ([1, 3, 2, 2], TensorProto.UINT8)]
)
def test_model_of_other_inputs_is_refused(tmp_path: Path, inputs: list[int], kind: int) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    path = small_onnx(tmp_path / "other.onnx", [node], inputs=inputs, kind=kind)

    with pytest.raises(ArtifactError, match="should take one batch of images, tensor.float"):
        open_foreign(str(path), "cpu")


def test_fixed_batch_is_named_when_another_comes(tmp_path: Path) -> None:
    path = small_onnx(tmp_path / "one.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    session = open_foreign(str(path), "cpu")

    with pytest.raises(MachineError, match=r"input is \(1, 3, 2, 2\), did not run on .*\(4, 3"):
        session.run(torch.zeros(4, 3, 2, 2))


@pytest.mark.parametrize(
    ("kind", "precision"), [(TensorProto.FLOAT16, "fp16"), (TensorProto.FLOAT, "fp32")]
)
def test_precision_is_read_from_the_graph(tmp_path: Path, kind: int, precision: str) -> None:
    weight = helper.make_tensor("c", kind, [1], [2.0])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weight),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]

    session = open_foreign(str(small_onnx(tmp_path / "cast.onnx", nodes)), "cpu")

    assert session.precision == precision


def small_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[int] | None = None,
    kind: int = TensorProto.FLOAT,
) -> Path:
    dims = inputs or [1, 3, 2, 2]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info("y", kind, dims)],
    )
    opset = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)
    return path


# The command


def test_command_exports_the_newest_run_and_says_little(
    run: Path,
    exported: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One target that fails does not stop the other; an artifact is replaced, byte for byte."""
    monkeypatch.chdir(run.parents[1])
    path = Path("runs") / run.name / "artifacts" / "onnx-fp32.onnx"
    path.parent.mkdir()
    path.write_text("old")
    path.with_suffix(".json").write_text("old")

    code = main(["--to", "aoti,onnx"])

    out, err = capfd.readouterr()
    assert code == 2  # of the first failure
    assert out == f"{path}\n"
    refusal, start, result = err.splitlines()
    assert refusal == (
        "zoo-export: --to aoti: this version of cifar-zoo writes no AOTInductor packages yet: "
        "use --to onnx"
    )
    assert start == f"zoo-export: exporting runs/{run.name} to onnx fp32"
    assert re.fullmatch(
        r"zoo-export: onnx fp32 agrees with eager: largest error of a logit \d\.\de-\d\d "
        r"\(allowed \d\.\de-\d\d\), same class for 100\.0% of 1000 images; "
        r"top-1 \d+\.\d\d%, top-5 \d+\.\d\d% on 1000 test images",
        result,
    )
    assert files(run) == NAMES
    assert path.read_bytes() == exported.path.read_bytes()
    assert open_artifact(str(path), "cpu").backend == "onnx"


def test_failed_parity_leaves_what_was_there(
    copied: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied.parents[1]
    before = {path.name: path.read_bytes() for path in copied.parent.iterdir()}
    monkeypatch.setattr(OnnxTarget, "tolerance", {"fp32": 1e-12})

    code = main([str(run)])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert re.search(
        r"onnx-fp32\.onnx: parity with eager failed: a logit of test image \d+ is off by \S+ where "
        r"1e-12 is allowed, and 100\.0% of 1000 images keep their class: it was not written\n",
        err,
    )
    assert {path.name: path.read_bytes() for path in copied.parent.iterdir()} == before


def test_weights_with_nan_leave_nothing(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sample_run(tmp_path / "runs" / "broken", data, change=spoil)

    code = main([str(run.path)])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert "eager gives NaN or infinite logits for test image 0; nothing was written" in err
    assert files(run.path) == []


def spoil(network: torch.nn.Module) -> None:
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))


def test_full_disk_leaves_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with file_size_limit(100_000):
        code = main([str(run)])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == f"zoo-export: {run}/artifacts/onnx-fp32.onnx: File too large"
    assert files(run) == []


def test_interrupt_leaves_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxTarget, "export", interrupt)

    assert main([str(run)]) == 130
    assert capsys.readouterr().err.endswith("zoo-export: interrupted\n")
    assert files(run) == []


def test_folder_that_cannot_be_written_is_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "artifacts").write_text("a file, where a folder should be")

    code = main([str(run)])

    assert code == 1
    assert capsys.readouterr().err.endswith(f"{run}/artifacts: File exists\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onxx"], "no export target named 'onxx': did you mean onnx?"),
        (["--to", "onnx,tensorrt"], "no export target named 'tensorrt': "),
        (["--to", "onnx,"], "expected names with commas between, like onnx,trt; got 'onnx,'"),
        (["--precision", "fp32,fp17"], "no precision named 'fp17': did you mean fp16"),
        (["--precision", "fp16"], "this version of cifar-zoo does not write fp16 yet: use fp32"),
        (["--precision", "int8"], "this version of cifar-zoo does not write int8 yet: use fp32"),
        (["--device", "gpu"], "expected cpu, cuda or cuda:N, got 'gpu'"),
        (["--runs", "nowhere"], "no complete run in nowhere: train one with zoo-train MODEL"),
        (["nowhere"], "there is no run nowhere: train one with zoo-train MODEL"),
    ],
)
def test_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    code = exit_code(arguments)

    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("zoo-export: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def exit_code(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def test_empty_folder_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"zoo-export: {tmp_path} is not a run: it holds no meta.json; "
        "train one with zoo-train MODEL\n"
    )


def test_truncated_weights_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])

    assert main([str(run)]) == 2
    assert "weights.safetensors is damaged" in capsys.readouterr().err
    assert files(run) == []


def test_weights_of_another_model_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run / "meta.json", model="resnet_32")

    assert main([str(run)]) == 2
    assert "holds the weights of another model than resnet_32" in capsys.readouterr().err
    assert files(run) == []


def test_other_images_than_the_run_saw_are_refused(run: Path, data: Dataset) -> None:
    other = replace(data, digest="f" * 64)

    with pytest.raises(DataError, match="but cifar100-mini as found has ffffffffffff..."):
        export_model(run, data=other)
    assert files(run) == []


def test_gpu_that_is_not_there_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert main([str(run), "--device", "cuda:1"]) == 1
    assert capsys.readouterr().err == (
        f"zoo-export: torch {torch.__version__} finds no GPU 'cuda:1': zoo-doctor says why\n"
    )


def test_tensorrt_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    with pytest.raises(ZooError) as caught:
        load_target("trt")

    assert str(caught.value) == (
        "--to trt needs the package tensorrt, which is not installed: in a clone of cifar-zoo run "
        "pip install '.[trt]'; but this version of cifar-zoo writes no TensorRT engines yet: "
        "use --to onnx"
    )


@pytest.mark.parametrize("name", export.PLANNED)
def test_later_targets_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(
        ZooError, match=r"this version of cifar-zoo writes no .* yet: use --to onnx"
    ):
        load_target(name)


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_missing_package_is_named_before_the_work(
    run: Path, data: Dataset, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingPackageError, match=rf"--to onnx needs the package {package}, .*cpu"):
        export_model(run, data=data)
    assert files(run) == []


def test_missing_runtime_is_named_when_a_file_is_opened(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingPackageError, match=r"running onnx-fp32.onnx needs .*'\.\[cpu\]'"):
        open_artifact(str(exported.path), "cpu")


@pytest.mark.parametrize("entry", ["main", "main_eval"])
def test_help_is_light(entry: str) -> None:
    code = f"import sys, export.cli; sys.exit(export.cli.{entry}(['--help']))"

    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, cwd=ROOT
    )

    assert answer.returncode == 0
    assert "--data-dir" in answer.stdout
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"torch", "onnx", "onnxruntime", "numpy"}
