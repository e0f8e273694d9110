import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.cli import main
from training.options import build_parser, make_job
from training.recipe import Recipe, scaled, with_epochs, with_settings
from training.recipes import QUICK, RECIPES, STUDY, named_recipe, recipe_for
from training.start import IMAGENET_MEAN, IMAGENET_STD, Wanted, begin
from training.strong import TIERS, strong_for
from zoo.data import Dataset, load_dataset
from zoo.errors import UnknownModelError, ZooError
from zoo.models import MODELS, create_model

ROOT = Path(__file__).parents[1]
OWN = "few_images:no_such_function"  # never looked up: its name says whose it is


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


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
        clip_norm=0.0,
        label_smoothing=0.0,
        ema_decay=0.0,
        drop_path=None,
        dropout=None,
        crop_padding=4,
        flip_p=0.5,
        vertical_flip_p=0.0,
        augment="trivial",
        jitter=0.0,
        erase_p=0.5,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        alternates_plain=False,
        normalisation="data",
        full_train=False,
        precision="auto",
    )

    assert published == STUDY


SGD = ("sgd", 0.1, 5e-4, 0.0)
ADAMW = ("adamw", 1e-3, 0.05, 10.0)


@pytest.mark.parametrize(
    ("models", "setting"),
    [
        ("resnet_20 resnet_32 resnet_56 eca_resnet_20 eca_resnet_32 ecanet20_adaptive", SGD),
        ("ecanet20_fixed_k3 improved_resnet20_convnext ghost_resnet_20 ghost_resnet_32", SGD),
        ("ghostnet_100", ("sgd", 0.1, 4e-5, 0.0)),
        ("convnext_tiny", ("adamw", 4e-3, 0.05, 20.0)),
        ("coatnet_0 cspresnet50 resnest50d hornet_tiny coatnet_cifar_opt", ADAMW),
        ("coatnet_cifar_opt_large_stem mlp_mixer_b16 segnext_mscan_tiny", ADAMW),
        ("mlp_mixer_tiny", ("adamw", 1e-3, 0.01, 10.0)),
        # Not of the study: by family and kind.
        ("resnet_18_ca res2net_50 resnext_50 hyaresnet_20 timm:resnet18", SGD),
        ("timm:mobilenetv3_small_100", ("sgd", 0.1, 4e-5, 0.0)),
        ("vit_tiny lsknet_tiny edgenext_small coatnet_cifar_opt_s1 mlp_mixer_b4", ADAMW),
        ("timm:deit_tiny_patch16_224", ADAMW),
        (OWN, SGD),
    ],
)
def test_study_is_complete_for_each_model(
    models: str, setting: tuple[str, float, float, float]
) -> None:
    for model in models.split():
        recipe = recipe_for("study", model)

        assert setting == (
            recipe.optimizer,
            recipe.peak_lr,
            recipe.weight_decay,
            recipe.warmup_epochs,
        )
        assert (
            replace(recipe, optimizer="sgd", peak_lr=0.1, weight_decay=5e-4, warmup_epochs=0.0)
            == STUDY
        )


def test_the_study_leaves_drop_path_to_the_model() -> None:
    built = create_model("improved_resnet20_convnext")

    rates = [module.rate for module in built.modules() if type(module).__name__ == "DropPath"]

    assert max(rates) == 0.05


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_of_a_recipe_trains_by_it(name: str) -> None:
    program, *arguments = RECIPES[name].command.split()

    job = make_job(build_parser().parse_args(arguments))

    assert (program, job.recipe.name) == ("zoo-train", name)
    changed = {"full_train": "--full-train" in arguments, "drop_path": job.recipe.drop_path}
    assert job.recipe == replace(RECIPES[name].recipe, **changed)


@pytest.mark.parametrize(
    ("recipe", "run"),
    [(QUICK, "resnet_20-s0"), (replace(STUDY, full_train=True), "resnet_20-s0-2")],
    ids=["quick", "study"],
)
def test_what_to_expect_is_what_the_recorded_run_reached(recipe: Recipe, run: str) -> None:
    meta = json.loads((ROOT / "bench_results" / "runs" / run / "meta.json").read_text())

    assert Recipe.from_json(meta["recipe"]) == replace(recipe, precision="bf16")
    assert RECIPES[recipe.name].expected.startswith(f"{meta['test_top1']:.2%}, one seed")


def test_recipes_are_listed_with_their_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipes"]) == 0

    told = capsys.readouterr().out
    assert told.startswith("study: 300 epochs of 1024 images a step\n    zoo-train resnet_20 ")
    assert all(one.command in told and one.expected in told for one in RECIPES.values())


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_suits_every_model(name: str) -> None:
    for model in MODELS:
        recipe = recipe_for(name, model)

        assert recipe.name == name
        if recipe.drop_path is not None:
            with torch.device("meta"):  # refuses an option that the model does not take
                create_model(model, drop_path=recipe.drop_path)


def test_coatnet_opt_lies_in_the_ranges_of_its_plan() -> None:
    recipe = recipe_for("coatnet_opt", "coatnet_cifar_opt")

    assert (recipe.optimizer, recipe.schedule, recipe.augment) == ("adamw", "cosine", "auto")
    assert 5e-4 <= recipe.peak_lr <= 1e-3
    assert 5 <= recipe.warmup_epochs <= 10
    assert 200 <= recipe.epochs <= 300
    assert recipe.batch_size in (128, 256)
    assert 1e-2 <= recipe.weight_decay <= 5e-2
    assert recipe.label_smoothing == 0.1
    assert recipe.drop_path is not None
    assert 0.1 <= recipe.drop_path <= 0.2
    assert recipe.mixup_alpha > 0
    assert recipe.cutmix_alpha > 0
    assert recipe_for("coatnet_opt", "resnet_20").drop_path is None  # it has none


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("resnet_18_ca_elu", (15, 128, 0.1, "halving")),
        ("res2net_ca_v1b", (50, 128, 0.1, "halving")),
        ("vit_tiny", (200, 128, 0.01, "cosine")),
        ("edgenext_small", (300, 256, 0.01, "cosine")),
        ("edgenext_base", (300, 32, 0.001, "cosine")),
    ],
)
def test_second_study_by_model(model: str, setting: tuple[int, int, float, str]) -> None:
    recipe = recipe_for("second_study", model)

    assert setting == (recipe.epochs, recipe.batch_size, recipe.peak_lr, recipe.schedule)
    assert (recipe.flip_p, recipe.vertical_flip_p, recipe.jitter) == (0.5, 0.5, 0.2)
    assert recipe.alternates_plain
    assert (recipe.crop_padding, recipe.augment, recipe.erase_p) == (0, "none", 0.0)
    assert recipe.normalisation == "imagenet"


def test_strong_grows_with_the_network() -> None:
    sizes = [limit - 1 for limit, _ in TIERS] + [limit for limit, _ in TIERS]
    recipes = [strong_for(size) for size in sorted(sizes)]

    for less, more in zip(recipes, recipes[1:], strict=False):
        for field in (
            *("epochs", "label_smoothing", "drop_path", "rand_ops", "rand_magnitude", "erase_p"),
            *("mixup_alpha", "cutmix_alpha", "flip_p", "crop_padding", "weight_decay"),
        ):
            assert getattr(less, field) <= getattr(more, field), field
        assert _mixed(less) <= _mixed(more)
    assert len(set(recipes)) == len(TIERS) + 1


def _mixed(recipe: Recipe) -> float:
    return recipe.mix_p if recipe.mixup_alpha or recipe.cutmix_alpha else 0.0


def test_strong_mixes_nothing_below_a_million_parameters() -> None:
    small, large = strong_for(999_999), strong_for(1_000_000)

    assert (_mixed(small), small.drop_path) == (0.0, 0.0)
    assert large.mixup_alpha > 0
    assert large.cutmix_alpha > 0


def test_strong_drops_paths_of_every_large_network() -> None:
    large = [name for name, spec in MODELS.items() if spec.params > 1e7 and "_asrun" not in name]

    rates = {name: recipe_for("strong", name).drop_path for name in large}

    assert len(large) > 20
    assert all(rates.values()), rates


def test_strong_keeps_what_the_study_knows_of_a_network() -> None:
    study, recipe = recipe_for("study", "convnext_tiny"), recipe_for("strong", "convnext_tiny")

    for field in ("optimizer", "peak_lr", "batch_size", "weight_decay", "warmup_epochs"):
        assert getattr(recipe, field) == getattr(study, field)
    assert recipe_for("strong", "resnet_20") == replace(strong_for(278_324), drop_path=None)
    assert recipe.ema_decay > 0
    assert not recipe.decay_norms_and_biases
    assert recipe.epochs > study.epochs


def test_quick_takes_the_optimiser_of_the_study() -> None:
    assert recipe_for("quick", "resnet_20") == QUICK
    assert recipe_for("quick", "vit_tiny").optimizer == "adamw"


def test_strong_counts_the_parameters_of_an_own_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\n"
        "def small(*, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))\n"
        "def wide(*, num_classes):\n"
        "    body = nn.Flatten(), nn.Linear(3072, 800)\n"
        "    return nn.Sequential(*body, nn.Linear(800, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    small, wide = (recipe_for("strong", f"nets_of_mine:{name}") for name in ("small", "wide"))

    assert small == replace(strong_for(307_300), drop_path=None)
    assert wide == replace(strong_for(2_538_500), drop_path=None)


def test_no_recipe_for_an_unknown_model() -> None:
    with pytest.raises(UnknownModelError, match="no model named 'resnet_21': did you mean"):
        recipe_for("study", "resnet_21")


def test_the_rate_follows_the_batch() -> None:
    smaller = scaled(STUDY, 256)

    assert smaller == replace(STUDY, batch_size=256, peak_lr=0.025)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epochs", 0, "1 or more"),
        ("batch_size", 1, "2 or more"),
        ("optimizer", "adam", "one of sgd, adamw"),
        ("peak_lr", 0.0, "above 0 and finite in float32"),
        ("peak_lr", float("inf"), "above 0 and finite in float32"),
        ("weight_decay", float("inf"), "0 or more and finite"),
        ("warmup_epochs", 300.0, r"in \[0, epochs\)"),
        ("label_smoothing", 1.0, r"in \[0, 1\)"),
        ("precision", "int8", "one of auto, fp32, bf16, fp16"),
        ("crop_padding", -1, "0 to 31 pixels"),
        ("flip_p", 1.5, r"in \[0, 1\]"),
        ("ema_decay", 1.0, r"in \[0, 1\)"),
        ("schedule", "steps", "one of cosine, linear, step, halving, constant"),
        ("clip_norm", -1.0, "0 or more and finite"),
        ("drop_path", 1.0, r"none or in \[0, 1\)"),
        ("dropout", -0.1, r"none or in \[0, 1\)"),
        ("vertical_flip_p", 2.0, r"in \[0, 1\]"),
        ("augment", "wide", "one of none, trivial, rand, auto"),
        ("rand_ops", 0, "1 to 4"),
        ("rand_magnitude", 31, "0 to 30"),
        ("jitter", 0.6, r"in \[0, 0.5\]"),
        ("mixup_alpha", -0.1, r"in \[0, 100\]"),
        ("cutmix_alpha", float("nan"), r"in \[0, 100\]"),
        ("mixup_alpha", 101.0, r"in \[0, 100\]"),
        ("mix_p", 1.1, r"in \[0, 1\]"),
        ("normalisation", "cifar", "one of data, imagenet"),
        ("weight_decay", -1.0, "0 or more"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("erase_p", -0.1, r"in \[0, 1\]"),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be {expected}"):
        Recipe(**STUDY.to_json() | {field: value})


def test_recipes_survive_json() -> None:
    for name in RECIPES:
        recipe = named_recipe(name)
        assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(("older", "now"), [(True, "trivial"), (False, "none")])
def test_a_recipe_of_before_augment_had_a_name_is_read(older: bool, now: str) -> None:
    stored = {key: value for key, value in QUICK.to_json().items() if key != "augment"}

    assert Recipe.from_json({**stored, "trivial_augment": older}) == replace(QUICK, augment=now)
    with pytest.raises(ZooError, match="trivial_augment is no field"):
        Recipe.from_json({**QUICK.to_json(), "trivial_augment": older})


def test_a_recipe_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ZooError, match="this recipe cannot be read: .*unexpected"):
        Recipe.from_json(STUDY.to_json() | {"unexpected": 1})


def test_settings_are_parsed_by_type() -> None:
    changed = with_settings(
        STUDY, {"peak_lr": "0.2", "nesterov": "true", "batch_size": "64", "schedule": "linear"}
    )

    assert (changed.peak_lr, changed.nesterov, changed.batch_size) == (0.2, True, 64)
    assert changed.schedule == "linear"


def test_a_setting_may_be_none() -> None:
    plain = replace(STUDY, drop_path=0.1)

    assert with_settings(plain, {"drop_path": "none"}).drop_path is None
    assert with_settings(STUDY, {"drop_path": "0.2", "dropout": "0.3"}).dropout == 0.3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("peak_rl", "1", "a recipe has no field 'peak_rl': did you mean peak_lr?"),
        ("peak_lr", "fast", "--set peak_lr=fast: expected a value of type float"),
        ("nesterov", "1", "--set nesterov=1: expected a value of type bool"),
        ("drop_path", "all", "--set drop_path=all: expected a value of type float or none"),
        ("peak_lr", "none", "--set peak_lr=none: expected a value of type float"),
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


def test_a_run_begins_with_what_the_recipe_says_of_the_network(data: Dataset) -> None:
    recipe = replace(STUDY, drop_path=0.3, dropout=0.4, normalisation="imagenet")

    start = begin("coatnet_cifar_opt", data, Wanted(), recipe)
    plain = begin("resnet_20", data, Wanted(), STUDY)

    kinds = {"DropPath": "rate", "Dropout": "p"}
    rates = {
        name: max(getattr(m, kinds[name]) for m in start.network.modules() if _is(m, name))
        for name in kinds
    }
    assert rates == {"DropPath": 0.3, "Dropout": 0.4}
    assert (start.preprocessing.mean, start.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (plain.preprocessing.mean, plain.preprocessing.std) == (data.mean, data.std)


def _is(module: torch.nn.Module, name: str) -> bool:
    return type(module).__name__ == name


def test_an_option_that_the_network_lacks_is_named(data: Dataset) -> None:
    with pytest.raises(ZooError) as caught:
        begin("resnet_20", data, Wanted(), replace(STUDY, drop_path=0.1))

    assert str(caught.value) == (
        "model 'resnet_20' has no option 'drop_path': it takes none but num_classes and image_size"
    )


@pytest.mark.parametrize("recipe", [STUDY, QUICK])
def test_what_is_stretched_or_scaled_twice_is_so_once(recipe: Recipe) -> None:
    for number in range(2, 300):
        longer, larger = with_epochs(recipe, number), scaled(recipe, number)

        assert with_epochs(longer, number) == longer
        assert scaled(larger, number) == larger
