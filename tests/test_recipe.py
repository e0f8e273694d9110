import pytest
import torch

from training.optim import learning_rate, make_average, make_optimizer, parameter_groups
from training.recipe import Recipe, with_epochs, with_settings
from training.recipes import QUICK, RECIPES, STUDY, named_recipe
from zoo.errors import ZooError
from zoo.models import create_model


def test_study_is_the_published_recipe() -> None:
    published = Recipe(
        name="study",
        epochs=300,
        batch_size=1024,
        optimizer="sgd",
        peak_lr=0.1,
        momentum=0.9,
        nesterov=False,
        schedule="cosine",
        warmup_epochs=0.0,
        weight_decay=5e-4,
        decay_norms_and_biases=True,
        label_smoothing=0.0,
        ema_decay=0.0,
        crop_padding=4,
        flip_p=0.5,
        trivial_augment=True,
        erase_p=0.5,
        full_train=False,
        precision="auto",
    )

    assert published == STUDY


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


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epochs", 0, "1 or more"),
        ("batch_size", 1, "2 or more"),
        ("optimizer", "adam", "one of sgd, adamw"),
        ("peak_lr", 0.0, "above 0 and finite"),
        ("peak_lr", float("inf"), "above 0 and finite"),
        ("weight_decay", float("inf"), "0 or more and finite"),
        ("warmup_epochs", 300.0, r"in \[0, epochs\)"),
        ("label_smoothing", 1.0, r"in \[0, 1\)"),
        ("precision", "int8", "one of auto, fp32, bf16, fp16"),
        ("crop_padding", -1, "0 to 31 pixels"),
        ("flip_p", 1.5, r"in \[0, 1\]"),
        ("ema_decay", 1.0, r"in \[0, 1\)"),
        ("schedule", "step", "one of cosine, linear"),
        ("weight_decay", -1.0, "0 or more"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("erase_p", -0.1, r"in \[0, 1\]"),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be {expected}"):
        Recipe(**STUDY.to_json() | {field: value})


def test_recipes_survive_json() -> None:
    for recipe in RECIPES.values():
        assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_recipe_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ZooError, match="this recipe cannot be read: .*unexpected"):
        Recipe.from_json(STUDY.to_json() | {"unexpected": 1})


def test_settings_are_parsed_by_type() -> None:
    changed = with_settings(
        STUDY, {"peak_lr": "0.2", "nesterov": "true", "batch_size": "64", "schedule": "linear"}
    )

    assert (changed.peak_lr, changed.nesterov, changed.batch_size) == (0.2, True, 64)
    assert changed.schedule == "linear"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("peak_rl", "1", "a recipe has no field 'peak_rl': did you mean peak_lr?"),
        ("peak_lr", "fast", "--set peak_lr=fast: expected a value of type float"),
        ("nesterov", "1", "--set nesterov=1: expected a value of type bool"),
        ("epochs", "2.5", "--set epochs=2.5: expected a value of type int"),
        ("epochs", "0", "recipe 'study': epochs must be 1 or more, got 0"),
    ],
)
def test_wrong_settings(name: str, text: str, message: str) -> None:
    with pytest.raises(ZooError) as caught:
        with_settings(STUDY, {name: text})

    assert str(caught.value) == message


def test_unknown_recipe() -> None:
    with pytest.raises(ZooError, match="no recipe named 'qick': did you mean quick?"):
        named_recipe("qick")


def test_warm_up_keeps_its_share() -> None:
    shorter = with_epochs(QUICK, 5)

    assert (shorter.epochs, shorter.warmup_epochs) == (5, 1.0)


def test_norms_and_biases_are_decayed_only_where_the_recipe_says_so() -> None:
    model = create_model("resnet_20")
    spared = Recipe(**STUDY.to_json() | {"decay_norms_and_biases": False})

    whole, split = parameter_groups(model, STUDY), parameter_groups(model, spared)

    assert [len(group["params"]) for group in whole] == [len(list(model.parameters()))]
    assert [group["weight_decay"] for group in split] == [5e-4, 0.0]
    assert all(p.ndim > 1 for p in split[0]["params"])
    assert all(p.ndim == 1 for p in split[1]["params"])


def test_optimisers_take_the_fields_of_the_recipe() -> None:
    model = create_model("resnet_20")

    sgd = make_optimizer(model, QUICK)
    adamw = make_optimizer(model, Recipe(**STUDY.to_json() | {"optimizer": "adamw"}))

    assert sgd.defaults["momentum"] == 0.9
    assert sgd.defaults["nesterov"]
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["weight_decay"] == 5e-4


def test_the_average_follows_its_formula() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = make_average(model, Recipe(**STUDY.to_json() | {"ema_decay": 0.9}))
    assert average is not None
    values = []

    for value in (1.0, 2.0, 4.0):
        model.weight.data.fill_(value)
        average.update_parameters(model)
        values.append(average.module.weight.item())

    assert values == pytest.approx([1.0, 0.9 + 0.2, 0.9 * 1.1 + 0.4])
    assert make_average(model, STUDY) is None
