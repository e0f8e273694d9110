"""Which run to continue, and whether it is the one that the caller means."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.lock import is_under_way
from training.options import AUTO
from training.processes import Job
from training.recipe import Recipe
from training.start import Wanted, began_alike
from training.state import stored_recipe
from zoo.checkpoint import META, Checkpoint, RunMeta, all_runs
from zoo.data import Dataset
from zoo.errors import CheckpointError
from zoo.preprocess import STORED_SIZE
from zoo.text import counted


def run_to_continue(
    runs: Path,
    asked: str | None,
    *,
    model: str,
    seed: int,
    recipe: Recipe,
    data: Dataset,
    wanted: Wanted,
    job: Job,
    note: Callable[[str], None],
    teacher: str | None = None,
    passed_over: set[Path] | None = None,
) -> Path | None:
    """The run that this call goes on with; None begins a new one.

    A path is taken as it is. After a restart a job goes on with its own run. "auto" takes the run
    that was begun last among the incomplete ones of this model, seed, recipe, data set, teacher,
    image size and first weights that no other process is training. None of `passed_over` is looked
    at, to which those are added that are too damaged to tell what they are, with a `note`.
    """
    hopeless: set[Path] = set() if passed_over is None else passed_over
    if asked not in (None, AUTO):
        return Path(asked)
    if not job.may_have_run and asked is None:
        return None
    found: list[Checkpoint] = []
    for path in all_runs(runs):
        if path in hopeless:
            continue
        try:
            run = Checkpoint.open(path)
            meta = run.meta
            if (meta.model, meta.seed) != (model, seed) or meta.pretraining is not None:
                continue
            same_recipe = stored_recipe(path) == recipe
        except CheckpointError as reason:  # damaged, or of another version
            if asked == AUTO:
                note(f"{path} is passed over: {reason}")
                hopeless.add(path)
            continue
        size = wanted.image_size or (None if wanted.has_weights else STORED_SIZE)
        if (
            same_recipe
            and (meta.dataset.name, meta.dataset.digest) == (data.name, data.digest)
            and size in (None, meta.input_preprocessing.image_size)
            and meta.teacher == teacher
            and began_alike(meta, wanted)
        ):
            found.append(run)
    own = [run for run in found if job.may_have_run and run.meta.job == job.id]
    if own:
        newest = max(own, key=begun)
        if newest.meta.finished_at is None or job.restarts:
            return newest.path
    if asked is None:
        return None
    idle = [run for run in found if run.meta.finished_at is None and not is_under_way(run.path)]
    return max(idle, key=begun).path if idle else None


def require_same_recipe(run: Path, recipe: Recipe) -> None:
    """Check that a resume continues the recipe that the run began with.

    Raises:
        CheckpointError: a field differs; the message names each.
    """
    require_same_settings(run, stored_recipe(run).to_json(), recipe.to_json())


def require_same_settings(run: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """The same of the fields of a recipe."""
    differing = [
        f"{key} was {was}, is {given.get(key)}"
        for key, was in stored.items()
        if was != given.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{run} began with another recipe ({'; '.join(differing)}): "
            "resume without these options, or start a new run without --resume"
        )


def require_same_run(path: Path, stored: RunMeta, given: RunMeta) -> None:
    """Check that a resume continues the run that it names.

    Raises:
        CheckpointError: it is complete, or began with another model, seed, data set or image size.
    """
    pairs: dict[str, tuple[Any, Any]] = {
        "model": (stored.model, given.model),
        "seed": (stored.seed, given.seed),
        "data set": (stored.dataset.name, given.dataset.name),
        "data set digest": (stored.dataset.digest[:12], given.dataset.digest[:12]),
        "image size": (
            stored.input_preprocessing.image_size,
            given.input_preprocessing.image_size,
        ),
    }
    for what, (was, now) in pairs.items():
        if was != now:
            raise CheckpointError(
                f"{path} began with {what} {was}, got {now}: resume without this option, "
                "or start a new run without --resume"
            )
    require_unfinished(path, stored)


def require_unfinished(path: Path, stored: RunMeta) -> None:
    """Check that something of a run is left to be done.

    Raises:
        CheckpointError: it is complete.
    """
    if stored.finished_at is not None:
        raise CheckpointError(
            f"{path} is complete ({counted(stored.epochs_done, 'epoch')}, see its {META}): "
            "start a new run without --resume"
        )


def begun(run: Checkpoint) -> tuple[str, str]:
    """By which of several runs the one that was begun last is the largest."""
    return run.meta.started_at, run.path.name
