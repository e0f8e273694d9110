"""A run that SIGKILL ends at any moment, a save included, is resumed as the same run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from few_images import picture_folder
from small_runs import FOLDER, TINY, outcome

from zoo.checkpoint import Checkpoint
from zoo.data import load_dataset

TESTS = Path(__file__).parent
KILLS = 24


@pytest.mark.slow
def test_runs_that_are_killed_end_like_one_that_is_not(tmp_path: Path) -> None:
    pictures = picture_folder(load_dataset("cifar100-mini"), tmp_path / "pictures")
    command = [
        *(sys.executable, str(TESTS / "killed_runs.py"), "zoo-train", "7", str(KILLS)),
        *(
            str(tmp_path),
            "--model",
            TINY,
            "--dataset",
            pictures,
            "--device",
            "cpu",
            "--recipe",
            "smoke",
        ),
        *("--batch-size", "4", "--epochs", "6", "--set", "ema_decay=0.9"),
        *("--save-seconds", "0.000001", "--deterministic"),
    ]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))

    answer = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )

    assert answer.returncode == 0, answer.stderr
    kills = [line for line in answer.stderr.splitlines() if line.startswith("killed ")]
    assert len(kills) >= KILLS
    assert sum("/state/" in line for line in kills) >= KILLS // 3  # while a state was written
    whole = outcome(Checkpoint.open(tmp_path / "whole" / FOLDER))
    complete = sorted(tmp_path.glob("killed-*"))
    assert complete
    for runs in complete:
        resumed = [Checkpoint.open(meta.parent) for meta in runs.glob("*/meta.json")]
        finished = [outcome(run) for run in resumed if run.meta.finished_at]
        assert finished == [whole] * max(1, len(finished))  # two where a kill came after the end
