"""A run of each network that is measured: one that is kept, or a brief training of its own."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from training.recipes import QUICK_ADAMW
from training.sweep_jobs import Job, work_of
from training.sweep_steps import train_arguments
from zoo.checkpoint import META, Checkpoint, RunMeta, folder_name
from zoo.errors import MachineError

from .say import say

SEED = 0
WORK = 1e13  # multiply-accumulates of a training
EPOCHS = 2
# Images, with repetition; AdamW below. With SGD res2net_50 learnt nothing from 5,000; from 90,000
# ghost_resnet_20 learnt more with SGD (27% top-1) than with AdamW (11%).
FEW = 20_000
OPTIMISER = ("optimizer", "peak_lr", "nesterov", "weight_decay")  # of the recipe for AdamW


def trained(name: str, kept: Path, runs: Path, *, dataset: str, max_macs: float) -> Checkpoint:
    """The run with seed 0 in `kept`; without one, that in `runs`, which is trained where it lacks.

    That takes EPOCHS epochs or `max_macs` multiply-accumulates (three forward passes an image),
    whatever is less.

    Raises:
        ZooError: a run is damaged, or the training failed.
    """
    folder = folder_name(name, SEED)
    if (kept / folder / META).is_file():
        return Checkpoint.open(kept / folder)
    _train(name, runs, dataset=dataset, max_macs=max_macs)
    return Checkpoint.open(runs / folder)


def trained_images(meta: RunMeta) -> int:
    """How many passed through a training, with repetition."""
    batch = int(meta.recipe["batch_size"])
    steps = meta.dataset.train_images // batch
    return meta.epochs_done * min(meta.recipe.get("epoch_steps") or steps, steps) * batch


def _train(name: str, runs: Path, *, dataset: str, max_macs: float) -> None:
    """Or go on with a training that was begun; what has ended is left as it is."""
    begun = runs / folder_name(name, SEED)
    if (begun / META).is_file() and Checkpoint.open(begun).meta.finished_at is not None:
        return
    job = Job(
        model=name,
        recipe="quick",
        seed=SEED,
        dataset=dataset,
        settings={"full_train": "false"},
        epochs=EPOCHS,
        max_macs=max_macs,
    )
    work = work_of(job)
    if work.steps is not None and work.steps * work.batch_size < FEW:
        adamw = {name: str(getattr(QUICK_ADAMW, name)).lower() for name in OPTIMISER}
        job = replace(job, settings=job.settings | adamw)
        work = work_of(job)
    argv = ("zoo-train", *train_arguments(job, work, runs))
    say(" ".join(argv))
    code = subprocess.run((Path(sys.executable).with_name(argv[0]), *argv[1:])).returncode
    if code:
        raise MachineError(f"{name} was not trained: zoo-train ended with {code}")
