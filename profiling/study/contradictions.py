"""Contradictions within the published figures: found by rules, as one page and as JSON."""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from profiling.study.accuracy_rules import ACCURACY_RULES
from profiling.study.cost_rules import COST_RULES
from profiling.study.published import Cell, Published, Row, read_published
from profiling.tables import markdown_table
from zoo.reported import DOUBTFUL, REPORTED

INTRO = """\
# Contradictions in the published figures

What two published studies state about these networks, held against itself by machine. No figure
here was measured by us: each cell names the publication that states it and its place in
`zoo/reported`; counts from the zoo's catalogue, where a rule needs one, say so. The rules look at
the figures alone and know no network by its name. A finding says that its figures cannot all be
right, or are doubtful where its rule says that; it says neither which is wrong nor why.
"""
RULES = (*ACCURACY_RULES, *COST_RULES)
SUMMARY = ("Rule", "Findings", "Cells")
COLUMNS = ("Stated in", "File", "Line", "About", "Column", "Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Figures that cannot all be right."""

    rule: str  # the name of one of RULES
    says: str  # a sentence
    cells: tuple[Cell, ...]


def findings() -> list[Finding]:
    """What the rules find in the tables of `zoo.reported`, in the order of RULES and of rows."""
    return list(_findings())


def contradictions_markdown() -> str:
    """The findings as one page."""
    return to_markdown(findings())


def contradictions_json() -> str:
    """The findings for programs."""
    return to_json(findings())


def find(published: Published) -> list[Finding]:
    """What the rules find in these tables."""
    return [
        Finding(rule=rule.name, says=says, cells=tuple(cells))
        for rule in RULES
        for says, cells in rule.find(published)
    ]


def to_markdown(found: Sequence[Finding]) -> str:
    """A table of all rules with their counts, then each finding with its cells."""
    summary = [list(SUMMARY)]
    parts = []
    for rule in RULES:
        of_rule = [finding for finding in found if finding.rule == rule.name]
        cells = {cell for finding in of_rule for cell in finding.cells}
        summary.append([rule.name, str(len(of_rule)), str(len(cells))])
        if of_rule:
            parts.append(f"\n## {rule.name}\n\n{rule.means}\n")
            parts += [f"\n**{finding.says}**\n\n{_cells(finding)}" for finding in of_rule]
    return "".join([INTRO, "\n", markdown_table(summary, left=1), *parts])


def to_json(found: Sequence[Finding]) -> str:
    """Every rule with its findings, those that found nothing too."""
    rules = [
        {
            "rule": rule.name,
            "means": rule.means,
            "findings": [
                {"says": finding.says, "cells": [asdict(cell) for cell in finding.cells]}
                for finding in found
                if finding.rule == rule.name
            ],
        }
        for rule in RULES
    ]
    return json.dumps({"about": "figures published by others", "rules": rules}, indent=1) + "\n"


@functools.cache
def doubtful_cells() -> frozenset[tuple[str, int | None, str]]:
    """File, line and column of each published figure that a rule says is doubtful on its own."""
    doubts = {rule.name: rule.doubts for rule in RULES}
    return frozenset(
        (cell.table, cell.line, cell.column)
        for finding in _findings()
        for cell in finding.cells
        if cell.column in doubts[finding.rule]
    )


def state_of(row: Row, column: str) -> str:
    """What is known of one figure of a published table."""
    is_doubtful = (row.table, row.line, column) in doubtful_cells()
    return DOUBTFUL if is_doubtful else REPORTED


@functools.cache
def _findings() -> tuple[Finding, ...]:
    return tuple(find(read_published()))


def _cells(finding: Finding) -> str:
    lines = [list(COLUMNS)]
    for cell in finding.cells:
        line = "" if cell.line is None else str(cell.line)
        lines.append([cell.source, cell.table, line, cell.row, cell.column, cell.value])
    return markdown_table(lines, left=len(COLUMNS) - 1)
