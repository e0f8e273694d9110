"""Two sets of records side by side: which of their measurements differ, and by how much.

A time says that a machine was slow as well as that the code was. So each pair has two ratios: of
its times, and of its times as multiples of the reference kernel that ran in the same rounds. A
difference is said only where both show it on the same side.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiling.compare_stats import LEAST_ROUNDS, Ratio, ratio_of
from profiling.record import FAILED, OK, Measurement, read_record, read_records
from profiling.samples import by_round
from profiling.tables import USUAL_IMAGE, backend_name, number, place
from zoo.errors import RecordError
from zoo.text import columns

SLOWER, FASTER, SAME = "B is slower", "B is faster", "no difference shown"
# Model, backend, precision, batch, image size, and whether the L2 cache was overwritten.
Kind = tuple[str, str, str, int, tuple[int, int], bool]
LEFT_COLUMNS = 3  # of the table: names
METHOD = """\
B/A: ratio of the medians of the rounds, with its 95% interval (Welch's t of their logarithms).
over reference: the same after each round is divided by the reference kernel around it.
A difference is one that both intervals show; of 20 intervals one misses the truth by chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The same kind of measurement in both sets."""

    before: Measurement
    after: Measurement

    @property
    def time(self) -> Ratio:
        """Time of the second as a multiple of that of the first."""
        return ratio_of(round_medians(self.before), round_medians(self.after))

    @property
    def over_reference(self) -> Ratio | None:
        """The same of times as multiples of the reference kernel; None where there were two.

        Of one thread on a CPU both are CPU times where the records hold them: other processes
        disturb those less.
        """
        if self.before.reference_kernel != self.after.reference_kernel:
            return None
        sides = (self.before, self.after)
        by_cpu = all(side.has_cpu_ratios for side in sides)
        return ratio_of(*(side.round_ratios(by_cpu=by_cpu) for side in sides))

    @property
    def verdict(self) -> str:
        """SLOWER, FASTER or SAME."""
        ratios = (self.time, self.over_reference)
        if all(ratio is not None and ratio.is_above_one for ratio in ratios):
            return SLOWER
        if all(ratio is not None and ratio.is_below_one for ratio in ratios):
            return FASTER
        return SAME

    @property
    def note(self) -> str | None:
        """Why no difference could be shown, whatever it is; None: it could."""
        if min(len(self.before.round_calls), len(self.after.round_calls)) < LEAST_ROUNDS:
            return f"fewer than {LEAST_ROUNDS} rounds"
        return "two reference kernels" if self.over_reference is None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two sets of records of one or more environments that they share."""

    pairs: tuple[Pair, ...]
    only_before: tuple[Measurement, ...]
    only_after: tuple[Measurement, ...]
    gaps_before: tuple[Measurement, ...] = ()  # without numbers where the other set has some
    gaps_after: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()  # which of several of a kind was taken; runtimes that differ

    @property
    def has_broken(self) -> bool:
        """Whether something of the first set failed in the second."""
        return any(record.status == FAILED for record in self.gaps_after)


def round_medians(record: Measurement) -> list[float]:
    """Median time of each round in milliseconds."""
    return [statistics.median(calls) for calls in by_round(record.samples_ms, record.round_calls)]


def read_side(
    path: Path, on_damage: Callable[[RecordError], None] | None = None
) -> list[Measurement]:
    """The measurements in a record file, or in the folders of records below `path`.

    With `on_damage`, what cannot be read in a folder is reported to it and left out.

    Raises:
        RecordError: there is none, or a record is damaged or of a newer schema.
    """
    is_file = path.is_file()
    records = [read_record(path)] if is_file else read_records(path, on_damage=on_damage)
    if not records:
        raise RecordError(f"{path} holds no measurement: make some with zoo-bench")
    return records


def compare(
    before: Path, after: Path, *, on_damage: Callable[[RecordError], None] | None = None
) -> Comparison:
    """Pair the newest measurement of each kind in either set.

    A kind is model, backend, precision, batch, image size and whether the L2 cache was overwritten,
    in one environment. One whose newest measurement has no numbers is told apart, with its reason.
    `on_damage` is as in `read_side`.

    Raises:
        RecordError: there is nothing to compare: no numbers, or no kind in common.
    """
    read = [read_side(path, on_damage) for path in (before, after)]
    newest = [_newest(records) for records in read]
    sides = [
        {key: record for key, record in side.items() if record.status == OK} for side in newest
    ]
    common = sorted(sides[0].keys() & sides[1].keys())
    gaps = [
        tuple(side[key] for key in sorted(side.keys() & other.keys()) if side[key].status != OK)
        for side, other in ((newest[0], sides[1]), (newest[1], sides[0]))
    ]
    if not common and not any(gaps):
        for path, side in zip((before, after), sides, strict=True):
            if not side:
                raise RecordError(
                    f"{path} holds no measurement with numbers: make some with zoo-bench"
                )
        raise RecordError(_why_nothing(before, after, sides))
    alone = [
        tuple(mine[key] for key in sorted(mine) if key not in other)
        for mine, other in ((sides[0], newest[1]), (sides[1], newest[0]))
    ]
    return Comparison(
        pairs=tuple(Pair(before=sides[0][key], after=sides[1][key]) for key in common),
        only_before=alone[0],
        only_after=alone[1],
        gaps_before=gaps[0],
        gaps_after=gaps[1],
        notes=(
            *(note for name, side in zip("AB", read, strict=True) for note in _taken(name, side)),
            *_runtimes((sides[0][key], sides[1][key]) for key in common),
        ),
    )


def _newest(records: Iterable[Measurement]) -> dict[tuple[str, Kind], Measurement]:
    ordered = sorted(records, key=lambda record: record.created_at)
    return {(record.environment.key, kind(record)): record for record in ordered}


def _taken(side: str, records: Sequence[Measurement]) -> Iterator[str]:
    """Of each kind that several runs or files share, which of them was taken."""
    origins: dict[tuple[str, Kind], set[str]] = {}
    for record in records:
        key = record.environment.key, kind(record)
        origins.setdefault(key, set()).add(_origin(record))
    for key, record in sorted(_newest(records).items()):
        if len(origins[key]) > 1:
            yield (
                f"{side} has {len(origins[key])} of {_words(record)}: the newest, of "
                f"{_origin(record)}, is taken"
            )


def _runtimes(pairs: Iterable[tuple[Measurement, Measurement]]) -> Iterator[str]:
    """Of each backend that ran on two runtimes, which they were."""
    distinct = dict.fromkeys((a.backend, a.runtime, b.runtime) for a, b in pairs)
    for backend, before, after in distinct:
        if before != after:
            yield f"{backend} ran on {before} in A, on {after} in B"


def _origin(record: Measurement) -> str:
    file = f"file {record.artifact_sha256[:12]}"
    return file if record.source is None else f"run {record.source.run}, {file}"


def kind(record: Measurement) -> Kind:
    """What two measurements have to agree in to be compared, apart from the environment."""
    height, width = USUAL_IMAGE if record.image_shape is None else record.image_shape[1:]
    how = record.backend, record.precision, record.batch
    return record.model, *how, (height, width), record.is_l2_flushed


def _why_nothing(
    before: Path, after: Path, sides: Sequence[dict[tuple[str, Kind], Measurement]]
) -> str:
    places = [dict.fromkeys(place(side[key].environment) for key in sorted(side)) for side in sides]
    if places[0].keys().isdisjoint(places[1]):
        return (
            f"{before} was measured on {' and '.join(places[0])}, {after} on "
            f"{' and '.join(places[1])}: only times of one environment are compared, so measure "
            "both on one machine with zoo-bench"
        )
    examples = [_words(next(iter(side.values()))) for side in sides]
    return (
        f"{before} and {after} share no model, backend, precision, batch and image size: the first "
        f"has {examples[0]}, the second {examples[1]}; measure the same with zoo-bench"
    )


def _words(record: Measurement) -> str:
    return f"{record.model} {backend_name(record)} {record.precision} b{record.batch}"


# Output -------------------------------------------------------------------------------------


def text(comparison: Comparison) -> str:
    """A table for each environment, then what is in one set alone, and how to read it."""
    places: dict[str, list[Pair]] = {}
    for pair in comparison.pairs:
        places.setdefault(place(pair.before.environment), []).append(pair)
    out = "".join(f"{where}\n{_table(pairs)}\n" for where, pairs in places.items())
    for side, alone in (("A", comparison.only_before), ("B", comparison.only_after)):
        if alone:
            out += f"only in {side}: {', '.join(map(_words, alone))}\n"
    for side, gaps in (("A", comparison.gaps_before), ("B", comparison.gaps_after)):
        for gap in gaps:
            out += f"{gap.status} in {side}: {_words(gap)}: {gap.reason}\n"
    out += "".join(f"{note}\n" for note in comparison.notes)
    return f"{out}{METHOD}\n"


def _table(pairs: Iterable[Pair]) -> str:
    header = ["model", "backend", "precision", "batch", "A ms", "B ms", "B/A", "95% interval"]
    lines = [[*header, "over reference", "95% interval", "verdict"]]
    for pair in pairs:
        before, after = pair.before, pair.after
        lines.append(
            [
                *(before.model, backend_name(before), before.precision, str(before.batch)),
                *(number(before.p50_ms), number(after.p50_ms)),
                *(*_cells(pair.time), *_cells(pair.over_reference)),
                pair.verdict if pair.note is None else f"{pair.verdict}: {pair.note}",
            ]
        )
    return "".join(
        f"{line}\n" for line in columns(lines, right=range(LEFT_COLUMNS, len(lines[0]) - 1))
    )


def _cells(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return "", ""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.3f}", ""
    return f"{ratio.value:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The same as plain values, with all digits."""
    return {
        "method": METHOD,
        "pairs": [
            {
                **_facts(pair.before),
                "environment": pair.before.environment.key,
                "a": _side(pair.before),
                "b": _side(pair.after),
                "time": _plain(pair.time),
                "over_reference": _plain(pair.over_reference),
                "verdict": pair.verdict,
                "note": pair.note,
            }
            for pair in comparison.pairs
        ],
        "only_in_a": [_facts(record) for record in comparison.only_before],
        "only_in_b": [_facts(record) for record in comparison.only_after],
        "without_numbers_in_a": [_gap(record) for record in comparison.gaps_before],
        "without_numbers_in_b": [_gap(record) for record in comparison.gaps_after],
        "notes": list(comparison.notes),
    }


def _facts(record: Measurement) -> dict[str, Any]:
    model, backend, precision, batch, image_size, is_l2_flushed = kind(record)
    return {
        "model": model,
        "backend": backend,
        "precision": precision,
        "batch": batch,
        "image_size": list(image_size),
        "is_l2_flushed": is_l2_flushed,
    }


def _gap(record: Measurement) -> dict[str, Any]:
    return {**_facts(record), "status": record.status, "reason": record.reason}


def _side(record: Measurement) -> dict[str, Any]:
    return {
        "p50_ms": record.p50_ms,
        "calls": len(record.samples_ms),
        "rounds": len(record.round_calls),
        "created_at": record.created_at,
        "runtime": record.runtime,
        "commit": record.commit,
        "artifact_sha256": record.artifact_sha256,
    }


def _plain(ratio: Ratio | None) -> dict[str, float | None] | None:
    return None if ratio is None else {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
