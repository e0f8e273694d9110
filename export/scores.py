"""Accuracy in detail: of every class, and of the superclasses where a data set has them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zoo.data import Dataset
from zoo.errors import MachineError
from zoo.evaluate import accuracy, guesses, predict
from zoo.preprocess import Preprocessing
from zoo.session import InferenceSession

WIDTH = 80  # columns of the printed table
LONGEST_NAME = 40  # of a class in the table; JSON has the whole name
GAP = "   "  # between the columns of classes


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """The test images of one class."""

    name: str
    images: int
    top1: float | None  # share recognised, in [0, 1]; None where the split has no image of it


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperclassScore:
    """The test images of all classes of one superclass."""

    name: str
    images: int
    class_right: float | None  # share whose very class was the first guess
    superclass_right: float | None  # share whose first guess lies in the superclass at least


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What one session answers on the test split of one data set."""

    subject: str  # the run or artifact, as the user named it
    model: str
    backend: str
    precision: str
    runtime: str
    device: str
    dataset: str
    dataset_sha256: str
    images: int
    top1: float
    top5: float
    superclass_top1: float | None  # share of first guesses in the right superclass
    classes: tuple[ClassScore, ...]
    superclasses: tuple[SuperclassScore, ...]  # empty where the data set has none

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def evaluate_scores(
    session: InferenceSession,
    data: Dataset,
    *,
    model: str,
    subject: str,
    preprocessing: Preprocessing,
    batch: int = 256,
) -> Evaluation:
    """Score a session on the test split of `data`.

    `preprocessing` is what the model was trained with, from its run or manifest.

    Raises:
        MachineError: the session gives NaN or infinite logits, or not one for each class.
    """
    logits = predict(session, data.test.images, preprocessing, batch=batch)
    wanted = (len(data.test.fine), len(data.class_names))
    if logits.shape != wanted:
        raise MachineError(
            f"{subject} gives logits of shape {tuple(logits.shape)} for {wanted[0]} images of "
            f"{wanted[1]} classes: it is no classifier of {data.name}"
        )
    if not logits.isfinite().all():
        raise MachineError(f"{subject} gives NaN or infinite logits: it has no accuracy")
    total = accuracy(logits, data.test.fine)
    truth, guess = data.test.fine, guesses(logits).numpy()
    parents = None if data.coarse_of_fine is None else np.array(data.coarse_of_fine)
    related = None if parents is None else parents[guess] == parents[truth]
    return Evaluation(
        subject=subject,
        model=model,
        backend=session.backend,
        precision=session.precision,
        runtime=session.runtime,
        device=session.device,
        dataset=data.name,
        dataset_sha256=data.digest,
        images=total.images,
        top1=total.top1,
        top5=total.top5,
        superclass_top1=_share(related),
        classes=_classes(data.class_names, truth, guess),
        superclasses=_superclasses(data, truth, guess == truth, related, parents),
    )


def table(result: Evaluation) -> str:
    """The scores as text of at most 80 columns."""
    head = [
        result.subject,
        f"{result.model}, {result.backend} {result.precision}, {result.runtime} on {result.device}",
        f"{result.dataset}, {result.images} test images, SHA-256 {result.dataset_sha256[:12]}",
        "",
        f"top-1             {_percent(result.top1)}",
        f"top-5             {_percent(result.top5)}",
    ]
    if result.superclass_top1 is not None:
        head.append(f"superclass top-1  {_percent(result.superclass_top1)}")
    parts = ["\n".join(head)]
    if result.superclasses:
        parts.append(_superclass_table(result.superclasses))
    return "\n\n".join([*parts, _class_table(result.classes)])


def _classes(names: Sequence[str], truth: np.ndarray, guess: np.ndarray) -> tuple[ClassScore, ...]:
    scores = []
    for index, name in enumerate(names):
        own = truth == index
        scores.append(
            ClassScore(name=name, images=int(own.sum()), top1=_share(guess[own] == index))
        )
    return tuple(scores)


def _superclasses(
    data: Dataset,
    truth: np.ndarray,
    right: np.ndarray,
    related: np.ndarray | None,
    parents: np.ndarray | None,
) -> tuple[SuperclassScore, ...]:
    if data.coarse_names is None or related is None or parents is None:
        return ()
    scores = []
    for index, name in enumerate(data.coarse_names):
        own = parents[truth] == index
        scores.append(
            SuperclassScore(
                name=name,
                images=int(own.sum()),
                class_right=_share(right[own]),
                superclass_right=_share(related[own]),
            )
        )
    return tuple(scores)


def _share(hits: np.ndarray | None) -> float | None:
    return None if hits is None or not len(hits) else int(hits.sum()) / len(hits)


def _percent(share: float | None) -> str:
    return "     -" if share is None else f"{share:6.1%}"


def _superclass_table(scores: Sequence[SuperclassScore]) -> str:
    names = [_short(score.name) for score in scores]
    width = max(map(len, ("superclass", *names)))
    lines = [f"{'superclass':<{width}}  images  class right  superclass right"]
    for name, score in zip(names, scores, strict=True):
        shares = f"{_percent(score.class_right):>11}  {_percent(score.superclass_right):>16}"
        lines.append(f"{name:<{width}}  {score.images:6}  {shares}")
    return "\n".join(lines)


def _class_table(scores: Sequence[ClassScore]) -> str:
    names = [_short(score.name) for score in scores]
    width = max(map(len, names))
    cells = [
        f"{name:<{width}} {_percent(score.top1)}" for name, score in zip(names, scores, strict=True)
    ]
    columns = max(1, (WIDTH + len(GAP)) // (len(cells[0]) + len(GAP)))
    rows = -(-len(cells) // columns)  # read downwards
    return "\n".join(["top-1 by class", *(GAP.join(cells[row::rows]) for row in range(rows))])


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
