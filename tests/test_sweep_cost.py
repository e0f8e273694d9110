from dataclasses import replace
from pathlib import Path

import pytest

from training.sweep import Planned, claim_path
from training.sweep_claims import claim
from training.sweep_cost import Prediction, Sample, predict, samples_of
from training.sweep_jobs import Group, Job, Work
from training.sweep_plan import table, write_plan
from training.sweep_record import DONE, OPEN, Failure, JobRecord, StepDone, write_record
from training.sweep_steps import Step

KEY = "0123456789ab"
JOB = Job(model="resnet_20", recipe="study", seed=0, dataset="cifar100-mini", max_macs=1e9)
WORK = Work(
    is_bounded=True,
    max_macs=1e9,
    macs=100,
    batch_size=8,
    peak_lr=0.1,
    warmup_epochs=0.0,
    epochs=10,
    epoch_steps=2,
    steps=20,
    training_macs=48_000_000_000,
)


def step(name: str, macs: int | None) -> Step:
    return Step(name=name, options=(), argv=tuple, shown=name, macs=macs)


def done(name: str, *, macs: int, seconds: float | None) -> StepDone:
    return StepDone(
        name=name,
        options=(),
        command=name,
        finished_at="2026-01-01T00:00:00+00:00",
        host="here",
        seconds=seconds,
        macs=macs,
    )


def record(job: Job, *steps: StepDone, key: str = KEY) -> JobRecord:
    return JobRecord(id=job.id, state=DONE, job=job, work=WORK, steps=steps, environment_key=key)


def test_a_start_and_a_rate_are_fitted() -> None:
    samples = [Sample("a", "train", 100, 15.0), Sample("b", "train", 300, 25.0)]  # 10 + 0.05 x

    found = predict("c", [step("train", 400)], samples)

    assert found == Prediction(pytest.approx(30.0), 2, False)


def test_the_rate_of_the_same_network_counts_where_it_is_known() -> None:
    samples = [
        Sample("a", "train", 100, 15.0),
        Sample("b", "train", 300, 25.0),
        Sample("c", "train", 200, 20.0),
        Sample("c", "train", 200, 20.0),
    ]
    slow = [*samples[:2], Sample("c", "train", 200, 40.0)]

    usual = predict("c", [step("train", 400)], samples)
    other = predict("c", [step("train", 400)], slow)

    assert usual is not None
    assert usual.is_of_model
    assert usual.seconds == pytest.approx(30.0)
    assert other is not None
    start = (15 + 25 + 40) / 3 - 0.05 * 200
    assert other.seconds == pytest.approx(start + (40 - start) / 200 * 400)


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        ([Sample("a", "train", 100, 15.0)], 60.0),  # all of it is rate
        ([Sample("a", "train", 100, 20.0), Sample("b", "train", 300, 10.0)], 15.0),  # none is
        ([Sample("a", "train", 100, 1.0), Sample("b", "train", 300, 9.0)], 11.2),  # no start
    ],
)
def test_neither_start_nor_rate_is_below_zero(samples: list[Sample], seconds: float) -> None:
    found = predict("c", [step("train", 400)], samples)

    assert found is not None
    assert found.seconds == pytest.approx(seconds)


def test_what_was_never_measured_is_not_predicted() -> None:
    samples = [Sample("a", "train", 100, 15.0)]

    assert predict("a", [step("train", 100), step("bench", 1)], samples) is None
    assert predict("a", [step("train", None)], samples) is None


def test_a_step_with_other_options_tells_nothing() -> None:
    samples = [
        Sample("a", "bench", 100, 10.0, ("--batch", "1,8")),
        Sample("a", "bench", 100, 70.0, ("--batch", "1,256")),
    ]
    asked = replace(step("bench", 100), options=("--batch", "1,256"))

    found = predict("a", [asked], samples)

    assert found == Prediction(pytest.approx(70.0), 1, True)
    assert predict("a", [replace(asked, options=("--batch", "8"))], samples) is None


def test_samples_are_whole_steps_of_the_same_environment() -> None:
    whole, part = done("train", macs=5, seconds=2.0), done("bench", macs=5, seconds=None)

    samples = samples_of([record(JOB, whole, part), record(JOB, whole, key="other")], KEY)

    assert samples == [Sample("resnet_20", "train", 5, 2.0)]


def test_the_plan_shows_each_job_its_state_and_its_time(tmp_path: Path) -> None:
    jobs = [replace(JOB, seed=seed) for seed in range(5)]
    other = replace(JOB, model="resnet_32")
    steps = (step("train", 400),)
    planned = [Planned(job=job, work=WORK, steps=steps) for job in [*jobs, other]]
    planned[5] = replace(planned[5], work=replace(WORK, pretraining_macs=2_000_000_000))
    write_record(tmp_path, record(jobs[0], done("train", macs=400, seconds=12.0)))
    failure = Failure(
        step="train", reason="zoo-train: no", exit_code=1, finished_at="", host="here"
    )
    write_record(
        tmp_path, JobRecord(id=jobs[1].id, state=OPEN, job=jobs[1], work=WORK, failures=(failure,))
    )
    write_record(
        tmp_path,
        JobRecord(id=jobs[2].id, state=OPEN, job=jobs[2], work=WORK, failures=(failure,) * 3),
    )
    mine = claim(claim_path(tmp_path, jobs[3].id))
    assert mine is not None

    lines = table(planned, tmp_path, KEY).splitlines()
    mine.release()

    assert lines[0].split() == [
        *("job", "training", "images", "a", "step", "steps", "GMACs", "predicted", "s"),
        *("state", "what"),
    ]
    said = "resnet_20, recipe study, seed"
    assert [line.split("  ")[-1].strip() for line in lines[1:6]] == [
        f"{said} {n}" for n in range(5)
    ]
    assert lines[1].split()[:5] == [jobs[0].id, "bounded", "8", "20", "48"]
    assert lines[6].split()[4] == "50"  # with the pre-training
    assert "  done  " in lines[1]
    assert "12  0 of 1 steps done  " in lines[2]
    assert "12  failed: zoo-train: no  " in lines[3]
    assert "12  under way (process " in lines[4]
    assert "12  to do  " in lines[5]
    assert "12 (other models)  to do  " in lines[6]
    assert lines[7] == "5 of 6 jobs to do, predicted 60 s for 5 of them"


def test_without_records_the_plan_says_so(tmp_path: Path) -> None:
    planned = [Planned(job=JOB, work=WORK, steps=(step("train", 400),))]

    lines = table(planned, tmp_path, KEY).splitlines()

    assert "no record  to do" in lines[1]
    assert lines[2] == f"1 of 1 jobs to do; 1 without a past record on this machine ({KEY})"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_one_file_whoever_writes_it(tmp_path: Path) -> None:
    planned = [Planned(job=JOB, work=WORK, steps=())]
    groups = [Group(name="g", question="why?", baseline="a", jobs=(("a", JOB),))]

    first = write_plan(tmp_path, "my list", groups, planned)
    before = first.read_bytes()
    second = write_plan(tmp_path, "my list", groups, planned)
    longer = write_plan(tmp_path, "my list", groups * 2, planned)

    assert first == second
    assert first.read_bytes() == before
    assert first.name.startswith("my-list-")
    assert longer != first
    assert len(list((tmp_path / "plans").iterdir())) == 2
