"""Table 1 of the first study, published beside measured, and the means of its groups."""

from collections.abc import Mapping, Sequence
from typing import Any

from profiling.study.columns import (
    ACCURACY,
    BOUNDED,
    DEVICE,
    EFFORT,
    MACS,
    PARAMS,
    SIZE,
    SIZES,
    TIME,
    TOP1,
    TOP5,
    Deployment,
    mean_over,
    measured_values,
)
from profiling.study.contradictions import state_of
from profiling.study.data import Comparison
from profiling.study.derived import Mean
from profiling.study.notes import REPORTED_NOTE, notes_of
from profiling.study.published import read_published
from profiling.study.table import (
    COUNT,
    EXACT_HOURS,
    EXACT_MILLIONS,
    MILLISECONDS,
    REPORTED,
    SECONDS,
    SHARE,
    Column,
    Stated,
    Table,
)
from zoo.environment import Environment
from zoo.reported import OTHER_NETWORK, SIMULATED, TABLE_1, accuracies, read_table
from zoo.reported import REPORTED as NO_DOUBT

HOURS_NOTE = "Reported hours are those of 300 epochs on eight V100; the study's FLOPs are MACs."
MEANS_NOTE = (
    "A mean over the models of a group that were trained, each counted once, and empty where one "
    "of them lacks the figure; without an interval, since the models of a group are no sample of "
    "one thing."
)


def _reported(key: str, heading: str, kind: Any, part: str) -> Column:
    return Column(
        key=f"reported_{key}",
        heading=f"reported {heading}",
        kind=kind,
        source=REPORTED,
        holds=Stated,
        part=part,
    )


REPORTED_TOP1 = _reported("top1", "top-1", SHARE, ACCURACY)
REPORTED_TOP5 = _reported("top5", "top-5", SHARE, ACCURACY)
REPORTED_HOURS = _reported("hours", "training", EXACT_HOURS, ACCURACY)
REPORTED_PARAMS = _reported("params_m", "parameters", EXACT_MILLIONS, SIZE)
REPORTED_MACS = _reported("macs_m", "MACs", EXACT_MILLIONS, SIZE)
MODEL = Column(key="model", heading="model")
COLUMNS = (
    *(MODEL, Column(key="group", heading="group", source=REPORTED, part=ACCURACY)),
    *(
        REPORTED_TOP1,
        TOP1,
        REPORTED_TOP5,
        TOP5,
        *EFFORT,
        REPORTED_HOURS,
        TIME,
        DEVICE,
    ),
    *(REPORTED_PARAMS, PARAMS, REPORTED_MACS, *SIZES[1:]),
)


def table_1(
    comparison: Comparison,
    environment: Environment | None,
    *,
    name: str,
    title: str,
    place: str,
    price_per_hour: float | None = None,
) -> list[Table]:
    """The networks of the first study and their groups; times are of `environment` alone."""
    deployment = Deployment.of(comparison, environment, price_per_hour)
    groups = {row["model"]: row["group"] for row in read_table("table1_models.csv")}
    rows = [
        {"model": arm.label, "group": groups.get(arm.trials[0].model)}
        | reported_values(arm.trials[0].model)
        | measured_values(arm)
        | deployment.values(arm.label)
        for arm in comparison.arms
    ]
    notes = notes_of(
        comparison,
        environment,
        price_per_hour=price_per_hour,
        more=(REPORTED_NOTE, HOURS_NOTE),
    )
    common = {"dataset": comparison.dataset, "place": place}
    means = _group_means(rows, groups, deployment.batches)
    return [
        Table(
            name=f"table1{name}",
            title=f"Table 1: the networks of the first study ({title})",
            notes=notes,
            columns=(*COLUMNS, *deployment.best_columns(), *deployment.runtime_columns()),
            rows=tuple(rows),
            **common,
        ),
        Table(
            name=f"table1-groups{name}",
            title=f"Table 1: means of the groups ({title})",
            notes=(*notes[:1], MEANS_NOTE, *notes[1:]),
            columns=(*GROUP_COLUMNS, *_best_times(deployment.batches)),
            rows=tuple(means),
            **common,
        ),
    ]


def reported_values(model: str) -> dict[str, Any]:
    """What table 1 of the first study states of a model, each figure with its state.

    The study's hours are those of the training that its top-1 comes from, or does not come from.
    """
    row = next((row for row in accuracies(model) if row.source == TABLE_1), None)
    if row is None:
        return {}
    published = next(one for one in read_published().models if one.name == model)
    hours_state = row.top1_state if row.top1_state in (SIMULATED, OTHER_NETWORK) else NO_DOUBT
    if row.are_hours_approximate:
        hours_state = "approximate" if hours_state == NO_DOUBT else f"{hours_state}, approximate"
    found = {
        "top1": (row.top1, row.top1_state),
        "top5": (row.top5, row.top5_state),
        "params_m": (row.params_m, state_of(published, "params_m")),
        "macs_m": (row.macs_m, state_of(published, "macs_m")),
        "hours": (row.hours, hours_state),
    }
    return {
        f"reported_{key}": Stated(value, state)
        for key, (value, state) in found.items()
        if value is not None and state is not None
    }


# ---- groups ----------------------------------------------------------------------------------

MEAN_TOP1 = Column(key="top1", heading="top-1", kind=SHARE)
MEAN_TOP5 = Column(key="top5", heading="top-5", kind=SHARE)
GROUP_COLUMNS = (
    Column(key="group", heading="group", source=REPORTED),
    Column(key="models_measured", heading="models with numbers", kind=COUNT),
    Column(key="models", heading="of", kind=COUNT, source=REPORTED),
    Column(key="length", heading="length"),
    Column(
        key="reported_top1", heading="reported top-1", kind=SHARE, source=REPORTED, holds=Stated
    ),
    *(MEAN_TOP1, MEAN_TOP5),
    *(
        Column(
            key=f"reported_{key}",
            heading=f"reported {heading}",
            kind=kind,
            source=REPORTED,
            holds=Stated,
        )
        for key, heading, kind in (
            ("params_m", "parameters", EXACT_MILLIONS),
            ("macs_m", "MACs", EXACT_MILLIONS),
            ("hours", "training", EXACT_HOURS),
        )
    ),
    Column(key="params", heading="parameters", kind=PARAMS.kind),
    Column(key="macs", heading="MACs", kind=MACS.kind),
    Column(key="train_s", heading="training", kind=SECONDS),
    Column(key="train_device", heading="trained on"),
)
REPORTED_MEANS = {  # our key -> what zoo.reported calls it, and what makes a fraction of a percent
    "top1": ("group_mean_top1", 100),
    "params_m": ("group_mean_params", 1),
    "macs_m": ("group_mean_flops", 1),
    "hours": ("group_mean_hours", 1),
}


def _group_means(
    rows: Sequence[dict[str, Any]], groups: Mapping[str, str], batches: Sequence[int]
) -> list[dict[str, Any]]:
    found = []
    for group in dict.fromkeys(groups.values()):
        own = [row for row in rows if row["group"] == group and isinstance(row["top1"], Mean)]
        devices = {row["train_device"] for row in own}
        lengths = {row["length"] for row in own}
        times = [column.key for column in _best_times(batches)]
        keys = ["top1", "top5", "params", "macs", *times]
        device = devices.pop() if len(devices) == 1 else None
        keys += ["train_s"] if device is not None else []  # times of one machine alone
        found.append(
            {
                "group": group,
                "models_measured": len(own),
                "models": sum(name == group for name in groups.values()),
                "length": BOUNDED if BOUNDED in lengths else next(iter(lengths), None),
                **_reported_means(group),
                **{key: mean_over(own, key) for key in keys},
                "train_device": device,
            }
        )
    return found


def _best_times(batches: Sequence[int]) -> list[Column]:
    return [
        Column(key=f"b{batch}_best_p50_ms", heading=f"fastest at batch {batch}", kind=MILLISECONDS)
        for batch in batches
    ]


def _reported_means(group: str) -> dict[str, Stated]:
    by_name = {row["what"]: row for row in read_published().values if row.name == group}
    return {
        f"reported_{key}": Stated(
            round(float(by_name[what]["value"]) / by, 9), state_of(by_name[what], "value")
        )
        for key, (what, by) in REPORTED_MEANS.items()
        if what in by_name
    }
