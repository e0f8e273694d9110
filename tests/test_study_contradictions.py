"""Rules on published figures: each finds a planted fault, and nothing in tables that agree."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import pytest
import torch

from profiling.study import contradictions
from profiling.study.contradictions import RULES, find, to_json, to_markdown
from profiling.study.published import (
    Counts,
    Interval,
    Published,
    Row,
    mean,
    printed,
    read_published,
)
from zoo import reported
from zoo.models import MODELS, create_model
from zoo.reported import DOUBTFUL, SIMULATED

TOP5_MADE, TOP5_ROUNDED = "Top-5 is top-1 + 25.00", "Top-5 a whole number above a rounded top-1"
ACCURACIES, BASELINES = "One network, several accuracies", "One baseline, several values"
BEST, TWICE = "A best epoch below the last", "Two networks, one result"
ANOTHER, NOT_ITS_OWN = "Parameters of another network", "Parameters that the network does not have"
MACS = "Multiply-accumulates that the network does not have"
COSTS = "One network, several costs"
EFFICIENCY, MEAN = "An efficiency that does not divide", "A mean that is not its members'"


def row(line: int, name: str, source: str, **texts: str) -> Row:
    return Row(table="a.csv", line=line, name=name, source=source, texts=texts)


def entry(line: int, name: str, figures: str, *, state: str = "reported") -> Row:
    top1, top5, params, macs, hours = figures.split()
    return row(
        line,
        name,
        "first report table 1",
        top1_percent=top1,
        top1_state=state,
        top5_percent=top5,
        params_m=params,
        macs_m=macs,
        train_hours_8xv100_300ep=hours,
        group="plain",
    )


def arm(line: int, study: str, variant: str, name: str, top1: str, source: str, top5: str) -> Row:
    texts = {"top1_percent": top1, "top5_percent": top5, "params_m": ""}
    return row(line, name, source, study=study, variant=variant, **texts)


def value(line: int, what: str, name: str, text: str, source: str = "first slides") -> Row:
    return row(line, name, source, what=what, value=text, unit="units")


def agreeing() -> Published:
    """Two studies in which nothing speaks against anything else."""
    return Published(
        models=(
            entry(2, "deep", "70.12 90.41 0.47 69.1 0.225"),
            entry(3, "deep_again", "70.12 90.41 0.473 69.1 0.225"),
            entry(4, "flat", "66.04 88.97 0.28 40.9 0.150"),
            entry(5, "flat_wide", "61.50 87.12 1.10 80.2 0.300"),
        ),
        second=(
            row(
                *(2, "other", "second report"),
                **{"label": "Other", "epochs": "50", "note": "", "top1_percent": "54.46"},
                **{"top5_percent": "80.03", "best_percent": "54.84"},
            ),
            row(
                *(3, "other", "second report"),
                **{"label": "Other", "epochs": "300", "note": "", "top1_percent": "62.74"},
                **{"top5_percent": "83.65", "best_percent": ""},
            ),
        ),
        ablations=(
            arm(2, "kernel", "baseline", "flat", "66.04", "first report", ""),
            arm(3, "kernel", "baseline", "flat", "66.04", "first slides", ""),
            arm(4, "kernel", "wide", "flat_wide", "61.50", "first report", ""),
            arm(5, "kernel", "narrow", "flat_narrow", "66.80", "first report", ""),
            arm(6, "decay", "constant", "gated", "53.86", "second report", "81.10"),
            arm(7, "decay", "halved", "gated", "58.75", "second report", "85.25"),
            arm(8, "gate", "sigmoid", "gated", "58.75", "second report", "85.25"),
            arm(9, "gate", "relu", "gated_relu", "59.08", "second report", "85.11"),
            arm(10, "images", "turned", "gated_relu", "60.42", "second report", "86.88"),
        ),
        values=(
            value(2, "top1_logged", "flat", "65.90", "first logs"),
            value(3, "top1_logged", "flat", "66.21", "first logs"),
            value(4, "parameter_efficiency", "flat", "235.86"),
            value(5, "compute_efficiency", "deep", "1.0148"),
            value(6, "group_mean_top1", "plain", "66.95"),
            value(7, "group_mean_params", "plain", "0.58"),
            value(8, "group_mean_flops", "plain", "64.8"),
            value(9, "group_mean_hours", "plain", "0.225"),
            value(10, "literature_top1", "flat", "99.00"),
        ),
        earners=(
            row(2, "flat", "first report table 1", earned_by="flat", trained_params="278324"),
        ),
        counts={
            "deep": Counts(params=472_756, macs=69_130_496),
            "deep_again": Counts(params=472_756, macs=69_130_496),
            "flat": Counts(params=278_324, macs=38_000_000),
            "flat_wide": Counts(params=1_104_000, macs=82_000_000),
        },
        same=(("deep", "deep_again"),),
    )


def planted(part: str, line: int, texts: Mapping[str, str]) -> Published:
    """The agreeing tables with other figures in one row."""
    published = agreeing()
    rows = [
        replace(row, texts={**row.texts, **texts}) if row.line == line else row
        for row in getattr(published, part)
    ]
    return replace(published, **{part: rows})


@pytest.fixture(scope="module")
def published() -> Published:
    return read_published()


def test_tables_that_agree_give_no_finding() -> None:
    assert find(agreeing()) == []


@pytest.mark.parametrize(
    ("rule", "part", "line", "texts", "says"),
    [
        (
            *(TOP5_MADE, "models", 4, {"top5_percent": "91.04"}),
            "a.csv: in 1 of the 4 rows that state both, top-5 is top-1 + 25.00 to the last digit: "
            "flat.",
        ),
        (
            *(TOP5_ROUNDED, "models", 5, {"top5_percent": "87.50"}),
            "flat_wide: 61.50 % looks rounded, and 87.50 % is 26 points above it.",
        ),
        (
            *(ACCURACIES, "models", 2, {"top1_percent": "71.12"}),
            "deep = deep_again: 2 accuracies from 70.12 to 71.12 %, 1.00 points apart.",
        ),
        (
            *(ACCURACIES, "values", 2, {"value": "66.12"}),
            "flat: 3 accuracies from 66.04 to 66.21 %, 0.17 points apart.",
        ),
        (
            *(ACCURACIES, "ablations", 4, {"top1_percent": "61.90"}),
            "flat_wide: 2 accuracies from 61.50 to 61.90 %, 0.40 points apart.",
        ),
        (
            *(BASELINES, "ablations", 3, {"top1_percent": "66.92"}),
            "The baseline flat has 2 values from 66.04 to 66.92 %. flat_narrow: above one value "
            "and below another.",
        ),
        (
            *(BEST, "second", 2, {"best_percent": "53.84"}),
            "Other: the best of all epochs, 53.84 %, is below the last, 54.46 %.",
        ),
        (
            *(TWICE, "ablations", 9, {"top1_percent": "58.75", "top5_percent": "85.25"}),
            "gated and gated_relu are different networks, each with 58.75 and 85.25 %.",
        ),
        (
            *(ANOTHER, "earners", 2, {"trained_params": "1278324", "earned_by": "flat_wide"}),
            "flat is printed with 0.28 million parameters; its figure (first report table 1) was "
            "earned by a network of 1.278324 million (flat_wide here).",
        ),
        (
            *(NOT_ITS_OWN, "models", 4, {"params_m": "0.280"}),
            "flat is printed with 0.280 million parameters; the network has 278,324.",
        ),
        (
            *(MACS, "models", 4, {"macs_m": "76.0"}),
            "flat is printed with 76.0 million multiply-accumulates; the network has 38.00 "
            "million: a factor of 2.000.",
        ),
        (
            *(COSTS, "models", 3, {"macs_m": "69.3"}),
            "deep and deep_again are one network, printed with 69.1 and 69.3 million "
            "multiply-accumulates.",
        ),
        (
            *(COSTS, "models", 3, {"params_m": "0.51"}),
            "deep and deep_again are one network, printed with 0.47 and 0.51 million parameters.",
        ),
        (
            *(EFFICIENCY, "values", 4, {"value": "1621.00"}),
            "flat: 1621.00 units are stated; 66.04 / 0.28 is 235.9, with rounding 231.7 to 240.2.",
        ),
        (
            *(EFFICIENCY, "values", 5, {"value": "1.0162"}),
            "deep: 1.0162 units are stated; 70.12 / 69.1 is 1.015, with rounding 1.014 to 1.016.",
        ),
        *(
            (
                *(MEAN, "values", line, {"value": text}),
                f"plain: {kind} is stated as {text} units; the mean of its 4 members is {is_}.",
            )
            for line, kind, text, is_ in (
                (6, "group_mean_top1", "66.97", "66.94"),
                (7, "group_mean_params", "0.60", "0.5808"),
                (8, "group_mean_flops", "65.0", "64.82"),
                (9, "group_mean_hours", "0.227", "0.2250"),
            )
        ),
    ],
)
def test_a_planted_fault_is_found(
    rule: str, part: str, line: int, texts: Mapping[str, str], says: str
) -> None:
    found = [finding for finding in find(planted(part, line, texts)) if finding.rule == rule]

    (row,) = [row for row in getattr(agreeing(), part) if row.line == line]
    assert [finding.says for finding in found] == [says]
    assert set(texts.items()) & {(cell.column, cell.value) for cell in found[0].cells}
    # Mended, it is gone.
    assert find(planted(part, line, {column: row[column] for column in texts})) == []


def test_what_the_authors_call_simulated_is_not_called_rounded() -> None:
    made = planted("models", 5, {"top5_percent": "86.50", "top1_state": SIMULATED})
    rounded = planted("models", 5, {"top5_percent": "86.50"})

    assert TOP5_MADE in [finding.rule for finding in find(made)]
    assert [finding.rule for finding in find(rounded)] == [TOP5_ROUNDED]


def test_a_member_without_its_figure_makes_a_mean_possible() -> None:
    lacking = planted("models", 5, {"macs_m": ""})

    assert find(lacking) == []


def test_a_figure_goes_to_the_network_that_earned_it() -> None:
    # Its log says that flat's row was earned by deep.
    elsewhere = planted("earners", 2, {"earned_by": "deep"})

    found = [finding.says for finding in find(elsewhere) if finding.rule == ACCURACIES]

    assert found == ["deep = deep_again: 2 accuracies from 66.04 to 70.12 %, 4.08 points apart."]


def test_printed_digits_stand_for_all_that_is_rounded_to_them() -> None:
    assert printed("0.28") == Interval(Decimal("0.275"), Decimal("0.285"))
    assert printed("27") == Interval(Decimal("26.5"), Decimal("27.5"))
    assert mean([printed("1.0"), printed("2.0")]) == Interval(Decimal("1.45"), Decimal("1.55"))
    assert printed("1.0").meets(printed("1.1"))
    assert not printed("1.0").meets(printed("1.2"))


def test_our_counts_are_those_of_the_catalogue(published: Published) -> None:
    rows = (*published.models, *published.second, *published.ablations)
    earners = {row["earned_by"] for row in published.earners} - {""}

    assert published.counts == {
        name: Counts(params=MODELS[name].params, macs=MODELS[name].macs)
        for name in published.counts
    }
    assert {row.name for row in rows} | earners <= published.counts.keys()


def test_names_of_one_network_compute_the_same(published: Published) -> None:
    by_counts: dict[Counts, list[str]] = defaultdict(list)
    for name, counts in published.counts.items():
        by_counts[counts].append(name)

    # From one seed the same weights and, in training, which tells drop path, the same logits.
    by_answer: dict[bytes, list[str]] = defaultdict(list)
    for name in (name for group in by_counts.values() if len(group) > 1 for name in group):
        torch.manual_seed(0)
        network = create_model(name).train()
        by_answer[network(torch.randn(2, 3, 32, 32)).detach().numpy().tobytes()].append(name)

    assert list(published.same) == [tuple(names) for names in by_answer.values() if len(names) > 1]
    assert published.same == (("eca_resnet_20", "ecanet20_adaptive", "ecanet20_fixed_k3"),)


def test_what_is_found_in_the_studies(published: Published) -> None:
    found = find(published)

    assert Counter(finding.rule for finding in found) == {
        TOP5_MADE: 1,
        TOP5_ROUNDED: 3,
        ACCURACIES: 8,
        BASELINES: 1,
        BEST: 1,
        ANOTHER: 9,
        NOT_ITS_OWN: 2,
        MACS: 4,
        COSTS: 1,
        EFFICIENCY: 2,
        MEAN: 2,
    }
    says = {finding.says for finding in found}
    assert {
        "eca_resnet_20 = ecanet20_adaptive = ecanet20_fixed_k3: 4 accuracies from 66.84 to "
        "73.47 %, 6.63 points apart.",
        "The baseline resnet_20 has 3 values from 66.50 to 70.12 %. ecanet20_fixed_k3 and "
        "ecanet20_fixed_k7: above one value and below another.",
        "lightweight: group_mean_top1 is stated as 52.43 percent; the mean of its 3 members is "
        "45.26.",
        "EdgeNeXt: the best of all epochs, 53.840 %, is below the last, 54.460 %.",
    } <= says


def test_the_states_of_top5_are_what_the_rules_find(published: Published) -> None:
    found = find(published)

    by_rule = {
        rule: {cell.row for finding in found if finding.rule == rule for cell in finding.cells}
        for rule in (TOP5_MADE, TOP5_ROUNDED)
    }
    by_state = {
        state: {row.name for row in published.models if row["top5_state"] == state}
        for state in (SIMULATED, DOUBTFUL)
    }
    assert list(by_rule.values()) == list(by_state.values())


def test_every_cell_is_where_it_says(published: Published) -> None:
    cells = {cell for finding in find(published) for cell in finding.cells}

    for cell in cells:
        if cell.line is None:
            assert str(getattr(MODELS[cell.row], cell.column)) == cell.value
        else:
            assert reported.read_table(cell.table)[cell.line - 2][cell.column] == cell.value


def test_the_page_counts_by_rule_and_shows_every_cell() -> None:
    found = find(planted("second", 2, {"best_percent": "53.84"}))

    lines = to_markdown(found).splitlines()

    summary = [line for line in lines if line.startswith("| ") and line.count("|") == 4][2:]
    counts = [[cell.strip() for cell in line.split("|")[1:4]] for line in summary]
    assert counts == [[rule.name, *(("1", "2") if rule.name == BEST else "00")] for rule in RULES]
    assert lines[lines.index(f"## {BEST}") + 2 :] == [
        "The best of all epochs is no worse than the last of them.",
        "",
        "**Other: the best of all epochs, 53.84 %, is below the last, 54.46 %.**",
        "",
        "| Stated in     | File  | Line | About | Column       | Value |",
        "| ------------- | ----- | ---- | ----- | ------------ | ----: |",
        "| second report | a.csv | 2    | other | best_percent | 53.84 |",
        "| second report | a.csv | 2    | other | top1_percent | 54.46 |",
    ]


def test_the_page_says_whose_figures_these_are() -> None:
    text = " ".join(contradictions.contradictions_markdown().split())

    assert "No figure here was measured by us: each cell names the publication" in text


def test_json_holds_all_rules_with_their_findings() -> None:
    found = find(planted("second", 2, {"best_percent": "53.84"}))

    rules = json.loads(to_json(found))["rules"]

    assert [rule["rule"] for rule in rules] == [rule.name for rule in RULES]
    (finding,) = [finding for rule in rules for finding in rule["findings"]]
    assert finding["cells"][0] == {
        "table": "a.csv",
        "line": 2,
        "row": "other",
        "column": "best_percent",
        "value": "53.84",
        "source": "second report",
    }


def test_the_same_tables_give_the_same_bytes(published: Published) -> None:
    again = find(read_published())

    assert to_json(again) == contradictions.contradictions_json()
    assert to_markdown(again) == contradictions.contradictions_markdown()
