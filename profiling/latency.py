"""Wall time of calls to a session: warm-up, rounds, and a kernel to compare with."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.session import InferenceSession

MOST_CALLS = 1000  # of one round; a median needs no more, and a record stays below 100 kB
WINDOW_S = 0.03  # least length of a warm-up window
WINDOW_CALLS = 3
WINDOWS_AGREE = 0.05  # share by which the medians of successive windows may differ
REFERENCE_SIDE = 512  # rows and columns of the reference kernel's matrices
REFERENCE_CALLS = 9


def time_calls(
    session: "InferenceSession", images: "Tensor", *, seconds: float, least: int = 1
) -> tuple[float, ...]:
    """Wall time of each call in milliseconds, device work included.

    Calls go on for `seconds`, for at least `least` and at most MOST_CALLS of them. `images`
    already lie on the session's device: copies are not part of the figure.
    """
    session.synchronize()
    samples_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples_ms) < MOST_CALLS:
        start = time.perf_counter()
        if start >= end and len(samples_ms) >= least:
            break
        session.run(images)
        session.synchronize()
        samples_ms.append(_rounded(1e3 * (time.perf_counter() - start)))
    return tuple(samples_ms)


def time_first_call(session: "InferenceSession", images: "Tensor") -> tuple[float, "Tensor"]:
    """Wall time in milliseconds of one call, compilation included, and its logits."""
    session.synchronize()
    start = time.perf_counter()
    logits = session.run(images)
    session.synchronize()
    return _rounded(1e3 * (time.perf_counter() - start)), logits


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a session was brought to its lasting speed."""

    calls: int
    call_ms: float  # median of the last window
    is_stationary: bool


def warm_up(session: "InferenceSession", images: "Tensor", *, seconds: float) -> WarmUp:
    """Call until the medians of two successive windows agree, or for `seconds`.

    A window lasts WINDOW_S and holds at least WINDOW_CALLS calls. Where the first one alone takes
    longer than `seconds`, it is cut short: one call is the least.
    """
    return warm_up_windows(
        lambda length, least: time_calls(session, images, seconds=length, least=least), seconds
    )


def warm_up_windows(window: Callable[[float, int], tuple[float, ...]], seconds: float) -> WarmUp:
    """Take windows of samples as `warm_up` describes; `window` maps (seconds, calls) to samples."""
    first = window(0.0, 1)
    calls, spent_ms, median_ms = 1, first[0], first[0]
    previous_ms = math.inf
    while spent_ms + WINDOW_CALLS * median_ms <= 1e3 * seconds:
        samples_ms = window(WINDOW_S, WINDOW_CALLS)
        calls += len(samples_ms)
        spent_ms += sum(samples_ms)
        median_ms = statistics.median(samples_ms)
        if abs(median_ms - previous_ms) <= WINDOWS_AGREE * median_ms:
            return WarmUp(calls, median_ms, True)
        previous_ms = median_ms
    return WarmUp(calls, median_ms, False)


def time_reference(device: str) -> Callable[[], float]:
    """A function that times the reference kernel: its median in milliseconds.

    The kernel is a product of two fixed float32 matrices of REFERENCE_SIDE x REFERENCE_SIDE. It
    says how fast the machine is at that moment, so that results exist as a ratio to it.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (2, REFERENCE_SIDE, REFERENCE_SIDE)
    left, right = torch.randn(size, generator=generator).to(device)
    result = torch.empty_like(left)

    def measure() -> float:
        samples_ms = []
        for _ in range(REFERENCE_CALLS):
            start = time.perf_counter()
            torch.mm(left, right, out=result)
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            samples_ms.append(1e3 * (time.perf_counter() - start))
        return _rounded(statistics.median(samples_ms))

    return measure


def _rounded(milliseconds: float) -> float:
    """To 10 ns, the most that a clock tells."""
    return round(milliseconds, 5)
