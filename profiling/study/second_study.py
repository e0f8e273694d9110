"""The networks of the second study, published beside measured."""

from typing import Any

from profiling.study.columns import (
    ACCURACY,
    DEVICE,
    EFFORT,
    SIZES,
    TIME,
    TOP1,
    TOP5,
    Deployment,
    measured_values,
)
from profiling.study.data import Arm, Comparison
from profiling.study.notes import REPORTED_NOTE, notes_of
from profiling.study.table import REPORTED, SHARE, Column, Stated, Table
from zoo.environment import Environment
from zoo.reported import Reported, accuracies

BEST_NOTE = "Reported best: of all epochs; the other accuracies are those of the last one."


def _reported(key: str, heading: str) -> Column:
    return Column(
        key=key,
        heading=f"reported {heading}",
        kind=SHARE,
        source=REPORTED,
        holds=Stated,
        part=ACCURACY,
    )


COLUMNS = (
    Column(key="label", heading="network"),
    Column(key="model", heading="model", part=ACCURACY),
    *(_reported("reported_top1", "top-1"), _reported("reported_best_top1", "best"), TOP1),
    *(_reported("reported_top5", "top-5"), TOP5, *EFFORT, TIME, DEVICE),
    Column(key="reported_note", heading="the study's note", source=REPORTED, part=ACCURACY),
    *SIZES,
)


def second_study(
    comparison: Comparison,
    environment: Environment | None,
    *,
    name: str,
    title: str,
    place: str,
    price_per_hour: float | None = None,
) -> list[Table]:
    """The networks of the second study; times are of `environment` alone."""
    deployment = Deployment.of(comparison, environment, price_per_hour)
    return [
        Table(
            name=f"second-study{name}",
            title=f"The networks of the second study ({title})",
            dataset=comparison.dataset,
            place=place,
            notes=notes_of(
                comparison,
                environment,
                price_per_hour=price_per_hour,
                more=(REPORTED_NOTE, BEST_NOTE),
            ),
            columns=(*COLUMNS, *deployment.best_columns(), *deployment.runtime_columns()),
            rows=tuple(
                {"label": arm.label, "model": arm.trials[0].model}
                | _reported_values(arm)
                | measured_values(arm)
                | deployment.values(arm.label)
                for arm in comparison.arms
            ),
        )
    ]


def _reported_values(arm: Arm) -> dict[str, Any]:
    row = reported_of(arm)
    if row is None:
        return {}
    shares = {"top1": row.top1, "best_top1": row.best_top1, "top5": row.top5}
    stated = {
        f"reported_{key}": Stated(share, row.top1_state)
        for key, share in shares.items()
        if share is not None
    }
    return {**stated, "reported_note": row.note}


def reported_of(arm: Arm) -> Reported | None:
    """The row of the study's tables with this network and these epochs."""
    for row in accuracies(arm.trials[0].model):
        study, _, label = row.source.partition(", ")
        if study == "second report" and f"{label}, {row.epochs} epochs" == arm.label:
            return row
    return None
