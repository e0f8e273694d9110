"""What a resumed run needs: one file, whole or absent, loaded without running code."""

import hashlib
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from training.loop import EpochMetrics
from training.recipe import Recipe
from zoo.checkpoint import RECIPE, STATE
from zoo.errors import CheckpointError, ZooError, first_line
from zoo.files import atomic_file, read_json
from zoo.plain import from_plain

LAST, PREVIOUS = "last.pt", "previous.pt"
SCHEMA = 2
MARK = b"SHA-256:"  # torch.load reads damaged tensors without a word, so the file ends with this
DIGEST_BYTES = len(MARK) + hashlib.sha256().digest_size


class NoState(CheckpointError):
    """A run holds nothing to go on from."""


class HasEpoch(Protocol):
    """A line of metrics."""

    @property
    def epoch(self) -> int:
        """Counted from 1."""
        ...


T = TypeVar("T")
Line = TypeVar("Line", bound=HasEpoch)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunState:
    """All that the rest of a run depends on."""

    trainer: dict[str, Tensor]
    metrics: list[EpochMetrics]  # of the complete epochs
    selected: dict[str, Tensor] | None  # weights of the best of them; None before the first


def save_state(run: Path, state: RunState) -> None:
    """Add a state to `run`; the one before it stays."""
    write_state(run / STATE / LAST, state, replaces=run / STATE / PREVIOUS)


def write_state(file: Path, state: RunState, *, replaces: Path | None = None) -> None:
    """Write `file`; what was there before goes to `replaces` once the new one is whole."""
    lines = [asdict(line) for line in state.metrics]
    content = {"trainer": state.trainer, "metrics": lines, "selected": state.selected}
    write_content(file, content, replaces=replaces)


def read_state(file: Path) -> RunState:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: the file is damaged or of another version.
    """

    def made(found: dict[str, Any]) -> RunState:
        metrics = metrics_of(EpochMetrics, found)
        return RunState(trainer=found["trainer"], metrics=metrics, selected=found["selected"])

    return read_content(file, made)


def newest_state(run: Path, note: Callable[[str], None], *, mend: bool = False) -> RunState:
    """The last state of `run`; see `newest`."""
    return newest(run, read_state, note, mend=mend)


def write_content(
    file: Path, content: Mapping[str, object], *, replaces: Path | None = None
) -> None:
    """Write tensors and plain values; what was there goes to `replaces` once the new is whole."""
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **content}, buffer)
    buffer.write(MARK + hashlib.sha256(buffer.getbuffer()).digest())
    with atomic_file(file) as part:
        part.write_bytes(buffer.getbuffer())
        if replaces is not None and file.exists():
            file.replace(replaces)  # a stop from here on leaves no last one: the loader knows


def read_content(file: Path, make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of the content that `write_content` wrote.

    Raises:
        CheckpointError: the file cannot be read, is damaged or of another version, or `make`
            refuses it.
    """
    try:
        data = file.read_bytes()
    except OSError as reason:
        raise CheckpointError(
            f"{file} cannot be read ({reason.strerror}): make it readable, or train again"
        ) from None
    try:
        content, mark, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:][:-32], data[-32:]
        if mark != MARK or hashlib.sha256(content).digest() != digest:
            raise ValueError("its digest does not fit")
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, not {SCHEMA}")
        return make(found)
    except Exception as reason:  # whatever a damaged file makes torch raise
        raise CheckpointError(f"{file} is damaged ({first_line(reason)}): train again") from None


def metrics_of(kind: type[Line], found: Mapping[str, Any]) -> list[Line]:
    """The lines of metrics in a state.

    Raises:
        ValueError: they are not those of epochs 1, 2, 3...
    """
    metrics = [from_plain(kind, line) for line in found["metrics"]]
    if [line.epoch for line in metrics] != list(range(1, len(metrics) + 1)):
        raise ValueError("its epochs are not 1, 2, 3...")
    return metrics


def newest(
    run: Path, read: Callable[[Path], T], note: Callable[[str], None], *, mend: bool = False
) -> T:
    """The last state of `run`, or the one before it where that is of no use, which `note` is told.

    To `mend` deletes the one of no use, which the next save would else put in the place of the
    whole one.

    Raises:
        NoState: there is none, or none can be read and is whole.
    """
    last, faults = run / STATE / LAST, list[tuple[str, str, str]]()  # what, colon, advice
    for file in (last, run / STATE / PREVIOUS):
        if not file.is_file():
            continue
        try:
            state = read(file)
        except CheckpointError as error:
            faults.append(str(error).rpartition(": "))
            continue
        if faults:
            note(f"{faults[0][0]}: continuing from the one before it, {PREVIOUS}")
            if mend:
                last.unlink()
        return state
    if not faults:
        raise NoState(f"{run} cannot be resumed: {last} does not exist; train again")
    raise NoState(f"{', and '.join(fault[0] for fault in faults)}: {faults[0][2]}")


def drop_parts(run: Path) -> None:
    """Remove what a kill left of files that were being written."""
    for left in (*run.glob(".part-*"), *(run / STATE).glob(".part-*")):
        left.unlink(missing_ok=True)


def drop_previous(run: Path) -> None:
    """Leave one state to a run that is complete."""
    (run / STATE / PREVIOUS).unlink(missing_ok=True)


def is_finite(state: Mapping[str, Tensor], *, but: Collection[str] = ()) -> bool:
    """Whether no tensor of a trainer's state, but for those named, holds NaN or infinity."""
    return all(
        bool(tensor.isfinite().all())
        for name, tensor in state.items()
        if tensor.is_floating_point() and name not in but
    )


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
