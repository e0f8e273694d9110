"""Ctrl-C, SIGTERM and errors: what they leave, and when a run is saved."""

import errno
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import CPU, EAGER_TO_SAVE, FOLDER, SHORT, TINY, Signal, few_of_each, lines, outcome

from training import train
from training.saver import Saver
from training.state import read_state
from zoo.checkpoint import Checkpoint, RunMeta, newest_run, save_run
from zoo.command import run
from zoo.errors import CheckpointError
from zoo.signals import StopRequest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def saves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Epoch and step of every save from now on."""
    import training.folder

    seen: list[tuple[int, int]] = []
    save = training.folder.save_state

    def spy(path: Path, state: object) -> None:
        epoch, step = state.trainer["place"].tolist()
        seen.append((epoch, step))
        save(path, state)

    monkeypatch.setattr(training.folder, "save_state", spy)
    return seen


class SignalInStep:
    """Sends a signal from within a step of the trainer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *numbers: signal.Signals) -> None:
        import training.step

        self.left, self.numbers, self.take = at, numbers, training.step.Step.take
        self.armed = False
        monkeypatch.setattr(training.step.Step, "take", lambda step: self.taken(step))

    def taken(self, step: object) -> object:
        answer = self.take(step)
        self.left -= self.armed
        if self.left == 0:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return answer

    def __call__(self, progress: object) -> None:
        self.armed = True  # the steps before belong to the prediction of the time


def test_a_run_is_saved_at_its_start_and_its_end_and_no_more_often_than_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = saves(monkeypatch)

    train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path)

    assert seen == [(0, 0), (2, 6)]


def test_an_epoch_that_takes_longer_is_saved_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = saves(monkeypatch)
    monkeypatch.setattr("training.saver.SHARE_OF_TIME", 1e9)  # however long a save takes

    train(TINY, SHORT, EAGER_TO_SAVE, few_of_each(), runs=tmp_path)

    steps = [(epoch, step) for epoch in (1, 2) for step in range(1, 7)]
    assert seen == [(0, 0), *steps, (2, 6)]


def test_saving_takes_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.folder

    seen = saves(monkeypatch)
    fast = training.folder.save_state
    monkeypatch.setattr(
        training.folder, "save_state", lambda *given: (time.sleep(0.5), fast(*given))
    )

    train(TINY, SHORT, EAGER_TO_SAVE, few_of_each(), runs=tmp_path)

    assert len(seen) <= 3  # each forbids another for ten seconds


@pytest.mark.parametrize("number", CODES)
def test_a_signal_within_a_step_saves_after_it(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path / "whole")
    arm = SignalInStep(monkeypatch, 8, number)
    notes: list[str] = []

    code = run(
        "zoo-train",
        lambda: (
            train(
                *(TINY, SHORT, CPU, few_of_each()),
                runs=tmp_path,
                on_progress=arm,
                on_note=notes.append,
            )
            and None
        ),
    )

    path = tmp_path / FOLDER
    assert code == CODES[number]
    assert notes == [
        f"stopping after this step, to go on with --resume {path}; once more stops at once"
    ]
    assert read_state(path / "state" / "last.pt").trainer["place"].tolist() == [2, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    resumed = train(TINY, SHORT, CPU, few_of_each(), resume=path, on_note=notes.append)
    assert outcome(resumed) == outcome(whole)
    assert notes[1] == f"continuing {path} in epoch 2, after 2 of its 6 steps"


def test_a_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = SignalInStep(monkeypatch, 8, signal.SIGINT, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, EAGER_TO_SAVE, few_of_each(), runs=tmp_path, on_progress=arm)

    last = read_state(tmp_path / FOLDER / "state" / "last.pt")
    assert last.trainer["place"].tolist() != [2, 2]


def test_after_ctrl_c_the_last_complete_epoch_is_usable(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path, on_progress=Signal(1))

    left = Checkpoint.open(tmp_path / FOLDER)
    assert (left.meta.epochs_done, left.meta.finished_at) == (1, None)
    assert left.model(allow=TINY)(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    assert (left.path / "curves.png").exists()
    with pytest.raises(CheckpointError, match=r"no complete run in .*: train one with zoo-train"):
        newest_run(tmp_path)


def test_curves_that_cannot_be_written_hide_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_full_disk(metrics: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("training.curves.draw_curves", fake_full_disk)
    notes: list[str] = []

    with pytest.raises(KeyboardInterrupt):
        train(
            *(TINY, SHORT, CPU, few_of_each()),
            runs=tmp_path,
            on_progress=Signal(1),
            on_note=notes.append,
        )

    lost = tmp_path / FOLDER / "curves.png"
    assert notes[-1] == f"curves.png is left out: {lost}: No space left on device"


def test_ctrl_c_before_the_first_step_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path, on_progress=Signal(0))

    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_within_the_first_epoch_leaves_a_run_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = SignalInStep(monkeypatch, 2, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path, on_progress=arm)

    left = Checkpoint.open(tmp_path / FOLDER)
    assert left.meta.epochs_done == 0
    with pytest.raises(CheckpointError, match="no epoch of this run was completed"):
        left.state_dict()


def test_an_error_between_epochs_loses_no_epoch(tmp_path: Path) -> None:
    def closed(progress: object) -> None:
        if progress.metrics:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path, on_progress=closed)

    assert Checkpoint.open(tmp_path / FOLDER).meta.epochs_done == 1


class FakeFolder:
    """A folder that counts how often it is saved."""

    saves = 0

    def save(self) -> None:
        self.saves += 1


@pytest.mark.parametrize(("elsewhere", "saves"), [(0, 0), (1, 1)])
def test_an_error_between_epochs_saves_in_all_processes(
    elsewhere: int, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that go on meet the one that saves; else each would wait for the other."""
    folder, accelerator = FakeFolder(), SimpleNamespace(num_processes=2)
    saver = Saver(folder, StopRequest(), accelerator, save_seconds=1e9)
    monkeypatch.setattr("training.saver.summed", lambda _, flags: [flags[0] + elsewhere])

    with saver.saved_if_cut_short():
        pass

    assert folder.saves == saves
    with pytest.raises(BrokenPipeError), saver.saved_if_cut_short():
        raise BrokenPipeError
    assert folder.saves == saves + 1


def test_a_run_stopped_after_its_last_epoch_is_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path, on_progress=Signal(2))
    path = tmp_path / FOLDER
    assert Checkpoint.open(path).meta.finished_at is None

    done = train(TINY, SHORT, CPU, few_of_each(), resume=path)

    assert done.meta.finished_at is not None
    assert done.meta.test_top1 is not None


@pytest.mark.parametrize("number", CODES)
def test_a_signal_while_a_run_is_saved_waits(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.folder

    def save(path: Path, meta: RunMeta, tensors: object = None) -> Checkpoint:
        if meta.epochs_done == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return save_run(path, meta, tensors)

    monkeypatch.setattr(training.folder, "save_run", save)

    code = run("zoo-train", lambda: train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path) and None)

    left = Checkpoint.open(tmp_path / FOLDER)
    assert code == CODES[number]
    assert left.model(allow=TINY)
    assert len(lines(left)) == left.meta.epochs_done == 2


def test_a_stop_between_the_state_and_the_weights_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.folder

    whole = train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path / "whole")

    def save(path: Path, meta: RunMeta, tensors: object = None) -> Checkpoint:
        if meta.epochs_done == 2:
            raise OSError("full disk")
        return save_run(path, meta, tensors)

    monkeypatch.setattr(training.folder, "save_run", save)
    with pytest.raises(OSError, match="full disk"):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path / "cut")
    monkeypatch.undo()
    cut = tmp_path / "cut" / FOLDER
    assert Checkpoint.open(cut).meta.epochs_done == 0

    resumed = train(TINY, SHORT, CPU, few_of_each(), resume=cut)

    assert outcome(resumed) == outcome(whole)


def test_a_first_write_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_full_disk(*_: object) -> None:
        raise OSError("full disk")

    monkeypatch.setattr("training.folder.write_json", fake_full_disk)

    with pytest.raises(OSError, match="full disk"):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, CPU, few_of_each(), runs=tmp_path, on_progress=Signal(1))
    path = tmp_path / FOLDER
    for left in (path / ".part-a.json", path / "state" / ".part-b.pt"):
        left.write_text("half of")

    train(TINY, SHORT, CPU, few_of_each(), resume=path)

    assert list(path.rglob(".part-*")) == []


def test_the_steps_of_an_average_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(SHORT, ema_decay=0.9, optimizer="adamw", peak_lr=1e-3)
    whole = train(TINY, recipe, CPU, few_of_each(), runs=tmp_path / "whole")
    arm = SignalInStep(monkeypatch, 3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, recipe, CPU, few_of_each(), runs=tmp_path, on_progress=arm)
    monkeypatch.undo()

    resumed = train(TINY, recipe, CPU, few_of_each(), resume=tmp_path / FOLDER)

    assert outcome(resumed) == outcome(whole)
