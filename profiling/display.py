"""A benchmark as people see it: a live bar on a terminal, plain lines elsewhere; on stderr."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from profiling.record import FAILED, OK, SKIPPED
from profiling.roofline import ROOF_NOTE, share_of_roof
from profiling.tables import (
    backend_name,
    busy_note,
    mebibytes,
    millions,
    number,
    percent,
    run_name,
    throttle_note,
)
from zoo.display import LiveDisplay, TextColumn, TimeElapsedColumn
from zoo.text import columns

if TYPE_CHECKING:
    from profiling.price import Price
    from profiling.record import Measurement
    from profiling.roofline import Roof
    from profiling.subject import Progress

NAME_COLUMNS = 2  # of `results`
STEPS = 1000  # of the bar


class BenchDisplay(LiveDisplay):
    """Shows what `profiling.benchmark` reports."""

    def __init__(self) -> None:
        super().__init__(TimeElapsedColumn(), TextColumn("{task.fields[text]}"))
        self.task = self.bar.add_task("starting", text="", total=STEPS)

    def __call__(self, progress: "Progress") -> None:
        """Show one report."""
        self.bar.start()
        where = progress.subject.backend
        if progress.batch is not None:
            where += f" b{progress.batch}"
        is_over = progress.stage in (OK, FAILED, SKIPPED)
        if is_over or progress.stage.startswith("no accuracy"):
            outcome = timing_text(progress) if progress.stage == OK else _why(progress)
            self.console.print(f"{progress.subject.model} {where}: {outcome}", soft_wrap=True)
        self.bar.update(
            self.task,
            description=f"{where} {progress.stage}"[:40],
            completed=int(STEPS * progress.share),
            text=timing_text(progress),
        )


def timing_text(progress: "Progress") -> str:
    """Median, its interval and the number of calls so far."""
    if progress.p50_ms is None:
        return ""
    width = progress.half_width
    known = "" if width is None else f" +-{percent(width, 1)}%"
    return f"{number(progress.p50_ms)} ms{known}, {progress.calls} calls"


def results(
    records: Sequence["Measurement"], *, price: "Price | None" = None, roof: "Roof | None" = None
) -> str:
    """The table that zoo-bench prints: one line a measurement that has numbers.

    A GPU adds what its own clock says, a roof which share of it was reached, a price what a million
    images cost at the best batch size.
    """
    measured = [record for record in records if record.status == OK]
    if not measured:
        return ""
    has_device_times = any(record.samples_device_ms for record in measured)
    best = [] if price is None else price.best(measured)
    lines = []
    for record in measured:
        ratio, first_ms = record.relative, record.first_call_ms
        line = {
            "backend": backend_name(record),
            "precision": record.precision,
            "batch": str(record.batch),
            "p50 ms": number(record.p50_ms),
            "p90": number(record.p90_ms),
            "p95": number(record.p95_ms),
            "p99": number(record.p99_ms),
            "min": number(record.min_ms),
            "mean": number(record.mean_ms),
            "sd": number(record.sd_ms),
            "+-%": percent(record.ci_half_width, 1),
            "calls": str(len(record.samples_ms)),
            "x ref": "" if ratio is None else number(ratio.value),
        }
        if has_device_times:
            line["device ms"] = number(record.device_p50_ms)
            line["enqueue ms"] = number(record.enqueue_p50_ms)
        line |= {
            "images/s": number(record.images_per_s),
            "memory MiB": number(record.peak_memory_mib),
            "file MiB": mebibytes(record.file_bytes),
            "build s": number(record.build_s),
            "load s": number(record.load_s),
            "first s": number(None if first_ms is None else first_ms / 1e3),
            "top-1 %": percent(record.top1),
        }
        if roof is not None:
            line["roof %"] = percent(share_of_roof(record, roof), 1)
        if price is not None:
            line["per million"] = number(price.per_million(record)) if record in best else ""
        lines.append(line)
    texts = [list(lines[0]), *(list(line.values()) for line in lines)]
    right = range(NAME_COLUMNS, len(texts[0]))
    return "".join(f"{line}\n" for line in columns(texts, right=right))


def notes(
    records: Sequence["Measurement"], *, price: "Price | None" = None, roof: "Roof | None" = None
) -> list[str]:
    """What a reader must know beside the table."""
    measured = [record for record in records if record.status == OK]
    if not measured:
        return []
    lines = [f"x ref: in units of a reference kernel of the same moments, {_clock(measured[0])}."]
    lines += [note for note in (busy_note(measured), throttle_note(measured)) if note]
    exhausted = sum(record.budget_exhausted for record in measured)
    if exhausted:
        lines.append(
            f"{exhausted} of {len(measured)} ran out of time before the median was known to "
            "within 2%: a longer --budget helps."
        )
    if any(share_of_roof(record, roof) is not None for record in measured):
        lines.append(f"roof %: {ROOF_NOTE}")
    if price is not None:
        bound = price.latency_bound_ms
        within = "" if bound is None else f" with 99% of the calls within {bound:g} ms"
        lines.append(
            f"per million: price of a million images at {price.per_hour:g} an hour, at the fastest "
            f"batch size{within}; loading and the first call are not in it."
        )
    return lines


def heading(record: "Measurement") -> str:
    """What the measurements of one run have in common."""
    parts = [record.model]
    if record.source is not None:
        parts.append(f"run {record.source.run} on {record.source.dataset}")
    elif record.is_untrained:
        parts.append(run_name(record))
    if record.params is not None:
        parts.append(f"{record.params:,} parameters")
    if record.macs is not None:
        parts.append(f"{millions(record.macs)} M MACs = {millions(record.flops)} M FLOPs")
    environment = record.environment
    threads = f"{environment.threads} thread{'s' if environment.threads > 1 else ''}"
    parts.append(f"{environment.device}, {threads} [{environment.key}]")
    return ", ".join(parts)


def _why(progress: "Progress") -> str:
    return f"{progress.stage}: {progress.reason}" if progress.reason else progress.stage


def _clock(record: "Measurement") -> str:
    is_cpu_time = record.environment.device == "cpu" and record.environment.threads == 1
    return "CPU time by CPU time" if is_cpu_time else "wall time by wall time"
