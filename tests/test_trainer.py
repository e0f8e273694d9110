"""One trainer: its steps, what they learn, and what they do not depend on."""

import itertools
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from small_runs import SHORT, few_of_each

from training import Recipe, Runtime, named_recipe
from training.batch_share import BatchShare
from training.loop import PROBE_STEPS, Trainer
from training.prediction import Prediction
from zoo.data import Dataset, load_dataset
from zoo.models import create_model


@pytest.fixture(scope="module")
def few() -> Dataset:
    return few_of_each()


def trainer(recipe: Recipe, data: Dataset, *, seed: int = 0, **runtime: bool) -> Trainer:
    torch.manual_seed(seed)
    model = create_model("resnet_20", num_classes=data.num_classes)
    on_cpu = Runtime(device="cpu", **runtime)
    return Trainer(model, recipe, on_cpu, data, Accelerator(cpu=True), seed=seed)


def flat(run: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.plain.parameters()])


def weights(run: Trainer) -> list[torch.Tensor]:
    return list(run.plain.state_dict().values())


def test_the_average_is_what_is_stored(few: Dataset) -> None:
    run = trainer(replace(SHORT, ema_decay=0.5), few)

    list(run.run_steps(1))

    assert run.stepper.average is not None
    assert run.selected is run.stepper.average.module
    assert not torch.equal(run.selected.head.weight, run.plain.head.weight)


def test_predicting_the_time_changes_nothing(few: Dataset) -> None:
    run, other = trainer(SHORT, few), trainer(SHORT, few)

    found = run.predicted()

    assert min(found.step, found.held_out, found.test) > 0
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(other), strict=True))
    losses = [[loss.item() for loss, _ in t.run_steps(1)] for t in (run, other)]
    assert losses[0] == losses[1]


def test_a_prediction_counts_what_is_ahead() -> None:
    found = Prediction(step=2.0, held_out=30.0, test=500.0)

    assert found.seconds(steps=7, epochs=3) == 7 * 2.0 + 3 * 30.0 + 500.0


@pytest.mark.parametrize(("enough_s", "steps"), [(1e-9, 1), (1e9, PROBE_STEPS)])
def test_of_long_steps_one_is_enough_to_predict_the_time(
    enough_s: float, steps: int, few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.loop.PROBE_S", enough_s)
    run, taken = trainer(SHORT, few), []
    take = run.stepper.take
    monkeypatch.setattr(run.stepper, "take", lambda: taken.append(take()))

    run.predicted()

    assert len(taken) == 1 + steps  # after one that compiles


def test_the_first_ten_losses_are_the_stored_ones() -> None:
    run = trainer(named_recipe("smoke"), load_dataset("cifar100-mini"))

    losses = [loss.item() for loss, _ in itertools.islice(run.run_steps(1), 10)]

    stored = [4.8109, 4.7217, 4.7708, 4.6921, 4.6874, 4.7342, 4.6706, 4.6785, 4.6920, 4.6043]
    assert losses[0] == pytest.approx(stored[0], abs=1e-3)  # weights, order and augmentation
    assert losses[1] == pytest.approx(stored[1], abs=3e-3)  # the optimiser's step
    assert losses == pytest.approx(stored, abs=0.05)  # rounding grows from step to step


def test_fifty_steps_overfit_64_images() -> None:
    data = load_dataset("cifar100-mini")
    rows = slice(0, 64)
    images = replace(data.train, images=data.train.images[rows], fine=data.train.fine[rows])
    recipe = Recipe(
        name="overfit",
        epochs=50,
        batch_size=64,
        peak_lr=0.1,
        weight_decay=0.0,
        crop_padding=0,
        flip_p=0.0,
        augment="none",
        erase_p=0.0,
        full_train=True,
        precision="fp32",
    )
    run = trainer(recipe, replace(data, train=images))

    outcome = [(loss.item(), hits.item()) for e in range(1, 51) for loss, hits in run.run_steps(e)]

    assert len(outcome) == 50
    assert outcome[-1][0] < 0.2
    assert outcome[-1][1] > 0.95


def test_compiled_training_agrees_with_eager(few: Dataset) -> None:
    compiled, eager, start = (
        trainer(SHORT, few, compile=True),
        trainer(SHORT, few),
        trainer(SHORT, few),
    )

    losses = [next(run.run_steps(1))[0].item() for run in (compiled, eager)]

    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    # Rectifiers near zero turn rounding into 1% of the gradient in either; float64 says the same.
    updates = [flat(run) - flat(start) for run in (compiled, eager)]
    assert (updates[0] - updates[1]).norm() < 0.05 * updates[1].norm()


@pytest.mark.parametrize("world", [2, 3])
def test_the_number_of_processes_does_not_change_the_data(few: Dataset, world: int) -> None:
    run = trainer(replace(SHORT, batch_size=50, mixup_alpha=0.2), few)
    step = run.stepper
    step.begin(1)
    whole, places = step.batch(), step.offset

    shares = []
    for rank in range(world):  # what each process asks for
        step.mine = BatchShare.of(run.recipe, run.runtime, rank=rank, world=world)
        step.offset = places[step.mine.first :][: step.mine.count]
        step.drawn.clear()
        shares.append(step.batch())

    for number, tensor in enumerate(whole):
        assert tensor is not None
        assert torch.equal(torch.cat([share[number] for share in shares]), tensor)
