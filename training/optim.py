"""The optimiser, and the average of the weights."""

import copy

import torch
from torch import Tensor, nn

from training.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe, rate: Tensor) -> torch.optim.Optimizer:
    """The recipe's optimiser, fused; it uses what `rate`, a scalar on the device, holds."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        # A captured step counts on the device.
        return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=rate.is_cuda)
    return torch.optim.SGD(
        groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
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


class Average:
    """An exponential moving average of weights and buffers, as a network of its own.

    Source:
        Polyak and Juditsky 1992, in the exponential form that Tan and Le 2019, arXiv:1905.11946,
        section 5.2, train with.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        pairs = list(zip(self._tensors(self.module), self._tensors(model), strict=True))
        self.floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, is_first: Tensor) -> None:
        """Move towards the network; all the way where `is_first`, a bool on the device, holds."""
        mine, theirs = ([pair[side] for pair in self.floats] for side in (0, 1))
        weight = torch.where(is_first, 1.0, 1 - self.decay)
        steps = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(steps, weight)
        torch._foreach_add_(mine, steps)
        for counter, theirs_ in self.counters:
            counter.copy_(theirs_)

    @staticmethod
    def _tensors(model: nn.Module) -> list[Tensor]:
        return [*model.parameters(), *model.buffers()]
