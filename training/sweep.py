"""Run jobs to completion, one child process a step, beside others that do the same."""

import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.sweep_child import PARENT
from training.sweep_claims import BEAT_SECONDS, Claim, claim
from training.sweep_jobs import Job, Work
from training.sweep_record import (
    DONE,
    FAILED,
    MOST_ATTEMPTS,
    OPEN,
    Failure,
    JobRecord,
    StepDone,
    now,
    read_record,
    record_path,
    with_run,
    write_record,
)
from training.sweep_steps import Step
from zoo.text import printable

POLL_SECONDS = 1.0  # between two looks at jobs that others work on
PATIENCE_SECONDS = 120.0  # for a child that was asked to end: a training saves first
TAIL_BYTES = 20_000  # of a log, in which the reason of a failure is sought

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A job, what its training takes and its steps."""

    job: Job
    work: Work
    steps: tuple[Step, ...]


@dataclass(kw_only=True)
class Outcome:
    """How a sweep ended."""

    done: list[str] = field(default_factory=list)  # ids of jobs
    failed: dict[str, str] = field(default_factory=dict)  # id -> reason
    left: list[str] = field(default_factory=list)  # not done when the time was over


class _Stopped(Exception):
    """The time is over, or the claim went to another host."""


def run_sweep(
    planned: Sequence[Planned],
    out: Path,
    *,
    deadline: float | None = None,
    retry_failed: bool = False,
    on_note: Note,
) -> Outcome:
    """Do every job that is not done yet, and wait for those that others do.

    Killed at any moment, the next call goes on: a step that was done is not repeated, a training
    under way is resumed, a pre-training after its last complete epoch. A job that fails is tried
    again after the others, a step MOST_ATTEMPTS times over all calls; `retry_failed` begins to
    count anew. At `deadline`, by `time.monotonic`, the job under way is stopped, and none is begun.

    Raises:
        MachineError: the record of a job is damaged.
        OSError: the folder cannot be written.
    """
    outcome = Outcome()
    waiting = deque(planned)
    busy: set[str] = set()  # passed over since a job last moved
    if retry_failed:
        for one in planned:
            _forget_failures(out, one)
    while waiting:
        if deadline is not None and time.monotonic() >= deadline:
            outcome.left += [one.job.id for one in waiting]
            break
        one = waiting.popleft()
        number = f"{len(outcome.done) + len(outcome.failed) + 1} of {len(planned)}"
        state = _attempt(one, out, deadline, number, on_note)
        if state == DONE:
            outcome.done.append(one.job.id)
        elif state == FAILED:
            record = read_record(record_path(out, one.job.id))
            assert record is not None
            outcome.failed[one.job.id] = record.failures[-1].reason
        else:
            waiting.append(one)
        if state is not None:
            busy.clear()
            continue
        if one.job.id in busy:  # the second time around, and nothing has moved
            busy.clear()
            time.sleep(POLL_SECONDS)
        busy.add(one.job.id)
    return outcome


def _attempt(
    one: Planned, out: Path, deadline: float | None, number: str, note: Note
) -> str | None:
    """Try a job once; None where somebody else is at it or the time was over."""
    place = record_path(out, one.job.id)
    record = read_record(place)
    if record is not None and record.state == _settled(record, one):
        return record.state
    mine = claim(claim_path(out, one.job.id))
    if mine is None:
        return None
    try:
        record = read_record(place)  # whoever had it may have done it meanwhile
        if record is not None and (settled := _settled(record, one)) is not None:
            # An earlier call may have asked for other steps, which stand in the state.
            write_record(out, replace(record, state=settled))
            return settled
        note(f"{number}: {one.job}")
        with suppress(_Stopped):
            return _steps(one, out, mine, deadline, note)
        return None
    finally:
        mine.release()


def claim_path(out: Path, job_id: str) -> Path:
    """Where the claim of a job lies while it is under way."""
    return out / "claims" / f"{job_id}.json"


def _settled(record: JobRecord, one: Planned) -> str | None:
    """DONE or FAILED where nothing is left to try."""
    if record.is_complete(one.steps):
        return DONE
    return FAILED if len(record.failures) >= MOST_ATTEMPTS else None


def _forget_failures(out: Path, one: Planned) -> None:
    place = record_path(out, one.job.id)
    record = read_record(place)
    if record is None or _settled(record, one) != FAILED:
        return
    mine = claim(claim_path(out, one.job.id))
    if mine is None:  # somebody forgot them a moment ago
        return
    try:
        record = read_record(place)
        if record is not None and _settled(record, one) == FAILED:
            write_record(out, replace(record, state=OPEN, failures=()))
    finally:
        mine.release()


def _steps(one: Planned, out: Path, mine: Claim, deadline: float | None, note: Note) -> str:
    """Do the steps that are left; OPEN where one failed and may be tried again."""
    job, folder = one.job, runs_folder(out, one.job.id)
    folder.mkdir(parents=True, exist_ok=True)
    found = read_record(record_path(out, job.id))
    record = found or JobRecord(id=job.id, state=OPEN, job=job, work=one.work)
    for step in one.steps:
        if record.has(step):
            continue
        was_begun = record.begun == step.name
        seconds = None
        if not step.is_done():
            record = replace(record, state=OPEN, begun=step.name)
            write_record(out, record)
            start = time.monotonic()
            code = _run(step, out, job.id, mine, deadline)
            seconds = None if was_begun else time.monotonic() - start
            if code != 0:
                return _failed(record, step, code, out, note)
        done = StepDone(
            name=step.name,
            options=step.options,
            command=step.shown,
            finished_at=now(),
            host=socket.gethostname(),
            seconds=seconds,
            macs=step.macs,
        )
        record = with_run(record.with_step(done), folder, out)
        write_record(out, record)
    write_record(out, replace(record, state=DONE))
    spent = sum(done.seconds or 0.0 for done in record.steps)
    top1 = "" if record.test_top1 is None else f", test top-1 {record.test_top1:.2%}"
    note(f"{job.id}: done in {spent:.0f} s{top1}")
    return DONE


def runs_folder(out: Path, job_id: str) -> Path:
    """Where the run of a job lies, alone: two arms may share model and seed."""
    return out / "runs" / job_id


def log_path(out: Path, job_id: str) -> Path:
    """Where what the commands of a job say goes."""
    return out / "logs" / f"{job_id}.log"


def _failed(record: JobRecord, step: Step, code: int, out: Path, note: Note) -> str:
    reason = _reason(step, code, log_path(out, record.id))
    failure = Failure(
        step=step.name,
        reason=reason,
        exit_code=code,
        finished_at=now(),
        host=socket.gethostname(),
    )
    failures = (*record.failures, failure)
    is_final = len(failures) >= MOST_ATTEMPTS
    state = FAILED if is_final else OPEN
    write_record(out, replace(record, state=state, failures=failures, begun=None))
    note(f"{record.id}: attempt {len(failures)} of {MOST_ATTEMPTS} failed in {step.name}: {reason}")
    return state


def _reason(step: Step, code: int, log: Path) -> str:
    """The last line that a command said, or what killed it."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    said = [line for line in lines if line]
    return printable(said[-1]) if said else f"exit code {code}"


def _run(step: Step, out: Path, job_id: str, mine: Claim, deadline: float | None) -> int:
    """Start the command of a step and wait for it; the log takes what it prints.

    Raises:
        _Stopped: the time is over, or the claim was lost; the child has ended.
    """
    log = log_path(out, job_id)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        said.write(f"$ {step.shown}\n".encode())
        said.flush()
        return _wait(_start(step, said.fileno(), mine), mine, deadline)


def _start(step: Step, said: int, mine: Claim) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        step.argv(),
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        env=os.environ | {PARENT: str(os.getpid())},
        pass_fds=(mine.handle,),
        process_group=0,  # Ctrl-C reaches the sweep alone, which then ends its child
    )


def _wait(child: subprocess.Popen[bytes], mine: Claim, deadline: float | None) -> int:
    try:
        while True:
            left = BEAT_SECONDS
            if deadline is not None:
                left = min(left, max(0.0, deadline - time.monotonic()))
            try:
                return child.wait(timeout=left)
            except subprocess.TimeoutExpired:
                is_late = deadline is not None and time.monotonic() >= deadline
                if is_late or not mine.beat():
                    raise _Stopped from None
    finally:
        if child.poll() is None:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask a child to end, wait, and see to it; a signal in between ends it at once."""
    try:
        child.terminate()
        child.wait(timeout=PATIENCE_SECONDS)
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
