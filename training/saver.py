"""When a run is saved, and when it stops because somebody asked for it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator

from training.processes import summed
from zoo.signals import StopRequest

TALK_SECONDS = 1.0  # between two agreements of several processes, each of which waits for devices
SHARE_OF_TIME = 0.05  # that saving may take


class Folder(Protocol):
    """Where a run is saved."""

    def save(self) -> None:
        """Save all that a resume needs."""
        ...


class Saver:
    """Looks after a run at each step boundary; every process has one and they act at one step.

    `step_seconds` only matters to several processes.
    """

    def __init__(
        self,
        folder: Folder,
        request: StopRequest,
        accelerator: Accelerator,
        *,
        save_seconds: float,
        step_seconds: float = TALK_SECONDS,
    ) -> None:
        self.folder, self.request = folder, request
        self.accelerator, self.world = accelerator, accelerator.num_processes
        self.save_seconds = save_seconds
        self.steps_between_talks = max(1, round(TALK_SECONDS / max(step_seconds, 1e-6)))
        self.steps = 0
        self.saved_at = time.monotonic()
        self.cost = 0.0  # seconds of the last save

    def at_boundary(self) -> None:
        """Save if it is time and stop if it was asked for; called after every step.

        Raises:
            KeyboardInterrupt: (or what else the signal means) after a save.
        """
        self.steps += 1
        if self.world == 1 or self.steps % self.steps_between_talks == 0:
            self.between_epochs()

    def between_epochs(self) -> None:
        """The same where all processes are sure to meet."""
        stop, is_due = self._agreed()
        if stop is not None or is_due:
            self.save()
        if stop is not None:
            self.request.obey(stop)

    @contextmanager
    def saved_if_cut_short(self) -> Iterator[None]:
        """Save where the block, which lies between two epochs, ends in an error in any process."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
        if sum(summed(self.accelerator, [float(error is not None)])):
            self.save()
        if error is not None:
            raise error

    def save(self) -> None:
        """Save now."""
        start = time.monotonic()
        self.folder.save()
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - start

    def _agreed(self) -> tuple[int | None, bool]:
        number = self.request.number
        wait = max(self.save_seconds, self.cost / SHARE_OF_TIME)
        is_due = time.monotonic() - self.saved_at >= wait
        if self.world == 1:
            return number, is_due
        mine = [number == signal.SIGINT, number == signal.SIGTERM, is_due]
        interrupted, terminated, due = summed(self.accelerator, [float(flag) for flag in mine])
        stop = signal.SIGTERM if terminated else signal.SIGINT if interrupted else None
        return stop, due > 0


def stop_note(run: Path) -> str:
    """What a signal is answered with."""
    return f"stopping after this step, to go on with --resume {run}; once more stops at once"
