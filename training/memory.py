"""Which batch would fit, where one did not."""

import gc
from collections.abc import Callable

import torch

from training.loop import Trainer
from zoo.errors import MachineError, is_out_of_memory

PROBE_STEPS = 2  # the first fills what the optimiser remembers


class _Enough(Exception):
    """The probe took its steps."""


def batch_that_fits(build: Callable[[int], Trainer], batch_size: int) -> int | None:
    """Halve `batch_size` until two real steps of a fresh trainer fit; None where not even 2 do."""
    size = batch_size // 2
    while size >= 2:
        if _fits(build, size):
            return size
        size //= 2
    return None


def out_of_memory(build: Callable[[int], Trainer], batch_size: int, *, world: int) -> MachineError:
    """The line that names the batch size to pass; of several processes none is measured."""
    wanted = f"not enough memory for batches of {batch_size} images"
    if world > 1:
        return MachineError(f"{wanted}: pass a smaller --batch-size")
    fitting = batch_that_fits(build, batch_size)
    if fitting is None:
        return MachineError(f"{wanted}, nor for any smaller ones: take a smaller model")
    return MachineError(f"{wanted}; {fitting} fit: pass --batch-size {fitting}")


def _fits(build: Callable[[int], Trainer], size: int) -> bool:
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps >= PROBE_STEPS:
            raise _Enough

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        build(size).epoch(1, lambda progress: None, 0.0, at_boundary=stop)
    except _Enough:
        return True
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
