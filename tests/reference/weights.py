"""Moves weights between two implementations of one network."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def randomise_norms(model: nn.Module, images: Tensor) -> None:
    """Give every batch norm random scales and shifts, and the statistics of `images`.

    Random statistics would let the signal fade from layer to layer, until the logits no longer
    depended on the images and any two networks agreed.
    """
    torch.manual_seed(4)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    with torch.no_grad():
        model.train()(images)
    model.eval()


def transplant(source: nn.Module, target: nn.Module, names: Mapping[str, str]) -> None:
    """Copy every tensor of `source` into `target`, which must have exactly those tensors.

    `names` maps patterns in the names of the source to what replaces them, one after the other. A
    1x1 convolution may become a linear layer; nothing else may change its shape.
    """
    own = target.state_dict()
    moved: dict[str, Tensor] = {}
    for theirs, tensor in source.state_dict().items():
        name = theirs
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        assert name in own, f"{theirs} became {name}, which the target does not have"
        assert name not in moved, f"two tensors became {name}"
        moved[name] = tensor if tensor.ndim == own[name].ndim else tensor.flatten(1)
    target.load_state_dict(moved)
