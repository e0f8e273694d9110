"""A table of a study as CSV, JSON, Markdown, LaTeX and HTML; the same table gives the same text."""

import csv
import html
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from profiling.study.table import PARTS, Column, Table, grid
from profiling.tables import markdown_columns

LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
PLUS_MINUS = "+-"


def to_csv(table: Table) -> str:
    """Raw values, one column for each part of a cell; units are in the names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for column in table.columns for name, _ in _fields(column)])
    for row in table.rows:
        writer.writerow(
            [
                _raw(_part(row.get(column.key), attribute))
                for column in table.columns
                for _, attribute in _fields(column)
            ]
        )
    return text.getvalue()


def to_json(table: Table) -> str:
    """The same for programs, with what each column is."""
    value = {
        "name": table.name,
        "title": table.title,
        "dataset": table.dataset,
        "place": table.place,
        "notes": list(table.notes),
        "columns": [
            {
                "key": column.key,
                "heading": column.heading,
                "unit": column.kind.unit,
                "source": column.source,
            }
            for column in table.columns
        ],
        "rows": [
            {column.key: _jsonable(row.get(column.key)) for column in table.columns}
            for row in table.rows
        ],
    }
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def to_markdown(table: Table, *, level: int = 1) -> str:
    """A heading, the notes, and one table for each part."""
    lines = [f"{'#' * level} {table.title}\n"]
    lines += [f"{note}\n" for note in notes(table)]
    for name, columns in table.parts():
        if name:
            lines.append(f"**{name}**\n")
        right = [place for place, column in enumerate(columns) if not column.is_text]
        lines.append(markdown_columns(grid(table, columns), right=right))
    return "\n".join(lines)


def to_latex(table: Table) -> str:
    r"""Floats with booktabs for \input, one for each part; the notes are in the first."""
    lines = ["% Needs the packages booktabs and graphicx."]
    said = [latex(note) for note in notes(table)]
    for number, (name, columns) in enumerate(table.parts()):
        title = f"{table.title}. {name}" if name else table.title
        label = "-".join(filter(None, (table.name, _slug(name))))
        header, *body = grid(table, columns)
        lines += [
            r"\begin{table}[tbp]",
            r"\centering",
            rf"\caption{{{latex(title)}}}",
            rf"\label{{tab:{label}}}",
            r"\small",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join('l' if c.is_text else 'r' for c in columns)}}}",
            r"\toprule",
            _latex_row(header),
            r"\midrule",
            *map(_latex_row, body),
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip{{\footnotesize {note}}}" for note in said),
            r"\end{table}",
            "",
        ]
        if number == 0:
            said = [rf"Notes: see table~\ref{{tab:{label}}}."]
    return "\n".join(lines)


def to_html(table: Table) -> str:
    """A section of a page."""
    lines = [f'<h2 id="{html.escape(table.name)}">{html.escape(table.title)}</h2>\n']
    lines += [f'<p class="quiet">{html.escape(note)}</p>\n' for note in notes(table)]
    for name, columns in table.parts():
        header, *body = grid(table, columns)
        caption = f"<caption>{html.escape(name)}</caption>\n" if name else ""
        rows = "".join(_html_row(row, columns, "td") for row in body)
        head = _html_row(header, columns, "th")
        lines.append(
            f'<div class="scroll"><table>\n{caption}<thead>\n{head}</thead>\n'
            f"<tbody>\n{rows}</tbody>\n</table></div>\n"
        )
    return "".join(lines)


def notes(table: Table) -> Iterator[str]:
    """Where it was measured, then what a reader must know."""
    if table.place:
        yield f"Times and memory: {table.place}."
    yield from table.notes


def latex(text: str) -> str:
    """Text as LaTeX prints it."""
    signs = text.split(PLUS_MINUS)
    return r"$\pm$".join("".join(LATEX.get(letter, letter) for letter in part) for part in signs)


def _latex_row(cells: Sequence[str]) -> str:
    # A row must not begin with a bracket: that would be the option of the line's end before it.
    return " & ".join(f"{{}}{latex(c)}" if c.startswith("[") else latex(c) for c in cells) + r" \\"


def _html_row(cells: Sequence[str], columns: Sequence[Column], tag: str) -> str:
    kinds = ("" if column.is_text else ' class="number"' for column in columns)
    inner = "".join(
        f"<{tag}{kind}>{html.escape(cell).replace(PLUS_MINUS, '&plusmn;')}</{tag}>"
        for kind, cell in zip(kinds, cells, strict=True)
    )
    return f"<tr>{inner}</tr>\n"


def _fields(column: Column) -> list[tuple[str, str]]:
    """The CSV columns of a column, each with the attribute that it holds ("": the value)."""
    if column.holds is None:
        return [(column.key, "")]
    return [(f"{column.key}{suffix}", attribute) for suffix, attribute in PARTS[column.holds]]


def _part(value: Any, attribute: str) -> Any:
    return getattr(value, attribute) if value is not None and attribute else value


def _raw(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _rounded(value)
    return "" if value is None else value


def _jsonable(value: Any) -> Any:
    if type(value) in PARTS:
        return {name: _rounded(part) for name, part in asdict(value).items()}
    return _rounded(value)


def _rounded(value: Any) -> Any:
    """Without the last digits, in which computers differ."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
