"""The report of a study: its tables, contradictions and figures as the files of one folder."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from profiling.report import CSS, METHOD
from profiling.roofline import Roof
from profiling.study.contradictions import (
    RULES,
    Finding,
    contradictions_json,
    contradictions_markdown,
    findings,
)
from profiling.study.data import Comparison, Trial
from profiling.study.derived import bounds
from profiling.study.figures import captions, figures
from profiling.study.table import Table
from profiling.study.tables import study_tables
from profiling.study.writers import to_csv, to_html, to_json, to_latex, to_markdown

FOLDER, PAGE, LIST = "study", "index.html", "index.json"
TITLE = "The studies, made again"
CONTRADICTIONS = "Contradictions in the published figures"
INTRO = (
    "Written by zoo-report from the records of sweeps. What others published is called reported "
    "and never mixed with what was measured; a cell without a record is empty. Each data set has "
    "tables of its own, and so has each machine that measured: the times of calls, memory and "
    "prices in a table are those of its machine alone. A training may come from any machine, which "
    "stands beside its time."
)
FORMS = {"csv": to_csv, "md": to_markdown, "tex": to_latex, "json": to_json}
DRAWN = ("png", "svg")


def study_files(
    comparisons: Sequence[Comparison],
    *,
    roofs: Mapping[str, Roof] | None = None,
    price_per_hour: float | None = None,
) -> dict[str, bytes]:
    """Every file of the report under its name; the same comparisons give the same bytes.

    `price_per_hour` is that of the machine on which times were measured. Empty where nothing was
    trained.
    """
    tables = study_tables(comparisons, price_per_hour=price_per_hour)
    if not tables:
        return {}
    drawn = figures(comparisons, roofs or {})
    files = {
        f"{table.name}.{form}": write(table) for table in tables for form, write in FORMS.items()
    }
    files["contradictions.md"] = contradictions_markdown()
    files["contradictions.json"] = contradictions_json()
    words = captions(drawn)
    notices = _notices(comparisons)
    files["index.md"] = _index(tables, words, notices)
    files[PAGE] = _page(tables, words, notices)
    contents = {name: text.encode() for name, text in files.items()}
    contents |= {f"{name}.{kind}": drawn[name][kind] for name in drawn for kind in DRAWN}
    listed = {"title": TITLE, "files": sorted([*contents, LIST])}
    return contents | {LIST: f"{json.dumps(listed, indent=1)}\n".encode()}


def former_files(folder: Path) -> set[str]:
    """The names of what an earlier report wrote into this folder; empty where nothing tells."""
    try:
        names = json.loads((folder / LIST).read_bytes())["files"]
        return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove these files, and the folder if nothing is left in it."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _notices(comparisons: Iterable[Comparison]) -> list[str]:
    """What holds for the whole study: how far its trainings went, for each data set."""
    jobs: dict[str, dict[str, Trial]] = {}  # data set -> id -> job; one may be in many comparisons
    for comparison in comparisons:
        own = jobs.setdefault(comparison.dataset, {})
        own.update({trial.id: trial for arm in comparison.arms for trial in arm.trials})
    found = []
    for dataset, trials in jobs.items():
        bounded = bounds(trials.values())
        done = sum(trial.top1 is not None for trial in trials.values())
        limits = "" if bounded is None else f"; {bounded}"
        found.append(f"{dataset}: {done} of {len(trials)} trainings are done{limits}.")
    return found


def _index(tables: Iterable[Table], words: Mapping[str, str], notices: Iterable[str]) -> str:
    lines = [f"# {TITLE}\n", f"{INTRO}\n", *(f"**{notice}**\n" for notice in notices)]
    lines += [f"All of it on [one page]({PAGE}).\n", "## Tables\n"]
    lines += [f"- {table.title}: {_forms(table, '[{form}]({file})')}" for table in tables]
    lines += [
        f"\n## {CONTRADICTIONS}\n",
        "[The findings](contradictions.md), also [for programs](contradictions.json).\n",
        "## Figures\n",
        *(f"![{caption}]({name}.svg)\n\n{caption}\n" for name, caption in words.items()),
    ]
    return "\n".join(lines)


def _page(tables: Iterable[Table], words: Mapping[str, str], notices: Iterable[str]) -> str:
    listed = list(tables)
    links = [f'<li><a href="#{table.name}">{html.escape(table.title)}</a></li>' for table in listed]
    links += [
        f'<li><a href="#contradictions">{CONTRADICTIONS}</a></li>',
        '<li><a href="#figures">Figures</a></li>',
    ]
    contents = "\n".join(links)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{TITLE}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<h1>{TITLE}</h1>\n"
        f"<p>{INTRO}</p>\n",
        *(f'<p class="note">{html.escape(notice)}</p>\n' for notice in notices),
        f"<ul>\n{contents}\n</ul>\n",
    ]
    for table in listed:
        parts.append(to_html(table))
        forms = _forms(table, '<a href="{file}">{form}</a>')
        parts.append(f'<p class="quiet">As {forms}.</p>\n')
    parts.append(_contradictions(findings()))
    parts.append('<h2 id="figures">Figures</h2>\n')
    for name, caption in words.items():
        text = html.escape(caption)
        parts.append(
            f'<figure>\n<img src="{name}.svg" alt="{text}" style="max-width: 100%">\n'
            f'<figcaption class="quiet">{text} As <a href="{name}.png">png</a>, '
            f'<a href="{name}.svg">svg</a>.</figcaption>\n</figure>\n'
        )
    parts.append(f'<h2>How it was measured</h2>\n<p class="quiet">{html.escape(METHOD)}</p>\n')
    return "".join(parts) + "</body>\n</html>\n"


def _forms(table: Table, link: str) -> str:
    return ", ".join(link.format(form=form, file=f"{table.name}.{form}") for form in FORMS)


def _contradictions(found: Sequence[Finding]) -> str:
    parts = [
        f'<h2 id="contradictions">{CONTRADICTIONS}</h2>\n<p>What the two studies state, held '
        "against itself by rules; nothing of it was measured here. With all cells: "
        '<a href="contradictions.md">md</a>, <a href="contradictions.json">json</a>.</p>\n'
    ]
    for rule in RULES:
        says = [finding.says for finding in found if finding.rule == rule.name]
        if says:
            items = "".join(f"<li>{html.escape(sentence)}</li>\n" for sentence in says)
            title = f"{html.escape(rule.name)} ({len(says)})"
            parts.append(f"<h3>{title}</h3>\n<ul>\n{items}</ul>\n")
    return "".join(parts)
