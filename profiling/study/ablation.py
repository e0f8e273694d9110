"""An ablation, or any other list: each arm with its difference to the baseline."""

from collections.abc import Sequence
from decimal import Decimal

from profiling.study.columns import ACCURACY, SIZES, TOP1, TRAINED, Deployment, measured_values
from profiling.study.contradictions import state_of
from profiling.study.data import Arm, Comparison, Trial
from profiling.study.derived import Difference, difference, top1_by_seed
from profiling.study.notes import notes_of
from profiling.study.published import Row, read_published
from profiling.study.table import COMPUTED, POINTS, REPORTED, SHARE, Column, Stated, Table
from zoo.environment import Environment

FIGURES = {"top1": "top-1", "top5": "top-5"}  # that ablations.csv has
DIFFERENCE = Column(
    key="top1_difference",
    heading="difference to baseline,",
    kind=POINTS,
    source=COMPUTED,
    holds=Difference,
    part=ACCURACY,
)
DIFFERENCE_NOTE = (
    "A difference is in points of percent, in brackets its 95% confidence interval: Student's over "
    "the seeds that both sides have, Welch's (unpaired) where fewer than two do; without two "
    "seeds on each side there is none."
)
REPORTED_NOTE = (
    "Reported: published by the authors of the studies, never measured here; doubtful where "
    "another figure contradicts it. Each source has columns of its own, since one baseline has "
    "several values."
)


def ablation(
    comparison: Comparison,
    environment: Environment | None,
    *,
    name: str,
    title: str,
    place: str,
    price_per_hour: float | None = None,
) -> list[Table]:
    """Arms in the order of their plan; times are of `environment` alone."""
    deployment = Deployment.of(comparison, environment, price_per_hour)
    reported = _reported(comparison)
    sources = list(dict.fromkeys(row.source for found in reported.values() for row in found))
    stated = {label: _stated(found, sources) for label, found in reported.items()}
    keys = {key for found in stated.values() for key in found}
    has_baseline = comparison.baseline is not None
    columns = (
        Column(key="arm", heading="arm"),
        Column(key="model", heading="model", part=ACCURACY),
        Column(key="changes", heading="changes", part=ACCURACY),
        *(column for column in _reported_columns(sources) if column.key in keys),
        TOP1,
        *([DIFFERENCE] if has_baseline else []),
        *TRAINED[1:],
        *SIZES,
        *deployment.best_columns(),
    )
    more = [*([DIFFERENCE_NOTE] if has_baseline else []), *([REPORTED_NOTE] if sources else [])]
    return [
        Table(
            name=f"{_name(comparison)}{name}",
            title=f"{_title(comparison)} ({title})",
            dataset=comparison.dataset,
            place=place,
            notes=notes_of(comparison, environment, price_per_hour=price_per_hour, more=more),
            columns=columns,
            rows=tuple(
                _names(arm, comparison)
                | stated[arm.label]
                | measured_values(arm)
                | {"top1_difference": _difference(arm, comparison)}
                | deployment.values(arm.label)
                for arm in comparison.arms
            ),
        )
    ]


def _difference(arm: Arm, comparison: Comparison) -> Difference | None:
    baseline = next((one for one in comparison.arms if one.label == comparison.baseline), None)
    if baseline is None or arm is baseline:
        return None
    return difference(top1_by_seed(baseline), top1_by_seed(arm))


def is_ablation(comparison: Comparison) -> bool:
    """Whether it is one of the studies' questions, not a list of the user's own."""
    return comparison.plan == "ablation" or comparison.plan.startswith("ablation-")


def _name(comparison: Comparison) -> str:
    first = "ablation" if is_ablation(comparison) else f"list-{comparison.plan}"
    return f"{first}-{comparison.name}"


def _title(comparison: Comparison) -> str:
    asked = "" if comparison.question is None else f": {comparison.question}"
    if is_ablation(comparison):
        return f"Ablation {comparison.name}{asked}"
    return f"List {comparison.plan}, {comparison.name}{asked}"


def _names(arm: Arm, comparison: Comparison) -> dict[str, str | None]:
    is_baseline = arm.label == comparison.baseline
    label = arm.label if arm.label == "baseline" or not is_baseline else f"{arm.label} (baseline)"
    return {"arm": label, "model": arm.trials[0].model, "changes": _changes(arm.trials[0]) or None}


def _changes(trial: Trial) -> str:
    """What differs from the network's recipe."""
    parts = [f"{name}={value}" for name, value in trial.settings.items()]
    parts += ["pretrained weights"] if trial.pretrained else []
    parts += [f"after {trial.pretraining}"] if trial.pretraining else []
    parts += [f"{trial.image_size} pixels"] if trial.image_size else []
    return ", ".join(parts)


def _reported_columns(sources: Sequence[str]) -> list[Column]:
    return [
        Column(
            key=f"reported_{key}_{number}",
            heading=f"reported {heading}, {source},",
            kind=SHARE,
            source=REPORTED,
            holds=Stated,
            part=ACCURACY,
        )
        for number, source in enumerate(sources, start=1)
        for key, heading in FIGURES.items()
    ]


def _stated(rows: Sequence[Row], sources: Sequence[str]) -> dict[str, Stated]:
    """The figures of an arm, each with its state, by the keys of their columns."""
    found = {}
    for row in rows:
        for key in FIGURES:
            text = row[f"{key}_percent"]
            if text:
                share = float(Decimal(text) / 100)
                number = sources.index(row.source) + 1
                found[f"reported_{key}_{number}"] = Stated(share, state_of(row, f"{key}_percent"))
    return found


def _reported(comparison: Comparison) -> dict[str, list[Row]]:
    """From a label to what the studies state for this arm."""
    rows = [row for row in read_published().ablations if row["study"] == comparison.name]
    labels = {arm.label for arm in comparison.arms}
    return {arm.label: _of_arm(arm, rows, labels, comparison.baseline) for arm in comparison.arms}


def _of_arm(arm: Arm, rows: Sequence[Row], labels: set[str], baseline: str | None) -> list[Row]:
    found = []
    for row in rows:
        # The studies call some baselines otherwise.
        is_named = row["variant"] == arm.label or (
            arm.label == baseline and row["variant"] not in labels
        )
        if is_named and row.name == arm.trials[0].model:
            found.append(row)
    return found
