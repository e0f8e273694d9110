"""The process of one contender: `python -m train_bench.worker`, asked by `rounds`."""

import multiprocessing
import os
import re
import statistics
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling.memory import PeakMemory
from profiling.worker import serve

from .contenders import CONTENDERS, PREFETCH, Task
from .process import COMPILER_CACHE, die_with_parent

if TYPE_CHECKING:
    from .contenders import Loop

WARM_STEPS = 5  # in which everything that happens once has happened
SETTLE_STEPS = 2  # at the start of a round: others have used the caches meanwhile
LAST_STEPS = 5  # whose loss is compared with that of the first
MIN_BATCHES = 16  # prepared alone: a CPU draws for as many at once
CALIBRATION_S = 0.3
MIB = 2**20


class Worker:
    """One loop on one device; each public method answers the request of its name."""

    def __init__(self) -> None:
        self.device = "cpu"
        self.loop: Loop | None = None
        self.losses: Any = None  # the iterator of the loop
        self.task: Task | None = None

    def hello(self, device: str, threads: int | None, cache: str) -> dict[str, Any]:
        """Load torch, with this folder for what it compiles, and describe the machine."""
        os.environ[COMPILER_CACHE] = cache
        import torch

        self.host = PeakMemory("cpu")
        self.host.reset()
        from zoo.environment import capture
        from zoo.machine import installed_versions

        if threads is not None:
            torch.set_num_threads(threads)
        self.device = device
        return {
            "environment": capture(device).to_json(),
            "versions": installed_versions(("torch", "torchvision", "timm", "pillow")),
        }

    def copy_bandwidth(self) -> dict[str, Any]:
        """Bytes a second of large copies."""
        from .roofline import copy_bandwidths

        return {"bytes_per_s": copy_bandwidths(self.device)}

    def traffic(self, model: str, num_classes: int) -> dict[str, Any]:
        """What a network moves for each image."""
        from .roofline import traffic_of

        found = traffic_of(model, num_classes)
        return {"activations": found.activations, "params": found.params}

    def prepare(self, contender: str, task: dict[str, Any]) -> dict[str, Any]:
        """Build the loop, take its first steps, and learn how long a step takes."""
        self.task = Task(**task)
        chosen = CONTENDERS[contender]
        start = time.perf_counter()
        module = import_module(f".{chosen.loop}", __package__)
        self.loop = loop = module.build(chosen, self.task)
        self.losses = iter(loop)
        built_s = time.perf_counter() - start
        burst = self.task.data_workers if loop.uses_data_workers else 1
        # Batches that loader processes had ready while the compiler worked are used up here.
        warm_steps = WARM_STEPS + (PREFETCH * burst if loop.uses_data_workers else 0)
        start, waited = time.perf_counter(), loop.data_s
        loss = self._loss(1)
        self._steps(warm_steps - 1)
        once_s = time.perf_counter() - start - (loop.data_s - waited)
        count = max(3, burst)
        steady = self._steps(count)
        while steady["seconds"] < CALIBRATION_S:
            count *= 4
            steady = self._steps(count)
        busy_s = (steady["seconds"] - steady["data_s"]) / count
        self._release()
        return {
            "precision": loop.precision,
            "layout": loop.layout,
            "build_s": built_s,
            "warm_steps": warm_steps,
            "once_s": max(0.0, once_s - warm_steps * busy_s),
            "step_s": steady["seconds"] / count,
            "burst": burst,
            "loss": loss,
        }

    def round(self, steps: int) -> dict[str, Any]:
        """Time some steps, then the preparation of some batches alone where that can be had."""
        assert self.loop is not None
        loss = self._loss(SETTLE_STEPS)
        taken = self._steps(steps)
        batches, augment_s = max(MIN_BATCHES, steps // 4), None
        if self.loop.augment(1):
            self._synchronize()
            start = time.perf_counter()
            self.loop.augment(batches)
            self._synchronize()
            augment_s = (time.perf_counter() - start) * steps / batches
        self._release()
        return {"steps": steps, **taken, "augment_s": augment_s, "loss": loss}

    def finish(self) -> dict[str, Any]:
        """What the loop took of memory, and the loss in the end."""
        import torch

        host_mib, method = self.host.read("torch")
        is_cuda = self.device == "cuda"
        return {
            "device_mib": torch.cuda.max_memory_reserved() / MIB if is_cuda else None,
            "host_mib": host_mib,
            "host_method": method,
            "data_workers_mib": _children_mib(),
            "loss": self._loss(LAST_STEPS),
        }

    def _steps(self, count: int) -> dict[str, float]:
        """Take steps; seconds in all, of them spent waiting for batches, and of all processors."""
        assert self.loop is not None
        waited, spent = self.loop.data_s, _cpu_s()
        self._synchronize()
        start = time.perf_counter()
        for _ in range(count):
            next(self.losses)
        self._synchronize()
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "data_s": self.loop.data_s - waited,
            "cpu_s": _cpu_s() - spent,
        }

    def _loss(self, count: int) -> float:
        """Take steps; the mean of their losses, each of which is read before the next."""
        return statistics.fmean(float(next(self.losses)) for _ in range(count))

    def _synchronize(self) -> None:
        from .roofline import synchronize

        synchronize(self.device)

    def _release(self) -> None:
        """Give unused memory of the device back, for the others to have."""
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()


def _cpu_s() -> float:
    """Processor time of this process, all its threads, and its loader's processes."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user and in kernel mode
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _children_mib() -> float | None:
    """Memory of the loader's processes; pages that processes share are divided among them."""
    total = 0
    for child in multiprocessing.active_children():
        try:
            text = Path(f"/proc/{child.pid}/smaps_rollup").read_text()
        except OSError:
            return None
        found = re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)
        if found is None:
            return None
        total += 1024 * int(found[1])
    return total / MIB


if __name__ == "__main__":
    die_with_parent()
    serve(Worker())
