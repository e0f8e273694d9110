"""The script behind make gpu: its plan, its clock, its folder, and a rehearsal of all of it."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks.evidence import measurements
from benchmarks.evidence.place import PYTHONPATH
from benchmarks.evidence.plan import Wanted, describe, make_plan, still_to_do
from benchmarks.evidence.speeds import GUESSES, Speeds
from benchmarks.evidence.store import begin_from
from evidence_files import clone, speaking

from profiling.evidence import CUT, FAILED, OK, SKIPPED, Step, read_evidence
from profiling.evidence_import import merge
from training.curves import draw_curves
from zoo import reported
from zoo.errors import RecordError

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu_evidence.py"
WANTED = Wanted(
    parts=None, models=None, seeds=None, epochs=None, is_full=True, toy=None, device="cuda"
)
DONE = Step(
    step="study resnet_20 s0",
    part="train",
    status=OK,
    reason=None,
    predicted_s=135.0,
    seconds=110.0,
    ended_at="2026-01-01T00:00:00+00:00",
    environment="0" * 12,
    facts={"model": "resnet_20", "images_per_s": 100_000.0, "once_s": 40.0},
)


# The plan ---------------------------------------------------------------------------------------


def test_the_first_study_is_trained_as_a_whole_quickest_networks_first() -> None:
    tasks = make_plan(replace(WANTED, parts=("train",)), Speeds([], device="cuda"))

    assert len(tasks) == 21
    with (Path(reported.__file__).parent / "table1_models.csv").open() as table:
        study = {row["model"] for row in csv.DictReader(table)}
    assert {task.name.split()[1] for task in tasks} == study == set(GUESSES)
    times = [task.predicted_s for task in tasks]
    assert times == sorted(times)


def test_flagships_go_through_every_part_before_others_are_trained() -> None:
    names = [task.name for task in make_plan(WANTED, Speeds([], device="cuda"))]

    assert names[:4] == [
        "tests",
        "ceilings",
        "study resnet_20 s0",
        "study improved_resnet20_convnext s0",
    ]
    assert names.index("bench-train improved_resnet20_convnext") < names.index("study resnet_56 s0")
    assert names[-1] == "strong resnet_56 s2"
    assert len(names) == len(set(names))


def test_steps_that_are_named_come_in_the_order_given() -> None:
    wanted = replace(WANTED, parts=("strong", "tests"), models=("resnet_20",), seeds=(3, 5))

    names = [task.name for task in make_plan(wanted, Speeds([], device="cuda"))]

    assert names == ["strong resnet_20 s3", "strong resnet_20 s5", "tests"]


def test_what_was_measured_corrects_the_predictions() -> None:
    before = Speeds([], device="cuda")

    after = Speeds([DONE], device="cuda")

    assert before.training_s("resnet_20", 15_000_000) == 60 + 75
    assert after.training_s("resnet_20", 15_000_000) == 40 + 150
    assert after.training_s("resnet_56", 74_000) == pytest.approx(
        40 + 2
    )  # the chip is half as fast


def test_what_has_an_outcome_is_not_done_again() -> None:
    tasks = [speaking(name, "") for name in ("done", "absent", "broken", "cut", "new")]
    statuses = {"done": OK, "absent": SKIPPED, "broken": FAILED, "cut": CUT}
    outcomes = {name: replace(DONE, step=name, status=status) for name, status in statuses.items()}

    left = still_to_do(tasks, outcomes, retry=None)
    again = still_to_do(tasks, outcomes, retry="2026-01-01T00:00:01+00:00")
    since = still_to_do(tasks, outcomes, retry="2025-12-31T23:59:59+00:00")

    assert [task.name for task in left] == ["cut", "new"]
    assert left[0].predicted_s == 1.5 * DONE.seconds  # it had too little
    assert [task.name for task in again] == ["broken", "cut", "new"]
    assert [task.name for task in since] == ["cut", "new"]  # it broke in this call


def test_the_plan_says_what_fits() -> None:
    tasks = [replace(speaking(name, ""), predicted_s=s) for name, s in (("a", 50), ("b", 70))]

    assert describe(tasks, 100.0) == (
        "      0:50  a\n      1:10  later: b\n      2:00  predicted in all"
    )


# The command ------------------------------------------------------------------------------------


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The script under way, with its folders in `folder`."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    folders = ("--out", str(folder / "out"), "--work", str(folder / "work"))
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *folders, "--slice", "1h", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return import_module("gpu_evidence")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--steps", "trian"], "gpu_evidence: no step named 'trian': did you mean train?"),
        (
            ["--budget", "25"],
            "gpu_evidence: argument --budget: expected a time such as 90s, 25m or 1.5h, got '25' "
            "(see gpu_evidence --help)",
        ),
        (
            ["--continue-from", "nowhere"],
            "gpu_evidence: --continue-from nowhere holds no records.jsonl: leave it out",
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(
    options: list[str],
    complaint: str,
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"

    with pytest.raises(SystemExit) as end:
        raise SystemExit(script.main(["--out", str(out), "--slice", "1h", *options]))

    assert end.value.code == 2
    assert capsys.readouterr().err == f"{complaint}\n"
    assert not out.exists()


def test_the_plan_alone_writes_nothing(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ("--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))

    code = script.main([*folders, "--rehearse", "--plan"])

    assert code == 0
    assert "study ghost_resnet_20 s0 e1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a rehearsal of every step stores; two minutes of one core."""
    folder = tmp_path_factory.mktemp("rehearsal")
    process = started(folder, "--rehearse")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert printed == f"{folder / 'out'}\n"
    return folder / "out"


@pytest.mark.slow
def test_rehearsal_goes_through_every_step(rehearsal: Path) -> None:
    found = read_evidence(rehearsal)

    assert {step.status for step in found.steps} == {OK}
    parts = {step.part for step in found.steps}
    assert parts == {"tests", "ceilings", "train", "export", "infer", "bench-train", "strong"}
    assert [machine.is_rehearsal for machine in found.machines] == [True]
    assert len(found.runs) == 2
    assert {record.backend for record in found.measurements} == {"eager", "onnx"}
    assert {line["kind"] for line in found.training} >= {"start", "round", "end"}
    assert [one["proof"] for one in found.artifacts] == ["passed"]
    assert len(list(rehearsal.iterdir())) <= 7
    assert "| bench-train ghost_resnet_20" in (rehearsal / "summary.md").read_text()


@pytest.mark.slow
def test_what_every_step_stores_can_be_imported(rehearsal: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as refused:
        merge(rehearsal, clone(tmp_path / "clone"), draw=draw_curves)
    real = tmp_path / "real"
    begin_from(rehearsal, real)
    records = real / "records.jsonl"
    records.write_text(records.read_text().replace('"is_rehearsal": true', '"is_rehearsal": false'))

    first = merge(real, tmp_path / "clone", draw=draw_curves)
    second = merge(real, tmp_path / "clone", draw=draw_curves)

    assert str(refused.value) == f"{rehearsal} is a rehearsal, which shows nothing: run make gpu"
    written = {path.relative_to(tmp_path / "clone" / "bench_results") for path in first.written}
    roofs = read_evidence(real).roofs  # none where others kept the CPU busy, as in CI
    assert len([path for path in written if path.parts[0] == "roofline"]) == len(roofs)
    assert {str(path) for path in written if path.parts[0] not in ("records", "roofline")} == {
        "training/records.jsonl",
        "gpu/records.jsonl",
        "gpu/runs.jsonl",
        "gpu/README.md",
        "runs/ghost_resnet_20-s0",
        "runs/ghost_resnet_20-s0-2",
    }
    assert second.written == []


def test_sizes_name_the_six_models_and_all_batches() -> None:
    tasks = make_plan(replace(WANTED, parts=("infer", "bench-train")), Speeds([], device="cuda"))

    assert len(tasks) == 12
    assert measurements.FULL.batches == "1,8,32,128,256,1024"
