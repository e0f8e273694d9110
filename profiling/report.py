"""Rows and figures as files: Markdown, CSV, plots and one static page."""

import html
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from profiling import plots
from profiling.record import Measurement
from profiling.roofline import ROOF_NOTE, Roof, share_of_roof
from profiling.tables import (
    LEFT_COLUMNS,
    Table,
    busy_note,
    cells,
    csv_text,
    efficiency_tables,
    markdown,
    throttle_note,
)
from zoo.files import atomic_file

TITLE = "Efficiency of the models"
PLOTS = {"pareto": "Accuracy against latency", "roofline": "Speed under the roof"}
UNCERTAIN = (
    "A median whose interval reaches further than 2% was not known better when its measurement "
    "ended: compare it with care."
)
DEMONSTRATION = (
    "cifar100-mini is a small subset of CIFAR-100, shipped for demonstrations and tests: these are "
    "bounded demonstration runs, not CIFAR-100 results."
)
AS_INITIALISED = (
    "An untrained network is as it is initialised, on random images: its times and its memory are "
    "those of a trained one, its accuracy is not known."
)
METHOD = (
    "A time is the median over single calls of one session, warmed up until stationary and "
    "synchronised after each call; input copies, loading and compilation are excluded. The "
    "backends took turns, one process each. Beside it stand the wider half of its 95% confidence "
    "interval, disagreement of the turns included, and, in brackets, the number of calls. FLOPs "
    "are two per multiply-accumulate of convolutions and matrix products, for one image. Accuracy "
    "is that of the very file that was timed; an empty cell was not measured."
)
CSS = """
:root { color-scheme: light; --text: #1f2328; --quiet: #59636e; --line: #d1d9e0; --mark: #fff8c5; }
body { color: var(--text); background: #fff; margin: 2rem auto; padding: 0 1.5rem; max-width: 90rem;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
p { max-width: 60rem; } .quiet { color: var(--quiet); font-size: .9rem; }
.note { background: var(--mark); padding: .5rem .75rem; border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { text-align: left; vertical-align: bottom; border-bottom-width: 2px; white-space: normal; }
.number { text-align: right; }
svg { max-width: 60rem; width: 100%; height: auto; }
""".strip()


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    page: Path
    files: tuple[Path, ...]
    markdown: str  # the tables


def write_report(
    records: Sequence[Measurement],
    out: Path,
    *,
    readme: Path | None = None,
    roofs: Mapping[str, Roof] | None = None,
    more: Mapping[Path, bytes | str] | None = None,
) -> Report:
    """Write efficiency.md, efficiency.csv, index.html and plots as PNG and SVG into `out`.

    The same records give the same bytes, in whatever order they come. `readme` is one more
    Markdown file, with the plots in it, for a folder that people browse. pareto.svg needs a row
    with both accuracy and latency, roofline.svg the roof of a row's environment key in `roofs`;
    without, there is no plot, and one of an earlier report is removed. `more` are files that are
    written with these, all or none.
    """
    tables = efficiency_tables(records, roofs)
    drawn = {"pareto": plots.pareto_plot(tables), "roofline": plots.roofline_plot(tables)}
    text = markdown_text(tables)
    contents: dict[Path, bytes | str] = {
        out / "efficiency.md": f"# {TITLE}\n\n{text}",
        out / "efficiency.csv": csv_text(tables),
        out / "index.html": page(
            tables, {name: plot["svg"].decode() for name, plot in drawn.items() if plot}
        ),
    }
    for name, plot in drawn.items():
        contents |= {out / f"{name}.{kind}": data for kind, data in (plot or {}).items()}
    if readme is not None:
        plotted = [name for name, plot in drawn.items() if plot]
        contents[readme] = _readme(text, out, readme, plotted=plotted)
    contents |= more or {}
    with ExitStack() as stack:  # all or none is renamed
        for path, content in contents.items():
            part = stack.enter_context(atomic_file(path))
            part.write_bytes(content.encode() if isinstance(content, str) else content)
    for name in (name for name, plot in drawn.items() if plot is None):
        for kind in ("png", "svg"):
            (out / f"{name}.{kind}").unlink(missing_ok=True)
    return Report(out / "index.html", tuple(contents), text)


def markdown_text(tables: Sequence[Table]) -> str:
    """All tables with what one needs to know of each."""
    parts = []
    for table in tables:
        parts.append(f"## {heading(table)}\n\n")
        parts += [f"{line}\n\n" for line in (plots.place_of(table), *notes(table))]
        parts.append(markdown(table))
        gaps = missing(table)
        if gaps:
            parts.append("\nNot measured:\n\n" + "".join(f"- {line}\n" for line in gaps))
        parts.append("\n")
    return "".join(parts) + f"{METHOD}\n"


def heading(table: Table) -> str:
    """The data set of a table, or what it is without one."""
    return table.dataset or "Models without a run"


def notes(table: Table) -> list[str]:
    """What a reader must know before the numbers."""
    lines = []
    if table.dataset == "cifar100-mini":
        lines.append(DEMONSTRATION)
    counts = sorted({row.newest.accuracy_images or 0 for row in table.rows} - {0})
    if counts:
        lines.append(f"Top-1 over {' or '.join(f'{count:,}' for count in counts)} test images.")
    if any(row.newest.is_untrained for row in table.rows):
        lines.append(AS_INITIALISED)
    methods = sorted({r.memory_method or "" for row in table.rows for r in row.by_batch.values()})
    lines += [f"Peak MiB: {method}." for method in methods if method]
    records = [record for row in table.rows for record in row.by_batch.values()]
    if any(not record.ci_reached for record in records):
        lines.append(UNCERTAIN)
    lines += [note for note in (busy_note(records), throttle_note(records)) if note]
    if any(share_of_roof(record, table.roof) is not None for record in records):
        lines.append(f"Roof %: {ROOF_NOTE}")
    return lines


def missing(table: Table) -> list[str]:
    """What could not be measured, and why."""
    return [
        f"{r.source.run if r.source else r.model} {r.backend} {r.precision} b{r.batch}: "
        f"{r.status} ({r.reason})"
        for r in table.missing
    ]


def page(tables: Sequence[Table], drawings: Mapping[str, str]) -> str:
    """One HTML file that needs no other; `drawings` are SVG, by the keys of PLOTS."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{TITLE}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<h1>{TITLE}</h1>\n"
    ]
    for table in tables:
        parts.append(f"<h2>{html.escape(heading(table))}</h2>\n")
        parts.append(f'<p class="quiet">{html.escape(plots.place_of(table))}</p>\n')
        for note in notes(table):
            kind = ' class="note"' if note == DEMONSTRATION else ""
            parts.append(f"<p{kind}>{html.escape(note)}</p>\n")
        if table.rows:
            parts.append(_html_table(cells(table)))
        gaps = missing(table)
        if gaps:
            items = "".join(f"<li>{html.escape(line)}</li>\n" for line in gaps)
            parts.append(f"<p>Not measured:</p>\n<ul>\n{items}</ul>\n")
    for name, svg in drawings.items():
        drawing = svg[svg.index("<svg") :]  # without the XML prologue
        parts.append(f"<h2>{PLOTS[name]}</h2>\n{drawing}\n")
    parts.append(f'<h2>How it was measured</h2>\n<p class="quiet">{html.escape(METHOD)}</p>\n')
    return "".join(parts) + "</body>\n</html>\n"


def _html_table(lines: Sequence[Sequence[str]]) -> str:
    def line(texts: Sequence[str], tag: str) -> str:
        kinds = ("" if column < LEFT_COLUMNS else ' class="number"' for column in range(len(texts)))
        inner = "".join(
            f"<{tag}{kind}>{html.escape(text)}</{tag}>"
            for kind, text in zip(kinds, texts, strict=True)
        )
        return f"<tr>{inner}</tr>\n"

    header, *body = lines
    rows = "".join(line(texts, "td") for texts in body)
    return (
        f'<div class="scroll"><table>\n<thead>\n{line(header, "th")}</thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>\n"
    )


def _readme(text: str, out: Path, readme: Path, *, plotted: Sequence[str]) -> str:
    folder = Path(os.path.relpath(out, readme.parent)).as_posix()
    plot = "".join(f"![{PLOTS[name]}]({folder}/{name}.svg)\n\n" for name in plotted)
    return (
        f"# Measured results\n\nWritten by `zoo-report` from the records beside this file; do not "
        f"edit it. The same as [one page]({folder}/index.html) and as "
        f"[CSV]({folder}/efficiency.csv).\n\n{plot}{text}"
    )
