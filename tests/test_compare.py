"""Two sets of records side by side: intervals, verdicts, what is refused, and the command."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import ENVIRONMENT, MEASUREMENT, SOURCE, gap, measurement

from profiling.cli import main
from profiling.compare import FASTER, SAME, SLOWER, Pair, kind
from profiling.compare_stats import ratio_of, student_quantile
from profiling.record import FAILED, SKIPPED, Measurement
from profiling.tables import place

NOISE = (1.01, 0.99, 1.0, 1.02, 0.98, 1.0)  # of six rounds


def of_rounds(*medians_ms: float, reference_ms: float = 2.0, **changes: object) -> Measurement:
    """A record of rounds of one call each."""
    return measurement(
        samples_ms=medians_ms,
        round_calls=(1,) * len(medians_ms),
        round_reference_ms=(reference_ms,) * len(medians_ms),
        **changes,
    )


def noisy(median_ms: float, **changes: object) -> Measurement:
    return of_rounds(*(median_ms * noise for noise in NOISE), **changes)


@pytest.mark.parametrize(
    ("freedom", "expected"),  # a printed table of Student's t, two-sided, 95%
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (30, 2.042), (120, 1.980)],
)
def test_student_quantiles(freedom: int, expected: float) -> None:
    assert student_quantile(0.95, freedom) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("share", "freedom"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_no_quantile(share: float, freedom: int) -> None:
    with pytest.raises(ValueError, match=f"no quantile {share} of t with {freedom} degrees of fr"):
        student_quantile(share, freedom)


def test_interval_by_hand() -> None:
    before, after = (1.0, math.e**0.2), (math.e, math.e**1.4)

    found = ratio_of(before, after)

    # Logarithms 0, 0.2 and 1, 1.4: variances 0.02 and 0.08, squared errors 0.01 and 0.04, and
    # 0.05**2 / (0.01**2 + 0.04**2) = 1.47 degrees of freedom, rounded down.
    width = 12.7062 * math.sqrt(0.05)
    assert math.log(found.value) == pytest.approx(1.1)
    assert math.log(found.low) == pytest.approx(1.1 - width, rel=1e-5)
    assert math.log(found.high) == pytest.approx(1.1 + width, rel=1e-5)


def test_one_round_has_no_interval() -> None:
    found = ratio_of((2.0,), (3.0, 3.0))

    assert (round(found.value, 9), found.low, found.high) == (1.5, None, None)
    assert (found.is_above_one, found.is_below_one) == (False, False)


def test_interval_covers_the_truth_although_calls_resemble_their_neighbours() -> None:
    source = random.Random(0)

    def rounds() -> list[float]:
        """Medians of eight rounds: each call keeps half of how the one before it was disturbed."""
        medians, disturbance = [], 0.0
        for _ in range(8):
            calls = []
            for _ in range(25):
                disturbance = 0.5 * disturbance + source.gauss(0, 0.05)
                calls.append(math.exp(disturbance))
            medians.append(sorted(calls)[12])
        return medians

    found = [ratio_of(rounds(), rounds()) for _ in range(400)]

    covered = sum(ratio.low <= 1 <= ratio.high for ratio in found)
    assert 372 <= covered <= 396  # 380 are promised


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (noisy(4.0), SAME),
        (noisy(4.04), SAME),
        (noisy(5.0), SLOWER),
        (noisy(3.0), FASTER),
        (noisy(5.0, reference_ms=2.5), SAME),  # the whole machine was slower
        (of_rounds(5.0), SAME),  # one round: nobody knows
    ],
    ids=["equal", "one percent", "slower", "faster", "slow machine", "one round"],
)
def test_verdicts(after: Measurement, verdict: str) -> None:
    assert Pair(before=noisy(4.0), after=after).verdict == verdict


def test_cpu_times_of_one_thread_are_taken_over_the_reference() -> None:
    one_thread = replace(ENVIRONMENT, threads=1)
    cpu = {
        "samples_cpu_ms": tuple(3.0 * noise for noise in NOISE),
        "round_reference_samples_ms": ((2.0,),) * 6,
        "round_reference_samples_cpu_ms": ((1.0, 1.5, 9.0),) * 6,
    }

    pair = Pair(
        before=noisy(4.0, environment=one_thread, **cpu),
        after=noisy(8.0, environment=one_thread, **cpu),  # something else had the core
    )

    assert pair.time.value == pytest.approx(2.0)
    assert pair.over_reference is not None
    assert pair.over_reference.value == pytest.approx(1.0)
    assert pair.verdict == SAME


def test_two_reference_kernels_show_no_difference() -> None:
    pair = Pair(before=noisy(4.0), after=noisy(8.0, reference_kernel="another"))

    assert (pair.verdict, pair.over_reference) == (SAME, None)
    assert pair.note == "two reference kernels"


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noisy(4.0).write(tmp_path / "a")
    noisy(400.0, batch=256).write(tmp_path / "a")
    noisy(5.0, artifact_sha256="bb" * 32).write(tmp_path / "b")
    of_rounds(400.0, batch=256).write(tmp_path / "b")
    noisy(1.0, backend="onnx").write(tmp_path / "b")
    gap(FAILED, "the process was ended by SIGSEGV", batch=8).write(tmp_path / "b")

    code = main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0] == place(ENVIRONMENT)
    assert [line.split("  ")[-1] for line in lines[2:4]] == [
        "B is slower",
        "no difference shown: fewer than 2 rounds",
    ]
    assert lines[2].split()[3:9] == ["1", "4.00", "5.00", "1.250", "1.227", "to"]
    assert lines[5] == "only in B: resnet_20 onnx fp32 b1"


def test_one_clock_over_the_reference_for_bench_and_comparison() -> None:
    cpu = {
        "samples_cpu_ms": (3.0, 9.0) * 6,
        "round_calls": (2,) * 6,
        "round_reference_ms": (2.0,) * 6,
        "round_reference_samples_ms": ((2.0,),) * 6,
        "round_reference_samples_cpu_ms": ((1.0, 1.0, 4.0),) * 6,
    }
    record = measurement(samples_ms=(4.0,) * 12, environment=replace(ENVIRONMENT, threads=1), **cpu)
    faster = replace(record, samples_cpu_ms=(1.5, 4.5) * 6)

    assert record.reference_ratio == 3.0  # of means: 6 by 2
    over = Pair(before=record, after=faster).over_reference
    assert over is not None
    assert over.value == pytest.approx(faster.reference_ratio / record.reference_ratio)


def test_what_failed_in_the_second_set_is_said_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = {"created_at": "2026-02-01T00:00:00+00:00"}
    for side in ("a", "b"):
        noisy(4.0).write(tmp_path / side)
        noisy(4.0, batch=8).write(tmp_path / side)
    died = gap(FAILED, "the process was ended by SIGSEGV", **later)
    died.write(tmp_path / "b" / "again")  # beside an older one that ran

    code = main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])

    out = capsys.readouterr().out
    assert code == 1
    assert "\nfailed in B: resnet_20 eager fp32 b1: the process was ended by SIGSEGV\n" in out
    assert out.count("no difference shown") == 1  # of batch 8
    assert "only in" not in out
    assert main(["--compare", str(tmp_path / "b"), str(tmp_path / "a"), "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)["without_numbers_in_a"]
    assert (told["batch"], told["status"], told["reason"]) == (1, FAILED, died.reason)


def test_nothing_but_a_failure_is_a_comparison_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy(4.0).write(tmp_path / "a")
    gap(SKIPPED, "there is no compiler").write(tmp_path / "b")
    noisy(4.0, batch=8).write(tmp_path / "b")

    code = main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])

    assert code == 0
    assert capsys.readouterr().out.startswith(
        "only in B: resnet_20 eager fp32 b8\n"
        "skipped in B: resnet_20 eager fp32 b1: there is no compiler\n"
    )


def test_a_side_where_all_failed_is_said_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy(4.0).write(tmp_path / "a")
    gap(FAILED, "the process was ended by SIGSEGV").write(tmp_path / "b")

    code = main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])

    assert code == 1
    assert capsys.readouterr().out.startswith(
        "failed in B: resnet_20 eager fp32 b1: the process was ended by SIGSEGV\n"
    )


def test_two_runtimes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for version in ("1.23.0", "1.31.0"):
        record = noisy(4.0, backend="onnx", runtime=f"onnxruntime {version}")
        files.append(str(record.write(tmp_path / version)))

    main(["--compare", *files])
    told = capsys.readouterr().out
    main(["--compare", *files, "--json"])
    [pair] = json.loads(capsys.readouterr().out)["pairs"]

    assert "\nonnx ran on onnxruntime 1.23.0 in A, on onnxruntime 1.31.0 in B\n" in told
    assert (pair["a"]["runtime"], pair["b"]["runtime"]) == (
        "onnxruntime 1.23.0",
        "onnxruntime 1.31.0",
    )


def test_which_of_several_runs_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        source = replace(SOURCE, run=f"resnet_20-s{seed}", seed=seed)
        facts = {"source": source, "artifact_sha256": f"{seed}" * 64}
        noisy(4.0, created_at=f"2026-0{seed + 1}-01T00:00:00+00:00", **facts).write(tmp_path)

    main(["--compare", str(tmp_path), str(tmp_path)])

    out = capsys.readouterr().out
    for side in "AB":
        assert (
            f"\n{side} has 2 of resnet_20 eager fp32 b1: the newest, of run resnet_20-s1, file "
            f"{'1' * 12}, is taken\n" in out
        )


def test_a_flushed_cache_is_another_kind(tmp_path: Path) -> None:
    flushed = replace(MEASUREMENT, is_l2_flushed=True)

    assert kind(flushed) != kind(MEASUREMENT)
    assert flushed.write(tmp_path) != MEASUREMENT.write(tmp_path)
    assert flushed.file_name == "resnet_20-eager-fp32-b1-l2flush-aaaaaaaaaaaa.json"


def test_json_of_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [noisy(ms).write(tmp_path / str(ms)) for ms in (4.0, 3.0)]

    code = main(["--compare", *map(str, files), "--json"])

    found = json.loads(capsys.readouterr().out)
    [pair] = found["pairs"]
    assert code == 0
    assert (pair["model"], pair["backend"], pair["precision"]) == ("resnet_20", "eager", "fp32")
    assert (pair["batch"], pair["image_size"]) == (1, [32, 32])
    assert (pair["environment"], pair["verdict"]) == (ENVIRONMENT.key, "B is faster")
    assert pair["a"]["calls"] == pair["a"]["rounds"] == 6
    assert pair["time"]["ratio"] == pytest.approx(0.75)
    assert pair["time"]["low"] < 0.75 < pair["time"]["high"]
    assert (found["only_in_a"], found["only_in_b"]) == ([], [])


def test_newest_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = "2025-01-01T00:00:00+00:00"
    noisy(9.0, created_at=old).write(tmp_path / "a" / "z")
    noisy(4.0).write(tmp_path / "a" / "b")

    main(["--compare", str(tmp_path / "a"), str(tmp_path / "a"), "--json"])

    [pair] = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["a"]["p50_ms"] == pair["b"]["p50_ms"] == 4.0


def test_damaged_records_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = noisy(4.0).write(tmp_path / "a").parent
    (folder / "damaged.json").write_text("{")
    other = noisy(5.0).write(tmp_path / "b")

    code = main(["--compare", str(folder), str(other)])

    out, err = capsys.readouterr()
    assert code == 1
    assert "B is slower" in out
    assert err.startswith(f"zoo-bench: left out: {folder / 'damaged.json'} is not valid JSON (")


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = replace(ENVIRONMENT, cpu="Other CPU")
    here = noisy(4.0).write(tmp_path / "here")
    there = noisy(4.0, environment=elsewhere).write(tmp_path / "there")
    batch = noisy(4.0, batch=8).write(tmp_path / "batch")
    failed = gap(FAILED, "the process was ended by SIGSEGV").write(tmp_path / "failed")
    cases = {
        (here, there): f"{here} was measured on {place(ENVIRONMENT)}, {there} on "
        f"{place(elsewhere)}: only times of one environment are compared, so measure both on one "
        "machine with zoo-bench",
        (here, batch): f"{here} and {batch} share no model, backend, precision, batch and image "
        "size: the first has resnet_20 eager fp32 b1, the second resnet_20 eager fp32 b8; measure "
        "the same with zoo-bench",
        (failed, failed): f"{failed} holds no measurement with numbers: make some with zoo-bench",
        (tmp_path / "none", here): f"there is no folder {tmp_path / 'none'}: measure a run with "
        "zoo-bench",
        (here, here, "resnet_20"): "--compare measures nothing: name no run or model beside its "
        "two paths",
    }

    for (before, after, *what), message in cases.items():
        assert main(["--compare", str(before), str(after), *what]) == 2
        assert capsys.readouterr() == ("", f"zoo-bench: {message}\n")


def test_older_records_without_a_shape_are_of_the_usual_one() -> None:
    shaped = replace(MEASUREMENT, image_shape=(3, 32, 32))

    assert kind(shaped) == kind(MEASUREMENT)
