"""Which batch would fit, where one did not, or in how many parts it would."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Protocol

import torch

from training.batch_share import largest_share, unit_of
from training.recipe import OWN_GRAPHS, Recipe, Runtime
from zoo.allocator import release_memory
from zoo.errors import MachineError, is_out_of_memory

PROBE_STEPS = 2  # the first fills what the optimiser remembers
LEAST = 2  # images of a batch: batch norm needs as many


class TakesSteps(Protocol):
    """A trainer."""

    def run_steps(self, epoch: int) -> Iterator[object]:
        """Take the steps of an epoch, one whenever it is asked."""
        ...


Build = Callable[[int, int], TakesSteps]  # of a batch size, and the parts in which it is taken


def batch_that_fits(
    build: Build, recipe: Recipe, runtime: Runtime, *, least: int = LEAST
) -> int | None:
    """Halve the batch size, to sizes that a trainer takes, until two real steps of it fit.

    None where not even the smallest does.
    """
    unit = unit_of(recipe, runtime)
    size = recipe.batch_size // 2 // unit * unit
    while size >= least * runtime.accumulate:
        if _fits(build, size, runtime.accumulate):
            return size
        size = size // 2 // unit * unit
    return None


def parts_that_fit(build: Build, recipe: Recipe, runtime: Runtime, *, world: int) -> int | None:
    """Take a batch in twice as many parts or more, until two real steps of it fit.

    None where not even the smallest parts do.
    """
    tried = runtime.accumulate
    for parts in range(2 * tried, recipe.batch_size // 2 + 1):
        finer = replace(runtime, compile=False, accumulate=parts)
        share = largest_share(recipe, finer, world=world) if parts >= 2 * tried else None
        if share is not None:
            if _fits(build, share, parts):
                return parts
            tried = parts
    return None


def out_of_memory(
    build: Build,
    recipe: Recipe,
    runtime: Runtime,
    *,
    world: int = 1,
    run: Path | None = None,
    least: int = LEAST,
    in_parts: bool = True,
) -> MachineError:
    """The line that names what to pass; `build` tries what one process takes of a batch.

    `run` can be continued, but with no other batch size; None where there is none. `in_parts`:
    a step may take its batch in parts.
    """
    wanted = f"not enough memory for batches of {recipe.batch_size} images"
    if run is not None and in_parts:
        parts = parts_that_fit(build, recipe, runtime, world=world)
        if parts is not None:
            other = runtime.compile and runtime.compile_mode in OWN_GRAPHS
            mode = " --compile-mode default" if other else ""
            return MachineError(
                f"{wanted}; in {parts} parts they fit: "
                f"continue with --resume {run} --accumulate {parts}{mode}"
            )
    unit = unit_of(recipe, runtime)
    share = replace(recipe, batch_size=ceil(recipe.batch_size / unit / world) * unit)
    fitting = batch_that_fits(build, share, runtime, least=least)
    if fitting is None:
        return MachineError(f"{wanted}, nor for any smaller ones: take a smaller model")
    size, how = fitting * world, "pass" if run is None else "begin a new run with"
    return MachineError(f"{wanted}; {size} fit: {how} --batch-size {size}")


def _fits(build: Build, size: int, parts: int) -> bool:
    gc.collect()
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        for _ in islice(build(size, parts).run_steps(1), PROBE_STEPS):
            pass
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
