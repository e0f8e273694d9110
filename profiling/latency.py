"""Wall time of calls to a session: warm-up, rounds, and a kernel to compare with."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.session import InferenceSession

DIGITS = 5  # of a millisecond: 10 ns, the most that a clock tells
MOST_CALLS = 500  # of one round; a median needs no more, and a record stays below 200 kB
WINDOW_S = 0.03  # least length of a warm-up window
WINDOW_CALLS = 3
WINDOWS_AGREE = 0.05  # share by which the medians of successive windows may differ
WINDOWS = 3  # that have to agree: two do so too while a session slowly gets faster
REFERENCE = "210 convolutions of 32 channels with ReLU: 2 of 8 images, 16 of 1, 192 of 1 of 4x4"
REFERENCE_CALLS = 5


@dataclass(frozen=True, slots=True)
class Calls:
    """What was measured of each of some calls, in milliseconds."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]  # of the process, all its threads
    enqueue_ms: tuple[float, ...] = ()  # until the call had returned; these two on a GPU alone
    device_ms: tuple[float, ...] = ()


class DeviceClock(Protocol):
    """Times what a device does between two moments, such as by CUDA events."""

    def start(self) -> None:
        """Mark the first moment."""
        ...

    def stop(self) -> None:
        """Mark the second."""
        ...

    def elapsed_ms(self) -> float:
        """Time between them, when the device has passed both."""
        ...


def time_calls(
    session: "InferenceSession",
    images: "Tensor",
    *,
    seconds: float,
    least: int = 1,
    device_clock: DeviceClock | None = None,
    before_each: Callable[[], None] | None = None,
) -> Calls:
    """Wall time and CPU time of each call in milliseconds, device work included.

    Calls go on for `seconds`, for at least `least` and at most MOST_CALLS of them. `images`
    already lie on the session's device: copies are not part of the figure, nor is `before_each`.
    """
    session.synchronize()
    wall_ms: list[float] = []
    cpu_ms: list[float] = []
    enqueue_ms: list[float] = []
    device_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(wall_ms) < MOST_CALLS:
        if time.perf_counter() >= end and len(wall_ms) >= least:
            break
        if before_each is not None:
            before_each()
        cpu_start = time.process_time()
        start = time.perf_counter()
        if device_clock is not None:
            device_clock.start()
        session.run(images)
        if device_clock is not None:
            device_clock.stop()
            enqueue_ms.append(_since(start, time.perf_counter()))
        session.synchronize()
        wall_ms.append(_since(start, time.perf_counter()))
        cpu_ms.append(_since(cpu_start, time.process_time()))
        if device_clock is not None:
            device_ms.append(round(device_clock.elapsed_ms(), DIGITS))
    return Calls(tuple(wall_ms), tuple(cpu_ms), tuple(enqueue_ms), tuple(device_ms))


def time_first_call(session: "InferenceSession", images: "Tensor") -> tuple[float, "Tensor"]:
    """Wall time in milliseconds of one call, compilation included, and its logits."""
    session.synchronize()
    start = time.perf_counter()
    logits = session.run(images)
    session.synchronize()
    return _since(start, time.perf_counter()), logits


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How a session was brought to its lasting speed."""

    calls: int
    call_ms: float  # median of the last window
    is_stationary: bool


def warm_up(session: "InferenceSession", images: "Tensor", *, seconds: float) -> WarmUp:
    """Call until the medians of WINDOWS successive windows agree, or for `seconds`.

    A window lasts WINDOW_S and holds at least WINDOW_CALLS calls. Where the first one alone takes
    longer than `seconds`, it is cut short: one call is the least.
    """
    return warm_up_windows(
        lambda length, least: time_calls(session, images, seconds=length, least=least).wall_ms,
        seconds,
    )


def warm_up_windows(window: Callable[[float, int], tuple[float, ...]], seconds: float) -> WarmUp:
    """Take windows of samples as `warm_up` describes; `window` maps (seconds, calls) to samples."""
    first = window(0.0, 1)
    calls, spent_ms, median_ms = 1, first[0], first[0]
    medians_ms: list[float] = []
    while spent_ms + WINDOW_CALLS * median_ms <= 1e3 * seconds:
        samples_ms = window(WINDOW_S, WINDOW_CALLS)
        calls += len(samples_ms)
        spent_ms += sum(samples_ms)
        median_ms = statistics.median(samples_ms)
        medians_ms = [*medians_ms, median_ms][-WINDOWS:]
        spread_ms = max(medians_ms) - min(medians_ms)
        if len(medians_ms) == WINDOWS and spread_ms <= WINDOWS_AGREE * median_ms:
            return WarmUp(calls, median_ms, True)
    return WarmUp(calls, median_ms, False)


def time_reference(device: str) -> Callable[[], Calls]:
    """A function that times a few calls of the reference kernel.

    It is a little of what networks do, always the same and in torch alone: 3x3 convolutions of 8
    images of 32 x 32, of one such image, and of one of 4 x 4, where dispatching is all the work.
    Each takes about a third of its time. It says how fast the machine is at that moment, so that
    results exist as a ratio to it.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    images = torch.randn((8, 32, 32, 32), generator=generator).to(device)
    weight = torch.randn((32, 32, 3, 3), generator=generator).to(device) / 17  # keeps the scale
    images, weight = (x.contiguous(memory_format=torch.channels_last) for x in (images, weight))
    small = images[:1, :, :4, :4].contiguous(memory_format=torch.channels_last)

    def kernel() -> None:
        for x, layers in ((images, 2), (images[:1], 16), (small, 192)):
            for _ in range(layers):
                x = torch.relu(torch.conv2d(x, weight, padding=1))

    def measure() -> Calls:
        wall_ms, cpu_ms = [], []
        for _ in range(REFERENCE_CALLS):
            cpu_start, start = time.process_time(), time.perf_counter()
            with torch.inference_mode():
                kernel()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            wall_ms.append(_since(start, time.perf_counter()))
            cpu_ms.append(_since(cpu_start, time.process_time()))
        return Calls(tuple(wall_ms), tuple(cpu_ms))

    return measure


def _since(start: float, end: float) -> float:
    """Milliseconds between two moments."""
    return round(1e3 * (end - start), DIGITS)
