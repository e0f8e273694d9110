"""A run that SIGKILL ends at any moment, a save included, is resumed as the same run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_pretraining
from few_images import picture_folder
from small_runs import FOLDER, TINY, outcome

from zoo.checkpoint import Checkpoint
from zoo.data import load_dataset

TESTS = Path(__file__).parent
KILLS = 24


def kill_again_and_again(
    command: str, kills: int, tmp_path: Path, run: str, options: tuple[str, ...]
) -> None:
    """Kill so many runs of a command, whose folder is `run`; each ends as one without a kill."""
    pictures = picture_folder(load_dataset("cifar100-mini"), tmp_path / "pictures")
    words = [
        *(sys.executable, str(TESTS / "killed_runs.py"), command, "7", str(kills), str(tmp_path)),
        *("--dataset", pictures, "--device", "cpu", "--batch-size", "4"),
        *("--save-seconds", "0.000001", *options),
    ]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))

    answer = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )

    assert answer.returncode == 0, answer.stderr
    killed = [line for line in answer.stderr.splitlines() if line.startswith("killed ")]
    assert len(killed) >= kills
    assert sum("/state/" in line for line in killed) >= kills // 3  # while a state was written
    whole = outcome(Checkpoint.open(tmp_path / "whole" / run))
    complete = sorted(tmp_path.glob("killed-*"))
    assert complete
    for runs in complete:
        resumed = [Checkpoint.open(meta.parent) for meta in runs.glob("*/meta.json")]
        finished = [outcome(run) for run in resumed if run.meta.finished_at]
        assert finished == [whole] * max(1, len(finished))  # two where a kill came after the end


@pytest.mark.slow
def test_runs_that_are_killed_end_like_one_that_is_not(tmp_path: Path) -> None:
    recipe = ("--recipe", "smoke", "--epochs", "6", "--set", "ema_decay=0.9", "--deterministic")

    kill_again_and_again("zoo-train", KILLS, tmp_path, FOLDER, ("--model", TINY, *recipe))


@small_pretraining.needs_lightly
@pytest.mark.parametrize(
    ("method", "kills"), [("moco", 4), pytest.param("byol", KILLS, marks=pytest.mark.slow)]
)
def test_pre_trainings_that_are_killed_end_like_one_that_is_not(
    method: str, kills: int, tmp_path: Path
) -> None:
    run = f"pretrain-{method}-{small_pretraining.FOLDER}"
    small = ("--epochs", "4", "--set", "hidden=8", "--set", "queue=64")
    options = (small_pretraining.MODEL, "--method", method, *small)

    kill_again_and_again("zoo-pretrain", kills, tmp_path, run, options)
