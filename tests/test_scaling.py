"""The model of a step on several processes, and the benchmark that holds it against two."""

import json
from pathlib import Path

import pytest
from benchmarks import scaling
from benchmarks.scaling import Link

from zoo.environment import capture, git_commit


def test_an_all_reduce_goes_round_the_ring_twice() -> None:
    link = Link(latency_s=1e-3, bytes_per_s=1e6)

    # Each of 2 (N - 1) turns sends the Nth part.
    assert link.all_reduce_s(4_000_000, world=4) == pytest.approx(6 * (1e-3 + 1.0))
    assert link.all_reduce_s(4_000_000, world=1) == 0


def test_latency_and_bandwidth_are_found_again() -> None:
    link = Link(latency_s=80e-6, bytes_per_s=3e9)

    found = Link.fitted({size: link.all_reduce_s(size, 2) for size in scaling.EXCHANGED}, world=2)

    assert found.latency_s == pytest.approx(link.latency_s)
    assert found.bytes_per_s == pytest.approx(link.bytes_per_s)


def test_the_page_holds_model_and_measurement_against_each_other() -> None:
    link = Link(latency_s=0.5e-3, bytes_per_s=1e9)
    exchange = {str(size): link.all_reduce_s(size, 2) for size in scaling.EXCHANGED}
    record = {
        "task": {"model": "vit_tiny", "batch": 64, "steps": 20},
        "gradient_bytes": 4_000_000,  # 2 (0.5 ms + 2 ms) = 5 ms
        "environment": capture().to_json(),
        "samples_s": {
            "alone": [[0.080], [0.079], [0.081]],
            "apart": [[0.090, 0.100], [0.100, 0.099], [0.101, 0.098]],
            "together": [[0.1, 0.102], [0.1, 0.1029], [0.103, 0.102]],
            "exchange": [exchange, exchange, exchange],
        },
    }

    lines = scaling.page(record).splitlines()

    rows = {line.split("|")[1].strip(): line for line in lines if line.count("|") == 4}
    assert rows["measured: one process, C(1)"].split("|")[2].strip() == "80.0"
    assert [cell.strip() for cell in rows["of the model: C + A"].split("|")[2:4]] == [
        "105.0",
        "76%",
    ]
    assert rows["of the model: all-reduce, A(2)"].split("|")[2].strip() == "5.0"
    assert rows["measured: two together, T(2)"].split("|")[2].strip() == "102.9"
    assert "T(2) is 0.98 times C + A and 1.03 times max(C, A)." in lines
    assert "An all-reduce between two processes: 500 us and" in lines


@pytest.mark.slow
def test_it_measures_real_processes(tmp_path: Path) -> None:
    options = ("--model", "resnet_20", "--batch", "8", "--steps", "3", "--rounds", "1")

    assert scaling.main([*options, "--out", str(tmp_path)]) == 0

    record = json.loads((tmp_path / scaling.RECORD).read_text())
    assert {kind: len(found[0]) for kind, found in record["samples_s"].items()} == {
        "alone": 1,
        "apart": 2,
        "together": 2,
        "exchange": len(scaling.EXCHANGED),
    }
    assert record["gradient_bytes"] == 4 * 278_324
    assert record["commit"] == git_commit(Path(__file__).parents[1])
    assert (tmp_path / scaling.PAGE).read_text() == scaling.page(record)


def test_an_unknown_network_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = scaling.main(["--model", "resnet_21", "--rounds", "1", "--out", str(tmp_path)])

    assert code == 2
    assert capsys.readouterr().err == (
        "scaling: no model named 'resnet_21': did you mean resnet_32 or resnet_20 or resnet_18?\n"
    )
