"""When a run is saved, and when it stops because somebody asked for it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from training.folder import RunFolder
from training.processes import summed
from zoo.signals import StopRequest

TALK_SECONDS = 1.0  # between two agreements of several processes, each of which waits for devices
SHARE_OF_TIME = 0.05  # that saving may take


class Saver:
    """Looks after a run at each step boundary; every process has one and they act at one step."""

    def __init__(self, folder: RunFolder, request: StopRequest, *, step_seconds: float) -> None:
        self.folder, self.request = folder, request
        self.world = folder.trainer.world
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
        """Save where the block, which lies between two epochs, ends in an error."""
        try:
            yield
        except BaseException:
            self.save()
            raise

    def save(self) -> None:
        """Save now."""
        start = time.monotonic()
        self.folder.save()
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - start

    def _agreed(self) -> tuple[int | None, bool]:
        number = self.request.number
        wait = max(self.folder.trainer.runtime.save_seconds, self.cost / SHARE_OF_TIME)
        is_due = time.monotonic() - self.saved_at >= wait
        if self.world == 1:
            return number, is_due
        mine = [number == signal.SIGINT, number == signal.SIGTERM, is_due]
        accelerator = self.folder.trainer.accelerator
        interrupted, terminated, due = summed(accelerator, [float(flag) for flag in mine])
        stop = signal.SIGTERM if terminated else signal.SIGINT if interrupted else None
        return stop, due > 0
