"""Who else uses the CPU while something is measured, as Linux tells it."""

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from profiling.record import HostLoad

PROC = Path("/proc")
IDLE, STEAL = (3, 4), 7  # columns of the line `cpu` in /proc/stat: idle and iowait; steal
FIELDS = 8  # of that line; what follows is counted in `user` already
OWN_TIMES = slice(11, 15)  # utime stime cutime cstime in /proc/<pid>/stat, after the name
LEAST_TICKS = 20  # in sum of all cores; fewer say too little
LOOK_S = 0.2  # at the cores, before one of them is chosen


class LoadMeter:
    """Counts from its construction on; `processes` names the worker processes that are ours.

    `core` is the one that they are kept to, if they are.
    """

    def __init__(
        self,
        processes: Callable[[], Iterable[int]],
        *,
        core: int | None = None,
        proc: Path = PROC,
    ) -> None:
        self._processes, self._core, self._proc = processes, core, proc
        self._before = self._now()

    def read(self) -> HostLoad | None:
        """The load until now; None where the system does not tell, or after too short a time."""
        now = self._now()
        if now is None or self._before is None:
            return None
        total, busy, steal, own, of_core, own_of_core = (
            a - b for a, b in zip(now, self._before, strict=True)
        )
        if total < LEAST_TICKS:
            return None
        cores = len(core_ticks(self._proc))
        share = None if self._core is None else max(0, of_core - own_of_core) * cores / total
        return HostLoad(
            others=round(max(0, busy - own) / total, 4),
            steal=round(max(0, steal) / total, 4),
            clock_mhz=self._clock_mhz(),
            core=self._core,
            cores=cores or None,
            of_core=None if share is None else round(min(1.0, share), 4),
        )

    def _now(self) -> tuple[int, int, int, int, int, int] | None:
        """Ticks so far, of all cores: altogether, at work for this machine, stolen, our own.

        Then those of the measured core, at work or stolen, and our workers' own, for they are
        all there; this process may be anywhere, and counts as another one.
        """
        try:
            words = (self._proc / "stat").read_text().split(maxsplit=FIELDS + 1)
            ticks = [int(word) for word in words[1 : FIELDS + 1]]
            # The times of a worker that has ended are among those of our children.
            here, ended = self._own(os.getpid())
            workers = sum(sum(self._own(pid)) for pid in self._processes()) + ended
            of_core = busy_ticks(self._proc).get(self._core, 0) if self._core is not None else 0
        except (OSError, ValueError):
            return None
        if len(ticks) < FIELDS:
            return None
        total, steal = sum(ticks), ticks[STEAL]
        busy = total - steal - sum(ticks[column] for column in IDLE)
        return total, busy, steal, here + workers, of_core, workers

    def _own(self, pid: int) -> tuple[int, int]:
        """Ticks of a process, and of its children that have ended."""
        try:
            text = (self._proc / str(pid) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return 0, 0
        user, system, *of_children = map(int, text.rpartition(")")[2].split()[OWN_TIMES])
        return user + system, sum(of_children)

    def _clock_mhz(self) -> float | None:
        try:
            lines = (self._proc / "cpuinfo").read_text().splitlines()
            clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
        except (OSError, ValueError):
            return None
        return round(sum(clocks) / len(clocks), 1) if clocks else None


def idlest_core(*, proc: Path = PROC, look_s: float = LOOK_S) -> int | None:
    """The core that worked least of late, of those that this process may use.

    One thread that has a core of its own is timed better: cores of a virtual machine differ in
    speed, as what else the host does with each of them differs. None where there is no choice.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    before = busy_ticks(proc)
    time.sleep(look_s)
    return least_busy(before, busy_ticks(proc), os.sched_getaffinity(0))


def least_busy(before: dict[int, int], after: dict[int, int], usable: set[int]) -> int | None:
    """The usable core whose ticks grew least, the last of several; None without a choice."""
    grown = {core: after[core] - before[core] for core in usable & before.keys() & after.keys()}
    return min(grown, key=lambda core: (grown[core], -core)) if len(grown) > 1 else None


def busy_ticks(proc: Path) -> dict[int, int]:
    """Ticks at work so far, stolen ones included, by core; empty where nothing tells."""
    every = core_ticks(proc).items()
    return {core: sum(ticks) - sum(ticks[column] for column in IDLE) for core, ticks in every}


def core_ticks(proc: Path) -> dict[int, list[int]]:
    """The FIELDS of /proc/stat, by core; empty where nothing tells."""
    try:
        lines = [line.split() for line in (proc / "stat").read_text().splitlines()]
    except OSError:
        return {}
    cores = (line for line in lines if re.fullmatch(r"cpu\d+", line[0]) and len(line) > FIELDS)
    return {int(name.removeprefix("cpu")): list(map(int, ticks[:FIELDS])) for name, *ticks in cores}
