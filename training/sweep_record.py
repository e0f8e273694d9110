"""What is known of a job: one JSON file, written whole after each of its steps."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.sweep_jobs import Job, Work
from training.sweep_steps import META, Step, run_of
from zoo.environment import Environment
from zoo.errors import MachineError, ZooError
from zoo.files import read_json, write_json
from zoo.plain import from_plain

SCHEMA = 1
OPEN, DONE, FAILED = "open", "done", "failed"
MOST_ATTEMPTS = 3  # the first, and two more


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """A step that came to its end."""

    name: str
    options: tuple[str, ...]
    command: str
    finished_at: str  # ISO 8601, UTC
    host: str
    seconds: float | None  # None: it was interrupted once, or ended when nobody watched
    macs: int | None  # of its work, nearly


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An attempt that ended badly."""

    step: str
    reason: str
    exit_code: int  # below 0: the signal that killed it
    finished_at: str
    host: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """The steps of a job and their outcome; `state` is of the last call of zoo-sweep."""

    id: str
    state: str  # OPEN, DONE or FAILED
    job: Job
    work: Work
    steps: tuple[StepDone, ...] = ()
    failures: tuple[Failure, ...] = ()
    run: str | None = None  # its folder, from that of the sweep
    environment_key: str | None = None  # under which it trained
    test_top1: float | None = None  # of the training, in [0, 1]
    test_top5: float | None = None
    train_seconds: float | None = None
    begun: str | None = None  # the step under way, so that its time is known to be divided
    schema: int = field(default=SCHEMA)

    def has(self, step: Step) -> bool:
        """Whether a step is done, and with the same options."""
        return any((one.name, one.options) == (step.name, step.options) for one in self.steps)

    def is_complete(self, steps: Sequence[Step]) -> bool:
        """Whether all of `steps` are done."""
        return all(self.has(step) for step in steps)

    def with_step(self, done: StepDone) -> "JobRecord":
        """The same with one step more; an older one of its name goes, and its failures."""
        kept = [one for one in self.steps if one.name != done.name]
        failures = tuple(one for one in self.failures if one.step != done.name)
        return replace(self, steps=(*kept, done), failures=failures, begun=None)


def record_path(out: Path, job_id: str) -> Path:
    """Where the record of a job lies."""
    return out / "jobs" / f"{job_id}.json"


def read_record(path: Path) -> JobRecord | None:
    """The record of a job; None where it was never begun.

    Raises:
        MachineError: it is damaged or of a later version.
    """
    if not path.exists():
        return None
    value = read_json(path, MachineError)
    try:
        if value["schema"] > SCHEMA:
            raise MachineError(
                f"{path} has schema {value['schema']}, this version reads up to {SCHEMA}: "
                "update cifar-zoo"
            )
        return from_plain(JobRecord, value)
    except (KeyError, TypeError, ValueError) as reason:
        raise MachineError(
            f"{path} is no record of a job ({reason}): remove it to begin the job again"
        ) from None


def read_job_records(out: Path) -> list[JobRecord]:
    """Every record of a sweep, by name."""
    paths = sorted((out / "jobs").glob("*.json"))
    return [record for record in map(read_record, paths) if record is not None]


def write_record(out: Path, record: JobRecord) -> None:
    """Write it whole or leave what was there."""
    write_json(record_path(out, record.id), asdict(record))


def with_run(record: JobRecord, folder: Path, out: Path) -> JobRecord:
    """The same with what its run says, once that is complete."""
    run = run_of(folder)
    if run is None:
        return record
    meta: dict[str, Any] = read_json(run / META, MachineError)
    try:
        key = Environment.from_json(meta["environment"]).key
    except (KeyError, TypeError) as reason:
        raise ZooError(f"{run / META} is not the meta.json of a run ({reason})") from None
    return replace(
        record,
        run=run.relative_to(out).as_posix(),
        environment_key=key,
        test_top1=meta.get("test_top1"),
        test_top5=meta.get("test_top5"),
        train_seconds=meta.get("train_seconds"),
    )


def now() -> str:
    """The time as records store it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
