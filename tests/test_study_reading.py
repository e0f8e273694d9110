import json
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import measurement
from study_files import (
    ablation,
    arm,
    comparison,
    open_trial,
    run_folder,
    seeds,
    table_1,
    trial,
    trials_of,
    write_sweep,
)

from profiling.study.data import Comparison
from profiling.study.reading import read_comparisons
from zoo.errors import RecordError


@pytest.fixture
def one() -> Comparison:
    """One arm with one seed."""
    return comparison("eca_kernel", arm("baseline", trial()))


def damage(folder: Path) -> tuple[list[Comparison], list[str]]:
    """What is read, and what is said of the rest."""
    said: list[RecordError] = []
    found = read_comparisons(folder, on_damage=said.append)
    return found, [str(error) for error in said]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = [ablation(), table_1()]
    write_sweep(tmp_path / "sweep", *written)

    assert read_comparisons(tmp_path) == written[::-1]  # the studies' own tables first


def test_records_that_are_read_already_are_joined_by_weights(tmp_path: Path) -> None:
    one = comparison("eca_kernel", arm("baseline", trial(measurements=())))
    write_sweep(tmp_path, one)
    records = trial().measurements

    (found,) = read_comparisons(tmp_path, records=[*records, measurement(source=None)])

    assert trials_of(found)[0].measurements == records


def test_another_name_of_a_network_with_the_same_weights_keeps_its_own_records(
    tmp_path: Path,
) -> None:
    one, twin = trial("eca_resnet_20"), trial("ecanet20_adaptive", measurements=())
    write_sweep(tmp_path, comparison("eca_kernel", arm("a", one), arm("b", twin)))
    digest = one.measurements[0].source
    assert digest is not None
    meta = run_folder(tmp_path, twin) / "meta.json"
    same = {"weights_sha256": digest.weights_sha256}
    meta.write_text(json.dumps(json.loads(meta.read_text()) | same))

    (found,) = read_comparisons(tmp_path)

    assert [t.measurements for t in trials_of(found)] == [one.measurements, ()]


def test_a_job_that_has_not_come_far_has_no_numbers(tmp_path: Path) -> None:
    sides = (
        arm("baseline", trial(), open_trial(seed=1)),
        arm("gone", open_trial("resnet_32", failure="out of memory")),
    )
    write_sweep(tmp_path, comparison("eca_kernel", *sides))

    (found,) = read_comparisons(tmp_path)

    assert found.arms == sides
    assert [t.failure for t in trials_of(found)] == [None, None, "out of memory"]


def test_a_pre_training_counts_as_training(tmp_path: Path) -> None:
    one = trial(pretraining="simclr")
    write_sweep(tmp_path, comparison("self_supervised", arm("simclr", one)))
    (plan,) = (tmp_path / "plans").iterdir()
    value = json.loads(plan.read_text())
    value["jobs"][0]["work"]["pretraining_macs"] = 30_000_000_000
    plan.write_text(json.dumps(value))
    run = run_folder(tmp_path, one)

    without = trials_of(read_comparisons(tmp_path)[0])[0]
    meta = json.loads((run / "meta.json").read_text()) | {"train_seconds": 40.0}
    before = run.parent / "pretraining" / "pretrain-simclr-resnet_20-s0"
    before.mkdir(parents=True)
    (before / "meta.json").write_text(json.dumps(meta))
    found = trials_of(read_comparisons(tmp_path)[0])[0]

    assert (found.training_macs, found.train_seconds) == (150_000_000_000, 140.0)
    assert without.train_seconds is None  # a part is not all of it


def test_a_run_under_way_is_not_read(one: Comparison, tmp_path: Path) -> None:
    write_sweep(tmp_path, one)
    meta = run_folder(tmp_path, trial()) / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"finished_at": None}))

    (found,) = read_comparisons(tmp_path)

    assert [(t.environment, t.measurements, t.curve) for t in trials_of(found)] == [(None, (), ())]


def test_the_same_jobs_in_two_plans_are_one_comparison(tmp_path: Path) -> None:
    fewer = comparison("eca_kernel", arm("baseline", trial()))
    write_sweep(tmp_path, fewer, replace(ablation(), plan="ablation-all"))
    write_sweep(tmp_path, replace(ablation(), plan="again"))

    assert [found.arms for found in read_comparisons(tmp_path)] == [ablation().arms]


def test_seeds_of_several_calls_are_one_comparison(tmp_path: Path) -> None:
    whole = ablation()
    for own in ((2, 1), (0,)):
        part = [
            replace(side, trials=tuple(side.trials[seed] for seed in own)) for side in whole.arms
        ]
        write_sweep(tmp_path, replace(whole, arms=tuple(part)))

    assert len(list((tmp_path / "plans").iterdir())) == 2
    assert read_comparisons(tmp_path) == [whole]


def test_an_arm_more_or_another_bound_is_no_seed_more(tmp_path: Path) -> None:
    first = arm("a", trial())
    write_sweep(tmp_path, comparison("1", first, plan="x"))
    write_sweep(tmp_path, comparison("1", arm("a", trial(seed=1)), arm("b", trial("b")), plan="x"))
    write_sweep(tmp_path, comparison("1", arm("a", trial(seed=2, max_macs=9e9)), plan="x"))

    assert len(read_comparisons(tmp_path)) == 3


def test_other_jobs_under_one_name_stay_apart(tmp_path: Path) -> None:
    first = comparison("1", arm("a", trial()), plan="rates")
    second = comparison("1", arm("a", trial(recipe="smoke")), plan="widths")
    write_sweep(tmp_path, first, second)

    assert [found.plan for found in read_comparisons(tmp_path)] == ["rates", "widths"]


def test_a_comparison_holds_one_data_set(tmp_path: Path) -> None:
    mini = trial(dataset="cifar100-mini", dataset_digest="ee" * 32)
    changed = trial(seed=1, dataset_digest="ff" * 32)
    mixed = comparison("eca_kernel", arm("baseline", trial(), mini, changed, open_trial(seed=2)))
    write_sweep(tmp_path, mixed)

    found = read_comparisons(tmp_path)

    assert [(c.dataset, [t.seed for t in trials_of(c)]) for c in found] == [
        ("cifar100", [0, 2]),  # what is not trained yet is counted with the first
        ("cifar100", [1]),
        ("cifar100-mini", [0]),
    ]


def test_a_study_with_its_own_report_is_read_where_it_is_named(tmp_path: Path) -> None:
    write_sweep(tmp_path / "study", ablation())
    (tmp_path / "study" / "study.json").write_text("{}")

    assert read_comparisons(tmp_path) == []
    assert len(read_comparisons(tmp_path / "study")) == 1


def test_damage_is_said_and_left_out(one: Comparison, tmp_path: Path) -> None:
    write_sweep(tmp_path, one)
    job = tmp_path / "jobs" / f"{trial().id}.json"
    job.write_text("{")

    found, said = damage(tmp_path)

    assert [t.top1 for t in trials_of(found[0])] == [None]
    (message,) = said
    assert message.startswith(f"{job} is not valid JSON")
    with pytest.raises(RecordError, match="is not valid JSON"):
        read_comparisons(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("meta.json", "[]", "is no meta.json of a run (expected an object, found list)"),
        ("metrics.jsonl", '{"epoch": 1}', "is damaged in line 1 (train_loss is missing)"),
    ],
)
def test_each_file_of_a_run_is_checked(
    name: str, text: str, message: str, one: Comparison, tmp_path: Path
) -> None:
    write_sweep(tmp_path, one)
    path = run_folder(tmp_path, trial()) / name
    path.write_text(text)

    _, (said,) = damage(tmp_path)

    assert message in said


def test_plans_are_checked(one: Comparison, tmp_path: Path) -> None:
    write_sweep(tmp_path, one)
    (path,) = (tmp_path / "plans").iterdir()
    value = json.loads(path.read_text())

    path.write_text(json.dumps(value | {"jobs": []}))
    found, said = damage(tmp_path)
    assert (found, said) == (
        [],
        [
            f"{path} is no plan of a sweep (eca_kernel has a job {trial().id} that is not in the "
            "plan): is it damaged?"
        ],
    )

    path.write_text(json.dumps(value | {"schema": 2}))
    _, said = damage(tmp_path)
    assert said == [f"{path} has schema 2, this version reads up to 1: update cifar-zoo"]


def test_seeds_without_a_sweep_are_nothing(tmp_path: Path) -> None:
    for one in seeds("resnet_20", 0.5, 0.6):
        for record in one.measurements:
            record.write(tmp_path / "runs" / one.id)

    assert read_comparisons(tmp_path) == []
