import csv
import json
import re

import pytest

from profiling.study.derived import Difference, Mean
from profiling.study.table import (
    BYTES,
    COUNT,
    EXACT_MILLIONS,
    MILLISECONDS,
    POINTS,
    REPORTED,
    SHARE,
    Column,
    Median,
    Stated,
    Table,
)
from profiling.study.writers import latex, to_csv, to_html, to_json, to_latex, to_markdown
from zoo.reported import SIMULATED

COLUMNS = (
    Column(key="model", heading="model"),
    Column(
        key="reported_m", heading="reported M", kind=EXACT_MILLIONS, source=REPORTED, holds=Stated
    ),
    Column(key="top1", heading="top-1", kind=SHARE, holds=Mean, part="Accuracy"),
    Column(key="gain", heading="gain", kind=POINTS, holds=Difference, part="Accuracy"),
    Column(key="p50_ms", heading="p50", kind=MILLISECONDS, part="Speed"),
    Column(key="file_bytes", heading="file", kind=BYTES, part="Speed"),
    Column(key="images", heading="images", kind=COUNT, part="Nothing"),
)
TABLE = Table(
    name="a_table",
    title="A & B, 100%",
    dataset="cifar100",
    place="Example CPU",
    notes=("First_note.", "mean +- sd"),
    columns=COLUMNS,
    rows=(
        {
            "model": "a_b|<c>",
            "reported_m": Stated(0.28, SIMULATED),
            "top1": Mean(0.6123, 0.0045, 3),
            "gain": Difference(0.012, -0.003, 0.027, 3, True),
            "p50_ms": 1 / 3,
            "file_bytes": 2**20,
        },
        {"model": "[d]", "top1": Mean(0.5, None, 1), "p50_ms": None},
    ),
)


def test_csv_holds_raw_values_with_units_in_the_names() -> None:
    first, second = csv.DictReader(to_csv(TABLE).splitlines())

    assert first == {
        "model": "a_b|<c>",
        **{"reported_m": "0.28", "reported_m_state": "simulated"},
        **{"top1": "0.6123", "top1_sd": "0.0045", "top1_n": "3"},
        **{"gain": "0.012", "gain_low": "-0.003", "gain_high": "0.027", "gain_n": "3"},
        "gain_is_paired": "true",
        **{"p50_ms": "0.333333333", "file_bytes": "1048576", "images": ""},
    }
    assert (second["top1"], second["top1_sd"], second["top1_n"]) == ("0.5", "", "1")
    assert (second["reported_m"], second["gain"], second["p50_ms"]) == ("", "", "")


def test_json_says_what_each_column_is() -> None:
    value = json.loads(to_json(TABLE))

    assert value["columns"][2] == {
        "key": "top1",
        "heading": "top-1",
        "unit": "fraction",
        "source": "measured",
    }
    assert value["columns"][1]["source"] == "reported"
    assert value["rows"][0]["top1"] == {"value": 0.6123, "sd": 0.0045, "n": 3}
    assert value["rows"][1]["reported_m"] is None
    assert (value["place"], value["notes"]) == ("Example CPU", ["First_note.", "mean +- sd"])


def test_markdown_shows_a_table_for_each_part_that_has_a_value() -> None:
    assert (
        to_markdown(TABLE)
        == """\
# A & B, 100%

Times and memory: Example CPU.

First_note.

mean +- sd

**Accuracy**

| model    |     reported M M |          top-1 % |          gain points |
| -------- | ---------------: | ---------------: | -------------------: |
| a_b\\|<c> | 0.28 (simulated) | 61.23 +-0.45 (3) | +1.20 [-0.30, +2.70] |
| [d]      |                  |        50.00 (1) |                      |

**Speed**

| model    |     reported M M | p50 ms | file MiB |
| -------- | ---------------: | -----: | -------: |
| a_b\\|<c> | 0.28 (simulated) |  0.333 |     1.00 |
| [d]      |                  |        |          |
"""
    )


def test_latex_prints_every_letter() -> None:
    assert latex("a_b & 5% #1 ~ ^ {x} $ \\ < > |") == (
        r"a\_b \& 5\% \#1 \textasciitilde{} \textasciicircum{} \{x\} \$ \textbackslash{} "
        r"\textless{} \textgreater{} \textbar{}"
    )
    assert latex("61.23 +-0.45 (3)") == r"61.23 $\pm$0.45 (3)"


def test_latex_is_a_float_for_each_part() -> None:
    text = to_latex(TABLE)

    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.startswith("% Needs the packages booktabs and graphicx.\n")
    assert r"\caption{A \& B, 100\%. Accuracy}" in text
    assert r"\label{tab:a_table-speed}" in text
    assert r"\begin{tabular}{lrrr}" in text
    assert text.count("First\\_note.") == 1
    assert r"{\footnotesize Notes: see table~\ref{tab:a_table-accuracy}.}" in text
    assert (
        r"a\_b\textbar{}\textless{}c\textgreater{} & 0.28 (simulated) & 61.23 $\pm$0.45 (3) & "
        r"+1.20 [-0.30, +2.70] \\" in text
    )
    assert r"{}[d] & " in text  # a bracket would be the option of the line's end before it


def test_latex_rows_have_as_many_cells_as_columns() -> None:
    for block in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end", to_latex(TABLE), re.S):
        rows = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert rows
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(block[0]) - 1


def test_latex_braces_are_balanced() -> None:
    plain = re.sub(r"\\[{}\\]", "", to_latex(TABLE))

    assert plain.count("{") == plain.count("}")


def test_html_is_escaped() -> None:
    text = to_html(TABLE)

    assert '<h2 id="a_table">A &amp; B, 100%</h2>' in text
    assert "<td>a_b|&lt;c&gt;</td>" in text
    assert '<td class="number">61.23 &plusmn;0.45 (3)</td>' in text
    assert "<caption>Speed</caption>" in text
    assert "<caption>Nothing</caption>" not in text


@pytest.mark.parametrize("write", [to_csv, to_json, to_markdown, to_latex, to_html])
def test_a_table_without_rows(write: object) -> None:
    assert write(Table(name="x", title="X", dataset="d", columns=COLUMNS[:1]))


def test_a_median_has_its_interval_beside_it() -> None:
    column = Column(key="p50_ms", heading="p50", kind=MILLISECONDS, holds=Median)
    table = Table(
        name="a",
        title="A",
        dataset="cifar100",
        columns=(column,),
        rows=({"p50_ms": Median(0.5, 0.0149)}, {"p50_ms": Median(0.5, None)}),
    )

    assert to_csv(table) == "p50_ms,p50_ms_ci_half_width\n0.5,0.0149\n0.5,\n"
    assert [line.strip("| ") for line in to_markdown(table).splitlines()[-2:]] == [
        "0.500 +-1.5%",
        "0.500",
    ]
    assert r"0.500 $\pm$1.5\%" in to_latex(table)
