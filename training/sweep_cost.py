"""How long a job will take, by those that are done on machines with the same environment key.

Seconds of a step are a start and a rate for each multiply-accumulate of its work, fitted by least
squares to the steps of that name with the same options; where the same network was measured, the
rate is its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median

from training.sweep_record import JobRecord
from training.sweep_steps import Step


@dataclass(frozen=True, slots=True)
class Sample:
    """A step that was done in one go."""

    model: str
    step: str
    macs: int
    seconds: float
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a job, and how many steps of others they come from."""

    seconds: float
    samples: int
    is_of_model: bool  # whether the same network was among them, for each step


def samples_of(records: Iterable[JobRecord], environment_key: str) -> list[Sample]:
    """What the records of one environment say."""
    return [
        Sample(record.job.model, step.name, step.macs, step.seconds, step.options)
        for record in records
        if record.environment_key == environment_key
        for step in record.steps
        if step.macs and step.seconds is not None
    ]


def predict(model: str, steps: Sequence[Step], samples: Sequence[Sample]) -> Prediction | None:
    """How long `steps` of a network take; None where a step was never measured here."""
    seconds, used, is_of_model = 0.0, 0, True
    for step in steps:
        alike = [one for one in samples if (one.step, one.options) == (step.name, step.options)]
        if not alike or step.macs is None:
            return None
        start, rate = _fitted(alike)
        own = [one for one in alike if one.model == model]
        if own:
            rate = max(0.0, median((one.seconds - start) / one.macs for one in own))
        seconds += start + rate * step.macs
        used += len(alike)
        is_of_model &= bool(own)
    return Prediction(seconds, used, is_of_model)


def _fitted(samples: Sequence[Sample]) -> tuple[float, float]:
    """Start and rate, neither below zero; where all work is the same, all of it is rate."""
    macs, seconds = [one.macs for one in samples], [one.seconds for one in samples]
    centre, level = mean(macs), mean(seconds)
    spread = sum((x - centre) ** 2 for x in macs)
    if spread == 0:
        return 0.0, level / centre
    rate = sum((x - centre) * (y - level) for x, y in zip(macs, seconds, strict=True)) / spread
    if rate <= 0:  # the start hides it
        return level, 0.0
    start = level - rate * centre
    if start < 0:
        squares = sum(x * x for x in macs)
        return 0.0, sum(x * y for x, y in zip(macs, seconds, strict=True)) / squares
    return start, rate
