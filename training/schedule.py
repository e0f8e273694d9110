"""The learning rate of each step."""

import math
from collections.abc import Callable

from training.recipe import Recipe

HALVING_EPOCHS = 5  # between two halvings, as in the second study


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> Callable[[int], float]:
    """The rate of each optimiser step, counted from 0: linear warm-up, then the schedule.

    "cosine" and "linear" fall to zero over the steps after warm-up. Of all epochs, warm-up
    included, "step" divides by ten after a half and again after three quarters, and "halving"
    halves after each HALVING_EPOCHS. "constant" stays at the peak.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup_epochs * steps_per_epoch

    def rate(step: int) -> float:
        if step < warmup:
            return recipe.peak_lr * (step + 1) / (warmup + 1)
        done = (step - warmup) / (total - warmup)  # share of the steps after warm-up, in [0, 1)
        match recipe.schedule:
            case "cosine":
                return recipe.peak_lr * (1 + math.cos(math.pi * done)) / 2
            case "linear":
                return recipe.peak_lr * (1 - done)
            case "step":
                return recipe.peak_lr * 0.1 ** ((2 * step >= total) + (4 * step >= 3 * total))
            case "halving":
                return recipe.peak_lr * 0.5 ** (step // (HALVING_EPOCHS * steps_per_epoch))
            case _:
                return recipe.peak_lr

    return rate
