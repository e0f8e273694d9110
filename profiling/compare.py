"""Two sets of records side by side: which of their measurements differ, and by how much.

A time says that a machine was slow as well as that the code was. So each pair has two ratios: of
its times, and of its times as multiples of the reference kernel that ran in the same rounds. A
difference is said only where both show it on the same side.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiling.compare_stats import LEAST_ROUNDS, Ratio, ratio_of
from profiling.record import OK, Measurement, read_record, read_records
from profiling.samples import by_round
from profiling.tables import USUAL_IMAGE, number, place
from zoo.errors import RecordError
from zoo.text import columns

SLOWER, FASTER, SAME = "B is slower", "B is faster", "no difference shown"
Kind = tuple[str, str, str, int, tuple[int, int]]  # model, backend, precision, batch, image size
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
        relative = round_cpu_ratios if all(map(has_cpu_ratios, sides)) else round_ratios
        return ratio_of(*map(relative, sides))

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


def round_medians(record: Measurement) -> list[float]:
    """Median time of each round in milliseconds."""
    return [statistics.median(calls) for calls in by_round(record.samples_ms, record.round_calls)]


def round_ratios(record: Measurement) -> list[float]:
    """Median time of each round as a multiple of the reference kernel around that round."""
    pairs = zip(round_medians(record), record.round_reference_ms, strict=True)
    return [median / reference for median, reference in pairs]


def has_cpu_ratios(record: Measurement) -> bool:
    """Whether the record holds CPU times that say all of a call: one thread of a CPU."""
    environment = record.environment
    has_times = bool(record.samples_cpu_ms and record.round_reference_samples_cpu_ms)
    return environment.device == "cpu" and environment.threads == 1 and has_times


def round_cpu_ratios(record: Measurement) -> list[float]:
    """Median CPU time of each round as a multiple of the reference kernel around that round."""
    rounds = by_round(record.samples_cpu_ms, record.round_calls)
    pairs = zip(rounds, record.round_reference_samples_cpu_ms, strict=True)
    return [statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs]


def read_side(
    path: Path, on_damage: Callable[[RecordError], None] | None = None
) -> list[Measurement]:
    """The measurements with numbers in a record file, or in the folders of records below `path`.

    With `on_damage`, what cannot be read in a folder is reported to it and left out.

    Raises:
        RecordError: there are none, or a record is damaged or of a newer schema.
    """
    is_file = path.is_file()
    records = [read_record(path)] if is_file else read_records(path, on_damage=on_damage)
    measured = [record for record in records if record.status == OK]
    if not measured:
        raise RecordError(f"{path} holds no measurement with numbers: make some with zoo-bench")
    return measured


def compare(
    before: Path, after: Path, *, on_damage: Callable[[RecordError], None] | None = None
) -> Comparison:
    """Pair the newest measurement of each kind in either set.

    A kind is model, backend, precision, batch and image size in one environment. `on_damage` is as
    in `read_side`.

    Raises:
        RecordError: a side holds no numbers, or the two have no kind in common.
    """
    sides = [_newest(read_side(path, on_damage)) for path in (before, after)]
    if sides[0].keys().isdisjoint(sides[1]):
        raise RecordError(_why_nothing(before, after, sides))
    common = [key for key in sides[0] if key in sides[1]]
    pairs = (Pair(before=sides[0][key], after=sides[1][key]) for key in sorted(common))
    alone = [
        tuple(mine[key] for key in sorted(mine) if key not in other)
        for mine, other in (sides, reversed(sides))
    ]
    return Comparison(pairs=tuple(pairs), only_before=alone[0], only_after=alone[1])


def _newest(records: Iterable[Measurement]) -> dict[tuple[str, Kind], Measurement]:
    ordered = sorted(records, key=lambda record: record.created_at)
    return {(record.environment.key, kind(record)): record for record in ordered}


def kind(record: Measurement) -> Kind:
    """What two measurements have to agree in to be compared, apart from the environment."""
    height, width = USUAL_IMAGE if record.image_shape is None else record.image_shape[1:]
    return record.model, record.backend, record.precision, record.batch, (height, width)


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
    return f"{record.model} {record.backend} {record.precision} b{record.batch}"


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
    return f"{out}{METHOD}\n"


def _table(pairs: Iterable[Pair]) -> str:
    header = ["model", "backend", "precision", "batch", "A ms", "B ms", "B/A", "95% interval"]
    lines = [[*header, "over reference", "95% interval", "verdict"]]
    for pair in pairs:
        before, after = pair.before, pair.after
        lines.append(
            [
                *(before.model, before.backend, before.precision, str(before.batch)),
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
    }


def _facts(record: Measurement) -> dict[str, Any]:
    model, backend, precision, batch, image_size = kind(record)
    return {
        "model": model,
        "backend": backend,
        "precision": precision,
        "batch": batch,
        "image_size": list(image_size),
    }


def _side(record: Measurement) -> dict[str, Any]:
    return {
        "p50_ms": record.p50_ms,
        "calls": len(record.samples_ms),
        "rounds": len(record.round_calls),
        "created_at": record.created_at,
        "commit": record.commit,
        "artifact_sha256": record.artifact_sha256,
    }


def _plain(ratio: Ratio | None) -> dict[str, float | None] | None:
    return None if ratio is None else {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
