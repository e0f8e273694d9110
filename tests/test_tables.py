import csv
from dataclasses import replace

from sample_records import ENVIRONMENT, SOURCE, gap, measurement

from profiling.record import FAILED
from profiling.tables import (
    Point,
    cells,
    csv_text,
    efficiency_tables,
    latency_points,
    markdown,
    number,
    pareto_front,
    percent,
)


def test_front_by_hand() -> None:
    a, b, c = Point("a", 1.0, 0.5), Point("b", 2.0, 0.7), Point("c", 4.0, 0.9)
    slower, worse, twin = Point("d", 3.0, 0.7), Point("e", 5.0, 0.8), Point("f", 2.0, 0.6)

    assert pareto_front([c, worse, slower, b, twin, a]) == [a, b, c]


def test_front_of_equals_is_the_first_name() -> None:
    assert pareto_front([Point("b", 1.0, 0.5), Point("a", 1.0, 0.5)]) == [Point("a", 1.0, 0.5)]
    assert pareto_front([]) == []


def test_row_joins_both_batch_sizes() -> None:
    records = [
        measurement(p50_ms=4.0),
        measurement(p50_ms=320.0, batch=256, peak_memory_mib=180.0),
        measurement(p50_ms=1.0, backend="onnx", artifact_sha256="bb" * 32, file_bytes=3 * 2**19),
    ]

    (table,) = efficiency_tables(records)

    assert table.batches == (1, 256)
    assert cells(table) == [
        [
            *("Model", "Run", "Recipe", "Backend", "Precision", "Top-1 %", "Params", "MACs M"),
            *("FLOPs M", "File MiB", "b1 p50 ms (calls)", "b256 p50 ms (calls)"),
            *("b256 images/s", "b256 peak MiB", "Load s", "b1 first call s"),
        ],
        [
            *("resnet_20", "resnet_20-s0", "quick, validation", "onnx", "fp32", "61.23"),
            *("278,324", "40.82", "81.64", "1.50", "1.00 +-0.0% (8)", "", "", "", "0.0500"),
            "0.00800",
        ],
        [
            *("resnet_20", "resnet_20-s0", "quick, validation", "eager", "fp32", "61.23"),
            *("278,324", "40.82", "81.64", "1.00", "4.00 +-0.0% (8)", "320 +-0.0% (8)", "800"),
            *("180", "0.0500", "0.00800"),
        ],
    ]


def test_seconds_of_an_export_have_a_column_where_there_was_one() -> None:
    (table,) = efficiency_tables([measurement(), measurement(backend="onnx", build_s=7.25)])

    assert [line[-1] for line in cells(table)] == ["Build s", "", "7.25"]


def test_environments_and_data_sets_never_share_a_table() -> None:
    slower = replace(ENVIRONMENT, threads=1)
    mini = replace(SOURCE, dataset="cifar100-mini", dataset_digest="ee" * 32)
    changed = replace(SOURCE, dataset_digest="ff" * 32)
    records = [
        measurement(),
        measurement(environment=slower),
        measurement(source=mini),
        measurement(source=changed),
        measurement(source=None, top1=None),
    ]

    tables = efficiency_tables(records)

    assert [(t.dataset, t.dataset_digest[:2], t.environment.threads) for t in tables] == [
        *sorted([("cifar100", "dd", 2), ("cifar100", "dd", 1)], key=lambda t: key(t[2])),
        ("cifar100", "ff", 2),
        ("cifar100-mini", "ee", 2),
        ("", "", 2),
    ]
    assert all(len(table.rows) == 1 for table in tables)


def key(threads: int) -> str:
    return replace(ENVIRONMENT, threads=threads).key


def test_newest_record_wins() -> None:
    old = measurement(p50_ms=9.0, created_at="2026-01-01T00:00:00+00:00")
    new = measurement(p50_ms=5.0, created_at="2026-01-02T00:00:00+00:00")

    for records in ([old, new], [new, old]):
        (table,) = efficiency_tables(records)
        assert [row.by_batch[1].p50_ms for row in table.rows] == [5.0]


def test_speed_never_stands_beside_another_files_accuracy() -> None:
    old = [
        measurement(backend="onnx", batch=batch, top1=0.70, artifact_sha256="01" * 32)
        for batch in (1, 256)
    ]
    new = measurement(
        backend="onnx",
        top1=0.65,
        artifact_sha256="02" * 32,
        created_at="2026-02-01T00:00:00+00:00",
    )

    (table,) = efficiency_tables([*old, new])

    (row,) = table.rows
    assert row.top1 == 0.65
    assert list(row.by_batch) == [1]  # the batch of 256 was timed with the former file


def test_two_versions_of_a_runtime_never_share_a_row() -> None:
    old = measurement(p50_ms=4.0, backend="onnx", runtime="onnxruntime 1.23.0")
    new = measurement(
        p50_ms=9.0,
        backend="onnx",
        batch=256,
        runtime="onnxruntime 1.31.0",
        created_at="2026-02-01T00:00:00+00:00",
    )

    [table] = efficiency_tables([old, new])

    assert [list(row.by_batch) for row in table.rows] == [[256]]


def test_a_newer_failure_takes_the_numbers_away() -> None:
    failed = gap(FAILED, "out of memory", batch=256, created_at="2026-02-01T00:00:00+00:00")

    (table,) = efficiency_tables([measurement(), measurement(batch=256), failed])

    assert list(table.rows[0].by_batch) == [1]
    assert table.missing == (failed,)


def test_seeds_are_rows_of_their_own() -> None:
    other = replace(SOURCE, run="resnet_20-s1", seed=1, weights_sha256="cc" * 32)

    (table,) = efficiency_tables([measurement(), measurement(source=other)])

    assert [row.run for row in table.rows] == ["resnet_20-s0", "resnet_20-s1"]


def test_points_need_both_numbers() -> None:
    records = [
        measurement(p50_ms=4.0),
        measurement(backend="compile", top1=None),
        measurement(backend="onnx", batch=256),
    ]

    (table,) = efficiency_tables(records)

    assert latency_points(table) == [Point("resnet_20-s0 eager", 4.0, 0.6123, "eager")]


def test_unknown_is_empty() -> None:
    record = measurement(
        source=None, top1=None, params=None, macs=None, peak_memory_mib=None, first_call_ms=None
    )

    (table,) = efficiency_tables([record])
    (_, line) = cells(table)

    assert line[1:3] == ["", ""]
    assert line[5:9] == [""] * 4
    assert (line[-3], line[-1]) == ("", "")


def test_markdown_is_aligned() -> None:
    (table,) = efficiency_tables([measurement(), measurement(backend="onnx", p50_ms=12.5)])

    lines = markdown(table).splitlines()

    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("| --------- | ")
    assert lines[1].endswith("-: |")


def test_csv_has_a_line_for_every_record() -> None:
    failed = gap(FAILED, "no, it did not", backend="compile")

    tables = efficiency_tables([measurement(p50_ms=4.0), measurement(batch=256), failed])
    lines = list(csv.DictReader(csv_text(tables).splitlines()))

    assert [(line["backend"], line["batch"], line["status"]) for line in lines] == [
        ("eager", "1", "ok"),
        ("eager", "256", "ok"),
        ("compile", "1", "failed"),
    ]
    assert lines[0]["p50_ms"] == "4.0"
    assert lines[0]["top1"] == "0.6123"  # a fraction: percent is for print
    assert lines[0]["flops"] == "81637888"
    assert lines[0]["environment"] == ENVIRONMENT.key
    assert lines[0]["calls"] == "8"
    assert (lines[2]["p50_ms"], lines[2]["reason"]) == ("", "no, it did not")


def test_csv_says_how_far_an_artifact_is_from_eager() -> None:
    exported = measurement(backend="onnx", parity_max_error=1.9073486e-06, parity_agreement=0.999)

    eager, onnx = csv.DictReader(
        csv_text(efficiency_tables([measurement(), exported])).splitlines()
    )

    assert (onnx["parity_max_error"], onnx["parity_agreement"]) == ("1.90735e-06", "0.999")
    assert (eager["parity_max_error"], eager["parity_agreement"]) == ("", "")


def test_a_flushed_cache_is_a_line_and_a_row_of_its_own() -> None:
    flushed = measurement(p50_ms=5.0, is_l2_flushed=True)

    (table,) = efficiency_tables([flushed, measurement(p50_ms=4.0)])

    lines = csv.DictReader(csv_text([table]).splitlines())
    told = [(line["p50_ms"], line["is_l2_flushed"]) for line in lines]
    assert told == [("4.0", "false"), ("5.0", "true")]
    assert [row.label for row in table.rows] == [
        "resnet_20-s0 eager",
        "resnet_20-s0 eager (L2 flushed)",
    ]


def test_numbers_in_print() -> None:
    values = (0, 0.012345, 0.99951, 9.996, 12.34, 999.6, 1234.5, 1_234_567.0, None)

    printed = ["0", "0.0123", "1.00", "10.0", "12.3", "1,000", "1,234", "1,234,567", ""]
    assert [number(value) for value in values] == printed
    assert (percent(0.6123), percent(None), percent(1)) == ("61.23", "", "100.00")
