import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_records import ENVIRONMENT, gap, measurement
from torch import nn

from profiling import read_records
from profiling.expected import (
    KINDS,
    REASONS,
    SLOW,
    Explanation,
    Part,
    Study,
    explain,
    fit,
    from_json,
    markdown,
    read_explanations,
    study,
    to_json,
)
from profiling.explain import _OperatorTimes, explain_network, main, time_by_kind
from profiling.record import FAILED, STUDY, Measurement
from zoo.errors import RecordError, ZooError
from zoo.models import MODELS
from zoo.session import EagerSession, open_untrained

ZOO = Path(__file__).parents[1] / "bench_results" / "zoo"
BATCHES = (1, 8)
LARGEST_BYTES = 3_000_000  # of all records; their raw samples are kept


def untrained(model: str, macs: int, p50_ms: float, **changes: Any) -> Measurement:
    facts = {"source": None, "file_bytes": None, "top1": None, "image_shape": (3, 32, 32)}
    return measurement(p50_ms, **facts | {"model": model, "macs": macs} | changes)


def on_a_line(count: int, batch: int = 1) -> list[Measurement]:
    """Networks of 1, 2, 4, ... million MACs that take a millisecond for each image and million."""
    sizes = [2**power for power in range(count)]
    return [untrained(f"m{n}", n * 10**6, float(n * batch), batch=batch) for n in sizes]


# The line -----------------------------------------------------------------------------------


def test_an_exact_power_law_is_found() -> None:
    line = fit([(macs, 0.5 * (macs / 1e6) ** 0.8) for macs in (10**6, 10**7, 10**8)])

    assert (line.scale, line.slope, line.models) == (pytest.approx(0.5), pytest.approx(0.8), 3)
    assert line.predict(10**9) == pytest.approx(0.5 * 1000**0.8)


def test_slow_networks_do_not_move_the_line() -> None:
    points = [(10**6 * n, float(n)) for n in range(1, 21)]
    slow = [
        (macs, 10 * ms) if macs in (3 * 10**6, 9 * 10**6) else (macs, ms) for macs, ms in points
    ]

    line = fit(slow)

    assert (line.scale, line.slope) == (pytest.approx(1, rel=0.01), pytest.approx(1, rel=0.01))


def test_median_of_slopes_by_hand() -> None:
    e = math.e
    line = fit([(10**6, 1.0), (round(10**6 * e), e), (round(10**6 * e * e), e**4)])

    assert line.slope == pytest.approx(2, rel=1e-5)  # of 1, 2 and 3
    assert line.scale == pytest.approx(1, rel=1e-5)  # of e**0, e**-1 and e**0


@pytest.mark.parametrize("points", [[], [(5, 1.0)], [(5, 1.0), (5, 2.0)]])
def test_no_line_through_one_place(points: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="give two networks with different MACs"):
        fit(points)


# The study ----------------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    slow = untrained("slow", 4 * 10**6, 20.0)

    found = study([*on_a_line(7), *on_a_line(7, batch=8), slow])

    assert [(line.scale, line.slope) for line in found.lines.values()] == [
        (pytest.approx(1), pytest.approx(1)),
        (pytest.approx(1), pytest.approx(1)),
    ]
    assert [row.model for row in found.rows[:4]] == ["m1", "m2", "m4", "slow"]
    m4, row = found.rows[2], found.rows[3]
    assert m4.by_batch[8].ms_per_image == pytest.approx(4)
    assert (m4.is_slow, row.is_slow, row.slowest) == (False, True, 1)
    assert row.by_batch[1].ratio == pytest.approx(5)
    assert found.slow == (row,)


def test_only_the_newest_eager_records_of_untrained_networks_count() -> None:
    others = [
        measurement(p50_ms=99.0),  # of a run
        untrained("m1", 10**6, 99.0, created_at="2025-01-01T00:00:00+00:00"),
        untrained("m1", 10**6, 99.0, backend="compile"),
    ]

    assert study([*others, *on_a_line(4)]) == study(on_a_line(4))


def test_what_failed_is_named() -> None:
    nothing = {"source": None, "file_bytes": None}

    found = study([*on_a_line(3), gap(FAILED, "out of memory", model="huge", **nothing)])

    assert [record.model for record in found.missing] == ["huge"]
    assert "- `huge` at batch 1: out of memory\n" in markdown(found, {})


def test_a_study_is_of_one_environment() -> None:
    other = replace(ENVIRONMENT, threads=1)

    with pytest.raises(ZooError, match="of several environments"):
        study([*on_a_line(3), untrained("m9", 9, 1.0, environment=other)])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_records(count: int) -> None:
    with pytest.raises(ZooError, match="records of untrained networks"):
        study(on_a_line(count))


def test_a_study_is_left_by_who_names_a_folder_above(tmp_path: Path) -> None:
    measurement().write(tmp_path)
    for record in on_a_line(2):
        record.write(tmp_path / "zoo")
    (tmp_path / "zoo" / STUDY).write_text(to_json({}))

    assert [record.model for record in read_records(tmp_path)] == ["resnet_20"]
    assert [record.model for record in read_records(tmp_path / "zoo")] == ["m1", "m2"]
    assert len(read_records(tmp_path, tmp_path / "zoo")) == 3


# Explanations -------------------------------------------------------------------------------

PARTS = {
    "depthwise": Part(calls=40, time=0.5, macs=0.1),
    "other": Part(calls=300, time=0.2, macs=0.0),
    "dense": Part(calls=20, time=0.3, macs=0.9),
}


def test_the_words_name_what_the_excess_goes_to() -> None:
    found = study([*on_a_line(7), untrained("slow", 4 * 10**6, 16.0)])  # 4 times

    # Of 0.75 beyond the prediction depthwise has 0.475 and the rest of operators 0.2.
    assert explain(found.slow[0], Explanation(1, PARTS)) == (
        "40 depthwise convolutions take 50% of the time for 10% of the MACs; "
        "300 operators without MACs take 20% of the time"
    )


def test_explanations_survive_the_file(tmp_path: Path) -> None:
    explained = {"slow": Explanation(8, PARTS), "other": Explanation(1, {})}

    (tmp_path / STUDY).write_text(to_json(explained))

    assert read_explanations(tmp_path) == explained


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"explained": {"m": {"batch": 1}}},
        {"explained": {"m": {"batch": 1, "parts": {"dense": {"calls": 1, "time": "x"}}}}},
        {"explained": {"m": {"batch": 1, "parts": {"magic": asdict(PARTS["dense"])}}}},
    ],
)
def test_damaged_explanations(value: object) -> None:
    with pytest.raises(RecordError, match="x.json is damaged"):
        from_json(value, "x.json")


def test_every_kind_but_the_usual_has_a_reason() -> None:
    text = " ".join(REASONS.split()).lower()

    for kind, title in KINDS.items():
        assert (f"*{title.lower()}*" in text) == (kind != "dense"), kind


# Operators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet_20", "segnext_mscan_tiny", "mlp_mixer_nano", "vit_tiny"])
def test_operators_hold_all_multiply_accumulates(name: str) -> None:
    session = open_untrained(f"{name}@32", "cpu")

    with _OperatorTimes() as taken:
        logits = session.run(torch.zeros(2, 3, 32, 32))

    assert logits.shape == (2, 100)
    assert sum(macs for _, macs, _ in taken.operators) == 2 * MODELS[name].macs
    assert {kind for kind, _, _ in taken.operators} <= KINDS.keys()


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(16, 32, 3), "dense"),
        (nn.Conv2d(16, 24, 3), "narrow"),
        (nn.Conv2d(16, 32, 8), "few"),  # one position
        (nn.Conv2d(16, 16, 3, groups=16), "depthwise"),
        (nn.Conv2d(16, 16, 3, groups=16, dilation=2), "dilated"),
        (nn.Conv2d(16, 64, 3, groups=4), "dense"),
        (nn.Linear(8, 5), "dense"),  # 128 positions
        (nn.Sequential(nn.Flatten(), nn.Linear(1024, 5)), "few"),
        (nn.BatchNorm2d(16), "other"),
    ],
)
def test_kinds(layer: nn.Module, kind: str) -> None:
    parts = time_by_kind(EagerSession(layer), torch.zeros(1, 16, 8, 8), repeats=2)

    assert parts[kind].macs == (kind != "other")
    assert set(parts) <= {kind, "other"}
    assert sum(part.time for part in parts.values()) == pytest.approx(1, abs=1e-3)


def test_depthwise_convolutions_take_more_than_their_share() -> None:
    parts = explain_network("segnext_mscan_tiny", 1).parts

    assert parts["depthwise"].calls == 40
    assert parts["depthwise"].time > 2 * parts["depthwise"].macs


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    macs = MODELS["segnext_mscan_tiny"].macs
    for record in (*on_a_line(6), untrained("segnext_mscan_tiny", macs, 99.0)):
        record.write(tmp_path)

    assert main([str(tmp_path)]) == 0

    assert capsys.readouterr().out == f"{tmp_path / 'README.md'}\n"
    explained = read_explanations(tmp_path)
    assert list(explained) == ["segnext_mscan_tiny"]
    text = (tmp_path / "README.md").read_text()
    assert text == markdown(study(read_records(tmp_path)), explained)
    assert "- `segnext_mscan_tiny`, 16.2 times at batch 1: " in text
    assert "- Batch 1: ms per image = 1.00 x (MACs in millions)^1.00, over 7 networks.\n" in text
    assert "| m4 " in text
    assert main([str(tmp_path / "gone")]) == 2


# The committed study ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> Study:
    return study(read_records(ZOO))


def test_the_study_is_of_the_whole_zoo(committed: Study) -> None:
    measured = {(row.model, batch) for row in committed.rows for batch in row.by_batch}

    assert measured == {(name, batch) for name in MODELS for batch in BATCHES}
    assert committed.missing == ()
    for row in committed.rows:
        assert (row.params, row.macs) == (MODELS[row.model].params, MODELS[row.model].macs)
    files = list((ZOO / "records").rglob("*.json"))
    assert len(files) == len(measured)  # nothing is left over from an earlier study
    assert sum(file.stat().st_size for file in files) < LARGEST_BYTES


def test_every_slow_network_is_explained_and_no_other(committed: Study) -> None:
    explained = read_explanations(ZOO)

    slow = {row.model: row.slowest for row in committed.slow}
    assert {model: one.batch for model, one in explained.items()} == slow
    for row in committed.slow:
        assert row.by_batch[row.slowest].ratio > SLOW
        words = explain(row, explained[row.model])
        assert any(title in words for kind, title in KINDS.items() if kind != "dense"), words


def test_explanations_count_as_the_networks_do(committed: Study) -> None:
    for model, one in read_explanations(ZOO).items():
        parts = time_by_kind(
            open_untrained(f"{model}@32", "cpu"), torch.zeros(one.batch, 3, 32, 32), repeats=1
        )
        macs = {kind: part.macs for kind, part in parts.items()}
        assert macs == {kind: part.macs for kind, part in one.parts.items()}, model


def test_the_readme_is_what_the_records_give(committed: Study) -> None:
    assert (ZOO / "README.md").read_text() == markdown(committed, read_explanations(ZOO))
