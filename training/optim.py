"""The optimiser, and the average of the weights."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from training.recipe import Recipe
from zoo.errors import ZooError
from zoo.layers.attention import OffsetBias

POSITIONS = ("pos_embed", "cls_token")  # how parameters end that say where, and multiply nothing


def make_optimizer(model: nn.Module, recipe: Recipe, rate: Tensor) -> torch.optim.Optimizer:
    """The recipe's optimiser, fused; it uses what `rate`, a scalar on the device, holds."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        # A captured step counts on the device.
        return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=rate.is_cuda)
    optimizer = torch.optim.SGD(
        groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
    )
    if recipe.momentum:
        # Left to itself torch takes memory as it lies there, and fills it in the first step: not
        # where GradScaler leaves that step out.
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Split off what the recipe does not decay: norms, biases, scales, positions and tokens.

    What takes no gradient is left out.

    Raises:
        ZooError: nothing takes one.
    """
    decayed: list[Tensor] = []
    rest: list[Tensor] = []
    weights = _weights(model)
    for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
        is_decayed = id(parameter) in weights or recipe.decay_norms_and_biases
        (decayed if is_decayed else rest).append(parameter)
    if not decayed and not rest:
        raise ZooError("no parameter of this network takes a gradient: there is nothing to train")
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": recipe.weight_decay}]
    return [*groups, {"params": rest, "weight_decay": 0.0}] if rest else groups


def _weights(model: nn.Module) -> set[int]:
    """What multiplies its input, by id: of convolutions and products, and other matrices.

    What a network calls a position or a token is none, nor what timm's `no_weight_decay` names.
    """
    named = getattr(model, "no_weight_decay", None)
    spared = set(named()) if callable(named) else set()
    found = {id(x) for n, x in model.named_parameters() if _is_matrix(n, x) and n not in spared}
    for module in model.modules():
        if isinstance(module, OffsetBias):
            found.discard(id(module.table))
        elif isinstance(module, _ConvNd | nn.Linear):
            found.add(id(module.weight))
    return found


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1 and not name.endswith(POSITIONS)


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
        self.floats = [pair for pair in pairs if _has_mean(pair[0])]
        self.others = [pair for pair in pairs if not _has_mean(pair[0])]  # counters and masks

    @torch.no_grad()
    def update(self, is_first: Tensor) -> None:
        """Move towards the network; all the way where `is_first`, a bool on the device, holds."""
        mine, theirs = ([pair[side] for pair in self.floats] for side in (0, 1))
        weight = torch.where(is_first, 1.0, 1 - self.decay)
        steps = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(steps, weight)
        torch._foreach_add_(mine, steps)
        for other, theirs_ in self.others:
            other.copy_(theirs_)

    @staticmethod
    def _tensors(model: nn.Module) -> list[Tensor]:
        return [*model.parameters(), *model.buffers()]


def _has_mean(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isfinite().all())
