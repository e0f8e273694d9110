from dataclasses import replace
from typing import Any

import pytest
from sample_records import ENVIRONMENT
from study_files import arm, comparison, p50_ms, records_of, row_of, table_1, trial

from profiling.report import UNCERTAIN
from profiling.study.columns import Deployment
from profiling.study.data import Comparison, Trial
from profiling.study.table import Median, Table, shown
from profiling.study.tables import study_tables
from zoo.environment import Environment

GPU = replace(ENVIRONMENT, device="Example GPU", cuda="13.0")


def deployed(one: Comparison, environment: Environment = ENVIRONMENT) -> Deployment:
    return Deployment.of(one, environment, per_hour=36.0)


def test_runtimes_at_both_batches() -> None:
    times = {("eager", 1): 4.0, ("eager", 256): 100.0, ("onnx", 1): 1.0, ("onnx", 256): 200.0}
    one = comparison("comparison", arm("resnet_20", trial(times_ms=times)))

    values = deployed(one).values("resnet_20")

    assert (p50_ms(values, "eager_fp32_b1"), p50_ms(values, "onnx_fp32_b1")) == (4.0, 1.0)
    assert values["onnx_fp32_b256_images_per_s"] == pytest.approx(1280)  # 256 in 0.2 s
    assert (values["b1_best_runtime"], p50_ms(values, "b1_best")) == ("onnx fp32", 1.0)
    assert (values["b256_best_runtime"], p50_ms(values, "b256_best")) == ("eager fp32", 100.0)
    assert values["b256_best_peak_memory_mib"] == 20 + 256
    assert values["b1_best_file_bytes"] == 2**20
    # 36 an hour are 0.01 a second: onnx is best at batch 256, 1280 images a second.
    assert values["onnx_fp32_price_per_million"] == pytest.approx(0.01 * 1e6 / 1280)
    assert values["cheapest_runtime"] == "eager fp32"
    assert values["price_per_million"] == pytest.approx(0.01 * 1e6 / 2560)


def test_times_are_means_over_the_files_of_the_seeds() -> None:
    slow = {("onnx", 1): 3.0}
    one = comparison(
        "comparison",
        arm("resnet_20", trial(times_ms={("onnx", 1): 1.0}), trial(seed=1, times_ms=slow)),
    )

    values = deployed(one).values("resnet_20")

    assert (p50_ms(values, "b1_best"), values["b1_best_images_per_s"]) == (2.0, 500.0)
    assert values["b1_best_top1"] == pytest.approx((0.50 + 0.51) / 2)


def timed(samples_ms: tuple[float, ...], seed: int = 0) -> Trial:
    """With one record of these calls."""
    one = trial(seed=seed, times_ms={("onnx", 1): 1.0})
    (record,) = one.measurements
    changes: dict[str, Any] = {"round_calls": (len(samples_ms),), "round_reference_ms": (1.0,)}
    return replace(one, measurements=(replace(record, samples_ms=samples_ms, **changes),))


def test_a_time_has_its_interval_and_a_wide_one_is_said() -> None:
    sure, unsure = timed((1.0,) * 100), timed((1.0,) * 40 + (1.2,) * 60, seed=1)
    known = unsure.measurements[0].ci_half_width
    assert known is not None
    assert known > 0.02

    def made(*trials: Trial) -> Table:
        return study_tables([comparison("comparison", arm("resnet_20", *trials))])[0]

    both, one = made(sure, unsure), made(sure)

    median = both.rows[0]["b1_best_p50_ms"]
    column = next(column for column in both.columns if column.key == "b1_best_p50_ms")
    assert median == Median(pytest.approx(1.1), known)  # of the seeds' files, the widest
    assert shown(column, median) == f"1.10 +-{100 * known:.1f}%"
    assert shown(column, Median(2.7, None)) == "2.70"
    assert UNCERTAIN in both.notes
    assert UNCERTAIN not in one.notes


def test_speed_stands_beside_the_accuracy_of_that_file() -> None:
    base = trial()
    int8 = [
        replace(record, precision="int8", top1=0.25, artifact_sha256="05" * 32)
        for record in records_of(base, {("onnx", 1): 0.5})
    ]
    one = comparison(
        "comparison", arm("resnet_20", replace(base, measurements=(*base.measurements, *int8)))
    )

    values = deployed(one).values("resnet_20")

    assert (values["b1_best_runtime"], values["b1_best_top1"]) == ("onnx int8", 0.25)
    assert values["onnx_fp32_top1"] == 0.5


@pytest.mark.parametrize(
    ("batches", "shown"), [((1, 8, 256, 512), (1, 256)), ((2, 8, 64), (2, 64)), ((8,), (8,))]
)
def test_batches_that_are_shown(batches: tuple[int, ...], shown: tuple[int, ...]) -> None:
    one = trial(times_ms={("onnx", batch): 1.0 * batch for batch in batches})

    assert deployed(comparison("comparison", arm("resnet_20", one))).batches == shown


def test_environments_never_share_a_table() -> None:
    base = trial()
    there = tuple(replace(r, environment=GPU, samples_ms=(0.5,) * 8) for r in base.measurements)
    both = replace(base, measurements=(*base.measurements, *there))
    one = comparison("second-study", arm("ResNet, 50 epochs", both))

    tables = study_tables([one])

    assert sorted(table.name for table in tables) == sorted(
        f"second-study-cifar100-{key}" for key in (ENVIRONMENT.key, GPU.key)
    )
    for table in tables:
        fast = table.name.endswith(GPU.key)
        assert p50_ms(table.rows[0], "b1_best") == (0.5 if fast else 1.0)
        assert ("Example GPU" in table.place) == fast


def test_a_training_elsewhere_is_named_and_its_times_are_in_another_table() -> None:
    here, there = trial(), trial("resnet_56", environment=GPU, train_seconds=5.0)
    moved = tuple(replace(record, environment=GPU) for record in there.measurements)
    there = replace(there, measurements=moved)
    one = comparison("comparison", arm("resnet_20", here), arm("resnet_56", there))

    found = {table.name: table for table in study_tables([one])}

    for own, other, key in (
        ("resnet_20", "resnet_56", ENVIRONMENT.key),
        ("resnet_56", "resnet_20", GPU.key),
    ):
        table = found[f"table1-cifar100-{key}"]
        assert p50_ms(row_of(table, "model", own), "b1_best") == 1.0
        assert not any("p50" in name for name in row_of(table, "model", other))
        seconds = {row["model"]: (row["train_s"].value, row["train_device"]) for row in table.rows}
        assert seconds == {
            "resnet_20": (100.0, f"Example CPU, 2 threads [{ENVIRONMENT.key}]"),
            "resnet_56": (5.0, f"Example GPU [{GPU.key}]"),
        }


def test_without_a_record_there_is_no_number() -> None:
    one = comparison("comparison", arm("resnet_20", trial(measurements=(), params=None)))

    table, _ = study_tables([one], price_per_hour=1.0)

    assert (table.name, table.place) == ("table1-cifar100", "")
    (row,) = table.rows
    assert row["params"] is None
    assert row["top1_percent_per_million_params"] is None
    assert not any("p50" in key or "price" in key for key in row)


def test_prices_are_shown_where_one_is_given() -> None:
    (without, *_), (table, *_) = (
        study_tables([table_1()]),
        study_tables([table_1()], price_per_hour=2),
    )

    assert not any("price" in column.key for column in without.columns)
    assert "price_per_million" in {column.key for column in table.columns}
    assert any(note.startswith("Prices: at 2 an hour") for note in table.notes)
