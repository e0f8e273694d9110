"""The table of zoo-bench and the notes below it."""

from dataclasses import replace

from sample_records import ENVIRONMENT, gap, measurement

from profiling.display import notes, results
from profiling.record import FAILED, GpuState, HostLoad

ALONE = replace(ENVIRONMENT, threads=1)
FACTS = {
    "samples_ms": (4.0, 4.0, 5.0, 7.0),
    "samples_cpu_ms": (3.0, 3.0, 3.0, 3.0),
    "round_calls": (2, 2),
    "round_reference_ms": (2.0, 2.0),
    "round_reference_samples_ms": ((2.0,), (2.0,)),
    "round_reference_samples_cpu_ms": ((1.5,), (1.5,)),
}


def columns_of(text: str) -> list[dict[str, str]]:
    """The lines by the headings that end above them; only the last cells may be empty."""
    header, *lines = text.splitlines()
    names = [name for name in header.split("  ") if name.strip()]
    return [
        dict(zip([name.strip() for name in names], line.split(), strict=False)) for line in lines
    ]


def test_every_statistic_has_a_column() -> None:
    record = measurement(**FACTS, environment=ALONE)

    (line,) = columns_of(results([record, gap(FAILED, "no")]))

    expected = {
        **{"backend": "eager", "precision": "fp32", "batch": "1", "p50 ms": "4.50"},
        **{"p90": "7.00", "p95": "7.00", "p99": "7.00", "min": "4.00", "mean": "5.00"},
        **{"sd": "1.41"},
    }
    assert line.items() >= expected.items()
    assert " 2.00 " in results([record])  # of CPU times, 3 by 1.5
    assert "device ms" not in results([record])


def test_seconds_of_the_export_stand_beside_those_of_loading() -> None:
    record = measurement(**FACTS, build_s=12.5, load_s=0.25, first_call_ms=8.0)

    header, line = results([record]).splitlines()

    assert header.split("  ")[-5:-1] == ["file MiB", "build s", "load s", "first s"]
    assert line.split()[-4:-1] == ["12.5", "0.250", "0.00800"]


def test_a_gpu_adds_its_own_clock() -> None:
    facts = FACTS | {"samples_device_ms": (1.0,) * 4, "samples_enqueue_ms": (0.25,) * 4}

    text = results([measurement(**facts)])

    assert "device ms  enqueue ms" in text
    assert "     1.00       0.250" in text


def test_a_flushed_cache_is_said_in_the_table() -> None:
    text = results([measurement(**FACTS, is_l2_flushed=True)])

    assert "eager (L2 flushed)  fp32 " in text


def test_how_much_of_the_measured_core_others_had_is_said() -> None:
    host = HostLoad(others=0.01, steal=0.0, core=3, cores=64, of_core=0.4)

    assert (
        "up to 1% of the CPU's time went to other processes and 0% to other machines; of the "
        "measured core, up to 40%. Ratios to the reference kernel suffer less."
    ) in notes([measurement(**FACTS, host=host)])[1]


def test_notes_say_what_a_reader_must_know() -> None:
    busy = measurement(
        **FACTS,
        environment=ALONE,
        host=HostLoad(others=0.5, steal=0.25),
        gpu=GpuState(throttled_by=("power cap",)),
        budget_exhausted=True,
    )

    assert notes([busy]) == [
        "x ref: in units of a reference kernel of the same moments, CPU time by CPU time.",
        "The machine was busy during 1 measurement: up to 50% of the CPU's time went to other "
        "processes and 25% to other machines. Ratios to the reference kernel suffer less.",
        "The GPU was slowed down by: power cap.",
        "1 of 1 ran out of time before the median was known to within 2%: a longer --budget helps.",
    ]
    assert notes([measurement(**FACTS)]) == [
        "x ref: in units of a reference kernel of the same moments, wall time by wall time."
    ]


def test_without_numbers_there_is_no_table() -> None:
    failed = gap(FAILED, "no")

    assert (results([failed]), notes([failed])) == ("", [])
