"""Where memory runs out, the message names a batch size that fits."""

import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from small_runs import CPU, EAGER_TO_SAVE, FOLDER, SHORT, TINY, few_of_each

from training import Runtime, train
from training.loop import Trainer
from training.memory import out_of_memory
from training.options import build_parser, make_job
from zoo.errors import MachineError

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
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


class FakeFullLater(FakeFullMemory):
    """Raises where a part of a batch has more than so many images, from the second epoch on."""

    is_full = False

    def __call__(self, trainer: Trainer, call, *given, **named):
        self.is_full |= given[1:] == (2,)
        if self.is_full and trainer.recipe.batch_size // trainer.runtime.accumulate > self.most:
            self.asked.append(trainer.runtime.accumulate)
            raise MemoryError
        return call(*given, **named)


def test_a_run_that_has_begun_is_continued_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.saver.SHARE_OF_TIME", 1e9)
    fake, run = FakeFullLater(MemoryError(), 12, monkeypatch), tmp_path / FOLDER
    advice = f"--resume {run} --accumulate 5"

    for resume in (None, run, "auto"):
        fake.asked.clear()
        with pytest.raises(MachineError) as caught:
            train(TINY, SHORT, EAGER_TO_SAVE, few_of_each(), runs=tmp_path, resume=resume)
        assert str(caught.value) == (
            "not enough memory for batches of 50 images; in 5 parts they fit: "
            f"continue with {advice}"
        )
        assert fake.asked == [1, 2]

    wanted = make_job(build_parser().parse_args(["--model", TINY, *advice.split()]))
    done = train(TINY, wanted.recipe, wanted.runtime, few_of_each(), resume=wanted.resume)
    assert (done.path, done.meta.finished_at is None) == (run, False)


@dataclass(frozen=True)
class FakeTrainer:
    """Takes steps with at most so many images at a time."""

    size: int
    most: int

    def run_steps(self, epoch: int) -> Iterator[None]:
        if self.size > self.most:
            raise MemoryError
        return iter(())


COMPILED = replace(CPU, compile=True, compile_mode="max-autotune")


@pytest.mark.parametrize(
    ("size", "most", "world", "runtime", "end"),
    [
        (50, 12, 1, COMPILED, "continue with --resume run --accumulate 5 --compile-mode default"),
        (50, 12, 2, CPU, "in 5 parts they fit: continue with --resume run --accumulate 5"),
        (50, 13, 2, CPU, "in 2 parts they fit: continue with --resume run --accumulate 2"),
        (47, 12, 1, CPU, "11 fit: begin a new run with --batch-size 11"),
        (50, 1, 1, CPU, "nor for any smaller ones: take a smaller model"),
    ],
)
def test_what_a_run_is_continued_with(
    size: int, most: int, world: int, runtime: Runtime, end: str
) -> None:
    recipe = replace(SHORT, batch_size=size)

    error = out_of_memory(
        lambda size, parts: FakeTrainer(size // parts, most),
        *(recipe, runtime),
        world=world,
        run=Path("run"),
    )

    assert str(error).endswith(end)


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
