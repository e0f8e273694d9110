"""A benchmark as people see it: a live bar on a terminal, plain lines elsewhere; on stderr."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.progress import TextColumn, TimeElapsedColumn

from profiling.record import FAILED, OK, SKIPPED
from profiling.tables import mebibytes, millions, number, percent, run_name
from zoo.display import LiveDisplay
from zoo.text import columns

if TYPE_CHECKING:
    from profiling.record import Measurement
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


def results(records: Sequence["Measurement"]) -> str:
    """The table that zoo-bench prints: one line a measurement that has numbers."""
    header = ("backend", "precision", "batch", "p50 ms", "p90 ms", "p99 ms", "+-%", "calls")
    lines = [[*header, "images/s", "memory MiB", "file MiB", "top-1 %"]]
    for record in records:
        if record.status == OK:
            lines.append(
                [
                    record.backend,
                    record.precision,
                    str(record.batch),
                    number(record.p50_ms),
                    number(record.p90_ms),
                    number(record.p99_ms),
                    percent(record.ci_half_width, 1),
                    str(len(record.samples_ms)),
                    number(record.images_per_s),
                    number(record.peak_memory_mib),
                    mebibytes(record.file_bytes),
                    percent(record.top1),
                ]
            )
    if len(lines) == 1:
        return ""
    right = range(NAME_COLUMNS, len(lines[0]))
    return "".join(f"{line}\n" for line in columns(lines, right=right))


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
