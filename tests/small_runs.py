"""Whole runs of a second: a tiny network, four images of each class, two epochs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from training import Recipe, Runtime, named_recipe
from training.loop import Progress
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, Split, load_dataset

TINY = "tiny_network:tiny"
FOLDER = "tiny_network-tiny-s0"
CPU = Runtime(device="cpu")
EAGER_TO_SAVE = replace(CPU, save_seconds=0.0)
SHORT: Recipe = replace(named_recipe("smoke"), batch_size=50)
TIMES = ("train_seconds", "evaluation_seconds", "images_per_s")


@cache
def few_of_each() -> Dataset:
    """400 training and 100 test images of the shipped subset."""
    data = load_dataset("cifar100-mini")
    return replace(data, train=_part(data.train, 4), test=_part(data.test, 1), digest="few")


def _part(split: Split, per_class: int) -> Split:
    rows = np.concatenate([np.flatnonzero(split.fine == k)[:per_class] for k in range(100)])
    coarse = None if split.coarse is None else split.coarse[rows]
    return Split(images=split.images[rows], fine=split.fine[rows], coarse=coarse)


def lines(run: Checkpoint) -> list[dict[str, Any]]:
    """metrics.jsonl without its times."""
    text = (run.path / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [{key: line[key] for key in line if key not in TIMES} for line in found]


def outcome(run: Checkpoint) -> dict[str, Any]:
    """What two runs share that are the same run: weights, metrics, choice, accuracy."""
    meta = asdict(run.meta)
    facts = ("weights_sha256", "epoch", "epochs_done", "val_top1", "test_top1", "test_top5")
    return {"metrics": lines(run)} | {fact: meta[fact] for fact in facts}


@contextmanager
def trained_elsewhere(run: Path) -> Iterator[None]:
    """Another process holds the lock of a run, and is killed in the end."""
    program = f"""
import sys
from pathlib import Path
from training.lock import Lock
lock = Lock(Path({str(run)!r}))
lock.take()
print("taken", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        (sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"taken\n"
            yield
        finally:
            other.kill()


class Signal:
    """Sends this process a signal at the end of an epoch, or before the first step."""

    def __init__(self, epoch: int, number: signal.Signals = signal.SIGINT) -> None:
        self.epoch, self.number = epoch, number

    def __call__(self, progress: Progress) -> None:
        if progress.epoch == self.epoch and (progress.metrics or not self.epoch):
            os.kill(os.getpid(), self.number)
