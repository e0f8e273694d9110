"""Which steps there are, in order of what they tell for their time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from profiling.evidence import CUT, FAILED, Step

from . import measurements as measure
from . import rehearsal
from .runner import clock_text
from .speeds import GUESSES, Speeds
from .task import Task
from .trainings import STRONG, TRAIN, trainings

PARTS = (
    *(measure.TESTS, measure.CEILINGS, TRAIN, measure.EXPORT, measure.INFER, measure.LOOPS),
    STRONG,
)
FLAGSHIPS = ("resnet_20", "improved_resnet20_convnext")  # for which goals are stated
MEASURED = (*FLAGSHIPS, "resnet_56", "coatnet_cifar_opt", "convnext_tiny", "vit_tiny")
STRONG_MODELS = ("improved_resnet20_convnext", "resnet_20", "resnet_56")
MORE_TIME = 1.5  # times what a step had when it was cut short
STRONG_SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What was asked for."""

    parts: tuple[str, ...] | None  # in this order; None: all, what tells most for its time first
    models: tuple[str, ...] | None  # None: those that a part is about
    seeds: tuple[int, ...] | None
    epochs: int | None
    is_full: bool  # train on all training images
    toy: str | None  # the data set of a rehearsal
    device: str


def make_plan(wanted: Wanted, speeds: Speeds) -> list[Task]:
    """All steps asked for; by default the flagships go through all parts before others do."""
    if wanted.parts is not None:
        rounds = [(part, wanted.models) for part in wanted.parts]
    elif wanted.models is not None or wanted.toy is not None:
        rounds = [(part, wanted.models) for part in PARTS]
    else:
        first = [(part, FLAGSHIPS) for part in PARTS if part != STRONG]
        rounds = first + [(part, None) for part in PARTS]
    tasks: dict[str, Task] = {}
    for part, models in rounds:
        for task in _tasks(part, models, wanted, speeds):
            tasks.setdefault(task.name, task)
    return list(tasks.values())


def still_to_do(tasks: Iterable[Task], done: dict[str, Step], *, retry: str | None) -> list[Task]:
    """Those without an outcome; what was cut short is tried again.

    What failed is tried again only where it did so before the time `retry`, as steps store it.
    What cannot go on where it was cut short is given more time than it had.
    """
    left = []
    for task in tasks:
        before = done.get(task.name)
        if before is None:
            left.append(task)
        elif before.status == CUT or (
            before.status == FAILED and retry is not None and before.ended_at < retry
        ):
            least_s = 0.0 if task.can_resume else MORE_TIME * before.seconds
            left.append(replace(task, predicted_s=max(task.predicted_s, least_s)))
    return left


def describe(tasks: Sequence[Task], left_s: float) -> str:
    """The plan for people: what fits, one after the other."""
    lines = []
    for task in tasks:
        fits = task.predicted_s <= left_s
        left_s -= task.predicted_s if fits else 0.0
        lines.append(f"  {clock_text(task.predicted_s):>8}  {'' if fits else 'later: '}{task.name}")
    total = sum(task.predicted_s for task in tasks)
    return "\n".join([*lines, f"  {clock_text(total):>8}  predicted in all"])


def _tasks(
    part: str, models: tuple[str, ...] | None, wanted: Wanted, speeds: Speeds
) -> Iterator[Task]:
    is_toy = wanted.toy is not None
    size = measure.TOY if is_toy else measure.FULL
    measured = models or (rehearsal.MODELS if is_toy else MEASURED)
    match part:
        case measure.TESTS:
            yield measure.tests(size)
        case measure.CEILINGS:
            yield measure.ceilings()
        case measure.LOOPS:
            yield from (measure.loops(model, size) for model in measured)
        case measure.EXPORT:
            for model in measured:
                for target, precisions, any_of in size.formats:
                    yield measure.export(model, target, precisions, any_of)
        case measure.INFER:
            yield from (measure.infer(model, size) for model in measured)
        case _:
            yield from _trainings(part, models, wanted, speeds)


def _trainings(
    part: str, models: tuple[str, ...] | None, wanted: Wanted, speeds: Speeds
) -> Iterator[Task]:
    how: dict[str, Any] = {"dataset": "cifar100", "compile": True, "epochs": wanted.epochs}
    all_models, seeds = (tuple(GUESSES), (0,)) if part == TRAIN else (STRONG_MODELS, STRONG_SEEDS)
    if wanted.toy is not None:
        all_models, seeds = rehearsal.MODELS, (0,)
        how = {"dataset": wanted.toy, "compile": False, "batch_size": rehearsal.BATCH}
        how |= {"epochs": wanted.epochs or rehearsal.EPOCHS}
    chosen = models or all_models
    if part == TRAIN:  # the quickest network first
        chosen = tuple(sorted(chosen, key=speeds.images_per_s, reverse=True))
    recipe = "study" if part == TRAIN else "strong"
    seeds = wanted.seeds or seeds
    for training in trainings(chosen, recipe, seeds, is_full=wanted.is_full, **how):
        yield training.task(speeds, part)
