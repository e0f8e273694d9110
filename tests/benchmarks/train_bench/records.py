"""Raw records as JSON lines: one for each thing that was done, written as soon as it was done."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import RecordError

RECORDS = "records.jsonl"
START, COPY, PREPARED, ROUND, END, FAILED = "start", "copy", "prepared", "round", "end", "failed"


class Writer:
    """Appends the records of one model, which share the name of a run."""

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.run = folder / RECORDS, run

    def append(self, kind: str, **facts: Any) -> None:
        """Write one line that is on the disk when this returns."""
        line = json.dumps({"run": self.run, "kind": kind, **facts}, allow_nan=False)
        with self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass
class Lane:
    """What is known of one contender in one run."""

    name: str
    prepared: dict[str, Any] | None = None
    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    reason: str | None = None  # why it has no result


@dataclass
class Run:
    """One model, with everyone who trained it."""

    start: dict[str, Any]
    copies: list[float] = field(default_factory=list)  # bytes a second
    lanes: dict[str, Lane] = field(default_factory=dict)


def read(path: Path) -> list[Run]:
    """The runs of a file, oldest first; a last line that was cut short is left out.

    Raises:
        RecordError: a line is no record.
    """
    lines = path.read_text().split("\n")
    if lines[-1]:  # an end in the middle of a write
        lines = lines[:-1]
    try:
        return _runs(json.loads(line) for line in lines if line)
    except (KeyError, ValueError) as reason:
        raise RecordError(f"{path} holds a line that is no record: {reason}") from None


def _runs(records: Iterable[dict[str, Any]]) -> list[Run]:
    runs: dict[str, Run] = {}
    for record in records:
        name, kind = record["run"], record["kind"]
        if kind == START:
            runs[name] = Run(record)
            continue
        run = runs[name]
        if kind == COPY:
            run.copies += record["bytes_per_s"]
            continue
        lane = run.lanes.setdefault(record["contender"], Lane(record["contender"]))
        if kind == PREPARED:
            lane.prepared = record
        elif kind == ROUND:
            lane.rounds[record["round"]] = record
        elif kind == END:
            lane.end = record
        elif kind == FAILED:
            lane.reason = record["reason"]
        else:
            raise ValueError(f"kind {kind!r}")
    return list(runs.values())
