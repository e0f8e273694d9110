"""What was measured of the artifacts of one network: facts, as they are stored."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from profiling.record import OK
from profiling.samples import Ratio, paired_ratio
from zoo.environment import Environment
from zoo.errors import RecordError
from zoo.files import read_json
from zoo.plain import from_plain

T = TypeVar("T")


class OfData(Protocol):
    """A record of what was measured with a data set."""

    @property
    def dataset_digest(self) -> str:
        """Of all of it."""
        ...


ALL_BITS = 8  # of weights in int8; records that do not say are from before there were fewer

R = TypeVar("R", bound=OfData)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One backend at one batch size, in rounds that it took in turns with the others."""

    threads: int
    batch: int  # images per call
    status: str  # as in profiling.record
    reason: str | None
    calls: tuple[int, ...]  # of each round
    cpu_ms: tuple[float, ...]  # median of each round
    wall_ms: tuple[float, ...]

    def middle_ms(self, *, wall: bool) -> float:
        """The median of the rounds."""
        return statistics.median(self._clock(wall))

    def times_as_fast(self, other: "Timing", *, wall: bool) -> Ratio:
        """As `other`: the median over the turns of the ratio of their rounds."""
        both = list(zip(self._clock(wall), other._clock(wall), strict=False))
        ratio = paired_ratio(
            [theirs for _, theirs in both], [1] * len(both), [(ours,) for ours, _ in both]
        )
        assert ratio is not None  # a timing that is OK has a round
        return ratio

    def _clock(self, wall: bool) -> tuple[float, ...]:
        return self.wall_ms if wall else self.cpu_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One artifact, or one way to run the network in torch."""

    backend: str
    precision: str
    reason: str | None = None  # why there is no artifact
    runtime: str | None = None
    file_bytes: int | None = None
    top1: float | None = None  # in [0, 1]
    accuracy_images: int | None = None
    agreement: float | None = None  # share of images whose class is eager's; None for torch
    agreement_images: int | None = None
    max_abs_error: float | None = None  # of a logit
    timings: tuple[Timing, ...] = ()
    weight_bits: int = ALL_BITS  # of int8

    def timing(self, batch: int, threads: int) -> Timing | None:
        """What was measured there, if it went well."""
        found = (t for t in self.timings if (t.batch, t.threads) == (batch, threads))
        return next((t for t in found if t.status == OK), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """One network."""

    model: str
    run: str
    dataset: str
    dataset_digest: str  # of all of it
    environment: Mapping[str, Any]
    commit: str | None
    budget_s: float
    entries: tuple[Entry, ...]
    trained_images: int | None = None  # with repetition; older records do not tell
    weights_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)


def read_sheet(path: Path) -> Sheet:
    """Read what an earlier call wrote.

    Raises:
        RecordError: it is damaged.
    """
    return read_stored(Sheet, path, "artifacts")


def in_order(folder: Path, names: Sequence[str]) -> list[Path]:
    """The records in a folder: those of `names` first and in their order, then others by name."""
    rank = {name: number for number, name in enumerate(names)}
    return sorted(
        folder.glob("*.json"), key=lambda path: (rank.get(path.stem, len(rank)), path.stem)
    )


def by_machine(
    records: Sequence[R], environment: Callable[[R], Mapping[str, Any]]
) -> list[list[R]]:
    """Those of one machine and one data set together, in the order of the first of each."""
    groups: dict[tuple[str, str], list[R]] = {}
    for record in records:
        key = Environment.from_json(dict(environment(record))).key
        groups.setdefault((key, record.dataset_digest), []).append(record)
    return list(groups.values())


def read_stored(kind: type[T], path: Path, of: str) -> T:
    """The same of any kind of record.

    Raises:
        RecordError: it is damaged.
    """
    try:
        return from_plain(kind, read_json(path, RecordError))
    except (TypeError, ValueError) as reason:
        raise RecordError(
            f"{path} is no record of {of} ({reason}): remove it to measure again"
        ) from None
