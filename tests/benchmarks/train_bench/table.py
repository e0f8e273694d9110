"""Records as tables: medians over rounds, ratios within rounds, both with intervals."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from profiling.tables import markdown_table, number
from zoo.environment import Environment

from .contenders import SEED
from .records import Lane, Run
from .roofline import FORMULA, MEANING, Traffic

RESAMPLES = 2000
COMPARED = ("ours-compile", "ours-eager")  # the first of these with a result is the measure
README = "README.md"

INTRO = f"""\
# Training beside torchvision's and timm's loops

Written by `make bench-train` from `records.jsonl`; do not edit it.

All train the same network from the same weights on the same images: crop with 4 pixels of border,
flip, TrivialAugmentWide, random erasing of half of the images, SGD with momentum 0.9, decay 5e-4
and rate 0.1. Each contender is a process of its own; they take turns in rounds of random order,
and whoever has no turn is stopped, data workers included. `torchvision` is the reference script's
loop (PIL, transforms v2, `DataLoader`), `timm` is its training script's (its loader, prefetcher
and optimiser, with RandAugment of one operation of even strength, since it has no
TrivialAugmentWide). On a CPU peers compute in fp32, as they do for their users unless a name says
bf16; on a GPU all use the same 16-bit format. Ours keeps the memory that it frees (`zoo.allocator`,
since the records of 2026-11-27), as zoo-train does; peers have the allocator that their users have.

- images/s: median over rounds, of timed steps; the interval covers 95%, by bootstrap.
- times: how many times as fast the first row is, the median of the ratios within each round.
- data: time a step waits for its batch, and its share. Of ours: time to prepare a batch, measured
  alone, which is part of its step. compute: the rest of the step.
- CPU: processor time of a step, of the process and its data workers.
- once: seconds that the first steps took beyond later ones: compilation, tuning, graph capture.
  "Kept code": what an earlier run had compiled was there (`TORCHINDUCTOR_CACHE_DIR` was set).
- device: memory that torch reserved at most. host: growth of the process over `import torch`;
  data: its loader's processes (shared pages divided among them).
- roof: the share of the copy bandwidth, measured between rounds, that {FORMULA} bytes an image
  would take, whatever was really moved.
- loss: of the first step, and mean of five after the last round. Where it did not fall, there is
  no result.

```
{MEANING}
```
"""


class Estimate(NamedTuple):
    """A median and the 95% interval of it."""

    median: float
    low: float
    high: float


def estimate(samples: Sequence[float]) -> Estimate:
    """The median over rounds; rounds are drawn again, with replacement, for its interval."""
    values = np.asarray(samples)
    draws = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), (2.5, 97.5))
    return Estimate(statistics.median(samples), float(low), float(high))


def speeds(lane: Lane, batch: int) -> dict[int, float]:
    """Images a second in each round."""
    return {number: batch * r["steps"] / r["seconds"] for number, r in lane.rounds.items()}


def ratios(mine: Lane, other: Lane, batch: int) -> list[float]:
    """How many times as fast `mine` was, in each round that both have."""
    ours, theirs = speeds(mine, batch), speeds(other, batch)
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys())]


def readme(runs: Sequence[Run]) -> str:
    """The README of the folder: the newest run of each network and batch on each machine."""
    newest: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        if any(lane.rounds for lane in run.lanes.values()):
            key = environment(run).key, run.start["model"], run.start["batch"]
            newest.pop(key, None)
            newest[key] = run
    return "\n".join([INTRO, *(section(run) for run in newest.values())])


def section(run: Run) -> str:
    """Heading, circumstances and table of one run."""
    start, machine = run.start, environment(run)
    versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
    place = machine.cpu if machine.device == "cpu" else f"{machine.device}, {machine.cpu}"
    roof = f"{statistics.median(run.copies) / 1e9:.1f} GB/s" if run.copies else "not measured"
    per_image = traffic(run).bytes_per_image(start["batch"]) / 1e6
    return (
        f"## {start['model']}, batch {start['batch']}, {machine.device}\n\n"
        f"{place}, {machine.cores} cores, {machine.threads} threads, "
        f"{start['data_workers']} data workers; {versions}; {start['dataset']}; "
        f"{start['rounds']} rounds of {start['seconds'] / start['rounds']:.3g} s; "
        f"{start['started_at'][:10]}, environment {machine.key}, commit {start['commit']}. "
        f"Copy bandwidth {roof}, counted traffic {per_image:.2f} MB an image.\n\n"
        + markdown_table(cells(run), left=2)
        + "".join(f"\n{lane.name}: {lane.reason}\n" for lane in run.lanes.values() if lane.reason)
    )


def cells(run: Run) -> list[list[str]]:
    """Header and rows, the measure first."""
    measure = measure_of(run)
    names = [name for name in run.start["contenders"] if name in run.lanes]
    if measure is not None:
        names = [measure.name, *(name for name in names if name != measure.name)]
    header = ["contender", "format", "images/s", "times", "step ms", "data ms", "compute ms"]
    once = "once s" if run.start["cold_compiler"] else "once s (kept code)"
    header += ["CPU ms", once, "device MiB", "host MiB", "data MiB", "roof", "loss"]
    return [header, *(_row(run, run.lanes[name], measure) for name in names)]


def measure_of(run: Run) -> Lane | None:
    """The contender that the others are compared with."""
    for name in COMPARED:
        lane = run.lanes.get(name)
        if lane is not None and lane.rounds and lane.reason is None:
            return lane
    return None


def _row(run: Run, lane: Lane, measure: Lane | None) -> list[str]:
    if lane.reason is not None or not lane.rounds:
        return [lane.name, "", "failed" if lane.reason else "no round", *[""] * 11]
    batch, rounds = run.start["batch"], lane.rounds.values()
    speed = estimate(list(speeds(lane, batch).values()))
    found = ratios(measure, lane, batch) if measure not in (None, lane) else []
    times = estimate(found) if found else None
    step_ms = statistics.median(1e3 * r["seconds"] / r["steps"] for r in rounds)
    data_ms = statistics.median(1e3 * _data_s(r) / r["steps"] for r in rounds)
    share = speed.median * traffic(run).bytes_per_image(batch)
    end = lane.end or {}
    return [
        lane.name,
        "" if lane.prepared is None else lane.prepared["precision"],
        f"{speed.median:,.0f} ({speed.low:,.0f} to {speed.high:,.0f})",
        "" if times is None else f"{times.median:.2f} ({times.low:.2f} to {times.high:.2f})",
        number(step_ms),
        f"{number(data_ms)} ({data_ms / step_ms:.1%})",
        number(max(0.0, step_ms - data_ms)),
        number(statistics.median(1e3 * r["cpu_s"] / r["steps"] for r in rounds)),
        "" if lane.prepared is None else f"{lane.prepared['once_s']:.1f}",
        *(_mebibytes(end.get(name)) for name in ("device_mib", "host_mib", "data_workers_mib")),
        f"{100 * share / statistics.median(run.copies):.1f}%" if run.copies else "",
        f"{lane.prepared['loss']:.2f} to {end['loss']:.2f}" if lane.prepared and end else "",
    ]


def _data_s(record: dict[str, float | None]) -> float:
    """Seconds of a round that went into its data."""
    alone = record["augment_s"]
    return (record["data_s"] or 0.0) if alone is None else alone


def _mebibytes(count: float | None) -> str:
    return "" if count is None else f"{count:,.0f}"


def environment(run: Run) -> Environment:
    """The machine of a run."""
    return Environment.from_json(run.start["environment"])


def traffic(run: Run) -> Traffic:
    """What its network moves."""
    return Traffic(activations=run.start["activations"], params=run.start["params"])


def write(folder: Path, runs: Sequence[Run], put: Callable[[Path, str], None]) -> Path:
    """Write the README beside the records; return its path."""
    put(folder / README, readme(runs))
    return folder / README
