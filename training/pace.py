"""When an epoch is reported on, and how fast it goes."""

import time
from collections.abc import Iterator

REPORT_SECONDS = 0.5  # between two progress reports within an epoch: each waits for the device


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
