"""The page that holds artifacts against torch, and what stands on it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarks.artifact_bench import measure, networks, training
from benchmarks.artifact_bench.eager_nchw import OPENER, open_contiguous
from benchmarks.artifact_bench.page import baseline, keeps_accuracy, page, verdicts
from benchmarks.artifact_bench.sheet import Entry, Sheet, Timing, read_sheet
from few_images import few_images
from sample_run import sample_run

from profiling.record import FAILED, OK
from zoo.data import load_dataset
from zoo.environment import capture
from zoo.errors import DataError, RecordError
from zoo.session import open_eager

BENCHMARKS = Path(__file__).parent / "benchmarks"
MINI = "cifar100-mini"


def timing(batch: int, *cpu_ms: float, threads: int = 1) -> Timing:
    """Rounds of one call each, with a second on the clock for each of processor time."""
    return Timing(
        threads=threads,
        batch=batch,
        status=OK,
        reason=None,
        calls=(1,) * len(cpu_ms),
        cpu_ms=cpu_ms,
        wall_ms=tuple(2 * ms for ms in cpu_ms),
    )


def entry(backend: str, precision: str, top1: float | None, *timings: Timing) -> Entry:
    return Entry(backend=backend, precision=precision, top1=top1, timings=timings)


def sheet(model: str, *entries: Entry, **facts: Any) -> Sheet:
    return Sheet(
        model=model,
        run=f"{model}-s0",
        dataset="cifar100",
        dataset_digest="digest",
        environment=capture().to_json(),
        commit="abc",
        budget_s=10.0,
        entries=entries,
        **facts,
    )


def resnet_20() -> Sheet:
    """Six rounds at batch 1, three at batch 256."""
    return sheet(
        "resnet_20",
        entry("eager-nchw", "fp32", 0.665, timing(1, *[3.0] * 6), timing(256, 100, 100, 100)),
        entry("eager", "fp32", 0.665, timing(1, *[2.0] * 6), timing(256, 300, 300, 300)),
        entry("compile", "fp32", 0.665, timing(1, *[0.1] * 6), timing(256, 10, 10, 10)),
        entry("onnx", "fp32", 0.665, timing(1, *[0.5] * 5, 0.4), timing(256, 50, 40, 60)),
        entry("onnx", "int8", 0.661, timing(1, *[0.4] * 6), timing(256, 25, 25, 25)),
        entry("openvino", "int8", 0.660, timing(1, *[0.2] * 6), timing(256, 20, 20, 20)),
    )


def test_the_goals_are_held_against_the_faster_eager() -> None:
    found = list(verdicts([resnet_20()]))

    assert found == [
        "resnet_20, batch 1: the best float artifact is onnx fp32, 4.00 (4.00 to 5.00) times as "
        "fast as eager, channels-last; goal 3.5: reached.",
        "resnet_20, batch 256: the best float artifact is onnx fp32, 2.00 times as fast as eager, "
        "NCHW; goal 1.7: reached.",
        "resnet_20, batch 1: the fastest artifact that keeps its accuracy is onnx int8, 5.00 (5.00 "
        "to 5.00) times as fast as eager, channels-last, with top-1 66.10 % where eager has "
        "66.50 %.",
        "resnet_20, batch 256: the fastest artifact that keeps its accuracy is onnx int8, 4.00 "
        "times as fast as eager, NCHW, with top-1 66.10 % where eager has 66.50 %.",
    ]


def test_int8_is_held_against_the_best_float_artifact() -> None:
    found = list(
        verdicts(
            [
                sheet(
                    "resnet_18",
                    entry("eager", "fp32", None, timing(256, 90, 90, 90)),
                    entry("openvino", "fp32", None, timing(256, 60, 60, 60)),
                    entry("onnx", "fp32", None, timing(256, 70, 70, 70)),
                    entry("openvino", "int8", None, timing(256, 40, 40, 40)),
                )
            ]
        )
    )

    # Untrained: there is no accuracy that could be kept.
    assert found == [
        "resnet_18, batch 256: the best int8 artifact is openvino int8, 1.50 times as fast as the "
        "best float one, openvino fp32; goal 2: not reached."
    ]


def test_what_lost_half_a_point_has_not_kept_its_accuracy() -> None:
    eager = entry("eager", "fp32", 0.665)
    measured = sheet("resnet_20", eager)

    kept = [
        keeps_accuracy(measured, replace(eager, top1=top1)) for top1 in (0.67, 0.6601, 0.66, None)
    ]

    assert kept == [True, True, False, None]


def test_rounds_of_one_turn_are_compared() -> None:
    # The machine is slow in the second turn; the artifact ended a turn earlier.
    slow = timing(1, 8.0, 16.0, 8.0)
    fast = timing(1, 2.0, 4.0)

    ratio = fast.times_as_fast(slow, wall=False)

    assert ratio.value == 4.0
    assert ratio.interval is None


def test_the_page_has_an_empty_cell_for_what_was_not_measured() -> None:
    measured = sheet(
        "convnext_tiny",
        entry("eager", "fp32", None, timing(1, 20.0)),
        Entry(
            backend="onnx",
            precision="fp32",
            agreement=0.999,
            max_abs_error=1.5e-6,
            file_bytes=3 * 2**20,
            timings=(timing(1, 10.0), timing(1, 8.0, threads=2)),
        ),
        Entry(backend="openvino", precision="bf16", reason="this CPU has no units for it"),
        entry(
            *("aoti", "fp32", None),
            *(
                replace(timing(1, threads=threads), status=FAILED, reason="no compiler")
                for threads in (1, 2)
            ),
        ),
    )

    lines = page([replace(measured, trained_images=29_952)]).splitlines()

    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if line.startswith("| convnext_tiny")
    ]
    assert rows == [
        ["convnext_tiny", "29,952", "eager", "fp32", *("", "", "", ""), "20.0", "1.00"],
        [
            *("convnext_tiny", "29,952", "onnx", "fp32"),
            *("", "99.9", "1.5e-06", "3.00", "10.0", "2.00"),
        ],
        ["convnext_tiny", "29,952", "onnx", "fp32", "", "99.9", "1.5e-06", "3.00", "16.0", ""],
    ]
    assert lines[-2:] == [
        "- convnext_tiny, openvino bf16: this CPU has no units for it",
        "- convnext_tiny, aoti fp32, batch 1 on 1 thread, batch 1 on 2 threads: no compiler",
    ]


def test_int8_with_all_bits_of_weights_is_told_apart() -> None:
    older = entry("onnx", "int8", 0.6, timing(1, 10.0))
    newer = replace(older, backend="openvino", weight_bits=7)

    text = page([sheet("resnet_20", entry("eager", "fp32", 0.6, timing(1, 20.0)), older, newer)])

    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert {row[3]: row[4] for row in rows if row[1:2] == ["resnet_20"]} == {
        "eager": "fp32",
        "onnx": "int8, 8-bit weights",
        "openvino": "int8",
    }


def test_two_machines_or_data_sets_are_never_in_one_table() -> None:
    here = resnet_20()
    elsewhere = replace(here, environment={**here.environment, "cpu": "another"})
    on_others = replace(here, dataset="cifar10", dataset_digest="other")

    text = page([here, elsewhere, replace(here, model="resnet_56"), on_others])

    headings = [line for line in text.splitlines() if line.startswith("## ")]
    tables = [part.count("| resnet_20 ") for part in text.split("\nOn 1 thread:\n")[1:]]
    assert len(headings) == 3
    assert tables == [6, 6, 6]
    assert headings[2].endswith(", cifar10")


def test_the_faster_memory_format_is_the_baseline() -> None:
    measured = resnet_20()

    found = [baseline(measured, batch, 1) for batch in (1, 256, 8)]

    assert [one and one.backend for one in found] == ["eager", "eager-nchw", None]


def test_a_sheet_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "resnet_20.json"
    path.write_text(json.dumps(resnet_20().to_json()))

    assert read_sheet(path) == resnet_20()


def test_a_damaged_sheet_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "resnet_20.json"
    path.write_text("{}")

    with pytest.raises(RecordError) as error:
        read_sheet(path)

    assert str(error.value) == (
        f"{path} is no record of artifacts (model is missing): remove it to measure again"
    )


def test_eager_in_its_own_memory_format_gives_the_same_logits(tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", load_dataset(MINI))
    images = torch.randn(2, 3, 32, 32)

    session = open_contiguous(str(run.path), "cpu")

    expected = open_eager(str(run.path), "cpu").run(images)
    torch.testing.assert_close(session.run(images), expected, rtol=0, atol=1e-4)
    weights = [tensor for tensor in session.model.parameters() if tensor.ndim == 4]
    assert weights
    assert all(tensor.is_contiguous() for tensor in weights)


def test_a_network_is_measured_in_a_copy_of_its_run(tmp_path: Path) -> None:
    data = load_dataset(MINI)
    run = sample_run(tmp_path / "runs" / "resnet_20-s0", data)

    network = networks.prepare(run, data, tmp_path / "work")

    assert network.run.path == tmp_path / "work" / "resnet_20-s0"
    contiguous, *others = measure.subjects(network, [], evaluate=True)
    assert contiguous.opener == OPENER
    assert [one.backend for one in (contiguous, *others)] == ["eager-nchw", "eager", "compile"]
    assert all(one.is_unevaluated for one in (contiguous, *others))


def test_a_kept_run_is_taken_as_it_is(tmp_path: Path) -> None:
    sample_run(tmp_path / "kept" / "resnet_20-s0", load_dataset(MINI))

    run = training.trained(
        "resnet_20", tmp_path / "kept", tmp_path / "runs", dataset=MINI, max_macs=1e12
    )

    assert run.path == tmp_path / "kept" / "resnet_20-s0"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_network_without_a_run_is_trained_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = (tmp_path / "kept", tmp_path / "runs")

    first, again = (
        training.trained("resnet_20", *where, dataset=MINI, max_macs=1e11) for _ in range(2)
    )

    assert first.path == again.path == tmp_path / "runs" / "resnet_20-s0"
    assert first.meta == again.meta
    assert training.trained_images(first.meta) == 816  # 811 are 1e11; whole steps of 8
    assert capfd.readouterr().err.count("zoo-train resnet_20 --recipe quick") == 1


def test_a_run_of_other_images_is_refused(tmp_path: Path) -> None:
    data = load_dataset(MINI)
    run = sample_run(tmp_path / "runs" / "resnet_20-s0", few_images(data))

    with pytest.raises(DataError, match="resnet_20-s0 belongs to cifar100-mini with digest few"):
        networks.prepare(run, data, tmp_path / "work")

    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_artifacts_and_torch_are_measured_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = few_images(load_dataset(MINI), train=200)
    run = sample_run(tmp_path / "runs" / "resnet_20-s0", data)
    network = networks.prepare(run, data, tmp_path / "work")
    fault = f"no compiler for {network.run.path}/weights.safetensors"
    monkeypatch.setattr("profiling.runs._compiler_fault", lambda device: fault)

    measured = measure.measure(
        network,
        written=(("onnx", "fp32"), ("onnx", "bf16")),
        batches=(1, 2),
        threads=(1,),
        budget_s=0.05,
    )

    found = {(entry.backend, entry.precision): entry for entry in measured.entries}
    assert list(found) == [
        *(("eager-nchw", "fp32"), ("eager", "fp32"), ("compile", "fp32")),
        *(("onnx", "fp32"), ("onnx", "bf16")),
    ]
    onnx, eager = found["onnx", "fp32"], found["eager", "fp32"]
    assert onnx.agreement_images == 64
    assert onnx.top1 == eager.top1
    assert onnx.accuracy_images == eager.accuracy_images == 64
    assert all(onnx.timing(batch, 1) for batch in (1, 2))
    reasons = [timing.reason for timing in found["compile", "fp32"].timings]
    assert reasons == ["no compiler for weights.safetensors"] * 2
    assert found["onnx", "bf16"].reason == "--to onnx does not write bf16: use fp32, fp16, int8"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module("artifacts")


def test_a_network_with_a_record_is_left(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / script.RECORDS
    records.mkdir()
    text = json.dumps(resnet_20().to_json())
    (records / "resnet_20.json").write_text(text)

    code = script.main(["--models", "resnet_20", "--dataset", MINI, "--out", str(tmp_path)])

    assert code == 0
    assert capsys.readouterr().out == f"{tmp_path / script.PAGE}\n"
    assert (tmp_path / script.PAGE).read_text() == page([resnet_20()])
    assert (records / "resnet_20.json").read_text() == text


def test_an_unknown_network_is_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = script.main(["--models", "resnet_21", "--out", str(tmp_path)])

    assert code == 2
    assert capsys.readouterr().err == (
        "artifacts: no model named 'resnet_21': did you mean resnet_32 or resnet_20 or resnet_18?\n"
    )
