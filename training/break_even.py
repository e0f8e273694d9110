"""Whether torch.compile paid for itself: steps of both kinds, and the time it took."""

from dataclasses import dataclass

import torch

from training.loop import Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class Compilation:
    """What compiling took and gave; what could not be measured is None.

    A step of either kind is the median of a few that are taken before the run, by the same clock.
    """

    seconds: float  # of choosing kernels, and of the first step beyond a later one
    recompiles: int  # graphs made after the first steps
    step_ms: float
    eager_step_ms: float | None
    pays_after_epochs: float | None  # None too where it never pays

    @classmethod
    def of(
        cls, trainer: Trainer, *, step: float, eager: float | None, recompiles: int
    ) -> "Compilation":
        """By the seconds of a compiled and of an eager step."""
        saved = 0.0 if eager is None else (eager - step) * trainer.steps
        return cls(
            seconds=trainer.compile_seconds,
            recompiles=recompiles,
            step_ms=1e3 * step,
            eager_step_ms=None if eager is None else 1e3 * eager,
            pays_after_epochs=trainer.compile_seconds / saved if saved > 0 else None,
        )

    @property
    def line(self) -> str | None:
        """All of it in words, where both kinds of steps were measured."""
        if self.eager_step_ms is None:
            return None
        pays = self.pays_after_epochs
        return (
            f"compiled in {self.seconds:.1f} s, {self.recompiles} recompiled later; a step takes "
            f"{self.step_ms:.1f} ms instead of {self.eager_step_ms:.1f} ms: "
            + ("it does not pay" if pays is None else f"it pays after {pays:.1f} epochs")
        )


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
