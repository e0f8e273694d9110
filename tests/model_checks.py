"""What the tests over the whole registry share."""

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.models import MODELS, create_model

CATALOGUE = Path(__file__).parent / "reference" / "zoo.csv"
EXAMPLE = 2  # images; a batch of 1 would become a constant


def promised() -> dict[str, dict[str, str]]:
    """The catalogue as it was agreed: name -> group, params and macs_m, empty where free."""
    with CATALOGUE.open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def smallest_of_each_family() -> list[str]:
    """One variant a family, the one with the fewest multiply-accumulates."""
    best: dict[str, str] = {}
    for name, spec in sorted(MODELS.items()):
        if spec.family not in best or spec.macs < MODELS[best[spec.family]].macs:
            best[spec.family] = name
    return sorted(best.values())


def random_images(batch: int, *, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=dtype)


def seeded(name: str, **options: object) -> nn.Module:
    """A freshly initialised variant, the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model(name, **options)


def without_dropping(model: nn.Module) -> nn.Module:
    """Switch off everything random, so that each parameter takes part."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for rate in ("rate", "drop_prob"):  # ours, and timm's
            if type(module).__name__ == "DropPath" and hasattr(module, rate):
                setattr(module, rate, 0.0)
    return model


def with_values_everywhere(model: nn.Module) -> nn.Module:
    """Move each parameter that starts as a constant or near zero, then warm the batch norms.

    Layer scales of 1e-6, zero biases, fresh bias tables and norms that let the signal fade would
    hide an error of what they scale.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.abs().max() < 1e-3:
                parameter.add_(0.1 * noise)
            elif parameter.numel() > 1 and (parameter.max() - parameter.min()) < 1e-6:
                parameter.mul_(1 + 0.1 * noise)
        is_vit = any("pos_embed" in name for name, _ in model.named_parameters())
        for name, parameter in model.named_parameters():
            if "table" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif is_vit and parameter.ndim > 1:
                parameter.mul_(3)  # as they start, the class token hardly sees the image
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of these very images: the signal stays
        without_dropping(model).train()(random_images(32))
    return model.eval()


def zero_gradients(model: nn.Module, images: Tensor) -> list[str]:
    """Parameters without influence on the loss; float64 tells rounding from a real gradient.

    Raises:
        AssertionError: a gradient is missing or not finite.
    """
    model = without_dropping(model).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            if 0 < parameter.abs().max() < 1e-3:  # a layer scale would bury what it scales
                parameter.fill_(1.0)
    labels = torch.arange(len(images)) % 100
    F.cross_entropy(model(images.double()), labels).backward()
    largest = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        largest[name] = parameter.grad.abs().max().item()
    floor = 1e-11 * max(largest.values())
    return [name for name, size in largest.items() if size <= floor]


def macs_without_fused_attention(model: nn.Module) -> int:
    """How the published figures were counted: on a CPU, whose attention kernel goes uncounted."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(random_images(1))
    return counter.get_total_flops() // 2


@contextmanager
def outputs_of(parts: list[tuple[str, nn.Module]]) -> Iterator[dict[str, Tensor]]:
    """Collect what each part returns while the block runs."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda module, inputs, output: found.update({name: output})

    handles = [part.register_forward_hook(keep(name)) for name, part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


HIGHEST_LOSS = 1.5 * math.log(100)
