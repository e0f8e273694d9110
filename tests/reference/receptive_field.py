"""How far a network sees, the slow way: by the gradient of one row of its last map."""

import copy

import torch
from torch import Tensor, nn


def seen_rows(network: nn.Module, rows: int, columns: int) -> int:
    """Rows of the image, from the first to the last that the middle row of the last map sees.

    Raises:
        AssertionError: they reach an end of the image, so that there may be more.
    """
    maps: list[Tensor] = []
    network = copy.deepcopy(network).double().eval()
    network.stages.register_forward_hook(lambda module, args, out: maps.append(out))
    images = torch.randn(1, 3, rows, columns, dtype=torch.float64, requires_grad=True)
    network(images)
    last = maps[-1]
    (gradient,) = torch.autograd.grad(last[:, :, last.shape[2] // 2].sum(), images)
    seen = gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    assert seen[0] > 0
    assert seen[-1] < rows - 1
    return seen[-1] - seen[0] + 1
