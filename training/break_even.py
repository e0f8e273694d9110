"""Whether torch.compile paid for itself: measured steps of both kinds, and the time it took."""

import time
from contextlib import suppress
from itertools import pairwise

import torch

from training.loop import Trainer

STEPS = 3  # without torch.compile; the first warms up


class _Enough(Exception):
    """The steps were taken."""


def step_seconds(trainer: Trainer) -> float | None:
    """Time of a step, the shortest of a few real ones after the first; `trainer` is used up.

    None where an epoch is shorter than that.
    """
    if trainer.steps < STEPS:
        return None
    ends: list[float] = []

    def stop() -> None:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        ends.append(time.perf_counter())
        if len(ends) == STEPS:
            raise _Enough

    with suppress(_Enough):
        trainer.epoch(1, lambda progress: None, 0.0, at_boundary=stop)
    return min(after - before for before, after in pairwise(ends))


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compile_line(
    *, compile_seconds: float, recompiles: int, steps: int, seconds: float, eager_step: float
) -> str:
    """What compiling took, a step with and without it, and from which epoch on it has paid.

    `seconds` is the time of an epoch of `steps` compiled steps.
    """
    saved = eager_step * steps - seconds
    text = (
        f"compiled in {compile_seconds:.1f} s, {recompiles} recompiled later; a step takes "
        f"{1e3 * seconds / steps:.1f} ms instead of {1e3 * eager_step:.1f} ms"
    )
    if saved <= 0:
        return f"{text}: it does not pay"
    return f"{text}: it pays after {compile_seconds / saved:.1f} epochs"
