"""Records as efficiency tables: pure functions from measurements to rows and text.

A table holds one environment and one data set; records that differ in either never meet in one.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from profiling.record import OK, Measurement
from profiling.roofline import Roof, share_of_roof
from zoo.environment import Environment
from zoo.text import aligned, printable

CSV_FIELDS = (
    *("model", "backend", "runtime", "precision", "batch", "status", "reason"),
    *("top1", "top5", "accuracy_images", "parity_max_error", "parity_agreement"),
    *("params", "macs", "flops", "file_bytes"),
    *("p50_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "mean_ms", "sd_ms", "cpu_p50_ms"),
    *("device_p50_ms", "enqueue_p50_ms", "ci_half_width", "ci_reached", "images_per_s"),
    *(
        "reference_ratio",
        "logits_error",
        "peak_memory_mib",
        "memory_method",
        "build_s",
        "load_s",
        "first_call_ms",
    ),
    *("activation_bytes", "intensity", "input", "is_l2_flushed", "artifact_sha256", "created_at"),
)
HOST_FIELDS = ("others", "steal", "cores", "of_core")
GPU_FIELDS = ("peak_memory_mib", "energy_mj_per_image")
UNTRAINED = "untrained"  # in place of a run
USUAL_IMAGE = (32, 32)  # height and width, not worth saying


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One file on one backend: the speed beside the accuracy of that very file."""

    by_batch: dict[int, Measurement]  # status OK; one file, so all but the speed is common

    @property
    def newest(self) -> Measurement:
        """The last record; for whatever does not depend on the batch."""
        return max(self.by_batch.values(), key=lambda record: record.created_at)

    @property
    def top1(self) -> float | None:
        """Accuracy of the file, as the newest record that knows it has it."""
        known = [record for record in self.by_batch.values() if record.top1 is not None]
        return max(known, key=lambda record: record.created_at).top1 if known else None

    @property
    def run(self) -> str:
        """Name of the run, or what stands in its place."""
        return run_name(self.newest)

    @property
    def label(self) -> str:
        """Enough to tell rows of one plot apart."""
        source = self.newest.source
        name = self.newest.model if source is None else source.run
        precision = "" if self.newest.precision == "fp32" else f" {self.newest.precision}"
        return f"{name} {backend_name(self.newest)}{precision}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """All rows of one environment and one data set."""

    environment: Environment
    dataset: str  # empty for files and networks that no run of ours made
    dataset_digest: str
    rows: tuple[Row, ...]
    batches: tuple[int, ...]  # that any row has, ascending
    missing: tuple[Measurement, ...]  # newest of their kind, and without numbers
    roof: Roof | None = None  # of the environment, where it was measured


def backend_name(record: Measurement) -> str:
    """The backend, and that the L2 cache was overwritten where it was."""
    return f"{record.backend} (L2 flushed)" if record.is_l2_flushed else record.backend


def run_name(record: Measurement) -> str:
    """The run of a record, or that there was no training; empty for a file of another origin."""
    if record.source is not None:
        return record.source.run
    if not record.is_untrained:
        return ""
    height, width = USUAL_IMAGE if record.image_shape is None else record.image_shape[1:]
    return UNTRAINED if (height, width) == USUAL_IMAGE else f"{UNTRAINED}, {height}x{width}"


class Point(NamedTuple):
    """A row in a plot of accuracy against cost."""

    label: str
    cost: float
    accuracy: float
    series: str = ""


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Points that no other point beats on both cost and accuracy, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy, point.label)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def latency_points(table: Table) -> list[Point]:
    """Accuracy against the median latency at the smallest batch, where a row has both."""
    points = []
    for row in table.rows:
        record = row.by_batch.get(table.batches[0])
        if record is not None and record.p50_ms is not None and row.top1 is not None:
            points.append(Point(row.label, record.p50_ms, row.top1, record.backend))
    return points


def efficiency_tables(
    records: Iterable[Measurement], roofs: Mapping[str, Roof] | None = None
) -> list[Table]:
    """Group records by environment and data set, the newest of each kind alone.

    `roofs` are those of environment keys.
    """
    groups: dict[tuple[str, str, str], list[Measurement]] = defaultdict(list)
    for record in records:
        source = record.source
        dataset = ("", "") if source is None else (source.dataset, source.dataset_digest)
        groups[*dataset, record.environment.key].append(record)
    named_first = sorted(groups.items(), key=lambda item: (item[0][0] == "", item[0]))
    known = roofs or {}
    return [_table(*name[:2], group, known.get(name[2])) for name, group in named_first]


def _table(dataset: str, digest: str, records: Sequence[Measurement], roof: Roof | None) -> Table:
    kinds: dict[tuple[str | bool, ...], list[Measurement]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.created_at, record.batch)):
        source = record.source
        # Equal weights in two runs are two rows: each states its run.
        origin = (source.run, source.weights_sha256) if source else (record.artifact_sha256,)
        if record.is_untrained:  # one that was changed since replaces what it was
            origin = (run_name(record),)
        how = record.backend, record.precision, record.is_l2_flushed
        kinds[record.model, *how, *origin].append(record)
    rows, missing = [], []
    for kind in kinds.values():
        newest = kind[-1]
        # A file that was exported again replaces the former one at every batch size, and so does
        # another version of what runs it, which a failure to open does not tell.
        runtime = next((r.runtime for r in reversed(kind) if r.runtime is not None), None)
        current = {
            r.batch: r
            for r in kind
            if r.artifact_sha256 == newest.artifact_sha256 and r.runtime in (None, runtime)
        }
        by_batch = {batch: r for batch, r in sorted(current.items()) if r.status == OK}
        missing += [r for r in current.values() if r.status != OK]
        if by_batch:
            rows.append(Row(by_batch=by_batch))
    batches = sorted({batch for row in rows for batch in row.by_batch})
    return Table(
        environment=records[0].environment,
        dataset=dataset,
        dataset_digest=digest,
        rows=tuple(sorted(rows, key=lambda row: _order(row, batches))),
        batches=tuple(batches),
        missing=tuple(sorted(missing, key=lambda r: (r.model, r.backend, r.precision, r.batch))),
        roof=roof,
    )


def _order(row: Row, batches: Sequence[int]) -> tuple[str, str, float, str]:
    """By model and run, the fastest backend first."""
    fastest = row.by_batch.get(batches[0])
    latency = float("inf") if fastest is None or fastest.p50_ms is None else fastest.p50_ms
    return row.newest.model, row.run, latency, row.label


# Text ---------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, without an exponent; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 9.999 is 10.0
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def place(environment: Environment) -> str:
    """The environment in a few words."""
    device = environment.cpu if environment.device == "cpu" else environment.device
    threads = f"{environment.threads} thread{'s' if environment.threads > 1 else ''}"
    return f"{device}, {threads}, torch {environment.torch} [{environment.key}]"


def percent(share: float | None, places: int = 2) -> str:
    """A share of 1 as percent, without the sign; empty for None."""
    return "" if share is None else f"{100 * share:.{places}f}"


def mebibytes(count: float | None) -> str:
    """Bytes as MiB; empty for None."""
    return "" if count is None else number(count / 2**20)


def millions(count: int | None) -> str:
    """A count in millions; empty for None."""
    return "" if count is None else number(count / 1e6, 4)


def timing(record: Measurement | None) -> str:
    """Median in ms, the wider half of its interval, and the calls: "2.70 +-1.4% (138)"."""
    if record is None or record.p50_ms is None:
        return ""
    width = record.ci_half_width
    known = "" if width is None else f" +-{percent(width, 1)}%"
    return f"{number(record.p50_ms)}{known} ({len(record.samples_ms)})"


def cells(table: Table) -> list[list[str]]:
    """The table as text, header first; a cell is empty where nothing is known."""
    first, last = table.batches[0], table.batches[-1]
    header = ["Model", "Run", "Recipe", "Backend", "Precision", "Top-1 %", "Params"]
    header += ["MACs M", "FLOPs M", "File MiB"]
    header += [f"b{batch} p50 ms (calls)" for batch in table.batches]
    header += [f"b{last} images/s", f"b{last} peak MiB", "Load s", f"b{first} first call s"]
    lines = [header]
    for row in table.rows:
        facts, source = row.newest, row.newest.source
        small, large = row.by_batch.get(first), row.by_batch.get(last)
        first_call = None if small is None or small.first_call_ms is None else small.first_call_ms
        lines.append(
            [
                facts.model,
                row.run,
                "" if source is None else f"{source.recipe}, {source.selection}",
                backend_name(facts),
                facts.precision,
                percent(row.top1),
                "" if facts.params is None else f"{facts.params:,}",
                millions(facts.macs),
                millions(facts.flops),
                mebibytes(facts.file_bytes),
                *(timing(row.by_batch.get(batch)) for batch in table.batches),
                "" if large is None else number(large.images_per_s),
                "" if large is None else number(large.peak_memory_mib),
                number(facts.load_s),
                number(None if first_call is None else first_call / 1e3),
            ]
        )
    for line, more in zip(lines, _optional_cells(table), strict=True):
        line += more
    return lines


def _optional_cells(table: Table) -> list[list[str]]:
    """Columns that not every table has, header first; only those with any number."""
    last = table.batches[-1:]
    kinds: tuple[tuple[str, Sequence[int], Callable[[Measurement], str]], ...] = (
        ("Build s", last, lambda record: number(record.build_s)),
        ("b{} activations MiB", last, lambda record: mebibytes(record.activation_bytes)),
        ("b{} FLOPs/byte", last, lambda record: number(record.intensity)),
        ("b{} roof %", table.batches, lambda r: percent(share_of_roof(r, table.roof), 1)),
    )
    columns = []
    for title, batches, cell in kinds:
        for batch in batches:
            found = [row.by_batch.get(batch) for row in table.rows]
            texts = ["" if record is None else cell(record) for record in found]
            if any(texts):
                columns.append([title.format(batch), *texts])
    return [list(line) for line in zip(*columns, strict=True)] or [[]] * (len(table.rows) + 1)


LEFT_COLUMNS = 5  # of `cells`: names; the rest are numbers


def markdown(table: Table) -> str:
    """The rows as a Markdown table that is legible as it stands."""
    if not table.rows:
        return ""
    return markdown_table(cells(table), left=LEFT_COLUMNS)


def markdown_table(lines: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table that is legible as it stands; the first `left` columns hold names."""
    return markdown_columns(lines, right=range(left, len(lines[0])))


def markdown_columns(lines: Sequence[Sequence[str]], *, right: Collection[int]) -> str:
    """The same, with the numbers in the columns `right`.

    What others wrote ends neither a cell nor a line.
    """
    whole = [[printable(cell).replace("|", r"\|") for cell in line] for line in lines]
    header, *body = aligned(whole, right=right)
    rule = [
        "-" * (len(cell) - 1) + ":" if column in right else "-" * len(cell)
        for column, cell in enumerate(header)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *body))


def csv_text(tables: Iterable[Table]) -> str:
    """Every record of the tables as one line of CSV, units in the names of the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    origin = ("seed", "recipe", "selection", "dataset", "dataset_digest")
    beside = [f"host_{name}" for name in HOST_FIELDS] + [f"gpu_{name}" for name in GPU_FIELDS]
    writer.writerow(
        ("environment", "run", *origin, *CSV_FIELDS, "calls", "threads", *beside, "roof_share")
    )
    for table in tables:
        records = [r for row in table.rows for r in row.by_batch.values()]
        for record in (*records, *table.missing):
            source = record.source
            writer.writerow(
                (
                    record.environment.key,
                    run_name(record),
                    *("" if source is None else getattr(source, name) for name in origin),
                    *(_plain(getattr(record, name)) for name in CSV_FIELDS),
                    len(record.samples_ms) or "",
                    record.environment.threads,
                    *(_plain(getattr(record.host, name, None)) for name in HOST_FIELDS),
                    *(_plain(getattr(record.gpu, name, None)) for name in GPU_FIELDS),
                    _plain(share_of_roof(record, table.roof)),
                )
            )
    return text.getvalue()


def busy_note(records: Iterable[Measurement]) -> str:
    """How much of the CPU others used meanwhile, where that was worth saying; else empty."""
    busy = [r for r in records if r.host is not None and r.host.is_busy]
    if not busy:
        return ""
    hosts = [r.host for r in busy if r.host is not None]
    others, steal = (max(getattr(host, name) for host in hosts) for name in HOST_FIELDS[:2])
    of_core = max((host.of_core for host in hosts if host.of_core is not None), default=None)
    beside = "" if of_core is None else f"; of the measured core, up to {percent(of_core, 0)}%"
    return (
        f"The machine was busy during {len(busy)} measurement{'s' if len(busy) > 1 else ''}: up to "
        f"{percent(others, 0)}% of the CPU's time went to other processes and "
        f"{percent(steal, 0)}% to other machines{beside}. Ratios to the reference kernel suffer "
        "less."
    )


def throttle_note(records: Iterable[Measurement]) -> str:
    """Why a GPU was slower than it could be, where NVML said so; else empty."""
    reasons = {reason for r in records if r.gpu for reason in r.gpu.throttled_by or ()}
    return f"The GPU was slowed down by: {', '.join(sorted(reasons))}." if reasons else ""


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return round(value, 6) if abs(value) >= 1 else float(f"{value:.6g}")
    return "" if value is None else value
