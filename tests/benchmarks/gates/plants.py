"""Slowdowns of a known size at a place drawn by a seed: real work that nobody needs, in our code.

A plant is one line put before a line of a copy of the code. What it costs is measured and set to
a share of the path that it slows most; whatever else runs through that line is slowed by less.
"""

import math
import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.errors import MachineError

from .lanes import BLOCK_S, Worker, keep_to_one_core
from .stats import ratio

SLOWDOWN = 0.15  # of the CPU time of the path
PLAIN = 0.6  # a slowdown that shows through noise, from which the cost of a unit follows
TRIES = 8  # of either kind
NEAR = 0.015  # of SLOWDOWN, as it is measured
MOST_STEP = 3  # times as many units after one measurement
PROCESSES = 7  # of either side, once the slowdown is plain
BLOCKS = 12  # of either side in a process, in turns
MODULE = "planted_work"
# Loops of Python where Python is what runs, products of matrices where kernels are.
WORK = """
def arithmetic(units):
    total = 0
    for number in range(units):
        total += number * number % 7
    return total


def products(units):
    import torch

    with torch.no_grad():
        matrix = torch.ones(48, 48)
        for _ in range(units):
            matrix = torch.mm(matrix, matrix).sigmoid_()
    return matrix
"""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """One line of work before the line `before` of a file."""

    file: str
    before: str  # how that line begins, indentation included
    slows: str  # the hot path that gets the whole share
    work: str = "products"
    only_if: str = ""  # a condition, for paths that share the line

    def line(self, units: int) -> str:
        """The line, indented as the one after it."""
        indent = self.before[: len(self.before) - len(self.before.lstrip())]
        condition = f"if {self.only_if}: " if self.only_if else ""
        return f'{indent}{condition}__import__("{MODULE}").{self.work}({units})\n'

    def put(self, home: Path, units: int) -> None:
        """Change the copy of the code in `home`.

        Raises:
            MachineError: the line is not there, or is there twice.
        """
        path = home / self.file
        lines = path.read_text().splitlines(keepends=True)
        places = [place for place, line in enumerate(lines) if line.startswith(self.before)]
        if len(places) != 1:
            raise MachineError(f"{self.file} has {len(places)} lines {self.before.strip()!r}")
        lines.insert(places[0], self.line(units))
        path.write_text("".join(lines))
        (home / f"{MODULE}.py").write_text(WORK)


def _by_batch(file: str, before: str, backend: str) -> dict[str, Plant]:
    return {
        f"{backend}-b{batch}": Plant(
            file=file,
            before=before,
            slows=f"forward-{backend}-resnet_20-b{batch}",
            only_if=f"len(images) == {batch}",
        )
        for batch in (1, 32)
    }


PLANTS: Mapping[str, Plant] = {
    **_by_batch("zoo/session.py", "        exact = tf32(", "eager"),
    **_by_batch("export/onnx_session.py", "        images = self.feed(images)", "onnx"),
    **_by_batch("export/to_openvino.py", "        check_batch(images, self.input_sh", "openvino"),
    "network-b32": Plant(
        file="zoo/models/resnet.py",
        before="        x = self.stages(self.stem(x))",
        slows="forward-eager-resnet_20-b32",
        only_if="len(x) == 32 and not self.training",
    ),
    "augmentation": Plant(
        file="training/augment.py",
        before="        images = self.apply(stored, drawn)",
        slows="augmentation",
    ),
    "step": Plant(
        file="training/step.py",
        before="        self.rate.copy_(self.rates.index_select(",
        slows="train-step",
    ),
    "load": Plant(
        file="export/onnx_session.py",
        before="        wanted = check_provider(provider, device)",
        slows="load-onnx",
        work="arithmetic",
    ),
    "start": Plant(
        file="zoo/command.py",
        before="OUTPUT_CLOSED = 141",
        slows="start-zoo-train",
        work="arithmetic",
    ),
}


def drawn(seed: int) -> str:
    """The name of the plant of a seed."""
    return random.Random(seed).choice(sorted(PLANTS))


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """How many units make the slowdown, and what they were measured to make."""

    units: int
    slowdown: float
    path_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def calibrate(plant: Plant, clean: Path, planted: Path, folder: Path) -> Calibrated:
    """Find the units with which the path takes SLOWDOWN longer; `planted` is a copy of `clean`.

    A first guess comes from work that shows plainly. Work has a cost beside that of its units, as
    caches are cold after it: hence the guess is planted, measured and mended until it fits.

    Raises:
        MachineError: no amount of work slows it plainly, or none by so much.
    """
    untouched = (clean / plant.file).read_text()
    homes, units = (clean, planted), 1000 if plant.work == "products" else 100_000

    def slowdown(units: int, pairs: int) -> tuple[float, float]:
        (planted / plant.file).write_text(untouched)
        plant.put(planted, units)
        taken = [_fastest(plant.slows, homes, folder) for _ in range(pairs)]
        (planted / plant.file).write_text(untouched)
        logs = [math.log(with_s / base_s) for base_s, with_s in taken]
        return ratio(logs) - 1, min(base_s for base_s, _ in taken)

    for _ in range(TRIES):
        found, _ = slowdown(units, 1)
        if found > PLAIN:
            break
        units *= 3
    else:
        raise MachineError(f"{units:,} units of work do not slow {plant.slows}")
    units = max(1, round(units * SLOWDOWN / found))
    for _ in range(TRIES):
        found, base_s = slowdown(units, PROCESSES)
        if abs(found - SLOWDOWN) <= NEAR:
            return Calibrated(units=units, slowdown=found, path_ms=1e3 * base_s)
        units = max(1, round(units * min(MOST_STEP, SLOWDOWN / max(found, NEAR))))
    raise MachineError(f"{plant.slows} cannot be slowed by {SLOWDOWN:.0%} here: {found:.0%}")


def _fastest(name: str, homes: tuple[Path, Path], folder: Path) -> tuple[float, float]:
    """CPU seconds of a call on either side, the fastest of blocks in turns."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(home, folder)) for home in homes]
        for worker in workers:
            fault = worker.ask("prepare", name=name)
            if fault:
                raise MachineError(f"{name}: {fault}")
        keep_to_one_core(workers)
        calls = workers[0].ask("calibrate", name=name, block_s=BLOCK_S)["calls"]
        taken = [
            [w.ask("time", name=name, calls=calls)["s"] for w in workers] for _ in range(BLOCKS)
        ]
    base, planted = zip(*taken, strict=True)
    return min(base), min(planted)
