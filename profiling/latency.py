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
WINDOW_S = 0.03  # least length of a warm-up window
WINDOW_CALLS = 3
WINDOWS_AGREE = 0.05  # share by which the medians of successive windows may differ
WINDOWS = 3  # that have to agree: two do so too while a session slowly gets faster
REFERENCE = (
    "12 convolutions of 16 to 64 channels, batch norm, ReLU; images as in a call, 64 at most; "
    "freed memory kept"
)
REFERENCE_IMAGES = 64  # at most
REFERENCE_S = 0.03  # of calls, before and after each piece of a round
REFERENCE_CALLS = 2  # at least


@dataclass(frozen=True, slots=True)
class Calls:
    """What was measured of each of some calls, in milliseconds."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]  # of the process, all its threads
    enqueue_ms: tuple[float, ...] = ()  # until the call had returned; these two on a GPU alone
    device_ms: tuple[float, ...] = ()
    untimed: int = 0  # other calls between them


class DeviceClock(Protocol):
    """Times what a device does between two moments, such as by CUDA events."""

    def start(self) -> None:
        """Mark the first moment."""
        ...

    def stop(self) -> None:
        """Mark the second."""
        ...

    def elapsed_ms(self) -> float:
        """Time between them; waits until the device has passed both."""
        ...


def time_calls(
    session: "InferenceSession",
    images: "Tensor",
    *,
    seconds: float,
    least: int = 1,
    most: int | None = None,
    device_clock: DeviceClock | None = None,
    before_each: Callable[[], None] | None = None,
) -> Calls:
    """Wall time and CPU time of each call in milliseconds, device work included.

    Calls go on for `seconds`, and for at least `least` of them. Where more than `most` would fit,
    so many are timed at equal distances, and the calls between them are not. `images` already lie
    on the session's device: copies are not part of the figure, nor is `before_each`.
    """
    session.synchronize()
    wall_ms: list[float] = []
    cpu_ms: list[float] = []
    enqueue_ms: list[float] = []
    device_ms: list[float] = []
    untimed = 0
    begin = time.perf_counter()
    distance_s = 0.0 if most is None else seconds / most
    while True:
        elapsed_s = time.perf_counter() - begin
        if elapsed_s >= seconds and len(wall_ms) >= least:
            break
        if elapsed_s < len(wall_ms) * distance_s:
            session.run(images)
            session.synchronize()
            untimed += 1
            continue
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
    return Calls(tuple(wall_ms), tuple(cpu_ms), tuple(enqueue_ms), tuple(device_ms), untimed)


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


def time_reference(device: str, batch: int) -> Callable[[], Calls]:
    """A function that times a few calls of the reference kernel for calls of `batch` images.

    It says how fast the machine is at that moment, so that results exist as a ratio to it. It is a
    little of what networks do, always the same and in torch alone: for each of three stages, four
    3x3 convolutions with batch norm and ReLU. It takes as many images as what is measured, for a
    machine does not slow dispatching, which is most of a call of one image, and arithmetic alike.
    """
    import torch
    from torch.nn.functional import batch_norm, conv2d

    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> "Tensor":
        values = torch.randn(shape, generator=generator).to(device)
        return values.contiguous(memory_format=torch.channels_last)

    images = min(batch, REFERENCE_IMAGES)
    stages = [
        (
            drawn(images, width, size, size),
            drawn(width, width, 3, 3) / (3 * width**0.5),  # keeps the scale
            torch.zeros(width, device=device),
            torch.ones(width, device=device),
        )
        for width, size in ((16, 32), (32, 16), (64, 8))
    ]

    def kernel() -> None:
        for x, weight, mean, variance in stages:
            for _ in range(4):
                x = torch.relu(batch_norm(conv2d(x, weight, padding=1), mean, variance))

    def measure() -> Calls:
        wall_ms: list[float] = []
        cpu_ms: list[float] = []
        while len(wall_ms) < REFERENCE_CALLS or sum(wall_ms) < 1e3 * REFERENCE_S:
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
