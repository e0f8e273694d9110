"""One model through all contenders: a process for each, which take turns."""

import math
import os
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiling.process import START_LIMIT_S, WorkerError
from zoo.environment import git_commit
from zoo.errors import MachineError

from . import records
from .contenders import SEED, Contender, Task
from .process import COMPILER_CACHE, Stoppable

PREPARE_LIMIT_S = 900.0  # a network that compiles on two cores
SLACK_S = 120.0  # beyond what a round should take
LEAST_STEPS = 2  # of a round

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long everyone is measured."""

    seconds: float  # timed, for each contender
    rounds: int

    @property
    def round_s(self) -> float:
        """Of one contender in one round."""
        return self.seconds / self.rounds


def measure(
    task: Task,
    entrants: list[Contender],
    budget: Budget,
    *,
    threads: int | None,
    num_classes: int,
    folder: Path,
    tell: Tell,
) -> bool:
    """Append the records of one model; return whether every contender came to its end."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    writer = records.Writer(folder, f"{now} {task.model}")
    with ExitStack() as stack:
        caches = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zoo-bench-train-")))
        kept = os.environ.get(COMPILER_CACHE)  # the user's own outlives the run

        def cache(name: str) -> str:
            return kept or str(caches / name)

        names = ["gauge", *(entrant.name for entrant in entrants)]
        workers = {name: stack.enter_context(Stoppable(threads=threads)) for name in names}
        gauge = workers["gauge"]
        hello = {"device": task.device, "threads": threads, "limit_s": START_LIMIT_S}
        try:
            machine = gauge.ask("hello", cache=cache("gauge"), **hello)
            traffic = gauge.ask(
                "traffic", model=task.model, num_classes=num_classes, limit_s=START_LIMIT_S
            )
        except WorkerError as error:
            raise MachineError(f"{task.model} cannot be measured: {error}") from None
        writer.append(
            records.START,
            started_at=now,
            **asdict(task),
            threads=threads,
            seconds=budget.seconds,
            rounds=budget.rounds,
            seed=SEED,
            cold_compiler=kept is None,
            contenders=names[1:],
            commit=git_commit(Path(__file__).resolve().parents[3]),
            **machine,
            **traffic,
        )
        lanes = [_Lane(one, workers[one.name], writer, tell) for one in entrants]
        at_once = max(1, machine["environment"]["cores"] // 4)
        with ThreadPoolExecutor(at_once) as pool:
            for lane in lanes:
                pool.submit(lane.ask, "hello", cache=cache(lane.name), **hello)
        for lane in lanes:
            lane.prepare(task, budget)
        for number in range(1, budget.rounds + 1):
            _round(number, lanes, gauge, writer, budget, tell)
        for lane in lanes:
            lane.finish()
    return all(lane.is_open for lane in lanes)


def _round(
    number: int,
    lanes: list["_Lane"],
    gauge: Stoppable,
    writer: records.Writer,
    budget: Budget,
    tell: Tell,
) -> None:
    """Measure the copies and everyone once, in an order of this round's own."""
    tell(f"round {number} of {budget.rounds}")
    try:
        found = gauge.ask("copy_bandwidth", limit_s=SLACK_S)
        writer.append(records.COPY, round=number, **found)
    except WorkerError as error:
        tell(f"copy bandwidth: {error}")
    for lane in random.Random(SEED + number).sample(lanes, len(lanes)):
        lane.round(number, budget)


class _Lane:
    """One contender and its process; what breaks ends in a record with the reason."""

    def __init__(
        self, contender: Contender, worker: Stoppable, writer: records.Writer, tell: Tell
    ) -> None:
        self.name = contender.name
        self.is_open = True
        self._worker, self._writer, self._tell = worker, writer, tell
        self._steps = LEAST_STEPS  # of a round
        self._first_loss = math.nan

    def ask(self, do: str, **arguments: Any) -> dict[str, Any] | None:
        """What the worker answers; None where it failed, now or before."""
        if not self.is_open:
            return None
        try:
            return self._worker.ask(do, **arguments)
        except WorkerError as error:
            self._fail(str(error))
            return None

    def prepare(self, task: Task, budget: Budget) -> None:
        """Build, compile, warm up."""
        self._tell(f"{self.name}: first steps")
        found = self.ask("prepare", contender=self.name, task=asdict(task), limit_s=PREPARE_LIMIT_S)
        self._worker.stop()
        if found is None:
            return
        self._first_loss = found["loss"]
        self._steps = steps_of_round(budget.round_s, found["step_s"], found["burst"])
        self._write(records.PREPARED, **found)

    def round(self, number: int, budget: Budget) -> None:
        """Take the steps of one round."""
        self._worker.go_on()
        found = self.ask("round", steps=self._steps, limit_s=10 * budget.round_s + SLACK_S)
        self._worker.stop()
        if found is not None:
            self._write(records.ROUND, round=number, **found)

    def finish(self) -> None:
        """Ask for memory; a loss that did not fall is no result."""
        self._worker.go_on()
        found = self.ask("finish", limit_s=SLACK_S)
        if found is None:
            return
        first, last = self._first_loss, found["loss"]
        if not last < first:  # also where it is NaN
            self._fail(f"wrong answer: the loss went from {first:.3f} to {last:.3f}")
            return
        self._write(records.END, **found)

    def _write(self, kind: str, **facts: Any) -> None:
        self._writer.append(kind, contender=self.name, **facts)

    def _fail(self, reason: str) -> None:
        self.is_open = False
        self._worker.kill()  # its memory is for the others
        self._tell(f"{self.name}: {reason}")
        self._write(records.FAILED, reason=reason)


def steps_of_round(round_s: float, step_s: float, burst: int) -> int:
    """How many steps fill a round.

    Loader processes that work side by side hand over about as many batches at once as there are
    of them: a round takes whole bursts where it has room for one.
    """
    steps = max(LEAST_STEPS, math.ceil(round_s / step_s))
    return math.ceil(steps / burst) * burst if steps >= burst else steps
