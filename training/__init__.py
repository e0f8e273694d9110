"""Training: recipes, augmentation, the loop and its command."""

from typing import TYPE_CHECKING, Any

from training.recipe import Recipe, Runtime
from training.recipes import RECIPES, named_recipe, recipe_for

if TYPE_CHECKING:
    from training.run import train

__all__ = ["RECIPES", "Recipe", "Runtime", "named_recipe", "recipe_for", "train"]


def __getattr__(name: str) -> Any:
    # torch and accelerate take seconds to import, and `zoo-train --help` needs neither.
    if name == "train":
        from training.run import train

        return train
    raise AttributeError(f"module 'training' has no attribute {name!r}")
