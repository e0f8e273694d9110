import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import counters
import pytest
from counters import TO, counting_file, numbers, planned, starts, sweep

import training.sweep
from training.sweep import claim_path, log_path, run_sweep
from training.sweep_claims import Claim, claim
from training.sweep_record import (
    DONE,
    FAILED,
    OPEN,
    Failure,
    JobRecord,
    read_record,
    record_path,
    write_record,
)
from zoo.errors import MachineError

TESTS = Path(__file__).parent
KILLS = 5
ALL = [str(number) for number in range(TO)]


@pytest.fixture(autouse=True)
def _children_find_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *([path] if path else [])]))


def start(out: Path, *seeds: int, does: str = "count") -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    script, chosen = str(TESTS / "counters.py"), ",".join(map(str, seeds))
    command = (sys.executable, script, str(out), chosen, does)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def counted(out: Path, *seeds: int) -> int:
    return sum(len(numbers(counting_file(out, planned(out, seed).job))) for seed in seeds)


def wait_for(condition: object, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            return
        time.sleep(0.005)


def test_jobs_are_done_once_and_skipped_afterwards(tmp_path: Path) -> None:
    jobs = [planned(tmp_path, seed) for seed in (0, 1)]

    first, second = sweep(tmp_path, jobs), sweep(tmp_path, jobs)

    ids = [one.job.id for one in jobs]
    assert (first.done, first.failed, first.left) == (ids, {}, [])
    assert second.done == ids
    for one in jobs:
        assert numbers(counting_file(tmp_path, one.job)) == ALL
        assert starts(counting_file(tmp_path, one.job)) == 1
        assert read_record(record_path(tmp_path, one.job.id)).state == DONE
        assert not claim_path(tmp_path, one.job.id).exists()


def test_the_record_says_what_was_done(tmp_path: Path) -> None:
    one = planned(tmp_path, 3)

    sweep(tmp_path, [one])

    value = json.loads(record_path(tmp_path, one.job.id).read_text())
    assert (value["id"], value["job"]["seed"], value["schema"]) == (one.job.id, 3, 1)
    (step,) = value["steps"]
    assert (step["name"], step["command"], step["macs"]) == ("step 0", "count", 1000)
    assert step["seconds"] >= TO * counters.SECONDS
    assert log_path(tmp_path, one.job.id).read_text() == "$ count\n"


def test_a_step_with_other_options_is_done_again_and_only_that(tmp_path: Path) -> None:
    one = planned(tmp_path, 0, "count", "count")
    sweep(tmp_path, [one])
    changed = replace(one, steps=(one.steps[0], replace(one.steps[1], options=("--other",))))

    sweep(tmp_path, [changed])

    assert starts(counting_file(tmp_path, one.job)) == 3


def test_a_step_whose_outcome_lies_there_is_not_started(tmp_path: Path) -> None:
    one = planned(tmp_path, 0)
    there = replace(one, steps=(replace(one.steps[0], is_done=lambda: True),))

    outcome = sweep(tmp_path, [there])

    assert outcome.done == [one.job.id]
    assert starts(counting_file(tmp_path, one.job)) == 0
    assert read_record(record_path(tmp_path, one.job.id)).steps[0].seconds is None


@pytest.mark.parametrize("seed", [0, 1])
def test_killing_a_sweep_loses_and_repeats_nothing(seed: int, tmp_path: Path) -> None:
    seeds = range(6)
    chance = random.Random(seed)
    killed = 0

    for at in sorted(chance.sample(range(1, len(seeds) * TO - 1), KILLS)):
        process = start(tmp_path, *seeds)
        wait_for(lambda at=at: counted(tmp_path, *seeds) >= at, process)
        time.sleep(chance.uniform(0, 2 * counters.SECONDS))  # between two numbers, or two jobs
        killed += process.poll() is None
        process.kill()
        process.communicate()
    last = start(tmp_path, *seeds)
    last.communicate(timeout=120)

    assert killed == KILLS
    assert last.returncode == 0
    for one in (planned(tmp_path, number) for number in seeds):
        assert numbers(counting_file(tmp_path, one.job)) == ALL
        assert starts(counting_file(tmp_path, one.job)) <= 1 + KILLS
        assert read_record(record_path(tmp_path, one.job.id)).state == DONE


@pytest.mark.parametrize("shares", [((0, 2), (1, 3)), ((0, 1, 2, 3), (0, 1, 2, 3))])
def test_two_sweeps_at_once_do_each_job_once(
    shares: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    processes = [start(tmp_path, *share) for share in shares]
    for process in processes:
        process.communicate(timeout=120)

    assert [process.returncode for process in processes] == [0, 0]
    for one in (planned(tmp_path, seed) for seed in range(4)):
        assert numbers(counting_file(tmp_path, one.job)) == ALL
        assert starts(counting_file(tmp_path, one.job)) == 1


def test_a_child_ends_with_its_sweep(tmp_path: Path) -> None:
    process = start(tmp_path, 0)
    wait_for(lambda: counted(tmp_path, 0) > 1, process)

    process.kill()
    process.communicate()

    before = -1
    while before != counted(tmp_path, 0):
        before = counted(tmp_path, 0)
        time.sleep(0.3)
    assert before < TO


def test_a_child_that_outlives_its_sweep_keeps_the_job(tmp_path: Path) -> None:
    process = start(tmp_path, 0, does="stubborn")
    wait_for(lambda: counted(tmp_path, 0) > 1, process)
    process.kill()
    process.communicate()

    again = start(tmp_path, 0, does="stubborn")
    again.communicate(timeout=60)

    assert again.returncode == 0
    assert numbers(counting_file(tmp_path, planned(tmp_path, 0).job)) == ALL


def test_a_job_that_failed_for_good_while_it_was_claimed_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = planned(tmp_path, 0, "fail")
    others = iter([True])

    def after_another(path: Path) -> Claim | None:
        if next(others, False):
            sweep(tmp_path, [one])
        return claim(path)

    monkeypatch.setattr(training.sweep, "claim", after_another)

    outcome = sweep(tmp_path, [one])

    assert list(outcome.failed) == [one.job.id]
    assert starts(counting_file(tmp_path, one.job)) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_child_and_gives_the_job_up(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = start(tmp_path, 0)
    wait_for(lambda: counted(tmp_path, 0) > 1, process)

    process.send_signal(number)
    err = process.communicate(timeout=60)[1]

    word = {130: "interrupted", 143: "terminated"}[code]
    assert (process.returncode, err) == (code, f"zoo-sweep: {word}\n")
    one = planned(tmp_path, 0)
    assert not claim_path(tmp_path, one.job.id).exists()
    assert read_record(record_path(tmp_path, one.job.id)).failures == ()


def test_a_failing_job_is_tried_three_times_after_the_others(tmp_path: Path) -> None:
    bad, good = planned(tmp_path, 0, "fail"), planned(tmp_path, 1)
    notes: list[str] = []

    outcome = run_sweep([bad, good], tmp_path, on_note=notes.append)

    reason = "zoo-train: the loss became infinite"
    assert (outcome.done, outcome.failed) == ([good.job.id], {bad.job.id: reason})
    assert starts(counting_file(tmp_path, bad.job)) == 3
    record = read_record(record_path(tmp_path, bad.job.id))
    assert (record.state, [one.exit_code for one in record.failures]) == (FAILED, [1, 1, 1])
    assert notes[0] == "1 of 2: counter, recipe none, seed 0"
    assert notes[1] == f"{bad.job.id}: attempt 1 of 3 failed in step 0: {reason}"
    assert notes[2] == "1 of 2: counter, recipe none, seed 1"

    again = sweep(tmp_path, [bad, good])

    assert again.failed == outcome.failed
    assert starts(counting_file(tmp_path, bad.job)) == 3

    run_sweep([bad], tmp_path, retry_failed=True, on_note=notes.append)

    assert starts(counting_file(tmp_path, bad.job)) == 6


def test_a_job_that_failed_once_goes_on_with_the_step_that_failed(tmp_path: Path) -> None:
    one = planned(tmp_path, 0, "fail_once")

    outcome = sweep(tmp_path, [one])

    assert outcome.done == [one.job.id]
    assert numbers(counting_file(tmp_path, one.job)) == ALL
    assert read_record(record_path(tmp_path, one.job.id)).failures == ()


def test_failures_of_a_step_that_succeeded_since_leave_the_next_one_its_attempts(
    tmp_path: Path,
) -> None:
    one = planned(tmp_path, 0, "count", "fail")
    early = Failure(step="step 0", reason="no", exit_code=1, finished_at="", host="here")
    write_record(
        tmp_path,
        JobRecord(id=one.job.id, state=OPEN, job=one.job, work=one.work, failures=(early,) * 2),
    )

    sweep(tmp_path, [one])

    failures = read_record(record_path(tmp_path, one.job.id)).failures
    assert [failure.step for failure in failures] == ["step 1"] * 3


def test_what_a_call_asked_in_vain_is_no_state_of_the_next_call(tmp_path: Path) -> None:
    whole, more = planned(tmp_path, 0), planned(tmp_path, 0, "count", "fail")
    place = record_path(tmp_path, whole.job.id)
    sweep(tmp_path, [whole])

    sweep(tmp_path, [more])
    failed = read_record(place).state
    outcome = sweep(tmp_path, [whole])

    assert (failed, outcome.done, read_record(place).state) == (FAILED, [whole.job.id], DONE)
    assert starts(counting_file(tmp_path, whole.job)) == 1 + 3


def test_a_job_that_lacks_nothing_any_more_is_done(tmp_path: Path) -> None:
    one = planned(tmp_path, 0)
    place = record_path(tmp_path, one.job.id)
    sweep(tmp_path, [one])
    write_record(tmp_path, replace(read_record(place), state=OPEN, begun="step 1"))

    sweep(tmp_path, [one])

    assert read_record(place).state == DONE


def test_a_killed_command_is_a_failure_with_its_signal(tmp_path: Path) -> None:
    one = planned(tmp_path, 0, "killed")

    outcome = sweep(tmp_path, [one])

    assert outcome.failed == {one.job.id: "killed by SIGKILL"}


def test_when_the_time_is_over_a_job_is_stopped_and_goes_on_the_next_time(tmp_path: Path) -> None:
    jobs = [planned(tmp_path, seed, bound=100) for seed in (0, 1)]
    started = time.monotonic()

    cut = run_sweep(jobs, tmp_path, deadline=started + 1, on_note=lambda line: None)
    part = counted(tmp_path, 0)
    whole = sweep(tmp_path, jobs[:1])

    assert (cut.done, sorted(cut.left)) == ([], sorted(one.job.id for one in jobs))
    assert 0 <= part < 100
    assert whole.done == [jobs[0].job.id]
    assert numbers(counting_file(tmp_path, jobs[0].job)) == [str(n) for n in range(100)]
    (step,) = read_record(record_path(tmp_path, jobs[0].job.id)).steps
    assert step.seconds is None  # of two parts, so no time of a whole step


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    one = planned(tmp_path, 0)
    path = record_path(tmp_path, one.job.id)
    path.parent.mkdir()
    path.write_text('{"schema": 1}')

    with pytest.raises(MachineError) as caught:
        sweep(tmp_path, [one])

    assert str(caught.value) == (
        f"{path} is no record of a job (id is missing): remove it to begin the job again"
    )


def test_a_record_of_a_later_version_is_refused(tmp_path: Path) -> None:
    one = planned(tmp_path, 0)
    path = record_path(tmp_path, one.job.id)
    path.parent.mkdir()
    path.write_text('{"schema": 2}')

    with pytest.raises(MachineError, match="has schema 2, this version reads up to 1: update"):
        sweep(tmp_path, [one])
