"""What a folder of evidence holds: lines of JSON, and weights in archives.

records.jsonl   what was done, with which outcome, and every measurement; where it has grown too
                large, it goes on in records-2.jsonl, records-3.jsonl...
runs.jsonl      the trainings: facts, recipe and metrics of each
weights-N.zip   weights of runs as .safetensors, none above MOST_WEIGHTS
summary.md      the same for people; log.txt: what was printed
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from profiling.record import Measurement
from profiling.roofline import Roof
from zoo.checkpoint import RunMeta
from zoo.environment import Environment
from zoo.errors import RecordError
from zoo.plain import from_plain

SCHEMA = 1
RECORDS, RUNS, WEIGHTS = "records.jsonl", "runs.jsonl", "weights-{}.zip"
MORE_RECORDS = "records-{}.jsonl"  # counted from 2
SUMMARY, LOG = "summary.md", "log.txt"
MOST_WEIGHTS = 4_000_000  # bytes of one file inside the archives
STEP, MACHINE, MEASUREMENT, TRAINING, ARTIFACT, ROOF = (
    *("step", "machine", "measurement", "training", "artifact", "roof"),
)
OK, FAILED, SKIPPED, CUT = "ok", "failed", "skipped", "cut"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The outcome of one step."""

    step: str  # its name, such as "study resnet_20 s0"
    part: str  # what it belongs to, such as "train"
    status: str  # OK, FAILED, SKIPPED (something optional is missing) or CUT (time was up)
    reason: str | None  # None where status is OK
    predicted_s: float
    seconds: float
    ended_at: str  # ISO 8601, UTC
    environment: str  # key of the machine
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.status not in (OK, FAILED, SKIPPED, CUT):
            raise ValueError(f"status is {self.status!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where steps were run, and by which code."""

    environment: Environment
    packages: Mapping[str, str]  # versions of what is installed
    missing: tuple[str, ...]  # optional packages that are not
    commit: str | None
    sources_sha256: str  # of the packages' Python files
    is_rehearsal: bool = False  # everything at toy size, to see that it runs


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """One complete training."""

    step: str
    meta: RunMeta
    recipe: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    weights: str | None  # the archive that holds them; None where they were left behind
    entry: str | None  # their name in it
    wall_s: float  # of the command: start, compilation and test images included


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that a folder holds."""

    folder: Path
    machines: tuple[Machine, ...] = ()
    steps: tuple[Step, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    training: tuple[Mapping[str, Any], ...] = ()  # lines of the benchmark of training loops
    artifacts: tuple[Mapping[str, Any], ...] = ()  # manifests of exported files
    runs: tuple[TrainedRun, ...] = ()
    roofs: tuple[Roof, ...] = ()

    def weights_of(self, run: TrainedRun) -> bytes | None:
        """The .safetensors file of a run as it was written; None where it was left behind.

        Raises:
            RecordError: the archive is missing or damaged, or the file is too large.
        """
        if run.weights is None or run.entry is None:
            return None
        path = self.folder / Path(run.weights).name
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo(run.entry).file_size > MOST_WEIGHTS:
                    raise RecordError(f"{path}: {run.entry} has more than {MOST_WEIGHTS:,} bytes")
                return archive.read(run.entry)
        except (KeyError, OSError, zipfile.BadZipFile) as reason:
            raise RecordError(
                f"{path} does not hold the weights of {run.step!r} ({reason}): copy it again"
            ) from None


def read_evidence(folder: Path) -> Evidence:
    """Read a folder; a last line that was cut short is left out.

    Raises:
        RecordError: the folder holds no evidence, or a line of it is damaged.
    """
    if not (folder / RECORDS).is_file():
        raise RecordError(
            f"{folder} holds no evidence: expected a {RECORDS}, as make gpu writes it"
        )
    found: dict[str, list[Any]] = {
        kind: [] for kind in (STEP, MACHINE, MEASUREMENT, TRAINING, ARTIFACT, ROOF)
    }
    kinds: dict[str, Any] = {
        STEP: Step,
        MACHINE: Machine,
        MEASUREMENT: Measurement,
        ROOF: Roof,
    }
    for place, line in chain.from_iterable(map(_lines, record_files(folder))):
        kind = line.get("kind")
        if kind not in found:
            raise RecordError(f"{place} is of kind {kind!r}, which is unknown: update cifar-zoo")
        found[kind].append(_built(kinds[kind], line.get("value"), place) if kind in kinds else line)
    runs = [_built(TrainedRun, line.get("value"), place) for place, line in _lines(folder / RUNS)]
    return Evidence(
        folder=folder,
        machines=tuple(found[MACHINE]),
        steps=tuple(found[STEP]),
        measurements=tuple(found[MEASUREMENT]),
        training=tuple(line["value"] for line in found[TRAINING]),
        artifacts=tuple(line["value"] for line in found[ARTIFACT]),
        runs=tuple(runs),
        roofs=tuple(found[ROOF]),
    )


def record_files(folder: Path) -> list[Path]:
    """The file of records and those in which it goes on, in order; the first may be missing."""
    files = [folder / RECORDS]
    while (following := folder / MORE_RECORDS.format(len(files) + 1)).is_file():
        files.append(following)
    return files


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each line stands, and what it holds."""
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, text in enumerate(lines[:-1], start=1):  # what follows the last one was cut short
        place = f"{path}, line {number},"
        try:
            line = json.loads(text)
            schema = line["schema"]
        except (KeyError, TypeError, ValueError) as reason:
            raise RecordError(f"{place} is damaged ({reason}): copy the folder again") from None
        if not isinstance(schema, int) or schema > SCHEMA:
            raise RecordError(
                f"{place} has schema {schema}, this version reads up to {SCHEMA}: update cifar-zoo"
            )
        if not isinstance(line.get("value"), dict):
            raise RecordError(f"{place} is damaged (it holds no value): copy the folder again")
        yield place, line


def _built(kind: type[Any], value: object, place: str) -> Any:
    try:
        return from_plain(kind, value)
    except (TypeError, ValueError) as reason:
        raise RecordError(f"{place} is damaged ({reason}): copy the folder again") from None
