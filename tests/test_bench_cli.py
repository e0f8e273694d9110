import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absent_gpu import TargetOfAnAbsentGpu
from bench_helpers import onnx_file, workers_of
from sample_run import sample_run

from export.proof import Reference
from export.target import ExportOptions
from export.write import write_artifact
from profiling import read_records
from profiling.cli import main
from profiling.options import bench_parser, report_parser
from profiling.record import FAILED, OK, SKIPPED
from zoo.checkpoint import Checkpoint
from zoo.command import Parser
from zoo.data import Dataset, load_dataset


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A run with an ONNX artifact."""
    from export import export_model

    checkpoint = sample_run(tmp_path_factory.mktemp("runs") / "resnet_20-s0", data)
    export_model(checkpoint, data=data)
    return checkpoint.path


def test_bench_of_a_run_without_a_compiler(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    code = main([str(run), "--batch", "1,8", "--budget", "0.3", "--threads", "1"])

    out, err = capsys.readouterr()
    assert code == 0  # nobody asked for compile
    first, header, *lines = out.partition("\nx ref: ")[0].splitlines()
    assert first.startswith(
        "resnet_20, run resnet_20-s0 on cifar100-mini, 278,324 parameters, "
        "40.82 M MACs = 81.64 M FLOPs, cpu, 1 thread ["
    )
    assert header.split("  ")[0] == "backend"
    assert [line.split()[:3] for line in lines if line] == [
        ["eager", "fp32", "1"],
        ["eager", "fp32", "8"],
        ["onnx", "fp32", "1"],
        ["onnx", "fp32", "8"],
    ]
    assert "resnet_20 compile b8: skipped: torch.compile on a CPU needs a C++ compiler" in err
    assert f"wrote 6 records to {run}/records/" in err
    records = {(r.backend, r.batch): r for r in read_records(run)}
    assert records["compile", 1].status == SKIPPED
    of_onnx, of_eager = records["onnx", 1], records["eager", 1]
    assert of_onnx.input == of_eager.input == "test images"
    assert of_onnx.macs == of_eager.macs == 40_818_944
    assert str(of_onnx.runtime).startswith("onnxruntime")
    manifest = json.loads((run / "artifacts" / "onnx-fp32.json").read_text())
    assert of_onnx.artifact_sha256 == manifest["sha256"]
    # The sample run holds no accuracy, so eager's was measured; the artifact's is the manifest's.
    assert of_eager.accuracy_images == of_onnx.accuracy_images == 1000
    assert of_onnx.top1 == manifest["accuracy"]["top1"] == of_eager.top1


def test_a_backend_that_was_asked_for_and_is_missing_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    code = main([str(run), "--batch", "2", "--backend", "compile", "--out", str(tmp_path)])

    assert code == 1
    assert [record.status for record in read_records(tmp_path)] == [SKIPPED]


def test_an_engine_is_no_failure_of_a_benchmark_on_the_cpu(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after zoo-export --to trt on a machine with a GPU, which builds and proves it there."""
    path = shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("records"))
    monkeypatch.setattr(
        TargetOfAnAbsentGpu, "built", path / "artifacts" / "onnx-fp32.onnx", raising=False
    )
    monkeypatch.setattr(TargetOfAnAbsentGpu, "is_present", True)
    proven = write_artifact(
        Reference(Checkpoint.open(path), load_dataset("cifar100-mini")),
        TargetOfAnAbsentGpu(),
        precision="fp32",
        options=ExportOptions(),
    )
    monkeypatch.setenv("PATH", str(tmp_path))  # without a compiler nothing is compiled

    code = main([str(path), "--batch", "2", "--budget", "0.1", "--threads", "1"])

    reason = f"{proven.path} is a TensorRT engine and runs on a GPU only: --device cuda"
    assert proven.pending is None
    assert f"resnet_20 trt b2: skipped: {reason}" in capsys.readouterr().err
    assert code == 0  # nobody asked for it


def test_bench_of_a_foreign_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = onnx_file(tmp_path / "tiny.onnx", batch=1)

    code = main([str(path), "--batch", "1,2", "--budget", "0.1", "--out", str(tmp_path / "out")])

    assert code == 1
    good, bad = sorted(read_records(tmp_path / "out"), key=lambda record: record.batch)
    assert (good.status, good.model, good.backend, good.input) == (OK, "tiny", "onnx", "random")
    assert (good.params, good.macs, good.source, good.top1) == (12, 12, None, None)
    assert bad.status == FAILED
    assert bad.reason is not None
    assert f"{path}, whose input is (1, 3, 8, 8), did not run on images of shape (2," in bad.reason
    assert capsys.readouterr().out.startswith("tiny, 12 parameters, ")


def test_damaged_artifact_fails(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("records"))
    with (copy / "artifacts" / "onnx-fp32.onnx").open("ab") as file:
        file.write(b"more")

    code = main([str(copy), "--batch", "1", "--budget", "0.1", "--backend", "onnx"])

    assert code == 1
    assert "resnet_20 onnx b1: failed:" in capsys.readouterr().err
    (record,) = read_records(copy)
    assert "it was changed or damaged" in str(record.reason)


@pytest.mark.slow  # the compiler alone takes a minute or two
def test_compile_is_measured_and_evaluated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which torch.compile calls")

    options = ("--batch", "4", "--budget", "0.5", "--backend", "eager,compile")
    assert main([str(run), *options, "--out", str(tmp_path)]) == 0

    records = {record.backend: record for record in read_records(tmp_path)}
    compiled, eager = records["compile"], records["eager"]
    assert compiled.top1 == pytest.approx(eager.top1, abs=0.002)
    assert compiled.first_call_ms is not None
    assert compiled.p50_ms is not None
    assert compiled.first_call_ms > 10 * compiled.p50_ms


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0"), "argument --batch: expected whole numbers of 1 or more"),
        (("--batch", "1,x"), "argument --batch: expected whole numbers of 1 or more"),
        (("--budget", "0"), "argument --budget: expected a number of seconds above 0, got '0'"),
        (("--threads", "-1"), "argument --threads"),
        (("--device", "gpu"), "argument --device: expected cpu, cuda or cuda:N, got 'gpu'"),
        (("--backend", "eager,"), "argument --backend: expected names with commas between"),
    ],
)
def test_bad_options(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        main(arguments)

    assert ending.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"zoo-bench: {message}")
    assert err.count("\n") == 1


def test_bad_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    empty, text = tmp_path / "empty", tmp_path / "notes.txt"
    empty.mkdir()
    text.write_text("notes")
    messages = {
        (): "no complete run in runs: train one with zoo-train MODEL",
        ("nowhere",): "there is no run nowhere: train one with zoo-train MODEL",
        ("empty",): "empty is not a run: it holds no meta.json; train one with zoo-train MODEL",
        ("notes.txt",): "notes.txt is not an ONNX file, or it is damaged",
        ("gone.onnx",): "there is no file gone.onnx",
        ("empty", "--backend", "egaer"): "no backend named 'egaer': did you mean eager?",
    }

    for arguments, message in messages.items():
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"zoo-bench: {message}\n"


def test_backend_without_an_artifact(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("artifacts"))

    assert main([str(copy), "--backend", "onnx"]) == 2
    assert capsys.readouterr().err == (
        f"zoo-bench: {copy} has nothing for --backend onnx: export the run with "
        "zoo-export --to onnx\n"
    )


def test_folder_that_cannot_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")

    assert main([str(run), "--out", str(blocker / "out")]) == 1
    assert capsys.readouterr().err == f"zoo-bench: {blocker / 'out' / 'records'}: Not a directory\n"


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs SIGTERM")
def test_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "tiny.onnx", batch="batch")
    command = (sys.executable, "-m", "profiling.cli", str(path), "--budget", "60")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        (*command, "--out", str(tmp_path)), env=environment, stderr=subprocess.PIPE, text=True
    ) as bench:
        deadline = time.monotonic() + 120
        while not (workers := workers_of(bench.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)

        bench.terminate()
        _, err = bench.communicate(timeout=60)

    assert workers
    assert (bench.returncode, err) == (143, "zoo-bench: terminated\n")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert read_records(tmp_path) == []


@pytest.mark.parametrize("suffix", [".json", ".bin"])
def test_a_part_of_an_artifact_is_not_measured_alone(
    run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("records"))
    whole = copy / "artifacts" / "onnx-fp32.onnx"
    part = whole.with_suffix(suffix)
    if suffix != ".json":
        part.write_bytes(b"")

    assert main([str(part)]) == 2
    assert capsys.readouterr().err == (
        f"zoo-bench: {part} belongs to {whole}: give that file, or its run\n"
    )


def test_an_artifact_named_from_its_own_folder_belongs_to_its_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("records"))
    monkeypatch.chdir(copy / "artifacts")

    assert main(["onnx-fp32.onnx", "--batch", "1", "--budget", "0.1"]) == 0

    (record,) = read_records(copy)
    assert record.source is not None
    assert (record.source.run, record.input) == (run.name, "test images")


@pytest.mark.parametrize("mode", ["cost", "layers", "roofline", "compare"])
@pytest.mark.parametrize("option", ["price-per-hour", "latency-bound", "l2-flush"])
def test_options_of_a_benchmark_are_refused_elsewhere(
    mode: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["a", "b"] if mode == "compare" else []
    value = [] if option == "l2-flush" else ["1"]

    assert main([f"--{mode}", *paths, f"--{option}", *value]) == 2

    assert capsys.readouterr() == (
        "",
        f"zoo-bench: --{option} is for a benchmark: leave it or --{mode} out\n",
    )


def test_there_is_nothing_to_count_of_compile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resnet_20", "--cost", "--backend", "compile"]) == 2

    assert capsys.readouterr() == (
        "",
        "zoo-bench: --cost counts networks and files, compile is neither: add --backend eager\n",
    )


def test_every_option_is_a_decision() -> None:
    def options(parser: Parser) -> set[str]:
        return {name for action in parser._actions for name in action.option_strings}

    assert options(bench_parser()) == {
        *("-h", "--help", "--version", "--model", "--zoo", "--group", "--image-size", "--batch"),
        *("--budget", "--backend", "--device", "--threads", "--l2-flush", "--price-per-hour"),
        *("--latency-bound", "--out", "--all", "--runs", "--data-dir", "--cost", "--layers"),
        *("--roofline", "--compare", "--json"),
    }
    assert options(report_parser()) == {
        *("-h", "--help", "--version", "--out", "--readme", "--import", "--price-per-hour"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--l2-flush",), "--l2-flush is for a GPU: add --device cuda, or leave it out"),
        (
            ("--latency-bound", "5"),
            "--latency-bound chooses the batch of --price-per-hour: add it",
        ),
        (
            ("--price-per-hour", "0"),
            "argument --price-per-hour: expected a number above 0, got '0' (see zoo-bench --help)",
        ),
    ],
)
def test_options_that_need_another(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(("resnet_20", *arguments))
    except SystemExit as exit:
        code = exit.code

    assert code == 2
    assert capsys.readouterr().err == f"zoo-bench: {message}\n"
