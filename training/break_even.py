"""Whether torch.compile paid for itself: measured steps of both kinds, and the time it took."""

import time
from dataclasses import dataclass
from itertools import islice, pairwise

import torch

from training.loop import EpochMetrics, Trainer

STEPS = 3  # without torch.compile; the first warms up


@dataclass(frozen=True, kw_only=True, slots=True)
class Compilation:
    """What compiling took and gave; what is not known yet, or could not be measured, is None."""

    seconds: float  # of the first step, beyond a later one
    recompiles: int  # graphs made after the first steps
    step_ms: float | None
    eager_step_ms: float | None
    pays_after_epochs: float | None  # None too where it never pays

    @classmethod
    def of(
        cls, trainer: Trainer, last: EpochMetrics | None, *, recompiles: int, eager: float | None
    ) -> "Compilation":
        """By the speed of the `last` epoch and the seconds of an `eager` step."""
        seconds, step = trainer.compile_seconds, None
        if last is not None:
            step = trainer.recipe.batch_size / last.images_per_s
        saved = 0.0 if step is None or eager is None else (eager - step) * trainer.steps
        return cls(
            seconds=seconds,
            recompiles=recompiles,
            step_ms=None if step is None else 1e3 * step,
            eager_step_ms=None if eager is None else 1e3 * eager,
            pays_after_epochs=seconds / saved if saved > 0 else None,
        )

    @property
    def line(self) -> str | None:
        """All of it in words, where both kinds of steps were measured."""
        if self.step_ms is None or self.eager_step_ms is None:
            return None
        pays = self.pays_after_epochs
        return (
            f"compiled in {self.seconds:.1f} s, {self.recompiles} recompiled later; a step takes "
            f"{self.step_ms:.1f} ms instead of {self.eager_step_ms:.1f} ms: "
            + ("it does not pay" if pays is None else f"it pays after {pays:.1f} epochs")
        )


def step_seconds(trainer: Trainer) -> float | None:
    """Time of a step, the shortest of a few real ones after the first; `trainer` is used up.

    None where an epoch is shorter than that.
    """
    if trainer.steps < STEPS:
        return None
    ends: list[float] = []
    for _ in islice(trainer.run_steps(1), STEPS):
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        ends.append(time.perf_counter())
    return min(after - before for before, after in pairwise(ends))


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
