import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_helpers import NAMES, edit, exit_code, file_size_limit, files
from sample_run import sample_run

from export import export_model
from export.artifact import Artifact
from export.cli import main
from export.flags import READ_BY, export_parser
from export.opening import open_artifact
from export.target import ExportOptions, Tolerance
from export.to_onnx import OnnxTarget
from export.to_tensorrt import TensorRtTarget
from zoo.data import Dataset
from zoo.errors import DataError, MachineError, MissingPackageError

pytest_plugins = ["export_fixtures"]

ROOT = Path(__file__).parents[1]


def test_command_exports_the_newest_run_and_says_little(
    run: Path,
    exported: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What one format does not write stops no other; an artifact is replaced, byte for byte."""
    monkeypatch.chdir(run.parents[1])
    path = Path("runs") / run.name / "artifacts" / "onnx-fp32.onnx"
    path.parent.mkdir()
    path.write_text("old")
    path.with_suffix(".json").write_text("old")

    code = main(["--precision", "bf16,fp32"])

    out, err = capfd.readouterr()
    assert code == 2  # of the first failure
    assert out == f"{path}\n"
    refusal, start, result = err.splitlines()
    assert refusal == "zoo-export: --to onnx does not write bf16: use fp32, fp16, int8"
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


def test_all_runs_of_a_folder_in_turn(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that fails is reported, and the next follows."""
    written: list[Path] = []

    def note(self: OnnxTarget, model: object, example: object, path: Path, **_: object) -> None:
        written.append(path)
        raise MachineError("not today")

    broken = Path(shutil.copytree(run, run.with_name("a-broken")))
    (broken / "weights.safetensors").write_bytes(b"")
    other = shutil.copytree(run, run.with_name("other"))
    monkeypatch.setattr(OnnxTarget, "export", note)

    code = main(["--all", str(run.parent), "--precision", "fp32,fp16"])

    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert [path.parents[2].name for path in written] == [other.name] * 2 + [run.name] * 2
    lines = err.splitlines()
    assert lines[0].startswith(f"zoo-export: {broken}/weights.safetensors is damaged")
    assert lines.count("zoo-export: not today") == 4
    assert files(run) == files(other) == []


def test_a_damaged_run_of_a_folder_is_said_and_stops_no_other(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MachineError("not today")

    bad = run.with_name("bad")
    bad.mkdir()
    (bad / "meta.json").write_text("{")
    monkeypatch.setattr(OnnxTarget, "export", fail)

    code = main(["--all", str(run.parent)])

    told, *rest = capsys.readouterr().err.splitlines()
    assert code == 2
    assert told.startswith(f"zoo-export: {bad}/meta.json is not valid JSON")
    assert rest == [f"zoo-export: exporting {run} to onnx fp32", "zoo-export: not today"]
    assert main(["--prove", "--all", str(run.parent)]) == 2
    assert capsys.readouterr().err == f"{told}\n"


def test_what_a_library_raises_is_a_line_and_stops_no_other_file(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such shape\nof any kind")

    monkeypatch.setattr(OnnxTarget, "export", fail)

    code = main([str(run), "--to", "onnx,torchexport"])

    out, err = capsys.readouterr()
    written = run / "artifacts" / "torchexport-fp32.export.pt2"
    assert (code, out) == (1, f"{written}\n")
    assert err.splitlines()[1] == (
        f"zoo-export: {run / 'artifacts' / 'onnx-fp32.onnx'}: ValueError: no such shape: "
        "nothing was written"
    )


def test_a_named_run_that_is_none_stops_no_other(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MachineError("not today")

    monkeypatch.setattr(OnnxTarget, "export", fail)

    code = main(["nowhere", str(run)])

    told, *rest = capsys.readouterr().err.splitlines()
    assert code == 2
    assert told.startswith("zoo-export: there is no run nowhere")
    assert rest == [f"zoo-export: exporting {run} to onnx fp32", "zoo-export: not today"]


def test_a_folder_without_a_run_stops_no_named_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MachineError("not today")

    bad = tmp_path / "others" / "bad" / "meta.json"
    bad.parent.mkdir(parents=True)
    bad.write_text("{")
    monkeypatch.setattr(OnnxTarget, "export", fail)

    code = main([str(run), "--all", str(tmp_path / "others")])

    told, *rest = capsys.readouterr().err.splitlines()
    assert code == 2
    assert told.startswith(f"zoo-export: {bad} is not valid JSON")
    assert rest == [
        f"zoo-export: no complete run in {tmp_path / 'others'}: train one with zoo-train MODEL",
        f"zoo-export: exporting {run} to onnx fp32",
        "zoo-export: not today",
    ]


@pytest.mark.parametrize("option", ["--bundle", "--triton"])
@pytest.mark.parametrize("what", ["run", "file"])
def test_what_is_handed_over_is_no_folder_for_it(
    option: str, what: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied.parents[1] if what == "run" else copied
    before = sorted(copied.parents[2].rglob("*"))

    code = main([option, str(path)])

    assert code == 2
    assert capsys.readouterr().err == (
        f"zoo-export: {option} {path}: expected a folder to write to, this is a run or a file to "
        f"hand over; put it first: zoo-export {path} {option}\n"
    )
    assert sorted(copied.parents[2].rglob("*")) == before


def test_named_runs_are_all_exported(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MachineError("not today")

    other = shutil.copytree(run, run.with_name("other"))
    monkeypatch.setattr(OnnxTarget, "export", fail)

    code = main([str(run), str(other)])

    assert code == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "exporting" in line] == [
        f"zoo-export: exporting {path} to onnx fp32" for path in (run, other)
    ]


@pytest.mark.parametrize(
    ("has_gpu", "options", "device"),
    [
        (True, [], "cuda"),
        (True, ["--device", "cpu"], "cpu"),
        (False, [], "cpu"),
    ],
)
def test_an_engine_is_for_the_gpu_where_there_is_one(
    has_gpu: bool, options: list[str], device: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: dict[str, str] = {}

    def note(self: OnnxTarget | TensorRtTarget, *_: object, **given: Any) -> None:
        devices[self.name] = given["options"].device
        raise MachineError("not today")

    def fake_gpu(device: str) -> None:
        if device == "cuda" and not has_gpu:
            raise MachineError("there is none")

    monkeypatch.setattr(OnnxTarget, "export", note)
    monkeypatch.setattr(TensorRtTarget, "export", note)
    monkeypatch.setattr("zoo.doctor.require_kernels", fake_gpu)

    main([str(run), "--to", "onnx,trt", *options])

    assert devices == {"onnx": "cpu", "trt": device}


def test_options_of_tensorrt_reach_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ExportOptions] = []

    def note(self: TensorRtTarget, *_: object, **given: Any) -> None:
        seen.append(given["options"])
        raise MachineError("not today")

    monkeypatch.setattr(TensorRtTarget, "export", note)

    options = "--trt-opt-batch 1 --trt-workspace 9 --trt-timing-cache t --trt-version-compatible"
    main([str(run), "--to", "trt", "--device", "cpu", *options.split()])

    assert seen == [
        ExportOptions(
            trt_opt_batch=1,
            trt_workspace_mib=9,
            trt_timing_cache=Path("t"),
            trt_version_compatible=True,
        )
    ]


# What goes wrong


def test_failed_parity_leaves_what_was_there(
    copied: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied.parents[1]
    before = {path.name: path.read_bytes() for path in copied.parent.iterdir()}
    monkeypatch.setattr(OnnxTarget, "tolerance", {"fp32": Tolerance(logits=1e-12)})

    code = main([str(run)])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert re.search(
        r"onnx-fp32\.onnx: parity with eager failed: a logit of test image \d+ \([a-z_]+\) is "
        r"off by \S+ where 1e-12 is allowed, and 100\.0% of 1000 images keep their class; the "
        r"first layer that is off is stem\.1 \(by \S+ where \S+ is allowed\): it was not written\n",
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


def test_failure_of_a_runtime_is_one_line_and_stops_no_other(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), MemoryError()]

    def fail(*_: object, **__: object) -> None:
        raise failures.pop(0)

    monkeypatch.setattr(OnnxTarget, "export", fail)

    code = main([str(run), "--precision", "fp32,fp16"])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    folder = f"{run}/artifacts"
    assert err.splitlines() == [
        f"zoo-export: exporting {run} to onnx fp32",
        f"zoo-export: {folder}/onnx-fp32.onnx: CUDA out of memory.: nothing was written",
        f"zoo-export: exporting {run} to onnx fp16",
        f"zoo-export: {folder}/onnx-fp16.onnx: MemoryError: nothing was written",
    ]
    assert files(run) == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("onnx", "onnx-fp32.onnx: File too large"),
        ("torchexport", "torchexport-fp32.export.pt2: File too large"),
        ("openvino", "openvino-fp32.xml: OpenVINO cannot write it, is the disk full? ("),
    ],
)
def test_full_disk_leaves_nothing(
    run: Path, target: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")

    with file_size_limit(100_000):
        code = main([str(run), "--to", target])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.splitlines()[1].startswith(f"zoo-export: {run}/artifacts/{said}")
    assert (len(err.splitlines()), files(run)) == (2, [])


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


def test_it_is_known_who_reads_each_option_of_int8_and_tensorrt() -> None:
    options = re.findall(r"--(?:int8|trt)-[\w-]+", export_parser().format_help())

    assert options
    assert set(options) <= set(READ_BY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onxx"], "no export target named 'onxx': did you mean onnx"),
        (["--to", "onnx,tensorrt"], "no export target named 'tensorrt': "),
        (["--to", "onnx,"], "expected names with commas between, like onnx,trt; got 'onnx,'"),
        (["--precision", "fp32,fp17"], "no precision named 'fp17': did you mean fp16"),
        (["--precision", "bf16"], "--to onnx does not write bf16: use fp32, fp16, int8"),
        (
            ["--to", "trt", "--preprocess"],
            "--preprocess is for --to onnx, got --to trt: leave it out",
        ),
        (["--opset", "9"], "--opset 9: torch writes opsets 18 to 23"),
        (["--provider", "cuda"], "--provider cuda needs --device cuda, got cpu"),
        (["--provider", "tpu"], "no provider named 'tpu': did you mean cpu?"),
        (["--all", "nowhere"], "no complete run in nowhere: train one with zoo-train MODEL"),
        (["--device", "gpu"], "expected cpu, cuda or cuda:N, got 'gpu'"),
        (["--runs", "nowhere"], "no complete run in nowhere: train one with zoo-train MODEL"),
        (["nowhere"], "there is no run nowhere: train one with zoo-train MODEL"),
        (
            ["--provider", "cpu", "--to", "aoti"],
            "--provider is for --to onnx, got --to aoti: leave",
        ),
        (
            ["--opset", "20", "--to", "aoti"],
            "--opset is for --to onnx or trt or openvino, got --to",
        ),
        (["--trt-opt-batch", "1"], "--trt-opt-batch is for --to trt, got --to onnx: leave it out"),
        (["--trt-workspace", "9"], "--trt-workspace is for --to trt, got --to onnx: leave it out"),
        (
            ["--precision", "fp16,fp32", "--int8-images", "9"],
            "--int8-images is for --precision int8, got --precision fp16,fp32: leave it out",
        ),
        (
            ["--prove", "--opset", "20", "--int8-method", "entropy"],
            "--prove writes nothing: leave out --opset, --int8-method",
        ),
        (
            ["a.onnx", "--bundle", "--device", "cuda", "--preprocess"],
            "a.onnx is handed over as it is: leave out --preprocess, --device",
        ),
        (["a.onnx", "--bundle", "--to", "trt"], "are for runs, and a.onnx is a file already"),
        (
            ["a.onnx", "--prove", "--precision", "fp16"],
            "are for runs, and a.onnx is a file already",
        ),
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


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_missing_package_is_named_before_the_work(
    run: Path, data: Dataset, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingPackageError, match=rf"--to onnx needs the package {package}, .*cpu"):
        export_model(run, data=data)
    assert files(run) == []


@pytest.mark.parametrize("entry", ["export.cli.main", "export.use_cli.main_eval"])
def test_help_is_light(entry: str) -> None:
    module = entry.rpartition(".")[0]
    code = f"import sys, {module}; sys.exit({entry}(['--help']))"

    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, cwd=ROOT
    )

    assert answer.returncode == 0
    assert "--data-dir" in answer.stdout
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"torch", "onnx", "onnxruntime", "numpy"}
