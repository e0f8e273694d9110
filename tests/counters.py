"""Steps of a sweep that take a moment: they count, and go on where they were stopped."""

import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from training.sweep import Outcome, Planned, run_sweep, runs_folder
from training.sweep_jobs import Job, Work
from training.sweep_steps import CHILD, Step
from zoo import command

TO = 10
SECONDS = 0.02  # for each number

WORK = Work(
    is_bounded=False,
    max_macs=None,
    macs=100,
    batch_size=8,
    peak_lr=0.1,
    warmup_epochs=0.0,
    epochs=1,
    epoch_steps=None,
    steps=TO,
    training_macs=1000,
)


def count(seconds: float = SECONDS) -> int:
    """Add the numbers that are missing up to TO, or another bound, to a file."""
    file, bound = Path(sys.argv[1]), int(sys.argv[2])
    _add(file.with_suffix(".starts"), "start\n")
    done = len(numbers(file))
    for number in range(done, bound):
        _add(file, f"{number}\n")
        time.sleep(seconds)
    return 0


def stubborn() -> int:
    """Count to the end whatever happens to the sweep, for longer than a process takes to start."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return count(0.2)


def fail() -> int:
    """Fail as a command does."""
    _add(Path(sys.argv[1]).with_suffix(".starts"), "start\n")
    print("some progress\nzoo-train: the loss became infinite", file=sys.stderr)
    return 1


def fail_once() -> int:
    """Fail the first time only."""
    return fail() if starts(Path(sys.argv[1])) == 0 else count()


def killed() -> int:
    """End as a process that the system ran out of memory for."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def numbers(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def starts(file: Path) -> int:
    return len(numbers(file.with_suffix(".starts")))


def _add(file: Path, text: str) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, text.encode())
    os.close(handle)


def counting_file(out: Path, job: Job) -> Path:
    return runs_folder(out, job.id) / "numbers.txt"


def planned(out: Path, seed: int, *functions: str, bound: int = TO) -> Planned:
    """A job of a step for each function."""
    job = Job(model="counter", recipe="none", seed=seed, dataset="none")
    argv = (str(counting_file(out, job)), str(bound))
    steps = tuple(
        Step(
            name=f"step {number}",
            options=(),
            argv=lambda function=function: (*CHILD, f"counters:{function}", *argv),
            shown=function,
            macs=1000,
        )
        for number, function in enumerate(functions or ("count",))
    )
    return Planned(job=job, work=WORK, steps=steps)


def sweep(out: Path, jobs: Iterable[Planned]) -> Outcome:
    return run_sweep(list(jobs), out, on_note=lambda line: None)


if __name__ == "__main__":
    folder, chosen = Path(sys.argv[1]), [int(seed) for seed in sys.argv[2].split(",")]
    jobs = [planned(folder, seed, sys.argv[3]) for seed in chosen]
    raise SystemExit(command.run("zoo-sweep", lambda: 0 * len(sweep(folder, jobs).done)))
