"""The folder of evidence: every line is on the disk before the next step begins."""

import json
import os
import shutil
import zipfile
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from profiling import evidence
from profiling.evidence import Evidence, Step, TrainedRun, read_evidence, record_files
from profiling.evidence_summary import summary
from zoo.checkpoint import METRICS, RECIPE, WEIGHTS, Checkpoint
from zoo.errors import ZooError
from zoo.files import atomic_file, read_json, write_atomic

MOST_BYTES = 15_000_000  # of a file; the folder may have to travel in files of 16 MiB
MOST_ARCHIVES = 2


class Store:
    """Appends to a folder, which an earlier call may have begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Make the folder, or mend what a killed call left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (*record_files(self.folder), self.folder / evidence.RUNS):
            _repair(path)
        (self.folder / evidence.RECORDS).touch()

    def read(self) -> Evidence:
        """All that is there."""
        if (self.folder / evidence.RECORDS).exists():
            return read_evidence(self.folder)
        return Evidence(folder=self.folder)

    def outcomes(self) -> dict[str, Step]:
        """The latest outcome of each step."""
        return {step.step: step for step in self.read().steps}

    def add(self, kind: str, value: Any) -> None:
        """Append one line to the records, in a file of its own where the last one is full."""
        files = record_files(self.folder)
        line = _line({"kind": kind}, value)
        path = files[-1]
        if path.exists() and path.stat().st_size + len(line) > MOST_BYTES:
            path = self.folder / evidence.MORE_RECORDS.format(len(files) + 1)
        _append(path, line)

    def add_run(self, step: str, run: Path, *, wall_s: float) -> None:
        """Append a run; its weights too, where they are small enough and there is room."""
        entry = "-".join(step.split()) + ".safetensors"
        archive = self._archive(run / WEIGHTS, entry)
        lines = (run / METRICS).read_text().splitlines()
        value = TrainedRun(
            step=step,
            meta=Checkpoint.open(run).meta,
            recipe=read_json(run / RECIPE),
            metrics=tuple(json.loads(line) for line in lines),
            weights=archive,
            entry=None if archive is None else entry,
            wall_s=wall_s,
        )
        _append(self.folder / evidence.RUNS, _line({}, value))

    def summarise(self) -> None:
        """Write what there is as one page."""
        write_atomic(self.folder / evidence.SUMMARY, summary(self.read()))

    def log(self, text: str) -> None:
        """Append to the log."""
        with (self.folder / evidence.LOG).open("a") as file:
            file.write(text.rstrip("\n") + "\n")

    def _archive(self, weights: Path, entry: str) -> str | None:
        """Put weights into the first archive with room, and name it."""
        size = weights.stat().st_size
        if size > evidence.MOST_WEIGHTS:
            return None
        for number in range(1, MOST_ARCHIVES + 1):
            path = self.folder / evidence.WEIGHTS.format(number)
            if not path.exists() or path.stat().st_size + size <= MOST_BYTES:
                with atomic_file(path) as part:
                    if path.exists():
                        shutil.copyfile(path, part)
                    else:
                        part.unlink()
                    with zipfile.ZipFile(part, "a") as archive:
                        if entry not in archive.namelist():
                            archive.write(weights, entry)
                return path.name
        return None


def begin_from(earlier: Path, folder: Path) -> None:
    """Copy the evidence of an earlier call to `folder`, unless that has some of its own.

    Raises:
        ZooError: there is no evidence in `earlier`.
    """
    if (folder / evidence.RECORDS).exists():
        return
    if not (earlier / evidence.RECORDS).is_file():
        raise ZooError(f"--continue-from {earlier} holds no {evidence.RECORDS}: leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(path.name for path in record_files(earlier)), evidence.RUNS, evidence.LOG]
    archives = [evidence.WEIGHTS.format(number + 1) for number in range(MOST_ARCHIVES)]
    for name in (*archives, *reversed(names)):  # what makes it evidence comes last
        if (earlier / name).is_file():
            shutil.copyfile(earlier / name, folder / name)


def _line(head: dict[str, Any], value: Any) -> bytes:
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    text = json.dumps({"schema": evidence.SCHEMA, **head, "value": plain}, allow_nan=False)
    return f"{text}\n".encode()


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _repair(path: Path) -> None:
    """Cut off what a killed writer left of a line."""
    if path.exists():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
