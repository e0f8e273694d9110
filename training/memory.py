"""Which batch would fit, where one did not."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import Protocol

import torch

from training.batch_share import unit_of
from training.recipe import Recipe, Runtime
from zoo.allocator import release_memory
from zoo.errors import MachineError, is_out_of_memory

PROBE_STEPS = 2  # the first fills what the optimiser remembers
LEAST = 2  # images of a batch: batch norm needs as many


class TakesSteps(Protocol):
    """A trainer."""

    def run_steps(self, epoch: int) -> Iterator[object]:
        """Take the steps of an epoch, one whenever it is asked."""
        ...


def batch_that_fits(
    build: Callable[[int], TakesSteps], recipe: Recipe, runtime: Runtime, *, least: int = LEAST
) -> int | None:
    """Halve the batch size, to sizes that a trainer takes, until two real steps of it fit.

    None where not even the smallest does.
    """
    unit = unit_of(recipe, runtime)
    size = recipe.batch_size // 2 // unit * unit
    while size >= least * runtime.accumulate:
        if _fits(build, size):
            return size
        size = size // 2 // unit * unit
    return None


def out_of_memory(
    build: Callable[[int], TakesSteps],
    recipe: Recipe,
    runtime: Runtime,
    *,
    world: int = 1,
    least: int = LEAST,
) -> MachineError:
    """The line that names the batch size to pass; `build` tries what one process takes of it."""
    wanted = f"not enough memory for batches of {recipe.batch_size} images"
    unit = unit_of(recipe, runtime)
    share = replace(recipe, batch_size=ceil(recipe.batch_size / unit / world) * unit)
    fitting = batch_that_fits(build, share, runtime, least=least)
    if fitting is None:
        return MachineError(f"{wanted}, nor for any smaller ones: take a smaller model")
    size = fitting * world
    return MachineError(f"{wanted}; {size} fit: pass --batch-size {size}")


def _fits(build: Callable[[int], TakesSteps], size: int) -> bool:
    gc.collect()
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        for _ in islice(build(size).run_steps(1), PROBE_STEPS):
            pass
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
