"""Parameters, multiply-accumulates, efficiencies and means that cannot all be right.

Printed digits are given all that rounding allows them.
"""

from collections.abc import Iterator
from decimal import Decimal

from profiling.study.contradiction_rules import (
    HOURS,
    MACS,
    PARAMS,
    TOP1,
    VALUE,
    Found,
    Rule,
    differ,
    listed,
    named,
)
from profiling.study.published import CATALOGUE, Cell, Interval, Published, mean, printed

COUNTING = Decimal("0.1")  # share by which MACs may differ by what a counter leaves out
MILLION = Decimal(1_000_000)
EFFICIENCIES = {"parameter_efficiency": PARAMS, "compute_efficiency": MACS}
GROUP_MEANS = {
    "group_mean_top1": TOP1,
    "group_mean_params": PARAMS,
    "group_mean_flops": MACS,
    "group_mean_hours": HOURS,
}


def parameters_of_another(published: Published) -> Iterator[Found]:
    """A figure beside the parameters of another network than the one that earned it."""
    stated = {row.name: row for row in published.models}
    for earner in published.earners:
        beside = stated.get(earner.name)
        trained = Decimal(earner["trained_params"]) / MILLION
        if beside is None or trained in printed(beside[PARAMS]):
            continue
        figures = [
            row.cell(TOP1 if row is beside else "value")
            for row in (beside, *published.values)
            if row.name == earner.name and row.source == earner.source
        ]
        if figures:
            known = f" ({earner['earned_by']} here)" if earner["earned_by"] else ""
            yield (
                f"{earner.name} is printed with {beside[PARAMS]} million parameters; its figure "
                f"({earner.source}) was earned by a network of {trained} million{known}.",
                [*figures, beside.cell(PARAMS), earner.cell("trained_params")],
            )


def parameters_not_its_own(published: Published) -> Iterator[Found]:
    """Parameters that the variant of that name does not have."""
    for row in (*published.models, *published.ablations):
        counts = published.counts.get(row.name)
        if counts is None or not row[PARAMS]:
            continue
        if Decimal(counts.params) / MILLION not in printed(row[PARAMS]):
            yield (
                f"{row.name} is printed with {row[PARAMS]} million parameters; the network has "
                f"{counts.params:,}.",
                [row.cell(PARAMS), _counted(row.name, "params", counts.params)],
            )


def macs_not_its_own(published: Published) -> Iterator[Found]:
    """Multiply-accumulates that no way to count finds in the variant of that name."""
    for row in published.models:
        counts = published.counts.get(row.name)
        if counts is None or not row[MACS]:
            continue
        macs = Decimal(counts.macs) / MILLION
        if not printed(row[MACS]).meets(Interval(macs * (1 - COUNTING), macs * (1 + COUNTING))):
            yield (
                f"{row.name} is printed with {row[MACS]} million multiply-accumulates; the network "
                f"has {_short(macs)} million: a factor of {_short(Decimal(row[MACS]) / macs)}.",
                [row.cell(MACS), _counted(row.name, "macs", counts.macs)],
            )


def several_costs(published: Published) -> Iterator[Found]:
    """One network under several names, with costs that differ."""
    for names in published.same:
        for column, unit in ((PARAMS, "parameters"), (MACS, "multiply-accumulates")):
            rows = [row for row in published.models if row.name in names and row[column]]
            if differ([printed(row[column]) for row in rows]):
                values = dict.fromkeys(row[column] for row in rows)
                yield (
                    f"{named(rows)} are one network, printed with {listed(list(values))} million "
                    f"{unit}.",
                    [row.cell(column) for row in rows],
                )


def efficiencies(published: Published) -> Iterator[Found]:
    """A percentage per million that is not the quotient of what table 1 states."""
    stated = {row.name: row for row in published.models}
    for value in published.values:
        column = EFFICIENCIES.get(value["what"])
        row = stated.get(value.name)
        if column is None or row is None or not (row[TOP1] and row[column]):
            continue
        quotient = printed(row[TOP1]) / printed(row[column])
        if not printed(value["value"]).meets(quotient):
            exact = Decimal(row[TOP1]) / Decimal(row[column])
            yield (
                f"{value.name}: {value['value']} {value['unit']} are stated; {row[TOP1]} / "
                f"{row[column]} is {_short(exact)}, with rounding {_short(quotient.low)} to "
                f"{_short(quotient.high)}.",
                [value.cell("value"), row.cell(TOP1), row.cell(column)],
            )


def group_means(published: Published) -> Iterator[Found]:
    """The mean of a group that is not that of its members in table 1."""
    for value in published.values:
        column = GROUP_MEANS.get(value["what"])
        members = [row for row in published.models if row["group"] == value.name]
        if column is None or not members or not all(row[column] for row in members):
            continue  # a member without its figure may make up for any difference
        of_members = mean([printed(row[column]) for row in members])
        if not printed(value["value"]).meets(of_members):
            middle = (of_members.low + of_members.high) / 2
            yield (
                f"{value.name}: {value['what']} is stated as {value['value']} {value['unit']}; the "
                f"mean of its {len(members)} members is {_short(middle)}.",
                [value.cell("value"), *(row.cell(column) for row in members)],
            )


def _counted(name: str, column: str, count: int) -> Cell:
    return Cell(
        table=CATALOGUE,
        line=None,
        row=name,
        column=column,
        value=str(count),
        source="counted, not published",
    )


def _short(value: Decimal) -> str:
    """Four significant digits, without an exponent."""
    return f"{value:.{max(0, 3 - value.adjusted())}f}"


COST_RULES = (
    Rule(
        "Parameters of another network",
        "The log of a figure names a network whose parameters are not those beside the figure.",
        parameters_of_another,
    ),
    Rule(
        "Parameters that the network does not have",
        "Beyond what rounding of the printed digits allows. The network is the zoo's variant of "
        "that name, built from its description.",
        parameters_not_its_own,
        doubts=(PARAMS,),
    ),
    Rule(
        "Multiply-accumulates that the network does not have",
        f"Programs that count leave out different operations; a difference of up to {COUNTING:.0%} "
        "is let pass.",
        macs_not_its_own,
        doubts=(MACS,),
    ),
    Rule(
        "One network, several costs",
        "Names that build the same weights and the same logits to the bit are one network.",
        several_costs,
        doubts=(PARAMS, MACS),
    ),
    Rule(
        "An efficiency that does not divide",
        "An efficiency is top-1 in percent by millions of parameters or of multiply-accumulates, "
        "as table 1 states them; every printed digit may have been rounded.",
        efficiencies,
    ),
    Rule(
        "A mean that is not its members'",
        "The mean of a group whose members all stand in table 1, with what rounding allows.",
        group_means,
        doubts=(VALUE,),
    ),
)
