"""Columns that every table of measured networks has: accuracy, training, size, deployment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from profiling.study.data import Arm, Comparison, Trial
from profiling.study.deployment import (
    Rows,
    Speed,
    cheapest,
    fastest,
    price_per_million,
    rows_of,
    speed,
    two_batches,
)
from profiling.study.derived import (
    Mean,
    compute_efficiency,
    mean_of,
    mean_of_all,
    parameter_efficiency,
)
from profiling.study.table import (
    BYTES,
    COMPUTED,
    COUNT,
    MIB,
    MILLIONS,
    MILLISECONDS,
    NUMBER,
    RATE,
    SECONDS,
    SHARE,
    TEXT,
    Column,
    Median,
)
from zoo.environment import Environment

BOUNDED, WHOLE = "bounded", "whole"  # lengths of trainings, by the recipe's
ACCURACY, SIZE, PRICES = "Accuracy and training", "Size and efficiency", "Price of a million images"

TOP1 = Column(key="top1", heading="top-1", kind=SHARE, holds=Mean, part=ACCURACY)
TOP5 = Column(key="top5", heading="top-5", kind=SHARE, holds=Mean, part=ACCURACY)
LENGTH = Column(key="length", heading="length", part=ACCURACY)
EPOCHS = Column(key="epochs", heading="epochs", kind=COUNT, part=ACCURACY)
STEPS = Column(key="steps", heading="steps", kind=COUNT, part=ACCURACY)
BATCH = Column(key="batch_size", heading="images a step", kind=COUNT, part=ACCURACY)
WORK = Column(
    key="training_gmacs", heading="training GMACs", kind=NUMBER, source=COMPUTED, part=ACCURACY
)
TIME = Column(key="train_s", heading="training", kind=SECONDS, holds=Mean, part=ACCURACY)
DEVICE = Column(key="train_device", heading="trained on", kind=TEXT, part=ACCURACY)
EFFORT = (LENGTH, EPOCHS, STEPS, BATCH, WORK)  # of a training, pre-training in its work
TRAINED = (TOP1, TOP5, *EFFORT, TIME, DEVICE)

PARAMS = Column(key="params", heading="parameters", kind=MILLIONS, part=SIZE)
MACS = Column(key="macs", heading="MACs", kind=MILLIONS, part=SIZE)
FLOPS = Column(key="flops", heading="FLOPs", kind=MILLIONS, source=COMPUTED, part=SIZE)
EFFICIENCIES = (
    Column(
        key="top1_percent_per_million_params",
        heading="top-1 % / M parameters",
        kind=NUMBER,
        source=COMPUTED,
        part=SIZE,
    ),
    Column(
        key="top1_percent_per_million_macs",
        heading="top-1 % / M MACs",
        kind=NUMBER,
        source=COMPUTED,
        part=SIZE,
    ),
)
PRICE = (
    Column(key="cheapest_runtime", heading="cheapest runtime", source=COMPUTED, part=PRICES),
    Column(key="price_per_million", heading="price", kind=NUMBER, source=COMPUTED, part=PRICES),
)
SIZES = (PARAMS, MACS, FLOPS, *EFFICIENCIES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """How the arms of a comparison run in one environment, and as which columns that is shown."""

    rows: dict[str, Rows]  # label -> its files
    batches: tuple[int, ...]
    runtimes: tuple[str, ...]
    per_hour: float | None = None

    @classmethod
    def of(
        cls, comparison: Comparison, environment: Environment | None, per_hour: float | None
    ) -> "Deployment":
        """Of all arms; empty without an environment."""
        rows: dict[str, Rows] = {}
        if environment is not None:
            rows = {arm.label: rows_of(arm.trials, environment) for arm in comparison.arms}
        files = [row for own in rows.values() for listed in own.values() for row in listed]
        return cls(
            rows=rows,
            batches=two_batches(batch for row in files for batch in row.by_batch),
            runtimes=tuple(sorted({runtime for own in rows.values() for runtime in own})),
            per_hour=per_hour,
        )

    def best_columns(self) -> list[Column]:
        """The fastest runtime at each batch, and the cheapest at any."""
        columns = [
            column
            for batch in self.batches
            for column in _speed_columns(f"b{batch}_best", batch, f"Fastest at {_images(batch)}")
        ]
        if self.per_hour is not None and self.runtimes:
            columns += PRICE
        return columns

    def runtime_columns(self) -> list[Column]:
        """Every runtime at each batch."""
        columns = []
        for runtime in self.runtimes:
            key, part = _key(runtime), f"Runtime {runtime}"
            for batch in self.batches:
                columns += _time_columns(f"{key}_b{batch}", f"{_images(batch)}: ", part)
            columns += _file_columns(key, part)
            if self.per_hour is not None:
                columns.append(
                    Column(
                        key=f"{key}_price_per_million",
                        heading="price of a million images",
                        kind=NUMBER,
                        source=COMPUTED,
                        part=part,
                    )
                )
        return columns

    def values(self, label: str) -> dict[str, Any]:
        """All that is known of an arm, by the keys of both kinds of columns."""
        rows = self.rows.get(label, {})
        found: dict[str, Any] = {}
        for batch in self.batches:
            best = fastest(rows, batch)
            if best is not None:
                key = f"b{batch}_best"
                found |= {f"{key}_runtime": best.runtime} | _time_values(key, best)
                found |= _file_values(key, best)
        for runtime in rows:
            key = _key(runtime)
            for batch in self.batches:  # of the larger one in the end
                timed = speed(rows, runtime, batch)
                if timed is not None:
                    found |= _time_values(f"{key}_b{batch}", timed) | _file_values(key, timed)
            if self.per_hour is not None:
                price = price_per_million(rows, runtime, self.per_hour)
                found[f"{key}_price_per_million"] = price
        if self.per_hour is not None and (cheap := cheapest(rows, self.per_hour)) is not None:
            found["cheapest_runtime"], found["price_per_million"] = cheap
        return found


def measured_values(arm: Arm) -> dict[str, Any]:
    """Accuracy, training and size of an arm; what its seeds do not share is left empty."""
    trials = arm.trials
    trained = [trial for trial in trials if trial.top1 is not None]
    top1 = mean_of(trial.top1 for trial in trials)
    params, macs = (
        _shared(count for trial in trained if (count := getattr(trial, name)) is not None)
        for name in ("params", "macs")
    )
    share = None if top1 is None else top1.value
    device = _shared(map(device_of, trained))
    return {
        "top1": top1,
        "top5": mean_of(trial.top5 for trial in trials),
        "length": _length(trained),
        "epochs": _shared(trial.epochs for trial in trained),
        "steps": _shared(trial.steps for trial in trained),
        "batch_size": _shared(trial.batch_size for trial in trained),
        "training_gmacs": _shared(
            None if trial.training_macs is None else trial.training_macs / 1e9 for trial in trained
        ),
        "train_s": None if device is None else mean_of(trial.train_seconds for trial in trained),
        "train_device": device
        or "; ".join(sorted({*filter(None, map(device_of, trained))}))
        or None,
        "params": params,
        "macs": macs,
        "flops": None if macs is None else 2 * macs,
        "top1_percent_per_million_params": parameter_efficiency(share, params),
        "top1_percent_per_million_macs": compute_efficiency(share, macs),
    }


def device_of(trial: Trial) -> str | None:
    """Where a trial was trained, in a few words; equal for what may be compared."""
    environment = trial.environment
    if environment is None:
        return None
    name = environment.device
    if name == "cpu":
        threads = environment.threads
        name = f"{environment.cpu}, {threads} thread{'s' if threads > 1 else ''}"
    count = trial.processes or 1
    several = f"{count} x " if count > 1 else ""
    return f"{several}{name} [{environment.key}]"


def _length(trained: Sequence[Trial]) -> str | None:
    if not trained:
        return None
    return BOUNDED if any(trial.is_bounded for trial in trained) else WHOLE


def mean_over(rows: Iterable[dict[str, Any]], key: str) -> float | None:
    """The mean of a column, of its means or medians where it holds such; None if a row has none."""
    values = [row.get(key) for row in rows]
    return mean_of_all(
        value.value if isinstance(value, Mean | Median) else value for value in values
    )


def _shared(values: Iterable[Any]) -> Any:
    """The one value of all; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _images(batch: int) -> str:
    return f"batch {batch}"


def _key(runtime: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in runtime)


def _speed_columns(key: str, batch: int, part: str) -> list[Column]:
    runtime = Column(key=f"{key}_runtime", heading="runtime", part=part)
    return [runtime, *_time_columns(key, "", part), *_file_columns(key, part)]


def _time_columns(key: str, prefix: str, part: str) -> list[Column]:
    return [
        Column(
            key=f"{key}_p50_ms",
            heading=f"{prefix}p50",
            kind=MILLISECONDS,
            holds=Median,
            part=part,
        ),
        Column(
            key=f"{key}_images_per_s",
            heading=prefix.strip(),
            kind=RATE,
            source=COMPUTED,
            part=part,
        ),
    ]


def _file_columns(key: str, part: str) -> list[Column]:
    return [
        Column(key=f"{key}_top1", heading="top-1 of that file", kind=SHARE, part=part),
        Column(key=f"{key}_peak_memory_mib", heading="peak memory", kind=MIB, part=part),
        Column(key=f"{key}_file_bytes", heading="file", kind=BYTES, part=part),
        Column(key=f"{key}_files", heading="files", kind=COUNT, part=part),
    ]


def _time_values(key: str, one: Speed) -> dict[str, Any]:
    p50 = Median(one.p50_ms, one.ci_half_width)
    return {f"{key}_p50_ms": p50, f"{key}_images_per_s": one.images_per_s}


def _file_values(key: str, one: Speed) -> dict[str, Any]:
    return {
        f"{key}_top1": one.top1,
        f"{key}_peak_memory_mib": one.peak_memory_mib,
        f"{key}_file_bytes": one.file_bytes,
        f"{key}_files": one.files,
    }
