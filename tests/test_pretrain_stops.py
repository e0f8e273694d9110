"""Pre-training that is stopped, killed or fails: what it leaves, and how it goes on."""

import json
import signal
import sys
import types
import weakref
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from few_images import picture_folder
from small_pretraining import (
    FOLDER,
    MODEL,
    STEPS,
    ctrl_c_in_step,
    needs_lightly,
    send_in_step,
    settings,
)
from small_runs import few_of_each, lines, outcome, trained_elsewhere
from torch import nn

from training import Runtime
from training.loop import NonFinite
from training.precision import LEAST_SCALE
from training.pretrain import pretrain, replay
from training.pretrain_cli import main
from training.pretrainer import Pretrainer
from training.pretraining import METHODS
from training.processes import processes
from training.replay import images_of
from training.state import is_finite, read_content
from zoo.checkpoint import Checkpoint, RunMeta, save_run
from zoo.data import Dataset, load_dataset
from zoo.errors import CheckpointError, MachineError
from zoo.files import read_json

pytestmark = needs_lightly
RUN = f"pretrain-simclr-{FOLDER}"
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def few() -> Dataset:
    return few_of_each()


@pytest.fixture(scope="module")
def done(few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    runs = tmp_path_factory.mktemp("runs")
    return pretrain(MODEL, settings("simclr"), few, device="cpu", runs=runs)


@pytest.fixture
def cut(few: Dataset, tmp_path: Path) -> Path:
    """The same run, stopped in its second epoch; what is stored was stored after each step."""
    with pytest.MonkeyPatch.context() as patch, ctrl_c_in_step(STEPS + 3):
        patch.setattr("training.saver.SHARE_OF_TIME", 1e9)
        pretrain(MODEL, settings("simclr"), few, device="cpu", runs=tmp_path, save_seconds=0.0)
    return tmp_path / RUN


def saved(run: Path) -> dict[str, torch.Tensor]:
    """The state from which a resume goes on."""
    return read_content(run / "state" / "last.pt", lambda found: found["trainer"])


# Stops


@pytest.mark.parametrize("complete", [0, 1])
def test_an_interrupted_run_has_the_weights_of_its_last_complete_epoch(
    complete: int, done: Checkpoint, few: Dataset, tmp_path: Path
) -> None:
    with ctrl_c_in_step(complete * STEPS + 2):
        pretrain(MODEL, settings("simclr"), few, device="cpu", runs=tmp_path)

    run = Checkpoint.open(tmp_path / RUN)
    assert (run.meta.epoch, run.meta.epochs_done) == (complete, complete)
    assert run.meta.finished_at is None
    assert lines(run) == lines(done)[:complete]
    if complete:
        assert "stem.0.weight" in run.state_dict()
    else:
        with pytest.raises(CheckpointError, match="no epoch of this run was completed"):
            run.state_dict()


def test_ctrl_c_before_the_first_step_leaves_no_run(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pretrainer, "run_steps", stop)

    with pytest.raises(KeyboardInterrupt):
        pretrain(MODEL, settings("simclr"), few, device="cpu", runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_second_ctrl_c_stops_at_once(few: Dataset, tmp_path: Path) -> None:
    with ctrl_c_in_step(STEPS + 2, times=2):
        pretrain(MODEL, settings("simclr"), few, device="cpu", runs=tmp_path)

    assert list(tmp_path.iterdir()) == []  # no step was saved yet


def test_an_error_between_epochs_loses_no_epoch(few: Dataset, tmp_path: Path) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        pretrain(MODEL, settings("simclr"), few, device="cpu", runs=tmp_path, on_epoch=closed)

    assert Checkpoint.open(tmp_path / RUN).meta.epochs_done == 1


def test_a_run_goes_on_on_another_kind_of_device(few: Dataset) -> None:
    """What a GPU's generator remembers is 16 bytes, a CPU's 5,056."""
    with processes(Runtime(device="cpu")) as accelerator:
        run = Pretrainer(MODEL, settings("simclr"), few, accelerator, seed=0)
        next(run.run_steps(1))

        run.load_state(run.state() | {"rng": torch.zeros(16, dtype=torch.uint8)})

        assert run.position == (1, 1)
        assert next(run.run_steps(1)).isfinite()


def test_a_step_copies_no_number_to_the_device(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.tensor(number, device=GPU)` waits until the GPU has done all that it was given."""
    made: list[object] = []
    make = torch.tensor
    with processes(Runtime(device="cpu")) as accelerator:
        run = Pretrainer(MODEL, settings("byol"), few, accelerator, seed=0)
        steps = run.run_steps(1)
        next(steps)
        monkeypatch.setattr(torch, "tensor", lambda *a, **k: made.append(a) or make(*a, **k))

        next(steps)

    assert made == []


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_same_run(method: str, few: Dataset, tmp_path: Path) -> None:
    model, three = "tiny_network:dropping", settings(method, epochs="3")
    whole = pretrain(model, three, few, device="cpu", runs=tmp_path / "whole")
    runs, notes = tmp_path / "cut", list[str]()
    path = runs / whole.path.name

    def go_on() -> Checkpoint:
        return pretrain(
            model, three, few, device="cpu", runs=runs, resume="auto", on_note=notes.append
        )

    for steps in (2, STEPS, STEPS - 2, STEPS):  # within two epochs, at the end of one and of all
        with ctrl_c_in_step(steps):
            go_on()
    resumed = go_on()

    stop = f"stopping after this step, to go on with --resume {path}; once more stops at once"
    assert notes[::2] == [stop] * 4
    assert notes[1::2] == [
        f"continuing {path} in epoch {epoch}, after {step} of its 6 steps"
        for epoch, step in ((1, 2), (2, 2), (3, 0), (4, 0))
    ]
    assert [run.name for run in runs.iterdir()] == [whole.path.name]
    assert outcome(resumed) == outcome(whole)
    assert {file.name for file in path.iterdir()} == {file.name for file in whole.path.iterdir()}
    assert Checkpoint.open(path).meta == resumed.meta
    metrics = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    spent = sum(line["train_seconds"] + line["evaluation_seconds"] for line in metrics)
    assert resumed.meta.train_seconds == pytest.approx(spent)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_saves_where_it_is_stopped(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = picture_folder(load_dataset("cifar100-mini"), tmp_path / "pictures")
    shown = (MODEL, "--method", "simclr", "--device", "cpu", "--runs", str(tmp_path))
    send_in_step(monkeypatch, 1, number)

    found = main([*shown, "--dataset", pictures, "--batch-size", "10"])

    words = {130: "interrupted", 143: "terminated"}
    assert found == code
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"stopping after this step, to go on with --resume {tmp_path / RUN}; once more stops at "
        "once",
        f"zoo-pretrain: {words[code]}",
    ]
    assert saved(tmp_path / RUN)["place"].tolist() == [1, 1]


def test_the_command_goes_on_with_a_run_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = picture_folder(load_dataset("cifar100-mini"), tmp_path / "pictures")
    small = ("--batch-size", "10", "--set", "hidden=8", "--epochs", "2", "--seed", "3")
    shown = (MODEL, "--method", "simclr", "--device", "cpu", "--runs", str(tmp_path))
    with monkeypatch.context() as patch:
        send_in_step(patch, 3, signal.SIGINT)
        assert main([*shown, "--dataset", dataset, *small]) == 130
    run = tmp_path / f"pretrain-simclr-{FOLDER.removesuffix('0')}3"
    capsys.readouterr()

    assert main([*shown, "--resume", str(run), "--set", "hidden=9"]) == 2
    [mistake] = capsys.readouterr().err.splitlines()
    assert "(hidden was 8, is 9): resume without" in mistake
    code = main([*shown, "--resume", str(run)])

    out, err = capsys.readouterr()
    assert (code, out) == (0, f"{run}\n")
    assert err.splitlines()[:2] == [
        f"continuing {run} in epoch 2, after 1 of its 2 steps",
        f"{MODEL} on {dataset} by simclr, 2 epochs, batch 10, seed 3",
    ]


# What a resume finds


def test_a_run_under_way_is_left_alone(cut: Path, few: Dataset, tmp_path: Path) -> None:
    two = settings("simclr")
    assert not (cut / ".lock").exists()

    with trained_elsewhere(cut):
        with pytest.raises(CheckpointError) as refusal:
            pretrain(MODEL, two, few, device="cpu", runs=tmp_path, resume=cut)
        beside = pretrain(MODEL, two, few, device="cpu", runs=tmp_path, resume="auto")
    went_on = pretrain(MODEL, two, few, device="cpu", runs=tmp_path, resume="auto")

    assert str(refusal.value) == f"{cut} is under way in another process: wait for its end"
    assert beside.path == cut.with_name(f"{cut.name}-2")
    assert went_on.path == cut
    assert outcome(went_on) == outcome(beside)


def test_auto_begins_a_run_where_another_process_was_faster(
    cut: Path, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])  # taken since it was chosen
    monkeypatch.setattr("training.pretrain_folder.is_under_way", lambda path: next(answers))

    with trained_elsewhere(cut):
        run = pretrain(MODEL, settings("simclr"), few, device="cpu", runs=tmp_path, resume="auto")

    assert run.path != cut


def test_a_damaged_state_falls_back_to_the_one_before(
    cut: Path, done: Checkpoint, few: Dataset
) -> None:
    notes: list[str] = []
    last = cut / "state" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1])
    left = cut / ".part-weights"  # of a write that a kill cut short
    left.touch()

    resumed = pretrain(
        MODEL, settings("simclr"), few, device="cpu", resume=cut, on_note=notes.append
    )

    assert outcome(resumed) == outcome(done)
    assert not left.exists()
    assert notes == [
        f"{last} is damaged (its digest does not fit): continuing from the one before it, "
        "previous.pt",
        f"continuing {cut} in epoch 2, after 2 of its 6 steps",
    ]


def test_auto_leaves_a_run_whose_states_are_damaged(
    cut: Path, few: Dataset, tmp_path: Path
) -> None:
    notes: list[str] = []
    for name in ("last.pt", "previous.pt"):
        (cut / "state" / name).write_bytes(b"")

    run = pretrain(
        *(MODEL, settings("simclr"), few),
        **{"device": "cpu", "runs": tmp_path, "resume": "auto", "on_note": notes.append},
    )

    assert run.path != cut
    state = cut / "state"
    fault = "is damaged (its digest does not fit)"
    assert notes == [
        f"{cut} is passed over: {state}/last.pt {fault}, and {state}/previous.pt {fault}: "
        "train again"
    ]


def test_a_stop_between_the_state_and_the_weights_loses_nothing(
    done: Checkpoint, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path, meta: RunMeta, tensors: object = None) -> Checkpoint:
        if meta.epochs_done == 1:
            raise OSError("full disk")
        return save_run(path, meta, tensors)

    monkeypatch.setattr("training.pretrain_folder.save_run", save)
    send_in_step(monkeypatch, STEPS + 3, signal.SIGINT)
    with pytest.raises(OSError, match="full disk"):
        pretrain(MODEL, settings("simclr"), few, device="cpu", runs=tmp_path)
    monkeypatch.undo()
    assert Checkpoint.open(tmp_path / RUN).meta.epochs_done == 0

    with ctrl_c_in_step(1):  # before the second epoch is complete
        pretrain(MODEL, settings("simclr"), few, device="cpu", resume=tmp_path / RUN)

    left = Checkpoint.open(tmp_path / RUN)
    assert left.meta.epochs_done == 1
    assert lines(left) == lines(done)[:1]
    assert "stem.0.weight" in left.state_dict()
    resumed = pretrain(MODEL, settings("simclr"), few, device="cpu", resume=tmp_path / RUN)
    assert outcome(resumed) == outcome(done)


def test_another_run_is_not_continued(done: Checkpoint, few: Dataset, tmp_path: Path) -> None:
    def message(method: str, resume: Path, **more: str) -> str:
        with pytest.raises(CheckpointError) as caught:
            pretrain(
                MODEL, settings(method, **more), few, device="cpu", runs=tmp_path, resume=resume
            )
        return str(caught.value)

    assert message("byol", done.path) == (
        f"{done.path} is no pre-training by byol: resume a folder of zoo-pretrain --method byol, "
        "or start a new run without --resume"
    )
    assert message("simclr", done.path).startswith(f"{done.path} is complete (2 epochs")
    assert message("simclr", tmp_path / "gone") == (
        f"there is no run {tmp_path / 'gone'}: resume a folder that zoo-pretrain began, or start a "
        "new run without --resume"
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    save_run(begun, replace(done.meta, finished_at=None))
    assert message("simclr", begun, queue="64") == (
        f"{begun} began with another recipe (queue was 128, is 64): resume without these options, "
        "or start a new run without --resume"
    )
    assert message("simclr", begun) == (
        f"{begun} cannot be resumed: {begun}/state/last.pt does not exist; train again"
    )


# Losses that are not finite


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where_it_began(
    few: Dataset, tmp_path: Path
) -> None:
    wild, path = settings("simclr", peak_lr="1e30"), tmp_path / RUN

    with pytest.raises(MachineError) as caught:
        pretrain(MODEL, wild, few, device="cpu", runs=tmp_path)

    facts = read_json(path / "state" / "nonfinite.json")
    step = facts["step"] + 1
    assert str(caught.value) == (
        f"the loss or its gradients became infinite or NaN in epoch 1, step {step}, learning rate "
        f"{facts['learning_rate']:.3g}: begin again with a lower one, --set peak_lr=2.5e+29, or "
        f"see where it began with zoo-pretrain {MODEL} --method simclr --replay {path}"
    )
    assert is_finite(saved(path))
    images = ", ".join(str(image) for image in facts["images"][:8])
    shown = replay(path, MODEL, wild, few, device="cpu")
    assert shown[0] == (
        f"epoch 1, step {step} of 6, learning rate {facts['learning_rate']:.3g}, seed 0, images "
        f"{images}, ..."
    )
    assert shown[1].startswith("first value that is not finite: ")


class Breaking(nn.Module):
    """Its gradient is NaN in one step, and its output never."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.taken += self.training
        if not self.training or self.taken != self.step:
            return x * self.scale
        zero = self.scale - self.scale.detach()  # its root is finite, the slope is not
        return x * (self.scale + zero.sqrt())


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of one's own, `breaking:network`, that breaks in the last step of an epoch."""
    module = types.ModuleType("breaking")
    module.network = lambda num_classes: nn.Sequential(
        OrderedDict(flat=nn.Flatten(), breaking=Breaking(4), head=nn.Linear(3072, num_classes))
    )
    monkeypatch.setitem(sys.modules, "breaking", module)


@pytest.mark.usefixtures("breaking")
def test_weights_that_are_not_finite_are_not_kept(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.saver.SHARE_OF_TIME", 1e9)
    two_steps = settings("simclr", epoch_steps="2", epochs="3")

    with pytest.raises(MachineError, match="NaN in epoch 2, step 2, learning rate 0"):
        pretrain("breaking:network", two_steps, few, device="cpu", runs=tmp_path, save_seconds=0.0)

    left = Checkpoint.open(tmp_path / "pretrain-simclr-breaking-network-s0")
    assert left.meta.epochs_done == 1
    assert all(tensor.isfinite().all() for tensor in left.state_dict().values())
    state = saved(left.path)
    assert state["place"].tolist() == [2, 1]
    assert is_finite(state)
    shown = replay(left.path, "breaking:network", two_steps, few, device="cpu")
    assert shown[0].startswith("epoch 2, step 2 of 2, learning rate 0")
    assert shown[1] == (
        "first value that is not finite: gradient of 0.body.breaking.scale (1 of 1 values)"
    )


@pytest.mark.usefixtures("breaking")
def test_gradients_that_no_scale_makes_finite_stop_a_run_in_fp16(few: Dataset) -> None:
    with processes(Runtime(device="cpu")) as accelerator:
        asked = settings("simclr", precision="fp16")
        trainer = Pretrainer("breaking:network", asked, few, accelerator, seed=0)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=LEAST_SCALE)
        steps = trainer.run_steps(1)
        for _ in range(3):
            next(steps)
        trainer.check()
        assert next(steps).isfinite()

    with pytest.raises(NonFinite, match="the loss or its gradients .* epoch 1, step 4, "):
        trainer.check()


def test_the_images_of_a_step_that_failed_are_those_of_its_batch(few: Dataset) -> None:
    with processes(Runtime(device="cpu")) as accelerator:
        trainer = Pretrainer(MODEL, settings("simclr"), few, accelerator, seed=3)
        next(trainer.run_steps(2))

    images = images_of(trainer, 2, 1)

    stored, labels = trainer.source.batch(trainer.order[50:100])
    assert np.array_equal(few.train.images[list(images)].transpose(0, 3, 1, 2), stored.numpy())
    assert np.array_equal(few.train.fine[list(images)], labels.numpy())


@pytest.mark.usefixtures("breaking")
def test_the_command_replays_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = picture_folder(load_dataset("cifar100-mini"), tmp_path / "pictures")
    words = ("breaking:network", "--method", "simclr", "--device", "cpu")
    settings = ("--dataset", pictures, "--batch-size", "8", "--epochs", "4", "--seed", "3")
    assert main([*words, *settings, "--runs", str(tmp_path)]) == 1
    run = tmp_path / "pretrain-simclr-breaking-network-s3"
    assert f"or see where it began with zoo-pretrain {' '.join(words[:3])} --replay {run}" in (
        capsys.readouterr().err
    )

    code = main([*words, "--replay", str(run)])

    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("first value that is not finite: gradient of 0.body.")


def test_a_run_that_did_not_fail_is_not_replayed(done: Checkpoint, few: Dataset) -> None:
    with pytest.raises(CheckpointError, match="cannot be replayed: nothing in it became"):
        replay(done.path, MODEL, settings("simclr"), few, device="cpu")


# Memory


def test_where_memory_runs_out_the_batch_size_that_fits_is_named(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, networks, alive = [], list[weakref.ref[nn.Module]](), []
    take = Pretrainer._take

    def fake_full_memory(self: Pretrainer) -> torch.Tensor:
        if self.step == 0:
            asked.append(self.settings.batch_size)
            alive.append(sum(network() is not None for network in networks))
            networks.append(weakref.ref(self.network))
        if self.settings.batch_size > 15:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return take(self)

    monkeypatch.setattr(Pretrainer, "_take", fake_full_memory)

    with pytest.raises(MachineError) as caught:
        pretrain(MODEL, settings("byol"), few, device="cpu", runs=tmp_path)

    assert str(caught.value) == (
        "not enough memory for batches of 50 images; 12 fit: pass --batch-size 12"
    )
    assert asked == [50, 25, 12]
    assert alive == [0, 0, 0]  # a probe leaves the memory to the next
    assert list(tmp_path.iterdir()) == []


def test_where_memory_runs_out_later_another_batch_size_takes_a_new_run(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Pretrainer._take

    def fake_full_memory(self: Pretrainer) -> torch.Tensor:
        if self.settings.batch_size > 15 and self.position > (1, 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return take(self)

    monkeypatch.setattr(Pretrainer, "_take", fake_full_memory)

    with pytest.raises(MachineError) as caught:
        pretrain(MODEL, settings("byol"), few, device="cpu", runs=tmp_path, save_seconds=1e-9)

    assert str(caught.value).endswith("fit: begin a new run with --batch-size 25")
    [run] = tmp_path.iterdir()
    with pytest.raises(MachineError, match="fit: begin a new run with --batch-size"):
        pretrain(MODEL, settings("byol"), few, device="cpu", runs=tmp_path, resume=run)


def test_where_no_batch_fits_the_model_is_too_large(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_full_memory(self: Pretrainer) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(Pretrainer, "_take", fake_full_memory)

    with pytest.raises(MachineError, match="of 50 images, nor for any smaller ones: take a small"):
        pretrain(MODEL, settings("byol"), few, device="cpu", runs=tmp_path)
