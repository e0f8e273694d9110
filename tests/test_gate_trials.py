"""What the trials of the gate on time have to show, and how they are told."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gates.trials import PLANTED, SELF, holds, read_trials, readme, verdict
from gate_samples import samples

ROOT = Path(__file__).parents[1]


def trial(kind: str, seed: int, **slowdowns: float) -> dict[str, Any]:
    planted = {"place": "step", "slows": "one"} if kind == PLANTED else {}
    found = {"kind": kind, "seed": seed, "load_after": 1.0, "commit": "ab" * 20, **planted}
    return found | {"samples": asdict(samples(**slowdowns))}


def test_trials_are_judged_from_their_samples() -> None:
    quiet, alarm = trial(SELF, 0, one=1.0, two=1.02), trial(SELF, 1, one=1.0, two=1.2)
    found, missed = trial(PLANTED, 0, one=1.15, two=1.0), trial(PLANTED, 1, one=1.05, two=1.2)

    verdicts = [verdict(done) for done in (quiet, alarm, found, missed)]

    assert verdicts == ["no alarm", "false alarm: two", "found", "missed"]
    assert "- the code against itself: 1 false alarms in 2 trials, " in readme([quiet, alarm])
    assert "at a place drawn by the seed: 1 of 2 found, " in readme([found, missed])
    assert "| planted 0 | step | one | +15.0% | 0.002 | found | 1.0 | 60 |\n" in readme([found])


@pytest.mark.parametrize(
    ("alarms", "misses", "is_enough"), [(0, 0, True), (0, 1, True), (0, 2, False), (1, 0, False)]
)
def test_what_trials_have_to_show(alarms: int, misses: int, is_enough: bool) -> None:
    done = [trial(SELF, seed, one=1.2 if seed < alarms else 1.0) for seed in range(20)]
    done += [trial(PLANTED, seed, one=1.0 if seed < misses else 1.15) for seed in range(20)]

    assert holds(done) == is_enough


def test_nothing_is_shown_by_trials_of_one_kind() -> None:
    selves = [trial(SELF, seed, one=1.0) for seed in range(20)]

    assert not holds(selves)
    assert not holds([trial(PLANTED, 0, one=1.15)])
    assert not holds([trial(SELF, 0, one=1.0), trial(PLANTED, 0, one=1.15)])  # too few


def test_trials_after_the_test_was_chosen_are_told_apart() -> None:
    done = [trial(SELF, seed, one=1.2 if seed < 20 else 1.0) for seed in (18, 19, 20)]
    done += [trial(PLANTED, seed, one=1.15 if seed < 20 else 1.0) for seed in (18, 20, 21)]

    text = readme(done)

    assert "itself: 2 false alarms in 3 trials, 0 false alarms in 1 fresh ones\n" in text
    assert "drawn by the seed: 1 of 3 found, 0 of 2 fresh ones\n" in text


def test_trials_of_several_gates_show_nothing_of_one() -> None:
    done = [trial(kind, seed, one=1.0) for kind in (SELF, PLANTED) for seed in range(20)]
    for one in done[20:]:
        one["samples"] = asdict(samples(one=1.15))
    assert holds(done)

    done[0]["samples"] = asdict(samples(pairs=12, one=1.0))

    assert not holds(done)


def test_several_commits_are_said() -> None:
    done = [trial(SELF, seed, one=1.0) for seed in range(2)]
    assert "several commits" not in readme(done)

    done[1]["commit"] = "cd" * 20

    assert f"The trials are of several commits: {'ab' * 6}, {'cd' * 6}.\n" in readme(done)


def test_committed_outcome_is_what_the_samples_say() -> None:
    folder = ROOT / "bench_results" / "gate"

    assert (folder / "README.md").read_text() == readme(read_trials(folder))
