"""What several figures take from trials: their summaries, their words, their times."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from profiling.record import Measurement
from profiling.study.data import Arm, Comparison, Trial
from profiling.study.deployment import (
    environments,
    mean_p50_ms,
    mean_top1,
    rows_of,
    two_batches,
)
from profiling.study.derived import Mean, bounds, mean_of
from profiling.tables import Row, place
from zoo.environment import Environment

TITLES = {"comparison": "The first study's networks", "second-study": "The second study's networks"}
ALL = "All networks"
MOST_PLACES = 3  # machines that a heading names


@dataclass(frozen=True, kw_only=True, slots=True)
class Heading:
    """What stands over a panel."""

    title: str
    notes: tuple[str, ...]  # data set, how far the runs went, machines


def top1_of(arm: Arm) -> Mean | None:
    """Test accuracy over the seeds that have one."""
    return mean_of(trial.top1 for trial in arm.trials)


def surveys(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Those that hold networks against each other without a baseline."""
    return [one for one in comparisons if one.baseline is None]


def trained(comparison: Comparison) -> list[Trial]:
    """The trials that have an accuracy or a curve."""
    return [
        trial
        for arm in comparison.arms
        for trial in arm.trials
        if trial.top1 is not None or trial.curve
    ]


def heading(
    comparison: Comparison,
    comparisons: Sequence[Comparison],
    *,
    timed_on: Environment | None = None,
    part: str = "",
) -> Heading:
    """The words over a panel; `comparisons` tells whether the name alone says which it is."""
    twins = Counter((one.name, one.dataset) for one in comparisons)
    title = TITLES.get(comparison.name, comparison.name)
    if twins[comparison.name, comparison.dataset] > 1:
        title += f" ({comparison.plan})"
    trials = trained(comparison)
    notes = [f"{comparison.dataset}; {extent(trials)}"]
    where = places(trials) if timed_on is None else [place(timed_on)]
    if where:
        notes.append(f"{'trained' if timed_on is None else 'measured'} on {'; '.join(where)}")
    return Heading(title=title + part, notes=tuple(notes))


def extent(trials: Sequence[Trial]) -> str:
    """How far the trainings went."""
    bounded = bounds(trials)
    if bounded is not None:
        return bounded
    epochs = sorted({trial.epochs for trial in trials})
    many = f"{epochs[0]} epochs" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]} epochs"
    return f"trainings of {many}"


def places(trials: Iterable[Trial]) -> list[str]:
    """The machines that trained, the first few by name."""
    known = dict.fromkeys(trial.environment for trial in trials if trial.environment is not None)
    named = sorted(place(environment) for environment in known)
    more = len(named) - MOST_PLACES
    return named if more <= 0 else [*named[:MOST_PLACES], f"{more} more"]


# Times --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """The files of an arm for one runtime, one of each seed, as one machine ran them."""

    arm: str
    runtime: str
    rows: tuple[Row, ...]

    @property
    def batches(self) -> set[int]:
        """That any of the files was timed at."""
        return {batch for row in self.rows for batch in row.by_batch}

    def records(self, batch: int) -> list[Measurement]:
        """Of the files that were timed at this batch."""
        return [row.by_batch[batch] for row in self.rows if batch in row.by_batch]

    def p50_ms(self, batch: int) -> float | None:
        """Mean over the seeds of their median times."""
        return mean_p50_ms(self.rows, batch)

    def top1(self, batch: int) -> Mean | None:
        """Accuracy of the very files that were timed at this batch, over the seeds."""
        return mean_top1(self.rows, batch)


def timed(arms: Sequence[Arm]) -> list[tuple[Environment, list[Timed]]]:
    """What was timed on each machine: arms in their order, runtimes by name."""
    machines = environments(trial for arm in arms for trial in arm.trials)
    found = []
    for machine in sorted(machines, key=place):
        ran = [
            Timed(arm=arm.label, runtime=runtime, rows=tuple(rows))
            for arm in arms
            for runtime, rows in sorted(rows_of(arm.trials, machine).items())
        ]
        if ran:
            found.append((machine, ran))
    return found


def batches_of(ran: Sequence[Timed]) -> tuple[int, ...]:
    """The smallest and the largest batch that figures show."""
    return two_batches(batch for one in ran for batch in one.batches)


def timed_comparisons(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Whose times are drawn: the surveys; where there is none, all networks of a data set."""
    return surveys(comparisons) or [
        Comparison(name=ALL, plan=ALL, dataset=dataset, arms=_by_network(comparisons, dataset))
        for dataset in sorted({one.dataset for one in comparisons})
    ]


def _by_network(comparisons: Sequence[Comparison], dataset: str) -> tuple[Arm, ...]:
    """Each network once, with all that was trained of it."""
    networks: dict[str, dict[str, Trial]] = {}
    for one in comparisons:
        for trial in (t for arm in one.arms for t in arm.trials if one.dataset == dataset):
            networks.setdefault(trial.model, {})[trial.id] = trial
    return tuple(Arm(label=name, trials=tuple(t.values())) for name, t in networks.items())
