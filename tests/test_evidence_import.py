"""zoo-report --import: what it merges, what it leaves, and whose weights it takes."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benchmarks.evidence.store import Store
from evidence_files import a_run, clone
from sample_records import ENVIRONMENT, measurement

from profiling.evidence import (
    MACHINE,
    MEASUREMENT,
    ROOF,
    STEP,
    TRAINING,
    Evidence,
    Machine,
    Step,
    TrainedRun,
)
from profiling.evidence_import import Merged, choose, merge
from profiling.evidence_summary import summary
from profiling.record import Measurement, read_record
from profiling.report_cli import main_report
from profiling.roofline import Roof, read_roof
from training.curves import draw_curves
from zoo.checkpoint import META, Checkpoint
from zoo.data import Dataset, load_dataset
from zoo.errors import RecordError
from zoo.files import read_json, write_json
from zoo.pretrained import Card, card, card_of, load_pretrained

MACHINE_HERE = Machine(
    environment=ENVIRONMENT,
    packages={"torch": "2.14.1"},
    missing=("fvcore",),
    commit=None,
    sources_sha256="aa" * 32,
    is_rehearsal=False,
)
DONE = Step(
    step="study resnet_20 s0",
    part="train",
    status="ok",
    reason=None,
    predicted_s=135.0,
    seconds=110.0,
    ended_at="2026-01-01T00:00:00+00:00",
    environment=ENVIRONMENT.key,
    facts={"images_per_s": 200_000.0},
)
NAME = "ghost_resnet_20"


@pytest.fixture(scope="module")
def cifar() -> Dataset:
    """The shipped images under the name of all: weights of other data sets are not shipped."""
    return replace(load_dataset("cifar100-mini"), name="cifar100")


Runs = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def runs(cifar: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Complete runs by network and seed, each made once."""
    root = tmp_path_factory.mktemp("runs")

    def get(model: str, seed: int) -> Path:
        folder = root / f"{model}-{seed}"
        if not folder.exists():
            a_run(folder, cifar, model=model, seed=seed, commit="0123abcd")
        return folder

    return get


def plain(record: Measurement) -> dict[str, object]:
    return asdict(record) | {"environment": record.environment.to_json()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Evidence with one of everything but a run."""
    store = Store(tmp_path / "evidence")
    store.open()
    store.add(MACHINE, asdict(MACHINE_HERE) | {"environment": ENVIRONMENT.to_json()})
    store.add(MEASUREMENT, plain(measurement()))
    start = {"run": "now resnet_20", "kind": "start", "model": "resnet_20", "batch": 128}
    store.add(TRAINING, start)
    store.add(STEP, DONE)
    return store


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return clone(tmp_path / "clone")


def merged(store: Store, checkout: Path) -> Merged:
    return merge(store.folder, checkout, draw=draw_curves)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def add(store: Store, runs: Runs, seed: int = 0, **facts: object) -> Path:
    """Add a run with other facts to the evidence; return its folder."""
    folder = store.folder.parent / f"run-{seed}"
    shutil.copytree(runs(NAME, seed), folder)
    write_json(folder / META, read_json(folder / META) | facts)
    store.add_run(f"study {NAME} s{seed}", folder, wall_s=2.0)
    return folder


def held_out(top1: float) -> dict[str, object]:
    return {"selection": "validation", "val_top1": top1}


# What is merged ---------------------------------------------------------------------------------


def test_everything_finds_its_place(store: Store, checkout: Path, runs: Runs) -> None:
    run = add(store, runs)

    done = merged(store, checkout)

    results = checkout / "bench_results"
    record = results / "records" / ENVIRONMENT.key / measurement().file_name
    assert read_record(record) == measurement()
    assert json.loads((results / "training" / "records.jsonl").read_text())["batch"] == 128
    stored = results / "runs" / f"{NAME}-s0"
    for name in ("meta.json", "recipe.json", "metrics.jsonl", "weights.safetensors"):
        assert (stored / name).read_bytes() == (run / name).read_bytes(), name
    assert (stored / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (results / "gpu" / "README.md").read_text()
    assert "study resnet_20 s0" in page
    assert page.startswith("# Evidence\n")
    assert {path for path in done.written if not path.exists()} == set()


def test_a_second_import_changes_nothing(store: Store, checkout: Path, runs: Runs) -> None:
    add(store, runs, **held_out(0.5))
    merged(store, checkout)
    before = tree(checkout)

    again = merged(store, checkout)

    assert again.written == []
    assert again.notes == [f"{NAME}: the weights are there already"]
    assert tree(checkout) == before


def test_more_evidence_is_added_to_what_is_there(store: Store, checkout: Path, runs: Runs) -> None:
    add(store, runs, seed=0)
    merged(store, checkout)
    add(store, runs, seed=1)
    store.add(STEP, replace(DONE, step="study resnet_56 s0"))

    done = merged(store, checkout)

    results = checkout / "bench_results"
    assert [path.relative_to(results).as_posix() for path in done.written] == [
        "gpu/records.jsonl",
        "gpu/runs.jsonl",
        "gpu/README.md",
        f"runs/{NAME}-s1",
    ]
    assert len((results / "gpu" / "records.jsonl").read_text().splitlines()) == 3


def test_a_run_of_the_same_name_gets_another(store: Store, checkout: Path, runs: Runs) -> None:
    there = checkout / "bench_results" / "runs" / f"{NAME}-s0"
    shutil.copytree(runs(NAME, 1), there)
    before = tree(there)
    add(store, runs)

    merged(store, checkout)

    assert (there.parent / f"{NAME}-s0-2" / "meta.json").is_file()
    assert tree(there) == before


def test_a_newer_measurement_is_kept(store: Store, checkout: Path) -> None:
    newer = measurement(created_at="2027-01-01T00:00:00+00:00")
    path = newer.write(checkout / "bench_results")

    merged(store, checkout)

    assert read_record(path) == newer


# Whose weights ----------------------------------------------------------------------------------


def shipped_seed(checkout: Path) -> int:
    return card(NAME, weights=checkout / "zoo" / "weights").seed


def test_the_newest_roof_of_a_machine_is_kept(store: Store, checkout: Path) -> None:
    old = Roof(
        environment=ENVIRONMENT,
        copies=((2**20, 1e9),),
        products=(("fp32", 1e12),),
        created_at="2026-01-01T00:00:00+00:00",
    )
    new = replace(old, created_at="2026-01-02T00:00:00+00:00")
    for roof in (old, new, old):
        store.add(ROOF, roof.to_json())

    done = merged(store, checkout)

    path = checkout / "bench_results" / "roofline" / f"{ENVIRONMENT.key}.json"
    assert read_roof(path) == new
    assert path in done.written
    assert path not in merged(store, checkout).written


def test_weights_of_all_images_fill_an_empty_place_and_say_so(
    store: Store, checkout: Path, runs: Runs
) -> None:
    add(store, runs, seed=0, test_top1=0.1)
    add(store, runs, seed=1, test_top1=0.9)  # which must not decide

    done = merged(store, checkout)

    found = card(NAME, weights=checkout / "zoo" / "weights")
    assert (found.selection, found.val_images, found.val_top1, found.seed) == ("last", 0, None, 0)
    assert done.notes == [
        f"{NAME}: new weights of a training on all images, those of its last epoch"
    ]
    assert load_pretrained(NAME, weights=checkout / "zoo" / "weights", **builder()) is not None


def builder() -> dict[str, object]:
    from zoo.models import MODELS

    return {"build": MODELS[NAME].build, "num_classes": 100}


def test_the_best_on_held_out_images_is_taken_before_any_other(
    store: Store, checkout: Path, runs: Runs
) -> None:
    add(store, runs, seed=0, test_top1=0.9)
    add(store, runs, seed=1, test_top1=0.2, **held_out(0.6))
    add(store, runs, seed=2, test_top1=0.8, **held_out(0.5))

    done = merged(store, checkout)

    assert shipped_seed(checkout) == 1
    assert done.notes == [f"{NAME}: new weights, 60.00% on held-out images"]


def test_better_weights_take_the_place_of_others(store: Store, checkout: Path, runs: Runs) -> None:
    add(store, runs, seed=0, **held_out(0.5))
    merged(store, checkout)
    add(store, runs, seed=1, **held_out(0.6))
    (store.folder / "runs.jsonl").write_text(  # the evidence of another machine
        (store.folder / "runs.jsonl").read_text().splitlines()[1] + "\n"
    )

    done = merged(store, checkout)

    assert shipped_seed(checkout) == 1
    assert done.notes == [
        f"{NAME}: better weights, 60.00% on held-out images, before 50.00% on held-out images"
    ]


@pytest.mark.parametrize("commit", [None, "0123abcd-dirty"])
def test_weights_of_code_that_nobody_can_look_up_are_not_shipped(
    store: Store, checkout: Path, runs: Runs, commit: str | None
) -> None:
    add(store, runs, commit=commit, **held_out(0.9))

    done = merged(store, checkout)

    assert list((checkout / "zoo" / "weights").iterdir()) == []
    assert done.notes == [f"{NAME}: left: trained by code that was not committed"]
    assert (checkout / "bench_results" / "runs" / f"{NAME}-s0" / "weights.safetensors").is_file()


@pytest.fixture(scope="module")
def known(runs: Runs) -> tuple[TrainedRun, Card]:
    """A run, and the card of its weights."""
    run = Checkpoint.open(runs(NAME, 0))
    trained = TrainedRun(
        step="study",
        meta=run.meta,
        recipe={},
        metrics=(),
        weights="weights-1.zip",
        entry="study.safetensors",
        wall_s=1.0,
    )
    return trained, replace(card_of(run, NAME), sha256="0" * 64)


@pytest.mark.parametrize(
    ("there", "new", "note"),
    [
        (0.6, 0.5, "kept: 60.00% on held-out images, the new ones 50.00% on held-out images"),
        (0.5, 0.5, "kept: 50.00% on held-out images, the new ones 50.00% on held-out images"),
        (0.5, None, "kept: none of the new weights has an accuracy on held-out images"),
        (None, 0.6, "kept: the weights that are there cannot be compared with the new ones"),
    ],
)
def test_weights_are_kept_unless_others_are_better(
    there: float | None, new: float | None, note: str, known: tuple[TrainedRun, Card]
) -> None:
    run, shipped = known
    better = replace(run, meta=replace(run.meta, val_top1=new, test_top1=0.99))

    assert choose([better], replace(shipped, val_top1=there)) == (None, note)


def test_accuracies_of_two_data_sets_are_not_compared(known: tuple[TrainedRun, Card]) -> None:
    run, shipped = known
    other = replace(shipped, val_top1=0.5, dataset_digest="other")

    chosen, note = choose([replace(run, meta=replace(run.meta, val_top1=0.9))], other)

    assert chosen is None
    assert note == "kept: the weights that are there cannot be compared with the new ones"


def test_only_weights_of_the_whole_data_set_are_shipped(
    store: Store, checkout: Path, runs: Runs
) -> None:
    dataset = read_json(runs(NAME, 0) / META)["dataset"] | {"name": "cifar100-mini"}
    add(store, runs, dataset=dataset, **held_out(0.9))

    done = merged(store, checkout)

    assert list((checkout / "zoo" / "weights").iterdir()) == []
    assert done.notes == []
    assert (checkout / "bench_results" / "runs" / f"{NAME}-s0" / "weights.safetensors").is_file()


# What is refused --------------------------------------------------------------------------------


def refusal(store: Store, checkout: Path) -> str:
    before = tree(checkout)
    with pytest.raises(RecordError) as error:
        merged(store, checkout)
    assert tree(checkout) == before  # nothing was written
    return str(error.value)


def test_a_folder_without_evidence(checkout: Path, tmp_path: Path) -> None:
    found = refusal(Store(tmp_path), checkout)

    assert found == f"{tmp_path} holds no evidence: expected a records.jsonl, as make gpu writes it"


def test_a_call_that_was_ended_at_once(checkout: Path, tmp_path: Path) -> None:
    empty = Store(tmp_path / "evidence")
    empty.open()

    found = refusal(empty, checkout)

    assert found == f"{empty.folder} holds no evidence yet: run make gpu to its end"


def test_a_rehearsal(store: Store, checkout: Path) -> None:
    toy = replace(MACHINE_HERE, is_rehearsal=True)
    store.add(MACHINE, asdict(toy) | {"environment": ENVIRONMENT.to_json()})

    found = refusal(store, checkout)

    assert found == f"{store.folder} is a rehearsal, which shows nothing: run make gpu"


def test_a_damaged_measurement(store: Store, checkout: Path) -> None:
    store.add(MEASUREMENT, plain(measurement()) | {"batch": 0})

    found = refusal(store, checkout)

    assert found == (
        f"{store.folder / 'records.jsonl'}, line 5, is damaged (batch does not fit the other "
        "fields): copy the folder again"
    )


def test_a_line_of_the_training_benchmark_without_its_facts(store: Store, checkout: Path) -> None:
    store.add(TRAINING, {"run": "now resnet_20", "kind": "round"})

    found = refusal(store, checkout)

    assert found == f"{store.folder} is damaged (KeyError: 'steps'): copy it again"


def test_weights_of_another_run(store: Store, checkout: Path, runs: Runs) -> None:
    add(store, runs, seed=0)
    runs = store.folder / "runs.jsonl"
    digest = read_json(store.folder.parent / "run-0" / "meta.json")["weights_sha256"]
    runs.write_text(runs.read_text().replace(digest, "0" * 64))

    found = refusal(store, checkout)

    assert found == (
        f"{store.folder / 'weights-1.zip'} holds other weights than those of 'study {NAME} s0': "
        "copy it again"
    )


def test_an_archive_that_did_not_come_along(store: Store, checkout: Path, runs: Runs) -> None:
    add(store, runs)
    archive = store.folder / "weights-1.zip"
    archive.write_bytes(archive.read_bytes()[:1000])

    found = refusal(store, checkout)

    assert found == (
        f"{archive} does not hold the weights of 'study {NAME} s0' (File is not a zip file): "
        "copy it again"
    )


# The command ------------------------------------------------------------------------------------


def test_the_command_prints_what_it_wrote(
    store: Store,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(checkout / "zoo")  # anywhere inside

    codes = [main_report(["--import", str(store.folder)]) for _ in range(2)]

    out, err = capsys.readouterr()
    assert codes == [0, 0]
    assert out.splitlines() == [
        os.path.join("bench_results", *parts)
        for parts in (
            ("records", ENVIRONMENT.key, measurement().file_name),
            ("training", "records.jsonl"),
            ("gpu", "records.jsonl"),
            ("gpu", "README.md"),
        )
    ]
    assert err == "zoo-report: everything was there already\n"


def test_outside_a_clone_nothing_is_imported(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "site-packages"
    shutil.copytree(clone(tmp_path / "clone") / "zoo", place / "zoo")  # as an installation has it
    monkeypatch.chdir(place)

    code = main_report(["--import", str(store.folder)])

    assert code == 2
    assert capsys.readouterr().err == (
        f"zoo-report: --import writes into a clone of cifar-zoo, and {place} lies in none: "
        "change into one\n"
    )
    assert list((place / "zoo" / "weights").iterdir()) == []


def test_one_folder_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    code = main_report(["--import", "one", "two"])

    assert code == 2
    assert capsys.readouterr().err == "zoo-report: --import merges one folder: leave two out\n"


# The page ---------------------------------------------------------------------------------------


def with_facts(run: TrainedRun, **facts: object) -> TrainedRun:
    return replace(run, meta=replace(run.meta, model="resnet_20", **facts))


STUDY = {
    "recipe_name": "study",
    "recipe": {"epochs": 300},
    "epochs_done": 300,
    "environment": {"device": "NVIDIA H200"},
    "test_top1": 0.695,
}


def goals(*runs: TrainedRun) -> list[list[str]]:
    """What, goal, found and verdict of the goals of resnet_20."""
    page = summary(Evidence(folder=Path(), runs=runs)).partition("## Trainings")[0]
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| resnet_20")]
    return [[cell.strip() for cell in row[2:]] for row in rows]


def test_goals_are_judged_by_trainings_like_them_only(known: tuple[TrainedRun, Card]) -> None:
    run = known[0]
    whole = with_facts(run, train_seconds=70.0, **STUDY)
    others = [
        {"recipe": {"epochs": 3}, "epochs_done": 3},
        {"recipe": {"epochs": 600}, "epochs_done": 600},
        {"epochs_done": 299},
        {"selection": "validation"},
        {"recipe_name": "strong"},  # of 300 epochs, half of its own
    ]

    found = goals(whole, *(with_facts(run, **(STUDY | {"test_top1": 0.1} | one)) for one in others))

    assert found == [
        ["test top-1 %", "69.00", "69.50 (1 seed)", "yes"],
        ["seconds of training, one H200", "60.0", "70.0 (reported on 8 V100: 540)", "no"],
    ]


def test_seconds_count_on_one_device_of_the_kind_that_is_named(
    known: tuple[TrainedRun, Card],
) -> None:
    other = STUDY | {"environment": {"device": "NVIDIA B200"}}

    elsewhere = goals(with_facts(known[0], train_seconds=1.0, **other))
    two = goals(with_facts(known[0], train_seconds=1.0, **STUDY | {"processes": 2}))

    assert [row[0] for row in elsewhere] == [row[0] for row in two] == ["test top-1 %"]


def test_a_mean_over_too_few_seeds_decides_nothing(known: tuple[TrainedRun, Card]) -> None:
    strong = STUDY | {"recipe_name": "strong", "recipe": {"epochs": 600}, "epochs_done": 600}
    seeds = ((0, 0.5), (0, 0.70), (1, 0.72), (1, 0.72))  # a seed again is no further one

    found = goals(*(with_facts(known[0], **strong | {"seed": s, "test_top1": t}) for s, t in seeds))

    assert found == [["test top-1 %", "71.00", "71.00 +- 1.41 (2 seeds, 3 wanted)", "open"]]


def test_changed_files_of_a_checkout_are_told(store: Store) -> None:
    machine = replace(MACHINE_HERE, commit=f"{'0123456789' * 4}-dirty")
    store.add(MACHINE, asdict(machine) | {"environment": ENVIRONMENT.to_json()})

    page = summary(store.read())

    assert "; commit 012345678901-dirty, sources aaaaaaaaaaaa; " in page


def test_a_reason_cannot_end_its_cell(store: Store) -> None:
    store.add(STEP, replace(DONE, step="broken", status="failed", reason="a | b"))

    page = summary(store.read())

    (row,) = (line for line in page.splitlines() if line.startswith("| broken"))
    assert row.replace(r"\|", "").count("|") == 6
