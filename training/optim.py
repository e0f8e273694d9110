"""Parameter groups, the learning-rate schedule, and the average of the weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser, fused where torch offers it; the rate is set step by step."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.peak_lr, fused=True)
    return torch.optim.SGD(
        groups, lr=recipe.peak_lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Split off what the recipe does not decay: tensors of one dimension (norms, biases).

    What takes no gradient is left out.
    """
    decayed: list[Tensor] = []
    rest: list[Tensor] = []
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        matrix = parameter.ndim > 1
        (decayed if matrix or recipe.decay_norms_and_biases else rest).append(parameter)
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": recipe.weight_decay}]
    return [*groups, {"params": rest, "weight_decay": 0.0}] if rest else groups


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> Callable[[int], float]:
    """The rate of each optimiser step, counted from 0: linear warm-up, then a fall to zero."""
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup_epochs * steps_per_epoch

    def rate(step: int) -> float:
        if step < warmup:
            return recipe.peak_lr * (step + 1) / (warmup + 1)
        done = (step - warmup) / (total - warmup)  # in [0, 1)
        share = 1 - done if recipe.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return recipe.peak_lr * share

    return rate


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` in the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def make_average(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """An exponential moving average of weights and buffers, or None where the recipe has none."""
    if not recipe.ema_decay:
        return None
    average = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
