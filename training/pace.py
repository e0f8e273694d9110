"""When an epoch is reported on, how fast it goes, and how far the host runs ahead of a GPU."""

import time
from collections.abc import Iterator

import torch

REPORT_SECONDS = 0.5  # between two progress reports within an epoch: each waits for the device
LEAD = 4  # steps that a GPU may have before it


class Lead:
    """Holds the host back where it would run far ahead of a GPU.

    A captured step is one launch, and many fit the queue of a GPU. A stop that is asked for, a save
    and a report would come after all of them, and the speed would be that of handing over.
    """

    def __init__(self, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        self._ends = [torch.cuda.Event(blocking=True) for _ in range(LEAD)] if is_gpu else []

    def follow(self) -> None:
        """Note that a step was handed over; wait until at most LEAD are under way."""
        if self._ends:
            oldest = self._ends.pop(0)
            oldest.synchronize()
            oldest.record()
            self._ends.append(oldest)


def paced(
    steps: Iterator[object], first: int, batch_size: int
) -> Iterator[tuple[int, float | None]]:
    """Number the steps after the `first`; with the images a second where a report is due."""
    start = reported = time.perf_counter()
    for step, _ in enumerate(steps, start=first + 1):
        now = time.perf_counter()
        is_due = now - reported >= REPORT_SECONDS
        reported = now if is_due else reported
        yield step, (step - first) * batch_size / (now - start) if is_due else None
