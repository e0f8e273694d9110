"""The comparison of memory formats: what it measures, keeps and says."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarks import memory_format
from benchmarks.memory_format import Comparison

from zoo.errors import RecordError
from zoo.models import MODELS

TIMES = (10.0, 20.0, 40.0, 10.0, 20.0, 40.0)  # of turns of which each pair is alike


def comparison(model: str, ratio: float) -> Comparison:
    return Comparison(
        model=model,
        batch=8,
        channels_last_ms=TIMES,
        contiguous_ms=tuple(ratio * value * (1 + turn / 100) for turn, value in enumerate(TIMES)),
        precision="bf16",
        device="cpu",
        torch="2.14.1",
        environment_key="0123456789ab",
    )


def test_each_pass_is_divided_by_its_neighbour() -> None:
    found = comparison("a", 1.5).ratio

    assert found.value == pytest.approx(1.5 * 1.025)
    assert found.interval == pytest.approx((1.5, 1.5 * 1.05))


def test_the_table_names_where_the_default_is_slower() -> None:
    found = memory_format.table([comparison("a", 1.5), comparison("b", 0.9), comparison("c", 0.99)])

    assert "Channels-last is faster for 1 of 3 networks and slower for 1: b." in found
    assert "| a     |      8 | 1.54 (1.50 to 1.57) |             20.0 |" in found.splitlines()


def test_the_committed_page_is_what_the_records_say() -> None:
    found = memory_format.read(memory_format.FOLDER / memory_format.RECORDS)

    assert {record.model for record in found} == set(MODELS)
    assert (memory_format.FOLDER / memory_format.TABLE).read_text() == memory_format.table(found)


def test_only_what_is_missing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(memory_format.WORK, "cpu", 1.0)
    monkeypatch.setitem(memory_format.TURNS, "cpu", 2)
    options = ("--out", str(tmp_path), "--models")

    assert memory_format.main([*options, "resnet_20"]) == 0
    assert memory_format.main([*options, "resnet_20,segnext_mscan_tiny_s1"]) == 0

    records = memory_format.read(tmp_path / memory_format.RECORDS)
    assert [record.model for record in records] == ["resnet_20", "segnext_mscan_tiny_s1"]
    assert all(len(record.contiguous_ms) == 2 for record in records)
    assert all(min(record.channels_last_ms) > 0 for record in records)
    assert (tmp_path / memory_format.TABLE).read_text() == memory_format.table(records)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(asdict(comparison("a", 1.0)) | {"batches": 1}) + "\n")

    with pytest.raises(RecordError, match=f"{path} holds a line that is no record: "):
        memory_format.read(path)
