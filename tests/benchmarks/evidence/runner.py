"""Run tasks one after the other, or trainings side by side, until the time is up."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from profiling.evidence import CUT, FAILED, OK, SKIPPED, STEP, Step

from .child import GRACE_S, Child
from .place import Place
from .task import Harvest, Task

POLL_S = 0.1
SPOKEN_S = 20.0  # between two lines on a command under way
RESERVE_S = GRACE_S + 10.0  # of a call, for stopping what runs and storing what it left
LEAST_S = 90.0  # of a call, for a training that only a later call can finish
LATE_S = 5.0  # by which a command may predict to end too late
OVERLAP_S = 40.0  # before the predicted end of a training

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """When this call has to end, and what later ones will have."""

    ends: float  # as time.monotonic() tells it
    later_s: float

    @property
    def left_s(self) -> float:
        """For commands of this call."""
        return self.ends - RESERVE_S - time.monotonic()

    def has_time_for(self, task: Task) -> bool:
        """Whether a task can be done in this call, or begun in it and done in a later one."""
        if task.predicted_s <= self.left_s:
            return True
        can_go_on = task.can_resume and self.left_s >= LEAST_S
        return can_go_on and task.predicted_s <= self.left_s + self.later_s


@dataclass
class Running:
    """A task under way."""

    task: Task
    child: Child
    spoken: float


class Runner:
    """Starts tasks, watches them and stores what they leave."""

    def __init__(self, place: Place, clock: Clock, *, jobs: int, overlap: bool, tell: Tell) -> None:
        self.place, self.clock, self.tell = place, clock, tell
        self.jobs, self.overlap = jobs, overlap
        self.running: list[Running] = []
        self.begun = set(place.store.outcomes())  # by earlier calls
        self.has_failed = False

    def run(self, tasks: Sequence[Task]) -> list[Task]:
        """Run what there is time for, in this order; return what is left."""
        waiting = list(tasks)
        try:
            while waiting or self.running:
                if (task := self._next(waiting)) is not None:
                    waiting.remove(task)
                    self._start(task)
                elif not self.running:
                    break
                self._watch()
                time.sleep(POLL_S)
        finally:
            self._leave()
        return waiting

    def _next(self, waiting: Sequence[Task]) -> Task | None:
        """What may start now: a training beside others if that is wanted, all else alone."""
        for task in waiting:
            if not self.clock.has_time_for(task) or not task.is_ready(self.place):
                continue
            if not self.running:
                return task
            is_beside = task.can_resume and all(one.task.can_resume for one in self.running)
            return task if is_beside and self._has_room() else None
        return None

    def _has_room(self) -> bool:
        if len(self.running) < self.jobs:
            return True
        is_ending = any(
            one.child.left_s is not None and one.child.left_s <= OVERLAP_S for one in self.running
        )
        return self.overlap and is_ending and len(self.running) == self.jobs

    def _start(self, task: Task) -> None:
        if task.any_of and self.place.missing.issuperset(task.any_of):
            reason = f"{' and '.join(task.any_of)} is not installed"
            self._store(task, SKIPPED, reason, 0.0, Harvest())
            return
        limit = self.clock.left_s if task.limit_s is None else min(task.limit_s, self.clock.left_s)
        self.tell(f"{task.name}: predicted {clock_text(task.predicted_s)}, at most {limit:.0f} s")
        try:
            command = task.command(self.place)
        except Exception as error:  # what an earlier step left may be missing or damaged
            self._store(task, FAILED, f"{type(error).__name__}: {error}", 0.0, Harvest())
            return
        child = Child(command, env=self.place.env(), cwd=self.place.work, limit_s=limit)
        self.running.append(Running(task, child, time.monotonic()))

    def _watch(self) -> None:
        for one in list(self.running):
            code = one.child.poll()
            if code is not None:
                self.running.remove(one)
                self._finish(one, code)
                continue
            now = time.monotonic()
            if now - one.spoken >= SPOKEN_S and one.child.stderr:
                one.spoken = now
                self.tell(f"{one.task.name}: {one.child.stderr[-1].strip()}")
            available_s = self.clock.left_s + (self.clock.later_s if one.task.can_resume else 0.0)
            if (one.child.left_s or 0.0) > available_s + LATE_S:
                one.child.stop(
                    f"it needs {clock_text(one.child.left_s or 0.0)} more, "
                    f"{clock_text(max(0.0, available_s))} are left"
                )

    def _finish(self, one: Running, code: int) -> None:
        task, child = one.task, one.child
        if code == 0:
            status, reason = OK, None
        elif child.stopped_for is not None:
            is_late = task.limit_s is not None and child.must_end - child.started >= task.limit_s
            status, reason = FAILED if is_late else CUT, child.stopped_for
        else:
            status, reason = FAILED, child.error
        try:
            harvest = task.harvest(self.place, child.stdout)
        except Exception as error:  # one step must not take the others with it
            harvest = Harvest()
            if status == OK:
                status = FAILED
                reason = f"what it left cannot be read: {type(error).__name__}: {error}"
        if harvest.failure is not None and status == OK:
            status = FAILED
        if status == FAILED and child.stopped_for is None:
            reason = harvest.failure or reason
        if child.images_per_s and not harvest.facts.get("images_per_s"):
            facts = {**harvest.facts, "images_per_s": child.images_per_s}
            harvest = replace(harvest, facts=facts)
        if status == FAILED:
            self.place.store.log("\n".join(f"    {line}" for line in child.stderr))
        self._store(task, status, reason, child.seconds, harvest)

    def _store(
        self, task: Task, status: str, reason: str | None, seconds: float, harvest: Harvest
    ) -> None:
        facts: dict[str, Any] = dict(harvest.facts)
        if status == OK and facts.get("train_s") and task.name not in self.begun:
            facts["once_s"] = max(0.0, seconds - facts["train_s"])
        for kind, value in harvest.lines:
            self.place.store.add(kind, value)
        for run in harvest.runs:
            self.place.store.add_run(task.name, run, wall_s=seconds)
        outcome = Step(
            step=task.name,
            part=task.part,
            status=status,
            reason=reason,
            predicted_s=round(task.predicted_s, 1),
            seconds=round(seconds, 1),
            ended_at=now(),
            environment=self.place.environment,
            facts=facts,
        )
        self.place.store.add(STEP, outcome)
        self.place.store.summarise()
        self.has_failed |= status == FAILED
        said = f" ({reason})" if reason else ""
        self.tell(f"{task.name}: {status} after {seconds:.0f} s{said}")

    def _leave(self) -> None:
        """Stop what still runs, when this call is interrupted."""
        for one in self.running:
            one.child.stop("the call was interrupted")
        end = time.monotonic() + GRACE_S
        while self.running and time.monotonic() < end:
            for one in list(self.running):
                code = one.child.poll()
                if code is not None:
                    self.running.remove(one)
                    self._finish(one, code)
            time.sleep(POLL_S)
        for one in self.running:
            one.child.kill()


def now() -> str:
    """The time as steps store it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def clock_text(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
