"""The files that zoo-sweep and its runs leave, as far as a study needs them; every type checked."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from profiling.study.data import Epoch
from zoo.environment import Environment
from zoo.errors import RecordError
from zoo.files import read_json
from zoo.plain import from_plain

PLANS, JOBS, RUNS = "plans", "jobs", "runs"  # folders of a sweep
PRETRAINING = "pretraining"  # in the folder of a job: its run before the run
META, METRICS = "meta.json", "metrics.jsonl"
SCHEMA = 1  # of plans and of jobs
DONE, FAILED = "done", "failed"  # states of a job
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedArm:
    """A label and the ids of its jobs."""

    label: str
    jobs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Jobs that are held against each other."""

    name: str
    question: str | None
    baseline: str | None
    arms: tuple[PlannedArm, ...]

    @property
    def members(self) -> frozenset[tuple[str, str]]:
        """Every job under its label."""
        return frozenset((arm.label, job) for arm in self.arms for job in arm.jobs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a job trains."""

    model: str
    recipe: str
    seed: int
    dataset: str
    settings: Mapping[str, str] = field(default_factory=dict)
    image_size: int | None = None
    pretrained: bool = False
    pretraining: str | None = None
    epochs: int | None = None  # None: the recipe's
    max_macs: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What its training takes."""

    is_bounded: bool
    max_macs: float | None = None  # that were allowed
    macs: int
    batch_size: int
    epochs: int
    steps: int | None
    training_macs: int | None
    pretraining_macs: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A job of a plan."""

    id: str
    job: Job
    work: Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A list of jobs and what belongs together."""

    schema: int
    name: str
    groups: tuple[Group, ...]
    jobs: tuple[Planned, ...]

    def __post_init__(self) -> None:
        known = {one.id for one in self.jobs}
        for group in self.groups:
            if missing := {job for _, job in group.members} - known:
                raise ValueError(f"{group.name} has a job {min(missing)} that is not in the plan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An attempt that ended badly."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """How far a job has come."""

    schema: int
    state: str
    failures: tuple[Failure, ...] = ()
    test_top1: float | None = None
    test_top5: float | None = None
    train_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The data set of a run."""

    name: str
    digest: str
    test_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMeta:
    """The facts of a run."""

    weights_sha256: str
    dataset: Images
    test_top1: float | None
    test_top5: float | None
    train_seconds: float
    processes: int
    environment: Environment
    finished_at: str | None


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        RecordError: it is damaged or of a later version.
    """
    return _read(Plan, path, "plan of a sweep")


def read_job(path: Path) -> JobRecord | None:
    """The record of a job; None where it was never begun.

    Raises:
        RecordError: it is damaged or of a later version.
    """
    return _read(JobRecord, path, "record of a job") if path.exists() else None


def complete_run(folder: Path) -> tuple[Path, RunMeta] | None:
    """The run in a job's folder with its facts; None where there is no complete one.

    Raises:
        RecordError: its meta.json is damaged.
    """
    for path in sorted(folder.glob(f"*/{META}")):
        meta = _read(RunMeta, path, "meta.json of a run")
        if meta.finished_at is not None:
            return path.parent, meta
    return None


def read_curve(run: Path) -> tuple[Epoch, ...]:
    """The epochs of a run; none where they were not kept.

    Raises:
        RecordError: the file is damaged.
    """
    path = run / METRICS
    return tuple(_epochs(path)) if path.exists() else ()


def _epochs(path: Path) -> Iterator[Epoch]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            yield from_plain(Epoch, json.loads(line))
        except (TypeError, ValueError) as reason:
            raise RecordError(f"{path} is damaged in line {number} ({reason})") from None


def _read(kind: type[T], path: Path, what: str) -> T:
    value = read_json(path, RecordError)
    try:
        if kind in (Plan, JobRecord) and value["schema"] > SCHEMA:
            raise RecordError(
                f"{path} has schema {value['schema']}, this version reads up to {SCHEMA}: "
                "update cifar-zoo"
            )
        return from_plain(kind, value)
    except (KeyError, TypeError, ValueError) as reason:
        raise RecordError(f"{path} is no {what} ({reason}): is it damaged?") from None
