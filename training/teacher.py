"""Another run, from whose answers a network learns."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from training.recipe import Recipe
from zoo.checkpoint import Checkpoint, RunMeta
from zoo.data import Dataset
from zoo.errors import CheckpointError, ZooError
from zoo.own import is_own
from zoo.preprocess import Preprocessing


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A network in eval mode, and which one it is."""

    network: nn.Module
    run: Path
    name: str  # as in `RunMeta`
    preprocessing: Preprocessing


def open_teacher(run: Path | str, data: Dataset, *, student: str) -> Teacher:
    """Open the network of `run`, which is to teach `student` about the images of `data`.

    Raises:
        CheckpointError: `run` is none, its weights are damaged, or it saw other images or classes.
    """
    stored = check_teacher(run, student=student)
    theirs = stored.meta.dataset
    if theirs.digest != data.digest:
        raise CheckpointError(
            f"the teacher in {run} learned from {theirs.name} (digest {theirs.digest[:12]}), this "
            f"run learns from {data.name} ({data.digest[:12]}): pass a --teacher of the same data"
        )
    if theirs.class_names != data.class_names:
        raise CheckpointError(
            f"the teacher in {run} names its {len(theirs.class_names)} classes otherwise than "
            f"{data.name} its {data.num_classes}: pass a --teacher of the same data"
        )
    return Teacher(
        network=stored.model(allow=student if is_own(stored.meta.model) else None),
        run=stored.path,
        name=teacher_name(stored.meta),
        preprocessing=stored.meta.input_preprocessing,
    )


def check_teacher(run: Path | str, *, student: str) -> Checkpoint:
    """What can be said of a teacher without the data.

    Raises:
        CheckpointError: `run` is no run, holds no weights or no classifier, or a network of
            somebody's own that is not `student`, whose name is consent to import it.
    """
    stored = Checkpoint.open(run)
    meta = stored.meta
    stored.require_classifier()
    if meta.epoch == 0:
        raise CheckpointError(f"{run} cannot teach: no epoch of it was completed")
    if is_own(meta.model) and meta.model != student:
        raise CheckpointError(
            f"{run} holds {meta.model}, a network of somebody's own, and opening it imports that "
            f"module: it teaches no other network than {meta.model}"
        )
    return stored


def teacher_name(meta: RunMeta) -> str:
    """Model and weights of a teacher, as a run that it teaches stores them."""
    return f"{meta.model} sha256:{meta.weights_sha256}"


def require_teacher(recipe: Recipe, teacher: Teacher | None, stored: RunMeta | None) -> None:
    """Check that a recipe that needs a teacher has one, a resumed run the one that it had.

    Raises:
        ZooError: there is none, or the recipe leaves it no share of the loss.
        CheckpointError: the run to be resumed, of which `stored` tells, had another or none.
    """
    given = None if teacher is None else teacher.name
    if stored is not None and stored.teacher != given:
        if stored.teacher is None:
            raise CheckpointError(
                "this run began without a teacher: resume without --teacher, or start a new run "
                "without --resume"
            )
        raise CheckpointError(
            f"this run learns from {_short(stored.teacher)}, "
            f"{'got ' + _short(given) if given else 'and none is given'}: pass --teacher with the "
            "run that holds it"
        )
    if teacher is None and recipe.distillation:
        raise ZooError(
            f"recipe {recipe.name!r} takes {recipe.distillation:g} of the loss from a teacher, and "
            "none is given: pass --teacher RUN, or --set distillation=0"
        )
    if teacher is not None and not recipe.distillation:
        raise ZooError(
            f"with distillation=0 the teacher in {teacher.run} has no share of the loss: leave "
            "--teacher out, or pass --set distillation=0.9"
        )


def require_same_images(teacher: Teacher, fed: Preprocessing) -> None:
    """Check that teacher and student are fed with the same images.

    Raises:
        CheckpointError: the sizes differ, or how pixels are normalised or resized.
    """
    theirs, where = teacher.preprocessing, f"the teacher in {teacher.run}"
    if theirs.image_size != fed.image_size:
        raise CheckpointError(
            f"{where} takes images of {theirs.image_size} pixels, this run feeds {fed.image_size}: "
            f"pass --image-size {theirs.image_size}"
        )
    for what in ("mean", "std", "interpolation", "crop_pct"):
        was, now = getattr(theirs, what), getattr(fed, what)
        if was != now:
            raise CheckpointError(
                f"{where} takes images with {what} {_figures(was)}, this run feeds "
                f"{_figures(now)}: pass a --teacher that was fed like it"
            )


def _short(name: str) -> str:
    """The name of a teacher with the first digits of its digest."""
    model, _, digest = name.partition(" sha256:")
    return f"{model} (weights {digest[:12]})"


def _figures(value: object) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
