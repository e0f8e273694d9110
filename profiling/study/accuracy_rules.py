"""Accuracies that cannot all be right."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal

from profiling.study.contradiction_rules import (
    BEST,
    TOP1,
    TOP5,
    Found,
    Rule,
    all_names,
    differ,
    listed,
    named,
    publication,
)
from profiling.study.published import Cell, Interval, Published, Row, printed
from zoo.reported import SIMULATED

OFFSET = 25  # points from top-1 to a top-5 that was made from it
ROUNDED_OFFSETS = (25, 26, 27)  # whole numbers beside a rounded top-1
ROUNDED = Decimal("0.5")  # points; a top-1 that is a multiple of it looks rounded
LOGGED = "top1_logged"
BASELINE = "baseline"


def top5_from_top1(published: Published) -> Iterator[Found]:
    """Top-5 is top-1 + 25.00 to the last digit."""
    for rows in (published.models, published.second, published.ablations):
        both = [row for row in rows if row[TOP1] and row[TOP5]]
        made = [row for row in both if _distance(row) == OFFSET and not _is_only_rounded(row)]
        if made:
            yield (
                f"{made[0].table}: in {len(made)} of the {len(both)} rows that state both, top-5 "
                f"is top-1 + {OFFSET}.00 to the last digit: {named(made)}.",
                [row.cell(column) for row in made for column in (TOP1, TOP5)],
            )


def rounded_top5(published: Published) -> Iterator[Found]:
    """A rounded top-1 with a top-5 that is a whole number of points above it."""
    for rows in (published.models, published.second, published.ablations):
        for row in rows:
            if not (row[TOP1] and row[TOP5] and _is_only_rounded(row)):
                continue
            if _distance(row) in ROUNDED_OFFSETS:
                yield (
                    f"{row.name}: {row[TOP1]} % looks rounded, and {row[TOP5]} % is "
                    f"{_distance(row):.0f} points above it.",
                    [row.cell(TOP1), row.cell(TOP5)],
                )


def several_accuracies(published: Published) -> Iterator[Found]:
    """One network after one training, with accuracies that differ."""
    by_network: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for network, training, cell in _accuracies(published):
        by_network[all_names(network, published), training].append(cell)
    for (network, _), cells in by_network.items():
        stated = [printed(cell.value) for cell in cells if cell.column != "value"]
        logged = [printed(cell.value) for cell in cells if cell.column == "value"]
        if differ(stated) or (logged and any(_lies_outside(one, logged) for one in stated)):
            values = sorted({Decimal(cell.value) for cell in cells})
            yield (
                f"{network}: {len(values)} accuracies from {values[0]} to {values[-1]} %, "
                f"{values[-1] - values[0]} points apart.",
                cells,
            )


def several_baselines(published: Published) -> Iterator[Found]:
    """The baseline of a publication's ablations, with accuracies that differ."""
    by_network: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in published.ablations:
        if row["variant"] == BASELINE and row[TOP1]:
            by_network[publication(row), row.name].append(row)
    for (_, network), rows in by_network.items():
        if not differ([printed(row[TOP1]) for row in rows]):
            continue
        values = sorted({Decimal(row[TOP1]) for row in rows})
        turned = list(_turned(published.ablations, rows))
        also = f" {named(turned)}: above one value and below another." if turned else ""
        yield (
            f"The baseline {network} has {len(values)} values from {values[0]} to "
            f"{values[-1]} %.{also}",
            [row.cell(TOP1) for row in (*rows, *turned)],
        )


def best_below_last(published: Published) -> Iterator[Found]:
    """A best epoch that is worse than the last one."""
    for row in published.second:
        if row[TOP1] and row[BEST] and printed(row[BEST]).high < printed(row[TOP1]).low:
            yield (
                f"{row['label']}: the best of all epochs, {row[BEST]} %, is below the last, "
                f"{row[TOP1]} %.",
                [row.cell(BEST), row.cell(TOP1)],
            )


def one_result_twice(published: Published) -> Iterator[Found]:
    """Two networks with the same top-1 and the same top-5 to the last digit."""
    by_result: dict[tuple[Decimal, Decimal], list[Row]] = defaultdict(list)
    for row in (*published.models, *published.second, *published.ablations):
        if row[TOP1] and row[TOP5]:
            by_result[Decimal(row[TOP1]), Decimal(row[TOP5])].append(row)
    for (top1, top5), rows in by_result.items():
        networks = list(dict.fromkeys(all_names(row.name, published) for row in rows))
        if len(networks) > 1:
            yield (
                f"{listed(networks)} are different networks, each with {top1} and {top5} %.",
                [row.cell(column) for row in rows for column in (TOP1, TOP5)],
            )


def _accuracies(published: Published) -> Iterator[tuple[str, str, Cell]]:
    """The network that earned each top-1, after which training, and where it is printed.

    What its authors call simulated was earned by none.
    """
    earned = {(row.name, row.source): row["earned_by"] for row in published.earners}
    for row in published.models:
        if row[TOP1] and row["top1_state"] != SIMULATED:
            network = earned.get((row.name, row.source), row.name)
            if network:  # otherwise one that is not in the zoo
                yield network, publication(row), row.cell(TOP1)
    for row in published.values:
        if row["what"] == LOGGED:
            yield row.name, publication(row), row.cell("value")
    for row in published.second:
        if row[TOP1]:
            yield row.name, f"second, {row['epochs']} epochs, {row['note']}", row.cell(TOP1)
    varied = set(_varied_trainings(published.ablations))
    for row in published.ablations:
        if row[TOP1]:
            is_varied = row["study"] in varied
            training = f": {row['study']}, {row['variant']}" if is_varied else ""
            yield row.name, publication(row) + training, row.cell(TOP1)


def _varied_trainings(ablations: Sequence[Row]) -> Iterator[str]:
    """Ablations of the training: one network in all arms, of which there may be but one."""
    for study in dict.fromkeys(row["study"] for row in ablations):
        if len({row.name for row in ablations if row["study"] == study}) == 1:
            yield study


def _turned(ablations: Sequence[Row], baselines: Sequence[Row]) -> Iterator[Row]:
    """Arms that are stated once and gain over one baseline of their ablation, not over another."""
    for study in dict.fromkeys(row["study"] for row in baselines):
        arms = [row for row in ablations if row["study"] == study and row["variant"] != BASELINE]
        values = [Decimal(row[TOP1]) for row in baselines if row["study"] == study]
        variants = [row["variant"] for row in arms]
        for row in arms:
            is_once = variants.count(row["variant"]) == 1 and row[TOP1]
            if is_once and min(values) < Decimal(row[TOP1]) < max(values):
                yield row


def _distance(row: Row) -> Decimal:
    return Decimal(row[TOP5]) - Decimal(row[TOP1])


def _is_only_rounded(row: Row) -> bool:
    """Whether a top-1 looks rounded, and nobody says that it was made up."""
    return Decimal(row[TOP1]) % ROUNDED == 0 and row.texts.get("top1_state") != SIMULATED


def _lies_outside(one: Interval, others: Sequence[Interval]) -> bool:
    """Whether it can be none of the others, nor between them, as a mean of runs is."""
    return not one.meets(Interval(min(i.low for i in others), max(i.high for i in others)))


ACCURACY_RULES = (
    Rule(
        "Top-5 is top-1 + 25.00",
        "The distance between both is different in every training. To the hundredth of a point the "
        "same in row after row, it was added and not measured.",
        top5_from_top1,
    ),
    Rule(
        "Top-5 a whole number above a rounded top-1",
        "Both figures look rounded to half a point, so that they cannot be told from made-up ones: "
        "doubtful, no more.",
        rounded_top5,
    ),
    Rule(
        "One network, several accuracies",
        "One network after one training has one accuracy. Seeds move it too: the spread then says "
        "how much a difference between two single figures of this publication can mean. Runs in "
        "a log may differ from one another; what is stated elsewhere must lie among them. A figure "
        "counts for the network that earned it, by its log.",
        several_accuracies,
        doubts=(TOP1,),
    ),
    Rule(
        "One baseline, several values",
        "What an arm gains depends on which value it is held against.",
        several_baselines,
        doubts=(TOP1,),
    ),
    Rule(
        "A best epoch below the last",
        "The best of all epochs is no worse than the last of them.",
        best_below_last,
    ),
    Rule(
        "Two networks, one result",
        "The same top-1 and top-5 to the hundredth, for networks that differ. One network whose "
        "result stands in two ablations is no contradiction.",
        one_result_twice,
    ),
)
