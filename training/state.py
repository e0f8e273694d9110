"""What a resumed run needs: one file, whole or absent, loaded without running code."""

import io
from dataclasses import asdict
from pathlib import Path

import torch

from training.loop import EpochMetrics, Trainer
from training.recipe import Recipe
from zoo.checkpoint import RECIPE, STATE
from zoo.errors import CheckpointError, ZooError, first_line
from zoo.files import read_json, write_atomic
from zoo.plain import from_plain

FILE = "last.pt"


def save_state(run: Path, trainer: Trainer, metrics: list[EpochMetrics]) -> None:
    """Replace the state of `run` by that of the epoch just done."""
    buffer = io.BytesIO()
    lines = [asdict(line) for line in metrics]
    torch.save({"trainer": trainer.state(), "metrics": lines}, buffer)
    write_atomic(run / STATE / FILE, buffer.getvalue())


def load_state(run: Path, trainer: Trainer) -> list[EpochMetrics]:
    """Put `trainer` where the last complete epoch left it; return the metrics up to there.

    Raises:
        CheckpointError: there is no state, or it is damaged.
    """
    file = run / STATE / FILE
    if not file.is_file():
        raise CheckpointError(f"{run} cannot be resumed: {file} does not exist; train again")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        metrics = [from_plain(EpochMetrics, line) for line in state["metrics"]]
        if [line.epoch for line in metrics] != list(range(1, len(metrics) + 1)) or not metrics:
            raise ValueError("its epochs are not 1, 2, 3...")
        trainer.load_state(state["trainer"])
    except Exception as reason:  # whatever a damaged file makes torch raise
        raise CheckpointError(f"{file} is damaged ({first_line(reason)}): train again") from None
    return metrics


def stored_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run.

    Raises:
        CheckpointError: the folder is no run, or its recipe is damaged.
    """
    if not (run / RECIPE).is_file():
        raise CheckpointError(f"{run} cannot be resumed: it holds no {RECIPE}")
    try:
        return Recipe.from_json(read_json(run / RECIPE, CheckpointError))
    except CheckpointError:
        raise
    except ZooError as reason:
        raise CheckpointError(f"{run / RECIPE}: {reason}; train again") from None


def require_same_recipe(run: Path, recipe: Recipe) -> None:
    """Check that a resume continues the recipe that the run began with.

    Raises:
        CheckpointError: a field differs; the message names each.
    """
    stored, given = stored_recipe(run).to_json(), recipe.to_json()
    differing = [
        f"{key} was {stored[key]}, is {given[key]}" for key in stored if stored[key] != given[key]
    ]
    if differing:
        raise CheckpointError(
            f"{run} began with another recipe ({'; '.join(differing)}): "
            "resume without these options, or start a new run without --resume"
        )
