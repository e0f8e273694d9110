"""What torch.compile took and gave: the line, the facts of the run, and no compilation later."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import CPU, FOLDER, SHORT, TINY, Signal, few_of_each

from training import train
from training.break_even import Compilation, compiled_graphs
from training.loop import Trainer
from zoo.checkpoint import Checkpoint

COMPILED = replace(CPU, compile=True)


class FakeCompiler:
    """Leaves functions as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        monkeypatch.setattr("training.step.require_compiler", lambda device: None)


@pytest.mark.parametrize(
    ("eager", "end"),
    [
        (0.050, "a step takes 20.0 ms instead of 50.0 ms: it pays after 2.0 epochs"),
        (0.021, "a step takes 20.0 ms instead of 21.0 ms: it pays after 60.0 epochs"),
        (0.020, "a step takes 20.0 ms instead of 20.0 ms: it does not pay"),
        (0.010, "a step takes 20.0 ms instead of 10.0 ms: it does not pay"),
    ],
)
def test_compiling_pays_once_the_epochs_have_saved_what_it_took(
    eager: float, end: str, trainer: Trainer
) -> None:
    trainer.compile_seconds = 0.36  # 6 steps an epoch

    found = Compilation.of(trainer, step=0.020, eager=eager, recompiles=0)

    assert found.line == f"compiled in 0.4 s, 0 recompiled later; {end}"


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return make_trainer()


def make_trainer() -> Trainer:
    """A trainer of six steps an epoch."""
    from accelerate import Accelerator

    from zoo.models import create_model

    data = few_of_each()
    return Trainer(create_model(TINY), SHORT, CPU, data, Accelerator(cpu=True), seed=0)


def test_choosing_kernels_is_part_of_what_compiling_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_trainer()
    monkeypatch.setattr(Trainer, "_fast_kernels", lambda self: time.sleep(0.5) or [])  # on a GPU

    run.predicted()

    assert run.compile_seconds > 0.4


def test_what_was_not_measured_is_not_told(trainer: Trainer) -> None:
    alone = Compilation.of(trainer, step=0.020, eager=None, recompiles=0)

    assert (alone.eager_step_ms, alone.pays_after_epochs, alone.line) == (None, None, None)
    assert alone.step_ms == pytest.approx(20.0)


def test_meta_tells_of_the_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCompiler(monkeypatch)
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, COMPILED, few_of_each(), runs=tmp_path, on_progress=Signal(1))
    cut = Checkpoint.open(tmp_path / FOLDER).meta.compilation
    assert cut is not None

    done = train(
        *(TINY, SHORT, COMPILED, few_of_each()),
        resume=tmp_path / FOLDER,
        on_note=notes.append,
    )

    told = done.meta.compilation
    assert (cut["recompiles"], told["recompiles"]) == (0, 0)
    for facts in (cut, told):
        assert facts["seconds"] >= 0
        assert facts["step_ms"] > 0
        assert facts["eager_step_ms"] > 0
    assert notes[-1].startswith("compiled in ")


def test_a_run_without_compile_tells_of_none(tmp_path: Path) -> None:
    done = train(TINY, replace(SHORT, epochs=1), CPU, few_of_each(), runs=tmp_path)

    assert done.meta.compilation is None


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_run_goes_on_where_only_eager_steps_do_not_fit(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCompiler(monkeypatch)
    measure = Trainer.step_seconds

    def fake_full_memory(trainer: Trainer) -> float:
        if not trainer.runtime.compile:
            raise error
        return measure(trainer)

    monkeypatch.setattr(Trainer, "step_seconds", fake_full_memory)
    notes: list[str] = []

    done = train(TINY, SHORT, COMPILED, few_of_each(), runs=tmp_path, on_note=notes.append)

    assert done.meta.finished_at is not None
    assert done.meta.compilation["eager_step_ms"] is None
    assert notes == []


def test_another_error_of_the_eager_steps_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCompiler(monkeypatch)

    def broken(trainer: Trainer) -> float:
        raise RuntimeError("a broken kernel")

    monkeypatch.setattr(Trainer, "step_seconds", broken)

    with pytest.raises(RuntimeError, match="a broken kernel"):
        train(TINY, SHORT, COMPILED, few_of_each(), runs=tmp_path)


def test_the_ninth_training_of_a_process_is_compiled_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes a graph of its own from one function, of which torch keeps eight."""
    compile_ = torch.compile
    traced_alone = {"backend": "eager", "dynamic": False}
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, **traced_alone))
    monkeypatch.setattr("training.step.require_compiler", lambda device: None)
    recipe, graphs = replace(SHORT, epochs=1), []
    for count in range(9):
        before = compiled_graphs()
        varied = replace(recipe, label_smoothing=count / 20)
        train(TINY, varied, COMPILED, few_of_each(), runs=tmp_path)
        graphs.append(compiled_graphs() - before)

    assert min(graphs) > 0


@pytest.mark.slow
def test_nothing_is_compiled_again_after_the_first_steps(tmp_path: Path) -> None:
    notes: list[str] = []

    done = train(TINY, SHORT, COMPILED, few_of_each(), runs=tmp_path, on_note=notes.append)

    facts = done.meta.compilation
    assert (done.meta.epochs_done, facts["recompiles"]) == (2, 0)
    assert facts["seconds"] > facts["step_ms"] / 1e3  # it did compile
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert ", 0 recompiled later; a step takes " in notes[-1]
