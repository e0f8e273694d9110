"""Trials of the time gate: how they are done, kept, and judged anew from their samples."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.environment import capture, git_commit
from zoo.errors import MachineError
from zoo.files import read_json

from .hot_paths import gated
from .lanes import Worker, run_pairs
from .outcome import judge, percent, samples_from_json
from .plants import NEAR, PLANTS, SLOWDOWN, Calibrated, calibrate, drawn
from .sides import write_tree

TRIALS = 20  # of either kind
FOUND_SHARE = 0.95  # of planted slowdowns, at least; false alarms: none
CHOSEN_WITH = 20  # trials of either kind below this number were in sight when the test was chosen
# A part of the gate's hot paths, at least one of each kind, so that a trial takes two minutes.
ONLY = (
    "^(forward-(eager|onnx|openvino)-resnet_20-b|forward-eager-ghost_resnet_20-b32|train-step|"
    "augmentation|load-onnx|start-)"
)
SELF, PLANTED = "self", "planted"


class Bench:
    """The code as it is now, copies of it to plant work in, and exported files for all."""

    def __init__(self, code: Path, place: Path, *, pairs: int, say: Callable[[str], None]) -> None:
        self.place, self.pairs, self.say = place, pairs, say
        self.paths = gated(ONLY)
        self.clean, self.files = place / "clean", place / "files"
        self.files.mkdir()
        write_tree(code, self.clean)
        self.calibrated: dict[str, Calibrated] = {}
        with Worker(self.clean, self.files) as worker:
            for path in self.paths:
                fault = worker.ask("prepare", name=path.name)
                if fault:
                    raise MachineError(f"{path.name} cannot be timed here: {fault}")

    def trial(self, kind: str, seed: int) -> dict[str, Any]:
        """One comparison, with all that is needed to judge it again."""
        home = self.place / "change"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self.clean, home)
        facts: dict[str, Any] = {"kind": kind, "seed": seed}
        if kind == PLANTED:
            name = drawn(seed)
            if name not in self.calibrated:
                self.say(f"measuring what the work costs at {name}")
                found = calibrate(PLANTS[name], self.clean, home, self.files)
                self.calibrated[name] = found
            PLANTS[name].put(home, self.calibrated[name].units)
            calibrated = self.calibrated[name].to_json()
            facts |= {"place": name, "slows": PLANTS[name].slows, "calibrated": calibrated}
        before = os.getloadavg()[0]
        samples = run_pairs(
            (self.clean, home),
            (self.files, self.files),
            [path.name for path in self.paths],
            cold=(),
            pairs=self.pairs,
            seconds=float("inf"),
            tell=self.say,
        )
        return facts | {
            "load_before": before,
            "load_after": os.getloadavg()[0],
            "commit": git_commit(Path(__file__).resolve().parents[3]),
            "environment": capture().to_json(),
            "samples": asdict(samples),
        }


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """Those that are done, in the order in which they were."""
    files = sorted((folder / "trials").glob("*.json"))
    return [read_json(file) for file in files]


def trial_file(folder: Path, kind: str, seed: int) -> Path:
    """Where a trial is kept."""
    return folder / "trials" / f"{kind}-{seed:02}.json"


def slower(trial: dict[str, Any]) -> list[str]:
    """The paths that the gate calls slower, judged anew from the samples."""
    return [row.name for row in judge(samples_from_json(trial["samples"])).slower]


def is_right(trial: dict[str, Any]) -> bool:
    """No alarm where nothing was planted; the planted path among those found where it was."""
    found = slower(trial)
    return not found if trial["kind"] == SELF else trial["slows"] in found


def holds(done: Sequence[dict[str, Any]]) -> bool:
    """Whether TRIALS of either kind, all of one gate, show what it promises."""
    planted = [is_right(trial) for trial in done if trial["kind"] == PLANTED]
    selves = [is_right(trial) for trial in done if trial["kind"] == SELF]
    is_shown = min(len(selves), len(planted)) >= TRIALS and len(gates(done)) == 1
    return is_shown and all(selves) and sum(planted) >= FOUND_SHARE * len(planted)


def gates(done: Sequence[dict[str, Any]]) -> set[tuple[int, tuple[str, ...]]]:
    """What the gate was in each trial: how many pairs of processes, and of which paths."""
    return {(one["samples"]["pairs"], tuple(sorted(one["samples"]["timed"]))) for one in done}


def verdict(trial: dict[str, Any]) -> str:
    """A trial in a few words."""
    found = slower(trial)
    if trial["kind"] == SELF:
        return f"false alarm: {', '.join(found)}" if found else "no alarm"
    return "found" if trial["slows"] in found else "missed"


def readme(done: Sequence[dict[str, Any]]) -> str:
    """The outcome of all trials, for people."""
    fresh = [trial for trial in done if trial["seed"] >= CHOSEN_WITH]
    pairs = " or ".join(map(str, sorted({trial["samples"]["pairs"] for trial in done})))
    lines = [
        "# What the time gate is worth",
        "",
        "Written by `tests/benchmarks/gate_trials.py` from the samples in `trials/`; not edited by "
        "hand. Each trial is a comparison as `make bench-compare` does it, of a part of its hot "
        f"paths and with {pairs} pairs of processes.",
        "",
        f"- the code against itself: {_alarms(done)} trials, {_alarms(fresh)} fresh ones",
        f"- {SLOWDOWN:.0%} more work at a place drawn by the seed: {_found(done)} found, "
        f"{_found(fresh)} fresh ones",
        "",
        f"Fresh are the trials from number {CHOSEN_WITH} on. The test was chosen with the samples "
        "of those before in sight, when an earlier one had missed two of the slowdowns among them: "
        "[0009](../../docs/decisions/0009-time-is-compared-in-turns.md).",
        "",
        "The work is real and in our code; before the trials it was planted, measured and mended "
        "until the path that it slows most took as much longer, give or take "
        f"{100 * NEAR:.1f} points.",
        "",
        "| trial | place | path | measured | p | outcome | load | s |",
        "|---|---|---|---:|---:|---|---:|---:|",
    ]
    for trial in done:
        outcome = judge(samples_from_json(trial["samples"]))
        shown = max(outcome.rows, key=lambda row: row.ratio)
        if trial["kind"] == PLANTED:
            shown = next(row for row in outcome.rows if row.name == trial["slows"])
        lines.append(
            f"| {trial['kind']} {trial['seed']} | {trial.get('place', '')} | {shown.name} | "
            f"{percent(shown.ratio)} | {shown.p:.3f} | {verdict(trial)} | "
            f"{trial['load_after']:.1f} | {outcome.seconds:.0f} |"
        )
    commits = list(dict.fromkeys(str(trial["commit"])[:12] for trial in done))
    if len(commits) > 1:
        lines += ["", f"The trials are of several commits: {', '.join(commits)}."]
    lines += [
        "",
        "Of a comparison with itself the path with the largest ratio is shown. The load is the "
        "machine's average over a minute at the end of the trial; one process works at a time.",
    ]
    return "\n".join(lines) + "\n"


def _alarms(done: Sequence[dict[str, Any]]) -> str:
    selves = [is_right(trial) for trial in done if trial["kind"] == SELF]
    return f"{selves.count(False)} false alarms in {len(selves)}"


def _found(done: Sequence[dict[str, Any]]) -> str:
    planted = [is_right(trial) for trial in done if trial["kind"] == PLANTED]
    return f"{sum(planted)} of {len(planted)}"
