"""The named recipes, and what each of them means for a network."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from training.recipe import Recipe
from training.strong import UP_TO_500K, strong_for
from training.studies import COATNET_OPT, SECOND_STUDY, STUDY, second_study_for, study_for
from zoo.errors import ZooError, nearest

# One cycle, up and down, with the light augmentation that a small network can use in few epochs.
QUICK = Recipe(
    name="quick",
    epochs=15,
    batch_size=128,
    peak_lr=0.3,
    nesterov=True,
    schedule="linear",
    warmup_epochs=3.0,
    augment="none",
    erase_p=0.0,
)

# The same for networks that the first study trains with AdamW: its rate and decay. No run recorded.
QUICK_ADAMW = replace(QUICK, optimizer="adamw", peak_lr=1e-3, nesterov=False, weight_decay=0.05)

# For tests; fp32 everywhere, so that its losses are the same on every CPU.
SMOKE = Recipe(name="smoke", epochs=2, batch_size=200, peak_lr=0.05, precision="fp32")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedRecipe:
    """A recipe, the command that trains by it, and what comes of that."""

    recipe: Recipe  # as it stands for the network of the command
    command: str
    expected: str  # top-1 on the test images where a run of ours is recorded


UNRECORDED = "no run of ours is recorded yet"
NAMED = (
    NamedRecipe(
        recipe=STUDY,
        command="zoo-train resnet_20 --recipe study --compile --full-train",
        expected="68.67%, one seed, 69 s on one NVIDIA H200 (bench_results/runs)",
    ),
    NamedRecipe(
        recipe=COATNET_OPT,
        command="zoo-train coatnet_cifar_opt --recipe coatnet_opt --compile --full-train",
        expected=UNRECORDED,
    ),
    NamedRecipe(
        recipe=SECOND_STUDY,
        command="zoo-train resnet_18_ca_elu --recipe second_study --compile",
        expected=UNRECORDED,
    ),
    NamedRecipe(
        recipe=UP_TO_500K,
        command="zoo-train resnet_20 --recipe strong --compile --full-train",
        expected=UNRECORDED,
    ),
    NamedRecipe(
        recipe=QUICK,
        command="zoo-train resnet_20 --recipe quick --compile",
        expected="60.95%, one seed, 16 minutes on two threads of an AMD EPYC; on two of an Intel "
        "Xeon with bf16 65.62%, 30 minutes, with --epochs 40, and 68.02%, 33 minutes, with "
        "--epochs 48 --full-train (bench_results/runs)",
    ),
    NamedRecipe(
        recipe=SMOKE,
        command="zoo-train resnet_20 --recipe smoke --dataset cifar100-mini",
        expected="nothing: two epochs on the shipped images, for tests",
    ),
)
RECIPES: Mapping[str, NamedRecipe] = MappingProxyType({one.recipe.name: one for one in NAMED})


def describe_recipes() -> str:
    """All of them for people, with their commands."""
    return "\n".join(
        f"{one.recipe.name}: {one.recipe.epochs} epochs of {one.recipe.batch_size} images a step\n"
        f"    {one.command}\n"
        f"    {one.expected}"
        for one in NAMED
    )


def named_recipe(name: str) -> Recipe:
    """The recipe of this name as it stands for resnet_20, or for the network it was planned for.

    Raises:
        ZooError: there is none; the message holds the nearest.
    """
    if name not in RECIPES:
        raise ZooError(f"no recipe named {name!r}: {nearest(name, RECIPES)}")
    return RECIPES[name].recipe


def recipe_for(name: str, model: str) -> Recipe:
    """The recipe of this name with the settings of one network, timm:NAME or own ones included.

    A network that none of the tables knows is treated as its kind: see `training.studies`. One of
    the user's own counts as a residual network; for `strong` it is built, to count its parameters.

    Raises:
        ZooError: there is no such recipe.
        UnknownModelError: there is no such network.
    """
    from zoo.own import is_own

    recipe = named_recipe(name)
    family, options = ("", ()) if is_own(model) else _family_and_options(model)
    study = study_for(model, family)
    match name:
        case "study":
            recipe = study
        case "second_study":
            recipe = second_study_for(model, family)
        case "strong":
            recipe = strong_for(_params(model), study=study)
        case "quick" if study.optimizer == "adamw":
            recipe = QUICK_ADAMW
    return replace(recipe, drop_path=recipe.drop_path if "drop_path" in options else None)


def _family_and_options(model: str) -> tuple[str, tuple[str, ...]]:
    from zoo.models import model_spec

    spec = model_spec(model)
    return spec.family, tuple(inspect.signature(spec.build).parameters)


def _params(model: str) -> int:
    from zoo.models import create_model, model_spec
    from zoo.own import is_own

    if not is_own(model):
        return model_spec(model).params
    return sum(p.numel() for p in create_model(model).parameters() if p.requires_grad)
