"""A loss that becomes NaN: the run stops, keeps its last good save, and shows where it began."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_runs import CPU, EAGER_TO_SAVE, FOLDER, SHORT, TINY, few_of_each
from torch import nn

from training import train
from training.cli import main
from training.loop import NonFinite, Trainer
from training.precision import LEAST_SCALE
from training.replay import images_of, places_of
from training.run import replay
from training.state import is_finite, read_state
from zoo.errors import CheckpointError, MachineError
from zoo.files import read_json, write_json
from zoo.models import create_model
from zoo.preprocess import Preprocessing

FEW = few_of_each()
EXPLODING = replace(SHORT, peak_lr=1e30, schedule="constant")


def test_a_run_stops_and_says_where_it_began(tmp_path: Path) -> None:
    path = tmp_path / FOLDER

    with pytest.raises(MachineError) as caught:
        train(TINY, EXPLODING, CPU, FEW, runs=tmp_path)

    assert str(caught.value) == (
        "the loss or its gradients became infinite or NaN in epoch 1, step 2, learning rate 1e+30: "
        "begin again with a lower one, --set peak_lr=2.5e+29, or see where it began with "
        f"zoo-train --replay {path}"
    )
    facts = read_json(path / "state" / "nonfinite.json")
    assert (facts["epoch"], facts["step"], facts["seed"]) == (1, 1, 0)
    assert len(facts["images"]) == EXPLODING.batch_size
    assert is_finite(read_state(path / "state" / "last.pt").trainer)
    shown = replay(path, CPU, FEW)
    first = ", ".join(str(image) for image in facts["images"][:8])
    assert shown[0] == f"epoch 1, step 2 of 6, learning rate 1e+30, seed 0, images {first}, ..."
    assert shown[1:] == [
        "first value that is not finite: new value of 0.weight (108 of 108 values), and 5 more"
    ]


class Breaking(nn.Module):
    """Passes images on; from a certain call in training on, its output or gradient is NaN."""

    calls = 0

    def __init__(self, at: int, *, backward: bool) -> None:
        super().__init__()
        self.at, self.backward = at, backward
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.taken += 1
            if self.taken == self.at:
                zero = self.scale - self.scale.detach()  # its root is finite, the slope is not
                return x * (self.scale + zero.sqrt() if self.backward else torch.nan)
        return x * self.scale


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Networks of one's own, `breaking:forward` and `breaking:backward`, that break in step 9."""

    def network(num_classes: int, *, backward: bool) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), Breaking(9, backward=backward), nn.Linear(3072, num_classes)
        )

    module = types.ModuleType("breaking")
    module.forward = lambda num_classes: network(num_classes, backward=False)
    module.backward = lambda num_classes: network(num_classes, backward=True)
    monkeypatch.setitem(sys.modules, "breaking", module)


@pytest.mark.usefixtures("breaking")
@pytest.mark.parametrize("runtime", [CPU, EAGER_TO_SAVE], ids=["saved-at-start", "saved-often"])
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("forward", "output of 1 (Breaking) (153600 of 153600 values)"),
        ("backward", "gradient of 1.scale (1 of 1 values)"),
    ],
)
def test_the_step_that_failed_is_found(
    name: str, first: str, runtime: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.saver.SHARE_OF_TIME", 1e9)
    with pytest.raises(MachineError, match=r"infinite or NaN in epoch 2, step [34]"):
        train(f"breaking:{name}", SHORT, runtime, FEW, runs=tmp_path)
    path = tmp_path / f"breaking-{name}-s0"

    shown = replay(path, CPU, FEW)

    assert shown[0].startswith("epoch 2, step 3 of 6, ")
    assert shown[1].startswith(f"first value that is not finite: {first}")
    assert is_finite(read_state(path / "state" / "last.pt").trainer)


class Steep(nn.Module):
    """Its loss is finite, and its gradient, from a certain call in training on, never."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.taken = at, 0
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.taken += 1
        zero = self.scale - self.scale.detach()
        return x * (self.scale + zero.sqrt() if self.taken >= self.at else self.scale)


@pytest.mark.parametrize("at", [1, 3])
def test_gradients_that_no_scale_makes_finite_stop_a_run_in_fp16(at: int) -> None:
    network = nn.Sequential(nn.Flatten(), Steep(at), nn.Linear(3072, 100))
    recipe = replace(SHORT, precision="fp16")
    run = Trainer(network, recipe, CPU, FEW, Accelerator(cpu=True), seed=0)
    run.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=4 * LEAST_SCALE)

    taken = run.run_steps(1)
    for _ in range(at + 1):  # halved, and halved again: the least that will do
        next(taken)
    before = run.state()
    next(taken)

    with pytest.raises(NonFinite, match=rf"the loss or its gradients .* step {at + 2}, "):
        run.check()
    assert run.stepper.loss.isfinite()
    assert places_of(run, before)[0] == "gradient of 1.scale (1 of 1 values)"


@pytest.mark.usefixtures("breaking")
def test_a_step_that_followed_from_an_earlier_one_leads_back_to_it(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="infinite or NaN in epoch 2, step 3"):
        train("breaking:forward", SHORT, CPU, FEW, runs=tmp_path)
    state = tmp_path / "breaking-forward-s0" / "state"
    (state / "nonfinite.pt").unlink()  # as after several processes
    facts = read_json(state / "nonfinite.json")
    write_json(state / "nonfinite.json", facts | {"step": facts["step"] + 2})

    shown = replay(state.parent, CPU, FEW)

    assert shown[1].startswith("first value that is not finite: output of 1 (Breaking)")


def test_infinity_by_design_is_no_failure(tmp_path: Path) -> None:
    recipe = replace(SHORT, ema_decay=0.9)

    done = train("tiny_network:masked", recipe, EAGER_TO_SAVE, FEW, runs=tmp_path)

    assert done.state_dict()["mask"].tolist() == [[0.0, -np.inf], [0.0, 0.0]]
    assert done.meta.test_top1 is not None


def test_weights_that_begin_as_nan_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("lost")
    module.network = lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
    monkeypatch.setitem(sys.modules, "lost", module)
    monkeypatch.setattr("torch.nn.init.kaiming_uniform_", lambda x, **_: x.data.fill_(np.nan))

    with pytest.raises(MachineError) as caught:
        train("lost:network", SHORT, CPU, FEW, runs=tmp_path)

    assert str(caught.value) == "the weights to begin with hold NaN or infinity: begin with others"
    assert list(tmp_path.iterdir()) == []


class Blinded(nn.Module):
    """Evaluated, an image that is darker than most becomes infinite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else x / (x.mean((1, 2, 3), keepdim=True) > 0)


@pytest.mark.parametrize("held_out", [False, True])
def test_weights_that_are_of_no_use_are_told(
    held_out: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("blinded")
    module.network = lambda num_classes: nn.Sequential(
        Blinded(), nn.Flatten(), nn.Linear(3072, num_classes)
    )
    monkeypatch.setitem(sys.modules, "blinded", module)
    recipe, notes = replace(SHORT, full_train=not held_out), list[str]()
    images = Preprocessing.of(FEW).to_batch(FEW.test.images)
    dark = int((images.mean((1, 2, 3)) <= 0).sum())

    done = train("blinded:network", recipe, CPU, FEW, runs=tmp_path, on_note=notes.append)

    assert 0 < dark < 100
    assert notes == [
        f"{dark} of 100 test images get logits that are not finite: they count as wrong, and the "
        "run cannot be exported; train for longer or at a lower rate"
    ]
    assert done.meta.test_top1 <= 1 - dark / 100


def test_the_images_are_those_of_the_batch(tmp_path: Path) -> None:
    run = Trainer(
        create_model(TINY, num_classes=100), SHORT, CPU, FEW, Accelerator(cpu=True), seed=3
    )
    run.stepper.begin(2)
    run.stepper.take()

    images = images_of(run, 2, 1)

    stored, labels = run.stepper.source.batch(run.stepper.order[50:100])
    assert np.array_equal(FEW.train.images[list(images)].transpose(0, 3, 1, 2), stored.numpy())
    assert np.array_equal(FEW.train.fine[list(images)], labels.numpy())


def test_a_run_that_did_not_fail_is_not_replayed(tmp_path: Path) -> None:
    done = train(TINY, SHORT, CPU, FEW, runs=tmp_path)

    with pytest.raises(CheckpointError, match="cannot be replayed: nothing in it became"):
        replay(done.path, CPU, FEW)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--set", "peak_lr=1", "--nproc", "2", "--seed", "1", "--no-compile"),
            "takes a step as {path} took it: leave out --no-compile, --nproc, --seed, --set",
        ),
        (("--dataset", "cifar10"), "{path} learned from cifar100-mini, got --dataset cifar10: "),
    ],
)
def test_a_replay_refuses_what_it_does_not_look_at(
    options: tuple[str, ...],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / FOLDER
    with pytest.raises(MachineError, match="became infinite or NaN"):
        train(TINY, EXPLODING, CPU, FEW, runs=tmp_path)
    monkeypatch.chdir(tmp_path)

    code = main(["--replay", str(path), "--model", TINY, *options])

    (shown,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.format(path=path) in shown


def test_a_replay_needs_the_images_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="became infinite or NaN"):
        train(TINY, EXPLODING, CPU, FEW, runs=tmp_path)

    with pytest.raises(CheckpointError) as caught:
        replay(tmp_path / FOLDER, CPU, replace(FEW, digest="other"))

    assert str(caught.value) == (
        f"{tmp_path / FOLDER} learned from cifar100-mini (digest few), got cifar100-mini (other): "
        "replay it with the former"
    )


def test_a_step_that_goes_well_this_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MachineError, match="became infinite or NaN"):
        train(TINY, EXPLODING, CPU, FEW, runs=tmp_path)
    monkeypatch.setattr("training.replay.places_of", lambda *_: [])

    with pytest.raises(MachineError, match="are finite this time: go on with --resume"):
        replay(tmp_path / FOLDER, CPU, FEW)
