"""The bytes that a training image must move, counted; the bytes that the device can move, timed."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.cost import on_meta
from zoo.models import create_model

FORMULA = "3 * 2 * A + 5 * I + 24 * P / B"
MEANING = """\
A: numbers that the leaf modules of the network return for one image, views of their input left
out. Each is written once, read once by the backward pass, and its gradient is written once, 16
bits wide; what follows at once (the next module, the sum of a shortcut) is taken to be fused.
I: numbers of an image. Read as a byte, written and read again with 16 bits.
P / B: parameters over images a step. Weight, gradient and momentum are read and written, 32 bits.\
"""

IMAGE = (3, 32, 32)
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}  # far beyond any cache
COPIES = 5


@dataclass(frozen=True, slots=True)
class Traffic:
    """What FORMULA takes from a network."""

    activations: int  # A
    params: int  # P

    def bytes_per_image(self, batch: int) -> float:
        """The least that a training step moves, over the images of its batch."""
        height = IMAGE[0] * IMAGE[1] * IMAGE[2]
        return 3 * 2 * self.activations + 5 * height + 24 * self.params / batch


def traffic_of(model: str, num_classes: int) -> Traffic:
    """Count a network of the zoo."""
    return traffic_of_network(create_model(model, num_classes=num_classes))


def traffic_of_network(network: nn.Module) -> Traffic:
    """Count on the meta device: nothing is computed."""
    twin, counted = on_meta(network).train(), 0

    def count(module: nn.Module, given: tuple[Tensor, ...], returned: object) -> None:
        nonlocal counted
        for tensor in returned if isinstance(returned, tuple) else (returned,):
            is_new = isinstance(tensor, Tensor) and not any(tensor is one for one in given)
            if is_new and not tensor._is_view():
                counted += tensor.numel()

    for module in twin.modules():
        if not any(module.children()):
            module.register_forward_hook(count)
    images = 2  # a norm wants more than one
    with torch.no_grad():
        twin(torch.empty((images, *IMAGE), device="meta"))
    params = sum(tensor.numel() for tensor in network.parameters() if tensor.requires_grad)
    return Traffic(activations=counted // images, params=params)


def copy_bandwidths(device: str) -> list[float]:
    """Bytes a second, read and written together, of some large copies on the device."""
    source = torch.zeros(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source).copy_(source)
    found = []
    for _ in range(COPIES):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        found.append(2 * COPY_BYTES[device] / (time.perf_counter() - start))
    del source, target
    if device == "cuda":
        torch.cuda.empty_cache()  # for the contenders to have
    return found


def synchronize(device: str) -> None:
    """Wait for what the device still has to do."""
    if device == "cuda":
        torch.cuda.synchronize()
