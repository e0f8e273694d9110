"""What a training takes of the host's memory, seen in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import TINY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")

CIFAR = 60_000 * 3072  # bytes
PROGRAM = """
import sys
import torch

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

print(peak())

from dataclasses import replace
import numpy as np
from small_runs import CPU, few_of_each
from training import named_recipe, train
from zoo.data import Split

model, recipe, count, runs = sys.argv[1:]
recipe = replace(named_recipe(recipe), precision="fp32", epochs=1, warmup_epochs=0, epoch_steps=3)
train(model, recipe, CPU, few_of_each(), runs=runs)  # imports, and one batch
print(peak())

images = np.random.default_rng(0).integers(0, 256, (int(count), 32, 32, 3), dtype=np.uint8)
data = Split(images=images, fine=np.arange(len(images)) % 100)
train(model, recipe, CPU, replace(few_of_each(), train=data), runs=runs)
print(peak())
"""


def peaks(model: str, recipe: str, images: int, runs: Path) -> list[int]:
    """Peak memory in bytes: with torch, after a small run, and after one with so many images."""
    known = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, model, recipe, str(images), str(runs)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, known))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_the_data_set_is_held_once(tmp_path: Path) -> None:
    images = 120_000

    _, before, after = peaks(TINY, "smoke", images, tmp_path)

    assert (after - before) / (images * 3072) < 1.5


@pytest.mark.slow
def test_a_run_with_the_batch_of_its_recipe_stays_below_two_gigabytes(tmp_path: Path) -> None:
    torch_alone, _, after = peaks("resnet_20", "quick", CIFAR // 3072, tmp_path)

    assert after - torch_alone < 2e9
