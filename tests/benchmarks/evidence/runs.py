"""Where a complete run of a network is: of this call, of an earlier one, or of the checkout."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from profiling.evidence import TrainedRun
from zoo.checkpoint import META, METRICS, RECIPE, WEIGHTS, Checkpoint
from zoo.files import write_atomic, write_json

from .place import ROOT, Place

COMMITTED = ROOT / "bench_results" / "runs"


def find_run(place: Place, model: str) -> Path | None:
    """The run with the most epochs, the last trained of several.

    One whose folder is gone is made again from the evidence, if its weights are there.
    """
    found = [run for run in _complete(place.work / "runs") if run.meta.model == model]
    if not found:
        found = [run for run in _restored(place) if run.meta.model == model]
    if not found and not place.is_rehearsal:
        found = [run for run in _copied(place) if run.meta.model == model]
    best = max(found, key=lambda run: (run.meta.epochs_done, run.meta.started_at), default=None)
    return None if best is None else best.path


def _complete(folder: Path) -> Iterator[Checkpoint]:
    for file in sorted(folder.glob(f"*/*/{META}")):
        run = Checkpoint.open(file.parent)
        if run.meta.finished_at is not None and (run.path / WEIGHTS).is_file():
            yield run


def _restored(place: Place) -> Iterator[Checkpoint]:
    evidence = place.store.read()
    for run in evidence.runs:
        weights = evidence.weights_of(run)
        if weights is not None:
            yield restore(run, weights, place.work / "restored" / "-".join(run.step.split()))


def _copied(place: Place) -> Iterator[Checkpoint]:
    """The runs of the checkout, where exported files may be put beside their weights."""
    for run in _complete(COMMITTED.parent):
        copy = place.work / "committed" / run.path.name
        if not (copy / META).is_file():
            shutil.copytree(run.path, copy, dirs_exist_ok=True)
        yield Checkpoint.open(copy)


def restore(run: TrainedRun, weights: bytes, folder: Path) -> Checkpoint:
    """Write the folder of a run; what makes it one comes last."""
    if not (folder / META).is_file():
        write_atomic(folder / WEIGHTS, weights)
        write_json(folder / RECIPE, dict(run.recipe))
        write_atomic(folder / METRICS, "".join(json.dumps(line) + "\n" for line in run.metrics))
        write_json(folder / META, asdict(run.meta))
    return Checkpoint.open(folder)
