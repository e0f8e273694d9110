"""One trial in pieces: its calls, its warm-up, its rounds, its end and the check of its answer."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_records import measurement

from profiling import Subject
from profiling.answers import Answers, error
from profiling.lane import (
    LEAST_CALLS,
    LEAST_ROUNDS,
    MOST_CALLS,
    ROUNDS,
    Lane,
    Trial,
    complaint,
)
from profiling.latency import time_calls, warm_up_windows
from profiling.process import WorkerError
from profiling.record import to_json
from profiling.reference import ReferenceWorker
from profiling.worker import Worker

BUDGET_S = 0.3


def subject(opener: str, **facts: object) -> Subject:
    defaults = {"model": "m", "precision": "fp32", "artifact_sha256": "ab" * 32, "file_bytes": 1}
    return Subject(**defaults | {"backend": opener, **facts}, opener="any:any", path="/nowhere")


@pytest.mark.parametrize(
    ("shape", "classes", "reason"),
    [
        ([8, 10], 10, None),
        ([8, 10], None, None),
        ([8, 7], 10, "wrong answer: logits of shape (8, 7), expected (8, 10)"),
        ([1, 10], None, "wrong answer: logits of shape (1, 10), expected (8, K)"),
    ],
)
def test_shape_of_the_answer(shape: list[int], classes: int | None, reason: str | None) -> None:
    trial = Trial(subject("any", num_classes=classes), 8, BUDGET_S)

    first = {"shape": shape, "is_finite": True, "error": None}
    assert complaint(first, trial, "fp32") == reason


@pytest.mark.parametrize(
    ("error", "precision", "takes_bytes", "reason"),
    [
        (1e-3, "fp32", False, None),
        (0.05, "fp32", False, "by 0.05 of the largest, more than the 0.001 of fp32"),
        (0.05, "fp16", False, None),
        (0.05, "fp32", True, None),
        (math.inf, "int8", False, "by inf of the largest, more than the 0.5 of int8"),
    ],
)
def test_how_far_an_answer_may_be_from_eagers(
    error: float, precision: str, takes_bytes: bool, reason: str | None
) -> None:
    trial = Trial(subject("any"), 8, BUDGET_S, takes_bytes=takes_bytes)
    first = {"shape": [8, 10], "is_finite": True, "error": error}

    found = complaint(first, trial, precision)

    assert found == (reason and f"wrong answer: logits differ from eager's {reason}")


def test_probabilities_are_compared_with_probabilities(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    file = tmp_path / "answer.npy"
    np.save(file, logits.numpy())

    assert error(str(file), logits.softmax(1)) < 1e-6
    assert error(str(file), logits + 0.5) == pytest.approx(0.25)  # the largest is 2
    assert error(str(file), logits[:, :2]) == math.inf


class SteadySession:
    """Takes a millisecond."""

    backend, precision, runtime, device = "steady", "fp32", "none", "cpu"

    def run(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.001)
        return images

    def synchronize(self) -> None:
        pass


def test_calls_follow_time_and_limits() -> None:
    images = torch.zeros(1)

    assert len(time_calls(SteadySession(), images, seconds=0, least=2).wall_ms) == 2
    assert 3 <= len(time_calls(SteadySession(), images, seconds=0.05).wall_ms) <= 50


def test_fast_calls_are_timed_at_equal_distances_until_the_time_is_over() -> None:
    start = time.perf_counter()

    calls = time_calls(SteadySession(), torch.zeros(1), seconds=0.2, most=4)

    assert time.perf_counter() - start >= 0.2
    assert len(calls.wall_ms) == len(calls.cpu_ms) == 4
    assert 4 <= calls.untimed <= 196


@pytest.mark.parametrize(("device", "pieces"), [("cpu", 8), ("cuda", 1)])
def test_a_round_takes_its_time_and_is_charged_with_it(device: str, pieces: int) -> None:
    worker, trial = Worker(), Trial(subject("any"), 1, 12.0, spent_s=1.0)
    worker._session, worker._images = SteadySession(), torch.zeros(1)
    lane = Lane(
        subject("any"),
        FakeWorkerProcess,
        greeting={"device": device},
        limit_s=1.0,
        stored=None,
        expected=Answers(Path()),
        tell=lambda *report: None,
    )

    taken = worker.time(seconds=0.05, least=1, most=9, settle=True)
    kernel = iter({"wall_ms": (wall_ms,), "cpu_ms": (0.5,)} for wall_ms in range(1, 99))
    last = lane.round(trial, lambda: next(kernel), next(kernel))

    assert taken["seconds"] >= 0.05
    assert len(taken["wall_ms"]) <= 9
    assert trial.spent_s == pytest.approx(1.0 + (1.0 if device == "cpu" else 1.025))
    assert trial.round_calls == [2 * pieces]
    # The kernel runs before the first piece and after each; the last turn begins the next round.
    assert trial.round_reference_samples_ms == [tuple(range(1, pieces + 2))]
    assert last["wall_ms"] == (pieces + 1,)


class FakeWorkerProcess:
    """Answers that two calls took a little longer than was asked for."""

    def ask(self, do: str, **arguments: object) -> dict[str, object]:
        assert do == "time"
        calls = dict.fromkeys(("wall_ms", "cpu_ms"), (2.0, 2.0))
        none = {"enqueue_ms": (), "device_ms": (), "untimed": 0, "gpu": None}
        return {**calls, **none, "seconds": arguments["seconds"] + 0.025}


class FakeReferenceProcess:
    """Answers with its number, or is dead."""

    def __init__(self, number: int, is_dead: bool) -> None:
        self.pid, self._is_dead = number, is_dead

    def ask(self, do: str, **arguments: object) -> dict[str, object]:
        if self._is_dead and do != "hello":
            raise WorkerError(f"{self.pid} died")
        return {"who": self.pid}

    def kill(self) -> None:
        pass


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_the_reference_is_started_anew_once(deaths: int) -> None:
    started: list[FakeReferenceProcess] = []

    def start() -> FakeReferenceProcess:
        started.append(FakeReferenceProcess(len(started) + 1, len(started) < deaths))
        return started[-1]

    reference = ReferenceWorker(start, {})
    if deaths < 2:
        assert reference.ask("reference", limit_s=1.0) == {"who": deaths + 1}
    else:
        for _ in range(2):  # nor is a third one started when asked again
            with pytest.raises(WorkerError, match="^2 died$"):
                reference.ask("reference", limit_s=1.0)

    assert len(started) == min(2, deaths + 1)
    assert reference.pid == len(started)


@pytest.mark.parametrize(("is_gpu", "turns"), [(False, 8), (True, 2)])  # of the kernel, a round
def test_the_largest_record_of_the_usual_budget_stays_small(is_gpu: bool, turns: int) -> None:
    of_calls = dict.fromkeys(("samples_ms", "samples_cpu_ms"), (1.23456,) * ROUNDS * MOST_CALLS)
    if is_gpu:
        of_device = ("samples_enqueue_ms", "samples_device_ms")
        of_calls |= dict.fromkeys(of_device, (1.23456,) * ROUNDS * MOST_CALLS)
    kernel = ((1.23456,) * turns * 40,) * ROUNDS  # one image takes it almost a millisecond

    record = measurement(
        **of_calls,
        round_calls=(MOST_CALLS,) * ROUNDS,
        round_reference_ms=(1.23456,) * ROUNDS,
        round_reference_samples_ms=kernel,
        round_reference_samples_cpu_ms=kernel,
    )

    assert len(json.dumps(to_json(record))) < 240_000


@pytest.mark.parametrize(
    ("rounds", "calls", "spread", "spent_s", "is_enough"),
    [
        (LEAST_ROUNDS - 1, 9, 0.001, 5.0, False),  # too few, however alike
        (LEAST_ROUNDS, 9, 0.001, 5.0, True),  # known before the budget is spent
        (LEAST_ROUNDS, 9, 0.5, 5.0, False),
        (LEAST_ROUNDS, 9, 0.5, 10.0, True),  # the budget is spent
        (1, LEAST_CALLS - 1, 0.001, 10.0, False),
    ],
)
def test_when_a_trial_ends(
    rounds: int, calls: int, spread: float, spent_s: float, is_enough: bool
) -> None:
    trial = Trial(subject("any"), 1, budget_s=10.0, spent_s=spent_s)
    trial.samples_ms = [1.0 + spread * (call % 2) for call in range(rounds * calls)]
    trial.round_calls = [calls] * rounds

    assert trial.is_enough == is_enough


def windows(*medians_ms: float) -> Callable[[float, int], tuple[float, ...]]:
    """A source of warm-up windows with these medians; the first is one call."""
    left: Iterator[float] = iter(medians_ms)
    return lambda seconds, least: (next(left),) * least


def test_warm_up_ends_when_three_windows_agree() -> None:
    still_faster = windows(90.0, 20.0, 12.0, 11.7, 11.2, 10.8, 10.9, 1.0)

    result = warm_up_windows(still_faster, seconds=10)

    assert (result.calls, result.call_ms, result.is_stationary) == (1 + 6 * 3, 10.9, True)


def test_warm_up_ends_with_its_time() -> None:
    result = warm_up_windows(windows(100.0, 80.0, 60.0, 40.0), seconds=0.6)

    assert (result.calls, result.call_ms, result.is_stationary) == (1 + 2 * 3, 60.0, False)
