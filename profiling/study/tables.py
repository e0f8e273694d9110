"""All tables of a study: for each comparison, one for each environment in which it was timed."""

import re
from collections.abc import Iterable
from dataclasses import replace

from profiling.study.ablation import ablation
from profiling.study.data import Comparison
from profiling.study.deployment import environments
from profiling.study.notes import short_bound
from profiling.study.reading import FIRST, SECOND
from profiling.study.second_study import second_study
from profiling.study.table import Table
from profiling.study.table1 import table_1
from profiling.tables import place
from zoo.environment import Environment

BUILDERS = {FIRST: table_1, SECOND: second_study}


def study_tables(
    comparisons: Iterable[Comparison], *, price_per_hour: float | None = None
) -> list[Table]:
    """Every table, under names of their own, in the order of the comparisons.

    A comparison of which nothing was trained has no table.
    """
    found: list[Table] = []
    for comparison in comparisons:
        trials = [trial for arm in comparison.arms for trial in arm.trials]
        if all(trial.top1 is None for trial in trials):
            continue
        build = BUILDERS.get(comparison.name, ablation)
        places: list[Environment | None] = [*environments(trials)]
        for environment in places or [None]:
            found += build(
                comparison,
                environment,
                name=f"-{comparison.dataset}{'' if environment is None else f'-{environment.key}'}",
                title=f"{comparison.dataset}{short_bound(comparison)}",
                place="" if environment is None else place(environment),
                price_per_hour=price_per_hour,
            )
    return _distinct(found)


def _distinct(tables: Iterable[Table]) -> list[Table]:
    """With names that are safe in a path; of equal ones, the second gets a number."""
    taken: set[str] = set()
    named = []
    for table in tables:
        stem = name = re.sub("[^A-Za-z0-9._-]+", "-", table.name)
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        named.append(replace(table, name=name))
    return named
