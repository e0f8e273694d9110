"""What the samples of a comparison say, path by path."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .lanes import Samples, Timed
from .stats import SIGNIFICANCE, holm, least_pairs, log_ratios, p_slower, ratio

TOLERATED = 1.10  # a path may take this multiple of its time before anyone is stopped


@dataclass(frozen=True, kw_only=True)
class Row:
    """One hot path of both sides."""

    name: str
    base_ms: float  # CPU time of a call: median over processes of their fastest block
    change_ms: float
    ratio: float
    p: float  # adjusted for the number of paths; of no slowdown at all

    @property
    def is_slower(self) -> bool:
        """Whether it is slower by more than is tolerated, and not by chance."""
        return self.ratio > TOLERATED and self.p < SIGNIFICANCE


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All rows, and what had none."""

    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    new: Mapping[str, str]
    broken: Mapping[str, str]
    failing: Mapping[str, str]
    pairs: int
    seconds: float

    @property
    def slower(self) -> tuple[Row, ...]:
        """The rows for which the gate is there."""
        return tuple(row for row in self.rows if row.is_slower)

    @property
    def complaint(self) -> str | None:
        """Why the gate stays shut, in one line; None: it opens."""
        if self.broken:
            name, fault = next(iter(self.broken.items()))
            return f"{_count(len(self.broken), 'hot path')} broken, such as {name}: {fault}"
        if not self.rows:
            return "no hot path runs on both sides"
        if self.pairs < least_pairs(len(self.rows)):
            return (
                f"{_count(len(self.rows), 'hot path')} would take {least_pairs(len(self.rows))} "
                f"pairs of processes to judge, and {self.seconds:.0f} s were enough for "
                f"{self.pairs}: give more time, or fewer hot paths"
            )
        if self.slower:
            worst = max(self.slower, key=lambda row: row.ratio)
            more = f" and {len(self.slower) - 1} more" if len(self.slower) > 1 else ""
            return f"{worst.name} takes {worst.ratio - 1:.1%} more CPU time{more}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "complaint": self.complaint,
            "rows": [{**asdict(row), "is_slower": row.is_slower} for row in self.rows],
        }


def judge(samples: Samples) -> Outcome:
    """Estimate and test each path, and correct for their number."""
    logs = {name: log_ratios(timed.base, timed.change) for name, timed in samples.timed.items()}
    adjusted = holm({name: p_slower(values) for name, values in logs.items()})
    return Outcome(
        rows=tuple(
            Row(
                name=name,
                base_ms=_typical_ms(samples.timed[name].base),
                change_ms=_typical_ms(samples.timed[name].change),
                ratio=ratio(values),
                p=adjusted[name],
            )
            for name, values in logs.items()
        ),
        skipped=samples.skipped,
        new=samples.new,
        broken=samples.broken,
        failing=samples.failing,
        pairs=samples.pairs,
        seconds=samples.seconds,
    )


def samples_from_json(value: Mapping[str, Any]) -> Samples:
    """Read what `dataclasses.asdict` made of samples."""
    timed = {name: Timed(**item) for name, item in value["timed"].items()}
    return Samples(**{**value, "timed": timed})


def markdown(outcome: Outcome, *, base: str, change: str) -> str:
    """The table for people: what is slower first, then by name, then what was not compared."""
    complaint = outcome.complaint
    lines = [
        f"### {'Slower' if outcome.slower else 'Not compared' if complaint else 'Not slower'}: "
        f"{change} against {base}",
        "",
        *([f"**{complaint}**", ""] if complaint else []),
        "| hot path | base ms | change ms | change | p | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in sorted(outcome.rows, key=lambda row: (not row.is_slower, row.name)):
        lines.append(
            f"| {row.name} | {row.base_ms:.3f} | {row.change_ms:.3f} | {percent(row.ratio)} | "
            f"{row.p:.3f} | {'**slower**' if row.is_slower else ''} |"
        )
    lines += [
        "",
        f"CPU time of one thread, {_count(outcome.pairs, 'pair')} of processes in "
        f"{outcome.seconds:.0f} s. A path is slower where it takes over {TOLERATED - 1:.0%} more "
        "and p, of Wilcoxon's test of signed ranks after Holm's correction, is below "
        f"{SIGNIFICANCE:g}.",
    ]
    for title, found in (
        ("Broken by the change", outcome.broken),
        ("Fails on both sides", outcome.failing),
        ("Not in the base", outcome.new),
        ("Not on this machine", outcome.skipped),
    ):
        lines += ["", *(f"{title}: {name} ({reason})" for name, reason in found.items())]
    return "\n".join(lines).rstrip() + "\n"


def percent(ratio: float) -> str:
    """A ratio as a change in per cent: 1.153 is +15.3%."""
    return f"{100 * (ratio - 1):+.1f}%"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _typical_ms(blocks: list[list[float]]) -> float:
    return 1e3 * statistics.median(min(process) for process in blocks)
