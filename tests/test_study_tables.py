import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_records import ENVIRONMENT
from study_files import ablation, arm, comparison, open_trial, row_of, seeds, table_1, trial

from profiling.study.derived import Difference, Mean
from profiling.study.table import Stated, shown
from profiling.study.table1 import reported_values
from profiling.study.tables import study_tables
from profiling.study.writers import to_json
from zoo.reported import DOUBTFUL, OTHER_NETWORK, REPORTED, SIMULATED, read_table

GOLDEN = Path(__file__).parent / "reference" / "study"
GPU = replace(ENVIRONMENT, device="Example GPU", cuda="13.0")


# ---- table 1 ---------------------------------------------------------------------------------


def test_table_1_holds_reported_beside_measured() -> None:
    table, _ = study_tables([table_1()])

    row = row_of(table, "model", "resnet_56")
    assert row["reported_top1"] == Stated(0.725, REPORTED)
    assert row["reported_top5"] == Stated(0.975, DOUBTFUL)
    assert row["reported_params_m"] == Stated(0.86, REPORTED)
    assert row["reported_macs_m"] == Stated(127.5, REPORTED)
    assert row["reported_hours"] == Stated(0.375, "approximate")
    assert row["top1"] == Mean(0.6, None, 1)
    assert row["top5"] == Mean(0.8, None, 1)
    assert (row["params"], row["macs"], row["flops"]) == (800_000, 120_000_000, 240_000_000)
    assert row["top1_percent_per_million_params"] == pytest.approx(60 / 0.8)
    assert row["top1_percent_per_million_macs"] == pytest.approx(60 / 120)
    assert (row["length"], row["epochs"], row["steps"]) == ("bounded", 2, 40)
    assert (row["batch_size"], row["training_gmacs"]) == (8, 120.0)
    assert row["train_s"] == Mean(100.0, None, 1)
    assert row["train_device"] == f"Example CPU, 2 threads [{ENVIRONMENT.key}]"


@pytest.mark.parametrize(
    ("model", "key", "state"),
    [
        ("hornet_tiny", "top1", SIMULATED),
        ("hornet_tiny", "hours", "simulated, approximate"),  # of a training that never was
        ("coatnet_0", "top1", OTHER_NETWORK),
        ("coatnet_0", "hours", OTHER_NETWORK),
        ("coatnet_0", "params_m", REPORTED),  # its own, whatever earned the accuracy
        ("coatnet_0", "macs_m", DOUBTFUL),  # the network has other ones
        ("ghost_resnet_32", "params_m", DOUBTFUL),
        ("eca_resnet_20", "macs_m", DOUBTFUL),  # one network with two counts
        ("convnext_tiny", "hours", REPORTED),
    ],
)
def test_each_reported_figure_has_its_state(model: str, key: str, state: str) -> None:
    assert reported_values(model)[f"reported_{key}"].state == state


def test_what_nobody_published_is_absent() -> None:
    assert "reported_macs_m" not in reported_values("hornet_tiny")
    assert reported_values("resnet_110") == {}


def test_group_means_count_each_model_once() -> None:
    _, table = study_tables([table_1()])

    row = row_of(table, "group", "baseline")
    assert (row["models_measured"], row["models"]) == (2, 3)
    assert row["top1"] == pytest.approx((0.5 + 0.6) / 2)
    assert row["params"] == pytest.approx((200_000 + 800_000) / 2)
    assert row["macs"] == pytest.approx((40_000_000 + 120_000_000) / 2)
    assert row["train_s"] == 100.0
    assert row["b1_best_p50_ms"] == 1.0
    assert row["reported_top1"] == Stated(0.695, REPORTED)
    assert row["reported_macs_m"] == Stated(79.1, REPORTED)
    assert [row["group"] for row in table.rows] == list(
        dict.fromkeys(row["group"] for row in read_table("table1_models.csv"))
    )
    nobody = row_of(table, "group", "mlp")
    assert (nobody["models_measured"], nobody["top1"], nobody["params"]) == (0, None, None)


def test_group_means_of_times_are_of_one_machine() -> None:
    elsewhere = trial("resnet_56", environment=GPU)
    one = comparison("comparison", arm("resnet_20", trial()), arm("resnet_56", elsewhere))

    _, table = study_tables([one])

    row = row_of(table, "group", "baseline")
    assert row["models_measured"] == 2
    assert "train_s" not in row
    assert row["train_device"] is None


@pytest.mark.parametrize("missing", ["b1_best_p50_ms", "params", "top5"])
def test_a_group_of_which_one_lacks_a_figure_has_no_mean_of_it(missing: str) -> None:
    changes: dict[str, Any] = {"top5": None, "params": None}
    lacking = {missing: None} if missing in changes else {"measurements": ()}
    other = trial("resnet_56", **lacking)
    one = comparison("comparison", arm("resnet_20", trial()), arm("resnet_56", other))

    _, table = study_tables([one])

    row = row_of(table, "group", "baseline")
    assert (row["models_measured"], row[missing]) == (2, None)
    assert row["train_s"] == 100.0


def test_a_mean_that_is_not_its_members_is_doubtful() -> None:
    _, table = study_tables([table_1()])

    row = row_of(table, "group", "lightweight")
    assert (row["reported_top1"].state, row["reported_macs_m"].state) == (DOUBTFUL, REPORTED)


# ---- seeds -----------------------------------------------------------------------------------


def test_seeds_make_a_mean() -> None:
    one = comparison("comparison", arm("resnet_20", *seeds("resnet_20", 0.50, 0.52, 0.54)))

    table, _ = study_tables([one])

    (row,) = table.rows
    assert row["top1"] == Mean(pytest.approx(0.52), pytest.approx(0.02), 3)
    assert row["train_s"] == Mean(pytest.approx(101), pytest.approx(1), 3)
    assert row["onnx_fp32_top1"] == pytest.approx(0.52)
    assert row["onnx_fp32_files"] == 3


def test_what_seeds_do_not_share_is_empty() -> None:
    far = trial(seed=1, environment=GPU, steps=50, processes=8)
    one = comparison("comparison", arm("resnet_20", trial(), far))

    table, _ = study_tables([one])

    (row,) = table.rows
    assert row["steps"] is None
    assert row["train_s"] is None  # of two machines
    assert row["train_device"] == (
        f"8 x Example GPU [{GPU.key}]; Example CPU, 2 threads [{ENVIRONMENT.key}]"
    )


# ---- the second study and ablations ----------------------------------------------------------


def test_second_study_finds_its_row_by_name_and_epochs() -> None:
    one = comparison(
        "second-study",
        arm("ViT, 50 epochs", trial("vit_tiny")),
        arm("ViT, 200 epochs", trial("vit_tiny", seed=1)),
        arm("EdgeNeXt, 50 epochs", trial("edgenext_small")),
    )

    (table,) = study_tables([one])

    short, long, doubtful = table.rows
    assert short["reported_best_top1"] == Stated(0.5362, REPORTED)
    assert "reported_top1" not in short
    assert (long["reported_best_top1"].value, long["reported_note"]) == (
        0.5855,
        "batch 128 rate 0.01",
    )
    assert doubtful["reported_top1"] == Stated(0.5446, DOUBTFUL)  # its best is below it


def test_ablation_has_differences_to_its_baseline() -> None:
    (table,) = study_tables([ablation()])

    baseline, adaptive, k3 = table.rows
    assert baseline["top1_difference"] is None
    # Seeds 0.50, 0.52, 0.54 against 0.52, 0.55, 0.55: differences 0.02, 0.03, 0.01.
    reach = 4.302653 * 0.01 / 3**0.5
    assert adaptive["top1_difference"] == Difference(
        pytest.approx(0.02), pytest.approx(0.02 - reach), pytest.approx(0.02 + reach), 3, True
    )
    assert k3["top1_difference"].value == pytest.approx(-0.02)
    assert table.title == "Ablation eca_kernel: Which is best? (cifar100, bounded runs)"


def test_each_source_of_an_ablation_has_a_column() -> None:
    (table,) = study_tables([ablation()])

    titles = {c.key: c.title for c in table.columns if c.key.startswith("reported")}
    assert titles == {
        "reported_top1_1": "reported top-1, first report table 3, %",
        "reported_top1_2": "reported top-1, first slides table 3, %",
    }
    baseline, adaptive, _ = table.rows
    # Each has another value elsewhere.
    assert baseline["reported_top1_1"] == Stated(0.6692, DOUBTFUL)
    assert baseline["reported_top1_2"] == Stated(0.665, DOUBTFUL)
    assert adaptive["reported_top1_1"] == Stated(0.6808, DOUBTFUL)
    assert "reported_top1_2" not in adaptive


def test_a_baseline_that_the_study_calls_otherwise() -> None:
    one = comparison(
        "improved_convnext",
        arm("baseline", trial("improved_resnet20_convnext")),
        arm("no_droppath", trial("improved_resnet20_convnext_no_droppath")),
    )

    (table,) = study_tables([one])

    assert [row["reported_top1_1"] for row in table.rows] == [
        Stated(0.7233, REPORTED),
        Stated(0.7265, REPORTED),
    ]


def test_the_accuracy_of_another_arm_is_not_the_baselines() -> None:
    one = comparison(
        "augmentation",
        arm("plain", trial("resnet_18_ca_elu")),
        arm("flip_jitter_alternating", trial("resnet_18_ca_elu", seed=1)),
    )

    (table,) = study_tables([one])

    assert "reported_top1_1" not in table.rows[0]
    assert table.rows[1]["reported_top1_1"] == Stated(0.6042, REPORTED)
    assert table.rows[1]["reported_top5_1"] == Stated(0.8688, REPORTED)
    assert shown(next(c for c in table.columns if c.key == "reported_top5_1"), None) == ""


def test_arms_say_what_they_change() -> None:
    changed = trial(settings={"schedule": "step"}, pretraining="simclr", image_size=128)
    one = comparison("step_decay", arm("cosine", trial()), arm("step", changed))

    (table,) = study_tables([one])

    assert [(row["arm"], row["changes"]) for row in table.rows] == [
        ("cosine (baseline)", None),
        ("step", "schedule=step, after simclr, 128 pixels"),
    ]


def test_a_list_of_the_users_own() -> None:
    one = comparison("1", arm("a b", trial()), plan="my rates", baseline=None, question=None)

    (table,) = study_tables([one])

    assert table.name == f"list-my-rates-1-cifar100-{ENVIRONMENT.key}"
    assert table.title == "List my rates, 1 (cifar100, bounded runs)"
    assert "top1_difference" not in {column.key for column in table.columns}


def test_equal_names_get_numbers() -> None:
    names = [table.name for table in study_tables([ablation(), ablation()])]

    assert names == [
        f"ablation-eca_kernel-cifar100-{ENVIRONMENT.key}",
        f"ablation-eca_kernel-cifar100-{ENVIRONMENT.key}-2",
    ]


def test_what_was_never_trained_has_no_table() -> None:
    assert study_tables([comparison("eca_kernel", arm("baseline", open_trial()))]) == []


# ---- the whole -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table1", "table1-groups", "ablation-eca_kernel"])
def test_golden(name: str) -> None:
    tables = {table.name: table for table in study_tables([table_1(), ablation()])}

    text = to_json(tables[f"{name}-cifar100-{ENVIRONMENT.key}"])

    assert json.loads(text) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_printed_cells() -> None:
    table, _ = study_tables([table_1()])
    columns = {column.key: column for column in table.columns}
    (difference,) = (
        column
        for column in study_tables([ablation()])[0].columns
        if column.key == "top1_difference"
    )

    assert shown(columns["top1"], Mean(0.6123, 0.0045, 3)) == "61.23 +-0.45 (3)"
    assert shown(columns["top1"], Mean(0.6123, None, 1)) == "61.23 (1)"
    assert shown(columns["reported_top5"], Stated(0.975, DOUBTFUL)) == "97.50 (doubtful)"
    assert shown(columns["reported_params_m"], Stated(0.28, REPORTED)) == "0.28"
    assert shown(columns["reported_macs_m"], Stated(1247.3, REPORTED)) == "1,247.3"
    assert shown(columns["params"], 278_324) == "0.2783"
    assert shown(columns["train_s"], Mean(101.0, 1.0, 3)) == "101 +-1.00 (3)"
    assert shown(columns["b1_best_file_bytes"], 3 * 2**19) == "1.50"
    assert shown(difference, Difference(0.012, -0.003, 0.027, 3, True)) == "+1.20 [-0.30, +2.70]"
    assert shown(difference, Difference(0.012, -0.003, 0.027, 3, False)) == (
        "+1.20 [-0.30, +2.70] unpaired"
    )
    assert shown(difference, Difference(0.012, None, None, 1, True)) == "+1.20"
    assert shown(columns["top1"], None) == ""
