"""Where memory runs out, the message names a batch size that fits."""

import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import CPU, SHORT, TINY, few_of_each

from training import train
from training.loop import Trainer
from zoo.errors import MachineError

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
]


class FakeFullMemory:
    """Raises where a batch of a trainer has more than so many images."""

    def __init__(self, error: Exception, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error, self.most, self.asked = error, most, []
        self.steps, self.predicted = Trainer.run_steps, Trainer.predicted
        self.networks: list[weakref.ref[torch.nn.Module]] = []
        self.alive: list[int] = []  # networks of earlier trainers, whenever one is asked
        monkeypatch.setattr(Trainer, "run_steps", lambda *a, **k: self(a[0], self.steps, *a, **k))
        predict = lambda *a: self(a[0], self.predicted, *a)  # noqa: E731
        monkeypatch.setattr(Trainer, "predicted", predict)

    asked: list[int]

    def __call__(self, trainer: Trainer, call, *given, **named):
        self.asked.append(trainer.recipe.batch_size)
        self.alive.append(sum(network() is not None for network in self.networks))
        self.networks.append(weakref.ref(trainer.plain))
        if trainer.recipe.batch_size > self.most:
            raise type(self.error)(*self.error.args)  # a fresh one: it holds the frames
        return call(*given, **named)


@pytest.mark.parametrize("error", ERRORS)
def test_the_largest_half_that_fits_is_named(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeFullMemory(error, 15, monkeypatch)

    with pytest.raises(MachineError) as caught:
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path)

    assert str(caught.value) == (
        "not enough memory for batches of 50 images; 12 fit: pass --batch-size 12"
    )
    assert fake.asked == [50, 25, 12]
    assert fake.alive == [0, 0, 0]  # a probe leaves the memory to the next
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parts", "mixup_alpha", "asked"), [(2, 0.0, [50, 24, 12]), (5, 0.2, [50, 20, 10])]
)
def test_only_sizes_that_divide_are_tried(
    parts: int,
    mixup_alpha: float,
    asked: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeFullMemory(MemoryError(), asked[-1], monkeypatch)
    recipe = replace(SHORT, mixup_alpha=mixup_alpha)

    with pytest.raises(MachineError, match=f"{asked[-1]} fit: pass --batch-size {asked[-1]}$"):
        train(TINY, recipe, replace(CPU, accumulate=parts), few_of_each(), runs=tmp_path)

    assert fake.asked == asked


def test_where_nothing_fits_the_model_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeFullMemory(MemoryError(), 1, monkeypatch)

    with pytest.raises(MachineError, match="of 50 images, nor for any smaller ones: take a sm"):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path)

    assert fake.asked == [50, 25, 12, 6, 3]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_memory_that_really_runs_out(processes: int, tmp_path: Path) -> None:
    script = """
import resource, sys
import training.run
from training.cli import main
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 1200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""
    options = (
        *("resnet_20", "--dataset", "cifar100-mini", "--device", "cpu", "--recipe", "smoke"),
        *("--batch-size", "3000", "--runs", str(tmp_path), "--epochs", "1"),
        *(() if processes == 1 else ("--nproc", str(processes))),
    )

    answer = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 1, answer.stderr
    last = answer.stderr.splitlines()[-1]
    found = re.fullmatch(
        r"zoo-train: not enough memory for batches of 3000 images; (\d+) fit: "
        r"pass --batch-size \1",
        last,
    )
    assert found, answer.stderr
    assert "Traceback" not in answer.stderr
