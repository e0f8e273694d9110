"""How long a run will take."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Seconds that the parts of a run will take, by a few real ones."""

    step: float
    held_out: float  # the evaluation after each epoch
    test: float  # the one at the end

    def seconds(self, *, steps: int, epochs: int) -> float:
        """All of these steps, and the evaluations of so many epochs and at the end."""
        return self.step * steps + self.held_out * epochs + self.test
