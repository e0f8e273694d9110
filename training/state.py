"""What a resumed run needs: one file, whole or absent, loaded without running code."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from training.recipe import Recipe
from zoo.checkpoint import RECIPE, STATE
from zoo.errors import CheckpointError
from zoo.files import read_json, write_atomic

FILE = "last.pt"


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Replace the state of `run` by that of the epoch just done."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(run / STATE / FILE, buffer.getvalue())


def load_state(run: Path) -> dict[str, Any]:
    """The state of the last complete epoch, on the CPU.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = run / STATE / FILE
    if not file.is_file():
        raise CheckpointError(f"{run} cannot be resumed: {file} does not exist; train again")
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as reason:
        line = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
        raise CheckpointError(f"{file} is damaged ({line}): train again") from None
    return state


def stored_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run.

    Raises:
        CheckpointError: the folder is no run.
    """
    if not (run / RECIPE).is_file():
        raise CheckpointError(f"{run} cannot be resumed: it holds no {RECIPE}")
    return Recipe.from_json(read_json(run / RECIPE, CheckpointError))


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
