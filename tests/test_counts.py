"""Counts that a change must not move unseen: see tests/benchmarks/counts.json."""

import json
from pathlib import Path

import pytest
from benchmarks.gates import counting
from benchmarks.gates.counting import FILE, GROUPS, REMAKE, differences, other_versions

STORED = json.loads(FILE.read_text())
PINS = Path(__file__).parents[1] / "constraints" / "default.txt"


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.filterwarnings("default")  # of the exporter, about its own parts
def test_counts_are_those_that_were_committed(group: str) -> None:
    reason = other_versions(group, STORED)
    if reason is not None:
        pytest.skip(reason)

    moved = list(differences(STORED[group], GROUPS[group][0]()))

    assert not moved, "\n".join((*moved, REMAKE))


def test_counts_are_of_the_pinned_versions() -> None:
    pinned = dict(line.split("==") for line in PINS.read_text().splitlines() if "==" in line)

    assert STORED["versions"] == {name: pinned.get(name) for name in STORED["versions"]}


def test_a_moved_count_is_named_with_both_values() -> None:
    stored = {"a": {"params": 1000, "macs": 5}, "b": {"params": 2}}
    found = {"a": {"params": 1001, "macs": 5}, "c": {"params": 3}}

    assert list(differences(stored, found)) == [
        "params of a: 1,000 -> 1,001",
        "params of b: 2 -> none",
        "params of c: none -> 3",
    ]
    assert list(differences(stored, stored)) == []


def test_counts_of_another_release_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    older = {"versions": STORED["versions"] | {"torch": "2.10.0"}}
    installed = {"torch": "2.14.1", "accelerate": None}
    monkeypatch.setattr(counting, "versions", lambda packages: {p: installed[p] for p in packages})

    assert other_versions("models", older) is None  # of no release
    assert other_versions("kernels", older) == "counted with torch 2.10.0, this is 2.14.1"
    assert other_versions("kernels", STORED | {"versions": {"torch": "2.14.1"}}) == (
        "the package accelerate is not installed"
    )
