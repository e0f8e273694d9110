"""Pairs of processes, one for each side, that take turns; only one of them works at a time.

A process that starts anew lies elsewhere in memory, which moves times by some per cent: hence many
pairs of short-lived processes rather than one long-lived one. Within a pair the sides alternate
block by block, so that whatever slows the machine down for a while meets both. Both are timed on
the same core, for those of a virtual machine differ in speed.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from profiling.host import idlest_core
from zoo.errors import MachineError

BENCHMARKS = Path(__file__).parents[1]  # where the worker finds this package
SIDES = ("base", "change")
BLOCK_S = 0.02  # CPU time of a block of calls, at least
PATH_S = 0.2  # of all blocks of a path in one process, where its calls are that short
LEAST_BLOCKS, MOST_BLOCKS = 3, 8  # of each path in one process
ANSWER_LIMIT_S = 300.0  # after which a process counts as hung
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Broken(MachineError):
    """A worker died or hung."""


@dataclass
class Timed:
    """The samples of one path: seconds of CPU for a call, by pair of processes and by block."""

    calls: int  # in a block
    blocks: int  # of each process
    base: list[list[float]] = field(default_factory=list)
    change: list[list[float]] = field(default_factory=list)


@dataclass
class Samples:
    """What was measured, and what was not."""

    timed: dict[str, Timed] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # a package is missing here
    new: dict[str, str] = field(default_factory=dict)  # the base has no such thing
    broken: dict[str, str] = field(default_factory=dict)  # by the change
    failing: dict[str, str] = field(default_factory=dict)  # on both sides: nobody's regression
    pairs: int = 0
    seconds: float = 0.0


class Worker:
    """The process of one side."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._home = home
        self._process = subprocess.Popen(
            (sys.executable, "-P", "-m", "gates.worker", str(home), str(folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=folder,
            env={**os.environ, **THREADS, "PYTHONPATH": f"{home}{os.pathsep}{BENCHMARKS}"},
        )

    def keep_to(self, core: int) -> None:
        """Let it use this core alone from now on."""
        os.sched_setaffinity(self._process.pid, {core})

    def send(self, do: str, **arguments: Any) -> None:
        """Ask something; `receive` gives the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{json.dumps({'do': do, **arguments})}\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None

    def receive(self) -> dict[str, Any]:
        """Wait for the answer of what was sent.

        Raises:
            Broken: the process died or does not answer.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select((self._process.stdout,), (), (), ANSWER_LIMIT_S)
        if not ready:
            raise Broken(f"the process of {self._home} gave no answer in {ANSWER_LIMIT_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send and receive."""
        self.send(do, **arguments)
        return self.receive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _death(self) -> Broken:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
        return Broken(f"the process of {self._home} ended with exit code {code}: {lines[-1]}")


def run_pairs(
    homes: Sequence[Path],
    folders: Sequence[Path],
    names: Iterable[str],
    *,
    cold: Iterable[str],
    pairs: int,
    seconds: float,
    tell: Callable[[str], None],
) -> Samples:
    """Time each path in both sides, in `pairs` pairs of processes or as many as `seconds` allow.

    `homes` and `folders` are those of base and change: their code and their exported files. Of
    paths in `cold` each process times the very first call.

    Raises:
        Broken: a process died or hung.
    """
    samples, started, longest = Samples(), time.monotonic(), 0.0
    wanted, cold = list(names), frozenset(cold)
    for pair in range(pairs):
        begun = time.monotonic()
        if pair and begun - started + longest > seconds:
            break
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(home, folder))
                for home, folder in zip(homes, folders, strict=True)
            ]
            wanted = _prepared(workers, wanted, samples)
            keep_to_one_core(workers)
            for name in list(wanted):
                if not pair:
                    samples.timed[name] = _plan(workers[0], name, is_cold=name in cold)
                if not _time(workers, name, samples, starts_with=pair % 2):
                    wanted.remove(name)
        samples.pairs += 1
        samples.seconds = time.monotonic() - started
        longest = max(longest, time.monotonic() - begun) if pair else 0.0
        tell(f"pair {samples.pairs} of {pairs}, {samples.seconds:.0f} s")
    return samples


def keep_to_one_core(workers: Iterable[Worker]) -> None:
    """The idlest one, where there is a choice."""
    core = idlest_core()
    if core is not None:
        for worker in workers:
            worker.keep_to(core)


def _prepared(workers: Sequence[Worker], names: Iterable[str], samples: Samples) -> list[str]:
    """Prepare all paths, both sides at a time; return those that both have."""
    ready = []
    for name in names:
        for worker in workers:
            worker.send("prepare", name=name)
        base, change = (worker.receive() for worker in workers)
        if "missing" in base or "missing" in change:
            samples.skipped[name] = base.get("missing") or change["missing"]
        elif "fault" in change or "fault" in base:
            _fault(name, (base, change), samples)
        else:
            ready.append(name)
    return ready


def _fault(name: str, answers: Sequence[dict[str, Any]], samples: Samples) -> None:
    """Keep whose fault it is; where the base ran in an earlier pair it is the change's."""
    base, change = answers
    had_run = name in samples.timed and bool(samples.timed[name].base)
    if "fault" not in change:
        samples.new[name] = base["fault"]
    elif "fault" in base and not had_run:
        samples.failing[name] = change["fault"]
    else:
        samples.broken[name] = change["fault"]
    samples.timed.pop(name, None)


def _plan(worker: Worker, name: str, *, is_cold: bool) -> Timed:
    """How many calls and blocks a process takes of a path."""
    if is_cold:
        return Timed(calls=1, blocks=1)
    found = worker.ask("calibrate", name=name, block_s=BLOCK_S)
    calls = int(found["calls"])
    blocks = int(PATH_S / (calls * found["call_s"]))
    return Timed(calls=calls, blocks=min(MOST_BLOCKS, max(LEAST_BLOCKS, blocks)))


def _time(workers: Sequence[Worker], name: str, samples: Samples, *, starts_with: int) -> bool:
    """Blocks of a path in turns, the sides as 0110 0110 or 1001 1001; False: it broke."""
    timed = samples.timed[name]
    taken: tuple[list[float], list[float]] = ([], [])
    for block in range(timed.blocks):
        first = (block + starts_with) % 2
        for side in (first, 1 - first):
            answer = workers[side].ask("time", name=name, calls=timed.calls)
            if "fault" in answer:
                other = workers[1 - side].ask("time", name=name, calls=timed.calls)
                _fault(name, (other, answer) if side else (answer, other), samples)
                return False
            taken[side].append(round(answer["s"], 8))
    timed.base.append(taken[0])
    timed.change.append(taken[1])
    return True
