"""zoo-export --prove: files that were written where they do not run, and those that fail later."""

import gc
import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from absent_gpu import REASON, TargetOfAnAbsentGpu
from export_helpers import edit, files
from onnx import helper, numpy_helper

import export
from export.artifact import Artifact, manifest_path, read_manifest
from export.cli import main
from export.onnx_session import OnnxSession
from export.proof import Proof, Reference, prove
from export.target import Tolerance
from export.to_onnx import OnnxTarget
from export.to_torchexport import save_program
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, load_dataset
from zoo.files import sha256_file

pytest_plugins = ["export_fixtures"]


@pytest.fixture
def absent_gpu(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> type[TargetOfAnAbsentGpu]:
    monkeypatch.setattr(TargetOfAnAbsentGpu, "built", exported.path, raising=False)
    target = "absent_gpu:TargetOfAnAbsentGpu"
    monkeypatch.setattr(export, "TARGETS", {**export.TARGETS, "trt": target})
    return TargetOfAnAbsentGpu


@pytest.fixture
def pending(absent_gpu: object, run: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """An engine that waits for its proof."""
    assert main([str(run), "--to", "trt"]) == 0
    capsys.readouterr()
    return run / "artifacts" / "trt-fp32.engine"


def test_artifact_that_does_not_run_here_waits_and_is_proven_elsewhere(
    absent_gpu: type[TargetOfAnAbsentGpu],
    run: Path,
    exported: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = run / "artifacts" / "trt-fp32.engine"
    manifest = path.with_suffix(".json")

    code = main([str(run), "--to", "trt"])

    out, err = capsys.readouterr()
    assert (code, out) == (0, f"{path}\n")
    assert re.fullmatch(
        rf"zoo-export: trt fp32: proof pending: {REASON}; the graph that it was built from agrees "
        r"with eager: largest error of a logit .* same class for 100\.0% of 1000 images",
        err.splitlines()[-1],
    )
    value = json.loads(manifest.read_text())
    assert (value["proof"], value["pending"]) == ("pending", REASON)
    assert (value["parity"], value["accuracy"], value["proven_by"]) == (None, None, None)
    assert value["proxy_parity"]["passed"]

    assert main([str(run), "--prove"]) == 1  # not here
    assert capsys.readouterr().err == f"zoo-export: {path} cannot be proven here: {REASON}\n"
    assert json.loads(manifest.read_text()) == value

    monkeypatch.setattr(absent_gpu, "is_present", True)
    code = main([str(run), "--prove"])

    out, err = capsys.readouterr()
    assert (code, out) == (0, f"{path}\n")
    assert "trt fp32 agrees with eager" in err
    proven = read_manifest(manifest)
    assert (proven.pending, proven.accuracy) == (None, exported.accuracy)
    assert proven.proven_in["torch"] == torch.__version__
    assert json.loads(manifest.read_text())["proof"] == "passed"

    assert main([str(run), "--prove"]) == 0
    assert capsys.readouterr().err == "zoo-export: no proof is pending\n"


def test_proof_that_fails_is_kept_in_the_manifest(
    absent_gpu: type[TargetOfAnAbsentGpu],
    pending: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(absent_gpu, "is_present", True)
    monkeypatch.setattr(absent_gpu, "tolerance", {"fp32": Tolerance(logits=1e-12)})

    code = main(["--prove", str(pending)])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert "parity with eager failed" in err
    assert err.endswith("its manifest says so now\n")
    reason = read_manifest(pending.with_suffix(".json")).pending
    assert reason is not None
    assert reason.startswith("not the model on onnxruntime")


def test_graph_of_a_pending_artifact_has_to_agree(
    absent_gpu: type[TargetOfAnAbsentGpu],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(absent_gpu, "tolerance", {"fp32": Tolerance(logits=1e-12)})

    code = main([str(run), "--to", "trt"])

    assert code == 1
    assert "parity with eager failed" in capsys.readouterr().err
    assert files(run) == []


def test_artifact_outside_its_run_is_not_proven(
    absent_gpu: type[TargetOfAnAbsentGpu],
    pending: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(absent_gpu, "is_present", True)
    for suffix in (".json", ".engine"):
        shutil.move(pending.with_suffix(suffix), tmp_path)

    assert main(["--prove", str(tmp_path / pending.name)]) == 2
    assert "can only be proven inside its run" in capsys.readouterr().err


def test_only_what_is_meant_is_proven(
    absent_gpu: type[TargetOfAnAbsentGpu],
    pending: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(absent_gpu, "is_present", True)

    for other in (("--to", "onnx,aoti"), ("--precision", "int8")):
        assert main([str(run), "--prove", *other]) == 0
        assert capsys.readouterr().err == "zoo-export: no proof is pending\n"

    assert main([str(run), "--prove", "--to", "trt", "--precision", "fp32"]) == 0
    assert capsys.readouterr().out == f"{pending}\n"


def test_many_runs_are_proven_with_one_open_at_a_time(
    absent_gpu: type[TargetOfAnAbsentGpu],
    pending: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("b", "c"):
        shutil.copytree(run, run.with_name(name))
    live: weakref.WeakSet[Reference] = weakref.WeakSet()
    most: list[int] = []
    read: list[str] = []

    def opened(*given: Any, **named: Any) -> Reference:
        reference = Reference(*given, **named)
        live.add(reference)
        gc.collect()
        most.append(len(live))
        return reference

    def load(name: str, **named: Any) -> Dataset:
        read.append(name)
        return load_dataset(name, **named)

    monkeypatch.setattr("export.proof.Reference", opened)
    monkeypatch.setattr("zoo.data.load_dataset", load)
    monkeypatch.setattr(absent_gpu, "is_present", True)

    assert main(["--prove", "--all", str(run.parent)]) == 0

    assert len(capsys.readouterr().out.splitlines()) == 3
    assert most == [1, 1, 1]
    assert read == ["cifar100-mini"]


# What goes wrong


def test_nothing_is_kept_unseen(
    absent_gpu: type[TargetOfAnAbsentGpu],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("export.write.HasProxy", type(None))  # so it has none

    assert main([str(run), "--to", "trt"]) == 1

    path = run / "artifacts" / "trt-fp32.engine"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"zoo-export: {path} cannot be checked here: {REASON}: it was not written"
    )
    assert files(run) == []


def test_a_file_that_is_written_again_meanwhile_keeps_its_manifest(
    absent_gpu: type[TargetOfAnAbsentGpu],
    pending: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = pending.with_suffix(".json")
    real = prove

    def slow(*things: Any) -> Proof:
        found = real(*things)
        edit(manifest, sha256="0" * 64)  # as another zoo-export does
        return found

    monkeypatch.setattr(absent_gpu, "is_present", True)
    monkeypatch.setattr("export.write.prove", slow)

    assert main(["--prove", str(pending)]) == 2

    assert capsys.readouterr().err == (
        f"zoo-export: {pending} was written again meanwhile: prove it again\n"
    )
    assert read_manifest(manifest).sha256 == "0" * 64
    assert read_manifest(manifest).pending == REASON


def test_proof_of_before_does_not_stay_beside_one_that_failed(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OnnxTarget, "tolerance", {"fp32": Tolerance(logits=1e-12)})

    assert main(["--prove", str(copied)]) == 1

    value = json.loads(copied.with_suffix(".json").read_text())
    assert value["proof"] == "pending"
    assert value["pending"].startswith("not the model on onnxruntime")
    for name in ("parity", "accuracy", "comparison", "proven_by", "proven_in"):
        assert value[name] is None


def test_a_file_of_other_numbers_names_the_layer(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(copied)
    node = [node for node in model.graph.node if node.op_type == "Conv"][3]
    (weights,) = (one for one in model.graph.initializer if one.name == node.input[1])
    weights.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(weights), weights.name))
    onnx.save(model, copied)
    manifest = copied.with_suffix(".json")
    edit(manifest, sha256=sha256_file(copied), files={})

    assert main(["--prove", str(copied)]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    found = re.search("parity with eager failed: .*; the first layer that is off is (.*) [(]", line)
    assert found is not None
    assert found[1] == "stages.0.1.first.1"  # the batch norm that lies in its convolution
    assert line.endswith("its manifest says so now")
    assert found[0] in json.loads(manifest.read_text())["pending"]


def test_one_that_is_of_no_use_stops_no_other(
    absent_gpu: type[TargetOfAnAbsentGpu],
    pending: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(absent_gpu, "is_present", True)
    damaged = pending.with_name("aoti-fp32.json")
    damaged.write_text("{")
    gone = pending.with_name("onnx-fp16.onnx")

    code = main(["--prove", str(gone), str(pending.parents[1])])

    out, err = capsys.readouterr()
    assert (code, out) == (2, f"{pending}\n")
    first, second, proven = err.splitlines()
    assert first == f"zoo-export: there is no artifact {gone}: write it again with zoo-export"
    assert second.startswith(f"zoo-export: {damaged} is not valid JSON (")
    assert "trt fp32 agrees with eager" in proven


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("cuda", "--provider cuda needs --device cuda, got cpu"),
        ("tensort", "no provider named 'tensort': did you mean tensorrt?"),
    ],
)
def test_a_provider_that_does_not_fit_is_refused_whatever_waits(
    provider: str, message: str, pending: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--prove", "--provider", provider, str(pending.parents[1])]) == 2

    assert capsys.readouterr().err == f"zoo-export: {message}\n"


@pytest.mark.parametrize("max_drop", ["a", [1], float("nan"), None, 5, True, -0.1])
def test_what_int8_may_lose_is_a_share(
    max_drop: object, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copied.with_suffix(".json"), facts={"int8": {"max_drop": max_drop}})

    assert main(["--prove", str(copied)]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"zoo-export: {copied.with_suffix('.json')} is not ")


def look_beyond_the_classes(path: Path) -> Path:
    """Add a node to an ONNX file that ONNX Runtime cannot run."""
    model = onnx.load(path)
    (logits,) = (output.name for output in model.graph.output)
    (last,) = (node for node in model.graph.node if logits in node.output)
    last.output[0] = "right"
    model.graph.initializer.append(numpy_helper.from_array(np.int64([1000]), "beyond"))
    model.graph.node.append(helper.make_node("Gather", ["right", "beyond"], ["none"], axis=1))
    model.graph.node.append(helper.make_node("Add", ["right", "none"], [logits]))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    edit(path.with_suffix(".json"), sha256=sha256_file(path), files={})
    return path


def take_few_images(exported: Path) -> Path:
    """A program beside the ONNX file whose guards torch holds with assertions."""
    path = exported.with_name("torchexport-fp32.export.pt2")
    program = torch.export.export(
        Checkpoint.open(exported.parents[1]).model(),
        (torch.zeros(2, 3, 32, 32),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        strict=False,
    )
    save_program(program, path, {"precision": "fp32"})
    manifest = Path(shutil.copy(exported.with_suffix(".json"), manifest_path(path)))
    edit(manifest, file=path.name, target="torchexport", sha256=sha256_file(path), files={})
    return path


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (look_beyond_the_classes, ", whose .* did not run on .*: indices element out of data .*"),
        (take_few_images, ": AssertionError: .*: nothing was written"),
    ],
)
def test_what_a_runtime_raises_is_one_line_and_stops_no_other(
    damage: Callable[[Path], Path],
    said: str,
    copied: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = shutil.copytree(copied.parents[1], tmp_path / "whole") / "artifacts" / copied.name
    damaged = damage(copied)
    before = manifest_path(damaged).read_bytes()

    code = main(["--prove", str(damaged), str(whole)])

    out, err = capfd.readouterr()
    assert (code, out) == (1, f"{whole}\n")
    ours = [line for line in err.splitlines() if line.startswith("zoo-export: ")]
    assert len(ours) == 2
    assert re.fullmatch(f"zoo-export: {re.escape(str(damaged))}{said}", ours[0])
    assert ours[1].startswith("zoo-export: onnx fp32 agrees with eager")
    assert "Traceback" not in err
    assert manifest_path(damaged).read_bytes() == before


def test_failure_of_a_runtime_is_one_line_and_leaves_the_manifest(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image\nis available")

    before = copied.with_suffix(".json").read_bytes()
    monkeypatch.setattr(OnnxSession, "run", fail)

    assert main(["--prove", str(copied)]) == 1
    assert capsys.readouterr().err == (
        f"zoo-export: {copied}: no kernel image: nothing was written\n"
    )
    assert copied.with_suffix(".json").read_bytes() == before
