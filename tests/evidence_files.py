"""Runs, steps and clones for what make gpu writes and zoo-report --import reads."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.evidence.place import Place
from benchmarks.evidence.runner import RESERVE_S, Clock, Runner
from benchmarks.evidence.store import Store
from benchmarks.evidence.task import Harvest, Task
from sample_run import sample_run

from profiling.evidence import Step
from zoo.checkpoint import META, METRICS, RECIPE
from zoo.data import Dataset
from zoo.files import read_json, write_json

METRIC = {
    "epoch": 1,
    "train_loss": 4.6,
    "train_top1": 0.01,
    "val_top1": None,
    "learning_rate": 0.1,
    "train_seconds": 1.0,
    "evaluation_seconds": 0.1,
    "images_per_s": 100.0,
}


def a_run(
    folder: Path, data: Dataset, *, model: str = "ghost_resnet_20", seed: int = 0, **facts: object
) -> Path:
    """A complete run; `facts` replace those of its meta.json."""
    sample_run(folder, data, model=model, seed=seed)
    write_json(folder / META, read_json(folder / META) | facts)
    write_json(folder / RECIPE, {"epochs": 0})
    (folder / METRICS).write_text(json.dumps(METRIC) + "\n")
    return folder


def clone(folder: Path) -> Path:
    """What makes a folder a clone of cifar-zoo in the eyes of an import."""
    (folder / "zoo" / "weights").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "cifar-zoo"\n')
    return folder


def a_place(folder: Path) -> Place:
    """A place for steps, without TensorRT."""
    begun = Store(folder / "evidence")
    begun.open()
    work = folder / "work"
    work.mkdir()
    return Place(
        store=begun,
        work=work,
        device="cpu",
        environment="0" * 12,
        missing=frozenset({"tensorrt", "tensorrt_bindings"}),
        data=None,
        is_rehearsal=True,
    )


def speaking(name: str, code: str, **others: object) -> Task:
    """A step that runs Python code and stores the last line that it prints."""
    task = Task(
        name=name,
        part="train",
        predicted_s=1.0,
        command=lambda place: [sys.executable, "-c", code],
        harvest=lambda place, printed: Harvest(facts={"said": printed[-1] if printed else None}),
    )
    return replace(task, **others)


def run(place: Place, *tasks: Task, seconds: float = 30.0, **others: object) -> dict[str, Step]:
    """Run tasks in a call that lasts so long; return the outcomes."""
    options = {"jobs": 1, "overlap": False, "tell": lambda text: None, "later_s": 0.0} | others
    clock = Clock(ends=time.monotonic() + RESERVE_S + seconds, later_s=options.pop("later_s"))
    Runner(place, clock, **options).run(tasks)
    return place.store.outcomes()
