import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import ENVIRONMENT, MEASUREMENT, gap, measurement

from profiling import samples
from profiling.record import (
    FAILED,
    FIRST_REFERENCE,
    GpuState,
    HostLoad,
    read_record,
    read_records,
)
from zoo.errors import RecordError

OLDER = Path(__file__).parent / "reference"


def test_round_trip(tmp_path: Path) -> None:
    path = MEASUREMENT.write(tmp_path)

    assert (
        path == tmp_path / "records" / ENVIRONMENT.key / "resnet_20-eager-fp32-b1-aaaaaaaaaaaa.json"
    )
    assert read_record(path) == MEASUREMENT
    assert json.loads(path.read_text())["samples_ms"] == list(MEASUREMENT.samples_ms)


def test_status_and_foreign_file_round_trip(tmp_path: Path) -> None:
    record = gap(FAILED, "the process was ended by SIGSEGV", source=None, top1=None, params=None)

    assert read_record(record.write(tmp_path)) == record


def test_statistics_by_hand() -> None:
    record = measurement(
        batch=10,
        samples_ms=(5.0, 1.0, 2.0, 4.0, 3.0, 6.0),
        round_calls=(2, 4),
        round_reference_ms=(1.0, 2.0),
    )

    assert (record.p50_ms, record.p90_ms, record.p99_ms, record.min_ms) == (3.5, 6.0, 6.0, 1.0)
    assert (record.p95_ms, record.mean_ms) == (6.0, 3.5)
    assert record.sd_ms == pytest.approx(math.sqrt(3.5))
    assert record.images_per_s == pytest.approx(10 / 3.5e-3)
    # The two rounds, whose medians are 3 and 3.5, say even less than the range of all samples.
    reach = 12.706 * (0.5 / math.sqrt(2)) / math.sqrt(2)
    low, high = min(1.0, 3.25 - reach), max(6.0, 3.25 + reach)
    assert record.ci_half_width == pytest.approx(max(high - 3.5, 3.5 - low) / 3.5)
    assert not record.ci_reached
    assert record.reference_ratio == pytest.approx((3.0 / 1.0 + 3.5 / 2.0) / 2)
    assert record.flops == 81_637_888


def test_no_numbers_where_nothing_ran() -> None:
    record = gap(FAILED, "no")

    derived = (record.p50_ms, record.p90_ms, record.p99_ms, record.min_ms, record.images_per_s)
    assert derived == (None,) * 5
    assert (record.ci_half_width, record.reference_ratio) == (None, None)


def test_percentiles_by_hand() -> None:
    hundred = [float(value) for value in range(100, 0, -1)]

    assert [samples.percentile(hundred, share) for share in (0.5, 0.9, 0.99, 1)] == [
        50,
        90,
        99,
        100,
    ]
    assert samples.percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="no percentile 0.5 of 0 samples"):
        samples.percentile([], 0.5)


@pytest.mark.parametrize(
    ("count", "lower"),
    # The largest k with P(Binomial(count, 1/2) < k) <= 0.025, from tables of the sign test.
    [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8), (50, 18), (100, 40)],
)
def test_median_interval_from_tables(count: int, lower: int) -> None:
    ranks = [float(rank) for rank in range(1, count + 1)]

    assert samples.median_interval(ranks) == (lower, count + 1 - lower)


def test_five_samples_say_too_little() -> None:
    assert samples.median_interval([1.0] * 5) is None
    assert samples.relative_half_width([1.0] * 5) is None
    assert not samples.is_known([1.0] * 5)


def test_approximated_ranks_go_on_from_the_exact_ones() -> None:
    exact = samples.median_interval([float(value) for value in range(samples.EXACT_UP_TO)])
    near = samples.median_interval([float(value) for value in range(samples.EXACT_UP_TO + 2)])

    assert exact is not None
    assert near is not None
    assert 0 <= (near[1] - near[0]) - (exact[1] - exact[0]) <= 4


def test_the_wider_half_of_an_interval_counts() -> None:
    taken = (0.975, 0.995, 1.0, 1.0, 1.0, 1.005)  # their whole range is the interval

    assert samples.relative_half_width(taken) == pytest.approx(0.025)
    assert not samples.is_known(taken)
    assert samples.is_known([max(0.985, ms) for ms in taken])


def test_median_interval_covers() -> None:
    source = random.Random(0)
    inside = 0
    for _ in range(1000):
        interval = samples.median_interval([source.random() for _ in range(21)])
        assert interval is not None
        inside += interval[0] <= 0.5 <= interval[1]

    assert inside >= 930  # of 1000; 95% are promised, two standard deviations are 14


@pytest.mark.parametrize("rounds", [4, 6, 12])
def test_median_interval_covers_where_rounds_differ(rounds: int) -> None:
    source, calls = random.Random(0), 20
    with_rounds = without = 0
    for _ in range(300):
        shifts = [source.gauss(10, 0.02) for _ in range(rounds)]
        taken = [source.gauss(shift, 0.01) for shift in shifts for _ in range(calls)]
        low, high = samples.median_interval(taken, [calls] * rounds) or (0, 0)
        with_rounds += low <= 10 <= high
        low, high = samples.median_interval(taken) or (0, 0)
        without += low <= 10 <= high

    assert with_rounds >= 0.93 * 300
    assert without < 0.7 * 300  # calls of one round are no independent samples


def test_ratio_to_the_reference_pairs_rounds() -> None:
    # The machine is half as fast in the second half: the times differ, the ratios do not.
    slowdowns = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
    taken = [4.0 * slow for slow in slowdowns for _ in range(3)]
    references = [(2.0 * slow,) for slow in slowdowns]

    ratio = samples.paired_ratio(taken, [3] * 6, references)

    assert ratio == samples.Ratio(2.0, (2.0, 2.0))
    assert samples.paired_ratio(taken[:6], [3, 3], references[:2]) == samples.Ratio(2.0, None)
    assert samples.paired_ratio([], [], []) is None


def test_one_thread_is_compared_by_cpu_time() -> None:
    facts = {
        "samples_ms": (4.0, 40.0),
        "samples_cpu_ms": (3.0, 9.0),
        "round_calls": (1, 1),
        "round_reference_ms": (2.0, 2.0),
        "round_reference_samples_ms": ((2.0,), (2.0,)),
        "round_reference_samples_cpu_ms": ((1.0, 1.0, 4.0), (3.0,)),
    }

    alone = measurement(**facts, environment=replace(ENVIRONMENT, threads=1))
    together = measurement(**facts, environment=replace(ENVIRONMENT, threads=2))

    assert (alone.reference_ratio, together.reference_ratio) == (2.25, 11.0)  # means, medians


def test_what_nvml_said_round_trips(tmp_path: Path) -> None:
    gpu = GpuState(clock_mhz=(1980, 1965), throttled_by=("power cap",), energy_mj_per_image=0.5)
    record = measurement(gpu=gpu, host=HostLoad(others=0.1, steal=0.0), is_l2_flushed=True)

    assert read_record(record.write(tmp_path)) == record


def test_records_of_the_first_schema_are_read() -> None:
    (record,) = read_records(OLDER)

    assert (record.schema, record.reference_kernel) == (1, FIRST_REFERENCE)
    assert (record.host, record.gpu, record.samples_cpu_ms) == (None, None, ())
    assert record.path_in(OLDER).is_file()  # its key is that of its folder
    assert record.p50_ms is not None


def test_damaged_records_can_be_left_out(tmp_path: Path) -> None:
    MEASUREMENT.write(tmp_path)
    bad = measurement(batch=2).write(tmp_path)
    bad.write_text("{")
    complaints: list[RecordError] = []

    assert read_records(tmp_path, on_damage=complaints.append) == [MEASUREMENT]
    (complaint,) = complaints
    assert str(complaint).startswith(f"{bad} is not valid JSON")


def test_environments_have_their_own_folders(tmp_path: Path) -> None:
    other = measurement(environment=replace(ENVIRONMENT, threads=1))

    MEASUREMENT.write(tmp_path)
    other.write(tmp_path)

    assert len(read_records(tmp_path)) == 2


def test_same_measurement_replaces_its_file(tmp_path: Path) -> None:
    MEASUREMENT.write(tmp_path)

    measurement(p50_ms=9.0).write(tmp_path)

    assert [record.p50_ms for record in read_records(tmp_path)] == [9.0]


def test_other_json_is_left_alone(tmp_path: Path) -> None:
    MEASUREMENT.write(tmp_path / "runs" / "resnet_20-s0")
    (tmp_path / "runs" / "resnet_20-s0" / "meta.json").write_text("{}")

    records = read_records(tmp_path, tmp_path / "runs")  # one folder inside the other

    assert records == [MEASUREMENT]


def test_a_records_folder_itself_can_be_named(tmp_path: Path) -> None:
    folder = MEASUREMENT.write(tmp_path).parent

    assert read_records(folder) == read_records(folder.parent) == [MEASUREMENT]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text[:400], "is not valid JSON"),
        (lambda text: text.replace('"batch"', '"lot"'), "is a damaged record .*batch.*: remove it"),
        (lambda text: text.replace('"batch": 1', '"batch": "x"'), "is a damaged record .batch is"),
        (
            lambda text: text.replace('"status": "ok"', '"status": "o"'),
            "is a damaged record .status",
        ),
        (
            lambda text: re.sub('"samples_ms": .*?]', '"samples_ms": [0]', text),
            "is a damaged record .samples_ms does not fit",
        ),
        (
            lambda text: re.sub('"round_calls": .*?]', '"round_calls": []', text),
            "is a damaged record .round_reference_ms does not fit",
        ),
        (
            lambda text: re.sub('"samples_ms": .[0-9.]*', '"samples_ms": [Infinity', text),
            "is not valid JSON .Infinity is no number",
        ),
        (
            lambda text: re.sub('"(samples_ms|round[a-z_]*)": .*?]', r'"\1": []', text),
            "is a damaged record .samples_ms does not fit",
        ),
        (
            lambda text: text.replace('"top1": 0.6123', '"top1": 61.23'),
            "is a damaged record .top1 does not fit",
        ),
        (
            lambda text: text.replace(
                '"round_reference_samples_cpu_ms": []',
                '"round_reference_samples_cpu_ms": [[0.0], [1.0]]',
            ),
            "is a damaged record .round_reference_samples_cpu_ms does not fit",
        ),
        (lambda text: "[" * 100_000, "is not valid JSON"),
        (lambda text: "{}", "is no measurement record: it states no schema; remove it"),
        (
            lambda text: text.replace('"schema": 2', '"schema": 3'),
            "has schema 3, this version reads up to 2: update cifar-zoo",
        ),
        (
            lambda text: text.replace('"samples_cpu_ms": []', '"samples_cpu_ms": [1.0]'),
            "is a damaged record .samples_cpu_ms does not fit",
        ),
    ],
)
def test_unreadable_records_are_named(tmp_path: Path, change: object, complaint: str) -> None:
    path = MEASUREMENT.write(tmp_path)
    path.write_text(change(path.read_text()))

    with pytest.raises(RecordError, match=f"b1-aaaaaaaaaaaa.json {complaint}"):
        read_records(tmp_path)


def test_a_folder_in_place_of_a_record_is_left_out(tmp_path: Path) -> None:
    path = MEASUREMENT.write(tmp_path)
    (path.parent / "x.json").mkdir()
    left_out: list[RecordError] = []

    found = read_records(tmp_path, on_damage=left_out.append)

    assert found == [MEASUREMENT]
    assert [str(error) for error in left_out] == [
        f"{path.parent / 'x.json'} cannot be read: Is a directory"
    ]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(
        RecordError, match="there is no folder .*none: measure a run with zoo-bench"
    ):
        read_records(tmp_path / "none")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import profiling, profiling.tables", ("torch", "onnx", "numpy", "matplotlib", "rich")),
        ("import profiling.report, profiling.display", ("torch", "onnx")),
        (
            "from profiling.options import *; bench_parser(); report_parser()",
            ("torch", "onnx", "numpy"),
        ),
    ],
)
def test_imports_stay_light(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}; import sys; print([name for name in {absent} if name in sys.modules])"

    done = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, check=True, cwd=Path("/")
    )

    assert done.stdout.strip() == "[]"
