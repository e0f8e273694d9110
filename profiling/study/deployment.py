"""What a trained network costs to run: each runtime at each batch, in one environment."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from profiling.price import Price
from profiling.record import Measurement
from profiling.study.data import Trial
from profiling.study.derived import Mean, mean_of, mean_value
from profiling.tables import Row, efficiency_tables
from zoo.environment import Environment

SMALL, LARGE = 1, 256  # images of a call that the studies' tables show, where they were measured
Rows = Mapping[str, Sequence[Row]]  # runtime -> its file of each seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """One runtime at one batch; means over the seeds that were measured so."""

    runtime: str
    p50_ms: float
    ci_half_width: float | None  # share of the median: the widest of the files'
    images_per_s: float  # at that time
    top1: float | None  # of the very files that were timed
    peak_memory_mib: float | None
    file_bytes: int | None
    files: int  # one a seed


def environments(trials: Iterable[Trial]) -> list[Environment]:
    """Where anything of these trials was measured, by key."""
    found = {r.environment.key: r.environment for trial in trials for r in trial.measurements}
    return [found[key] for key in sorted(found)]


def rows_of(trials: Iterable[Trial], environment: Environment) -> dict[str, list[Row]]:
    """The newest file of each trial on each runtime ("onnx int8") in one environment."""
    found: dict[str, list[Row]] = {}
    for trial in trials:
        own: dict[str, Row] = {}
        for table in efficiency_tables(
            r for r in trial.measurements if r.environment.key == environment.key
        ):
            for row in sorted(table.rows, key=lambda row: row.newest.created_at):
                own[f"{row.newest.backend} {row.newest.precision}"] = row
        for runtime, row in own.items():
            found.setdefault(runtime, []).append(row)
    return found


def two_batches(batches: Iterable[int]) -> tuple[int, ...]:
    """1 and 256 where they were measured, else the smallest and the largest."""
    known = set(batches)
    if not known:
        return ()
    small = SMALL if SMALL in known else min(known)
    large = LARGE if LARGE in known else max(known)
    return (small,) if small == large else (small, large)


def speed(rows: Rows, runtime: str, batch: int) -> Speed | None:
    """One runtime at one batch; None where nothing was measured."""
    timed = [row for row in rows.get(runtime, ()) if batch in row.by_batch]
    records = [row.by_batch[batch] for row in timed]
    known = [record.ci_half_width for record in records if record.ci_half_width is not None]
    p50_ms = mean_p50_ms(timed, batch)
    if p50_ms is None:
        return None
    size = mean_value(record.file_bytes for record in records)
    return Speed(
        runtime=runtime,
        p50_ms=p50_ms,
        ci_half_width=max(known) if len(known) == len(records) else None,
        images_per_s=1e3 * batch / p50_ms,
        top1=None if (top1 := mean_top1(timed, batch)) is None else top1.value,
        peak_memory_mib=mean_value(record.peak_memory_mib for record in records),
        file_bytes=None if size is None else round(size),
        files=len(records),
    )


def mean_p50_ms(rows: Iterable[Row], batch: int) -> float | None:
    """Of the median times of those files that were timed at this batch."""
    return mean_value(row.by_batch[batch].p50_ms for row in rows if batch in row.by_batch)


def mean_top1(rows: Iterable[Row], batch: int) -> Mean | None:
    """Of the accuracies of the very files that were timed at this batch."""
    return mean_of(row.top1 for row in rows if batch in row.by_batch)


def fastest(rows: Rows, batch: int) -> Speed | None:
    """The runtime with the shortest call at this batch; of equals, the first by name."""
    speeds = [one for runtime in sorted(rows) if (one := speed(rows, runtime, batch)) is not None]
    return min(speeds, key=lambda one: one.p50_ms, default=None)


def price_per_million(rows: Rows, runtime: str, per_hour: float) -> float | None:
    """Of images at the fastest batch of each file, the mean over the files."""
    price = Price(per_hour)
    best = [price.best(row.by_batch.values()) for row in rows.get(runtime, ())]
    return mean_value(price.per_million(record) for records in best for record in records)


def cheapest(rows: Rows, per_hour: float) -> tuple[str, float] | None:
    """The runtime with the lowest price of a million images, and that price."""
    prices = [(runtime, price_per_million(rows, runtime, per_hour)) for runtime in sorted(rows)]
    known = [(runtime, price) for runtime, price in prices if price is not None]
    return min(known, key=lambda pair: pair[1], default=None)


def measurements_in(trials: Iterable[Trial], environment: Environment) -> list[Measurement]:
    """Every record of these trials in one environment, in their order."""
    return [
        record
        for trial in trials
        for record in trial.measurements
        if record.environment.key == environment.key
    ]
