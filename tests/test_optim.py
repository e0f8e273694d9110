from dataclasses import replace

import pytest
import torch

from training.optim import Average, make_optimizer, parameter_groups
from training.recipe import Recipe
from training.recipes import QUICK, STUDY
from training.schedule import learning_rate
from zoo.errors import ZooError
from zoo.models import create_model


def test_quick_is_one_cycle_of_15_epochs() -> None:
    rate = learning_rate(QUICK, steps_per_epoch=100)

    rates = [rate(step) for step in range(1500)]

    assert (QUICK.epochs, QUICK.batch_size) == (15, 128)
    assert rates.index(max(rates)) == 300
    assert max(rates) == QUICK.peak_lr
    assert all(a < b for a, b in zip(rates[:300], rates[1:301], strict=True))
    assert all(a > b for a, b in zip(rates[300:-1], rates[301:], strict=True))
    assert 0 < rates[-1] < QUICK.peak_lr / 1000


def test_cosine_falls_from_the_peak_to_about_zero() -> None:
    rate = learning_rate(STUDY, steps_per_epoch=10)

    assert rate(0) == pytest.approx(0.1)
    assert rate(1500) == pytest.approx(0.05)
    assert 0 < rate(2999) < 1e-6


def test_steps_come_at_a_half_and_three_quarters() -> None:
    rate = learning_rate(replace(STUDY, schedule="step"), steps_per_epoch=2)

    rates = [rate(step) for step in range(600)]

    assert rates == pytest.approx([0.1] * 300 + [0.01] * 150 + [0.001] * 150)


def test_halving_every_five_epochs_and_not_at_all() -> None:
    short = replace(STUDY, epochs=15)
    halving = learning_rate(replace(short, schedule="halving"), steps_per_epoch=3)
    constant = learning_rate(replace(short, schedule="constant"), steps_per_epoch=3)

    assert [halving(step) for step in range(45)] == [0.1] * 15 + [0.05] * 15 + [0.025] * 15
    assert {constant(step) for step in range(45)} == {0.1}


@pytest.mark.parametrize("schedule", ["step", "halving", "constant"])
def test_any_schedule_warms_up(schedule: str) -> None:
    recipe = replace(STUDY, schedule=schedule, warmup_epochs=2.0)

    rate = learning_rate(recipe, steps_per_epoch=2)

    assert [rate(step) for step in range(5)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])


def test_norms_and_biases_are_decayed_only_where_the_recipe_says_so() -> None:
    model = create_model("resnet_20")
    spared = Recipe(**STUDY.to_json() | {"decay_norms_and_biases": False})

    whole, split = parameter_groups(model, STUDY), parameter_groups(model, spared)

    assert [len(group["params"]) for group in whole] == [len(list(model.parameters()))]
    assert [group["weight_decay"] for group in split] == [5e-4, 0.0]
    assert all(p.ndim > 1 for p in split[0]["params"])
    assert all(p.ndim == 1 for p in split[1]["params"])


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("hornet_tiny", {"scale"}),
        ("coatnet_cifar_opt_rel", {"table"}),
        ("vit_tiny", {"cls_token", "pos_embed"}),
        ("edgenext_small", {"temperature"}),
        ("eca_resnet_20", set()),
    ],
)
def test_what_multiplies_nothing_is_not_decayed(name: str, spared: set[str]) -> None:
    recipe = replace(QUICK, decay_norms_and_biases=False)
    with torch.device("meta"):
        network = create_model(name, num_classes=100)

    decayed, rest = parameter_groups(network, recipe)

    names = {id(value): key for key, value in network.named_parameters()}
    weights = {
        id(module.weight)
        for module in network.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d)
    }
    assert {id(value) for value in decayed["params"]} == weights
    wide = {names[id(value)].rpartition(".")[2] for value in rest["params"] if value.ndim > 1}
    assert wide == spared


def test_a_network_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ZooError, match="^no parameter of this network takes a gradient: there"):
        parameter_groups(torch.nn.Flatten(), QUICK)


def test_optimisers_take_the_fields_of_the_recipe() -> None:
    model, rate = create_model("resnet_20"), torch.tensor(0.3)

    sgd = make_optimizer(model, QUICK, rate)
    adamw = make_optimizer(model, replace(STUDY, optimizer="adamw"), rate)

    assert sgd.param_groups[0]["lr"] is rate
    assert sgd.defaults["momentum"] == 0.9
    assert sgd.defaults["nesterov"]
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["weight_decay"] == 5e-4


def test_a_first_step_that_fp16_leaves_out_leaves_no_trace() -> None:
    """Its gradients overflow; memory that nobody has written to holds NaN here."""
    model, rate = torch.nn.Linear(4, 4), torch.tensor(0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    torch.use_deterministic_algorithms(True)
    try:
        optimizer = make_optimizer(model, QUICK, rate)
        for factor in (float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 4)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    finally:
        torch.use_deterministic_algorithms(False)

    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_average_follows_its_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = Average(model, 0.9)
    values = []

    for value in (1.0, 2.0, 4.0):
        model.weight.data.fill_(value)
        average.update(torch.tensor(value == 1.0))
        values.append(average.module.weight.item())

    assert values == pytest.approx([1.0, 0.9 + 0.2, 0.9 * 1.1 + 0.4])
