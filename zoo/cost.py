"""Parameters and multiply-accumulates of a network: counted, not timed."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network holds and what it computes for one image."""

    params: int | None  # trainable; None where they cannot be told
    macs: int | None  # multiply-accumulates of convolutions and matrix products, without norms

    @property
    def flops(self) -> int | None:
        """Two per multiply-accumulate."""
        return None if self.macs is None else 2 * self.macs


def cost_of_model(model: nn.Module, image_shape: tuple[int, int, int] = (3, 32, 32)) -> Cost:
    """Count the inference of one image; `model` itself is left as it is.

    The count runs on the meta device: nothing is computed, and it is complete there alone. On a
    CPU torch's counter misses the fused attention kernel.

    Shapes:
        image_shape is (C, H, W).
    """
    twin = on_meta(model).eval()
    image = torch.empty((1, *image_shape), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(image)
    params = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    return Cost(params, counter.get_total_flops() // 2)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without storage, for counting and for shapes; `model` itself is left as it is."""
    # deepcopy meets every tensor as already copied.
    memo: dict[int, object] = {
        id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=tensor.requires_grad)
        for tensor in model.parameters()
    }
    memo |= {id(tensor): tensor.to("meta") for tensor in model.buffers()}
    return copy.deepcopy(model, memo)
