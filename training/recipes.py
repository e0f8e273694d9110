"""The named recipes, and what each of them means for a network."""

import inspect
from dataclasses import replace
from types import MappingProxyType

from training.recipe import Recipe
from training.strong import UP_TO_500K, strong_for
from training.studies import COATNET_OPT, SECOND_STUDY, STUDY, second_study_for, study_for
from zoo.errors import ZooError, nearest

# zoo-train resnet_20 --recipe quick --compile
# One cycle, up and down, with the light augmentation that a small network can use in few epochs.
# 60.95% top-1 with one seed, in 16 minutes on two threads of an AMD EPYC (bench_results/runs/).
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

# zoo-train resnet_20 --recipe smoke --dataset cifar100-mini
# Seconds, for tests; fp32 everywhere, so that its losses are the same on every CPU.
SMOKE = Recipe(name="smoke", epochs=2, batch_size=200, peak_lr=0.05, precision="fp32")

RECIPES = MappingProxyType(
    {recipe.name: recipe for recipe in (STUDY, COATNET_OPT, SECOND_STUDY, UP_TO_500K, QUICK, SMOKE)}
)


def named_recipe(name: str) -> Recipe:
    """The recipe of this name as it stands for resnet_20, or for the network it was planned for.

    Raises:
        ZooError: there is none; the message holds the nearest.
    """
    if name not in RECIPES:
        raise ZooError(f"no recipe named {name!r}: {nearest(name, RECIPES)}")
    return RECIPES[name]


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
