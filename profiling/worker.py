"""The process that runs one session: `python -m profiling.worker`.

Requests come as JSON lines on stdin, each is answered by one line on what was stdout at the start.
Libraries that print find stderr there instead, and nobody but this module reads stdin.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TextIO

from profiling import answers, latency, memory
from zoo.allocator import keep_memory
from zoo.errors import MissingPackageError, OtherDeviceError, ZooError, is_out_of_memory

if TYPE_CHECKING:
    from profiling.gpu import Nvml
    from zoo.preprocess import Preprocessing

SEED = 0  # of random images
LONGEST_REASON = 300  # characters


class Worker:
    """One session on one device; each public method answers the request of its name."""

    def __init__(self) -> None:
        self._device = "cpu"
        self._session: Any = None
        self._images: Any = None
        self._expected: str | None = None  # file of the logits that these images have to give
        self._memory: Any = None
        self._references: dict[int, Callable[[], latency.Calls]] = {}  # by images
        self._clock: latency.DeviceClock | None = None
        self._nvml: Nvml | None = None
        self._grown_mib: float | None = 0.0  # memory of the GPU that the session has taken
        self._flush: Callable[[], None] | None = None

    def hello(
        self, device: str, threads: int | None, l2_flush: bool = False, core: int | None = None
    ) -> dict[str, Any]:
        """Load torch, set its threads, describe the machine, then keep to `core`."""
        import torch

        from zoo import environment

        if threads is not None:
            torch.set_num_threads(threads)
        self._device = device
        if device.startswith("cuda"):
            from profiling import gpu

            self._clock, self._nvml = gpu.CudaClock(device), gpu.open_nvml(device)
            self._flush = gpu.l2_flush(device) if l2_flush else None
        found = environment.capture(device).to_json()
        if core is not None:
            os.sched_setaffinity(0, {core})
        return found

    def reference(self, batch: int) -> dict[str, Any]:
        """Time the reference kernel for calls of `batch` images."""
        if batch not in self._references:
            self._references[batch] = latency.time_reference(self._device, batch)
            self._references[batch]()  # the first product sets the library up
        calls = self._references[batch]()
        return {"wall_ms": calls.wall_ms, "cpu_ms": calls.cpu_ms}

    def roofline(self) -> dict[str, Any]:
        """Time copies and matrix products."""
        from profiling.roofline import measure_here

        return measure_here(self._device)

    def open(self, opener: str, path: str, allow: str | None = None) -> dict[str, Any]:
        """Open the session; the import of the opener's own module is not part of its time.

        `allow`, where it is given, is passed on: it names the user's own network that the opener
        may import.
        """
        function = resolve_name(opener)
        consent = {} if allow is None else {"allow": allow}
        self._memory = memory.PeakMemory(self._device)
        self._grown_mib = 0.0
        with self._weighed():
            start = time.perf_counter()
            self._session = function(path, self._device, **consent)
            load_s = round(time.perf_counter() - start, 4)
        return {
            "load_s": load_s,
            "runtime": self._session.runtime,
            "precision": self._session.precision,
        }

    def first_call(
        self,
        batch: int,
        image_shape: list[int],
        stored: dict[str, Any] | None,
        expected: str | None = None,
    ) -> dict[str, Any]:
        """Make the images of this batch size, run them once and describe the logits.

        `expected` is a file of eager's logits, which they are compared with.
        """
        with self._weighed():
            images = _images(batch, image_shape, stored, self._device)
            feed = getattr(self._session, "feed", None)  # of a file that takes bytes in their place
            self._images = feed(images) if feed else images
            call_ms, logits = latency.time_first_call(self._session, self._images)
        takes_bytes = self._images.dtype != images.dtype
        is_same_input = not takes_bytes or stored is not None  # random images are no bytes
        self._expected = expected if is_same_input else None
        self._memory.reset()
        return {"ms": call_ms, "takes_bytes": takes_bytes, **self._described(logits)}

    def last_call(self) -> dict[str, Any]:
        """Run the same images once more and describe the logits."""
        return self._described(self._session.run(self._images))

    def _described(self, logits: Any) -> dict[str, Any]:
        return {
            "shape": list(logits.shape),
            "is_finite": bool(logits.isfinite().all()),
            "error": answers.error(self._expected, logits) if self._expected else None,
        }

    def answer(
        self, batch: int, image_shape: list[int], stored: dict[str, Any] | None, file: str
    ) -> dict[str, Any]:
        """Write the logits that `first_call` of another worker is to give."""
        logits = self._session.run(_images(batch, image_shape, stored, self._device))
        answers.write(logits, file)
        return {}

    def warm_up(self, seconds: float) -> dict[str, Any]:
        """Call until the times settle."""
        start = time.perf_counter()
        with self._weighed():
            result = latency.warm_up(self._session, self._images, seconds=seconds)
        return {
            "seconds": round(time.perf_counter() - start, 4),
            "calls": result.calls,
            "call_ms": result.call_ms,
            "is_stationary": result.is_stationary,
        }

    def time(self, seconds: float, least: int, most: int, settle: bool) -> dict[str, Any]:
        """A piece of a round of timed calls; with `settle` after one that is not counted.

        Between two pieces other workers have used the caches and this one's threads slept. Energy
        is absent where the L2 cache is overwritten, for the counter holds that too.
        """
        start = time.perf_counter()
        if settle:
            self._session.run(self._images)
            self._session.synchronize()
        is_metered = self._flush is None
        before_mj = self._nvml.energy_mj if self._nvml is not None and is_metered else None
        with self._weighed():
            calls = latency.time_calls(
                self._session,
                self._images,
                seconds=seconds,
                least=least,
                most=most,
                device_clock=self._clock,
                before_each=self._flush,
            )
        seconds = round(time.perf_counter() - start, 4)
        return {**asdict(calls), "seconds": seconds, "gpu": self._gpu_state(before_mj)}

    def _gpu_state(self, before_mj: int | None) -> dict[str, Any] | None:
        """What NVML says after calls that began at this reading of its energy counter."""
        if self._nvml is None:
            return None
        energy_mj = _growth(before_mj, self._nvml.energy_mj)
        return self._nvml.state() | {"energy_mj": energy_mj, "grown_mib": self._grown_mib}

    @contextmanager
    def _weighed(self) -> Iterator[None]:
        """Count by how much the GPU's memory grows meanwhile: one worker works at a time.

        NVML knows the memory of all processes together. What others take in between is theirs.
        """
        if self._nvml is None:
            yield
            return
        before_mib = self._nvml.used_mib
        yield
        grown_mib = _growth(before_mib, self._nvml.used_mib)
        if grown_mib is None or self._grown_mib is None:
            self._grown_mib = None
        else:
            self._grown_mib += grown_mib

    def peak_memory(self) -> dict[str, Any]:
        """Peak since the first call at this batch size."""
        mib, method = self._memory.read(self._session.runtime)
        return {"mib": mib, "method": method}

    def evaluate(self, stored: dict[str, Any], batch: int) -> dict[str, Any]:
        """Accuracy on all stored images."""
        import numpy as np

        from zoo.evaluate import evaluate

        result = evaluate(
            self._session,
            np.load(stored["images"], mmap_mode="r"),
            np.load(stored["labels"]),
            _preprocessing(stored),
            batch=batch,
        )
        return {"top1": result.top1, "top5": result.top5, "images": result.images}


def _growth(before: float | None, after: float | None) -> float | None:
    """By how much a reading has grown; None where either is unknown."""
    return None if before is None or after is None else after - before


def _images(batch: int, image_shape: list[int], stored: dict[str, Any] | None, device: str) -> Any:
    """Normalised images on the device, repeated where there are fewer stored than `batch`.

    Shapes:
        -> (B, C, H, W) float32, contiguous: a session that prefers another memory format converts
        in its own time, as it would for any caller.
    """
    import numpy as np
    import torch

    if stored is None:
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn((batch, *image_shape), generator=generator).to(device)
    images = np.load(stored["images"], mmap_mode="r")
    chosen = images[np.arange(batch) % len(images)]
    return _preprocessing(stored).to_batch(chosen, device).contiguous()


def _preprocessing(stored: dict[str, Any]) -> "Preprocessing":
    from zoo.plain import from_plain
    from zoo.preprocess import Preprocessing

    return from_plain(Preprocessing, stored["preprocessing"])


def _answer(worker: object, request: dict[str, Any]) -> dict[str, Any]:
    try:
        result = getattr(worker, request.pop("do"))(**request)
    except ZooError as error:
        reason = f"out of memory: {error}" if is_out_of_memory(error) else str(error)
        is_missing = isinstance(error, MissingPackageError | OtherDeviceError)
        return {"error": reason, "is_missing": is_missing}
    except Exception as error:  # whatever a library raises is the answer
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
        if is_out_of_memory(error):
            reason = f"out of memory: {reason}"
        return {"error": reason[:LONGEST_REASON], "is_missing": False}
    return {"result": result}


def _private_pipes() -> tuple[TextIO, TextIO]:
    """Our ends of stdin and stdout under numbers of their own; 0 is empty and 1 is stderr then."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def serve(worker: object) -> None:
    """Let `worker` answer until stdin closes, which is also how the death of the parent looks."""
    requests, answers = _private_pipes()
    for line in requests:
        answer = _answer(worker, json.loads(line))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    keep_memory()
    serve(Worker())
