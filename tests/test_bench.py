import os
import signal
import statistics
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from bench_helpers import workers_of
from few_images import few_images
from sample_records import SOURCE

from profiling import Measurement, Progress, Subject, benchmark
from profiling.answers import AGREEMENT, error, write
from profiling.lane import Trial
from profiling.latency import (
    REFERENCE,
    REFERENCE_CALLS,
)
from profiling.memory import RESIDENT
from profiling.process import WorkerError, WorkerProcess
from profiling.record import FAILED, OK, SKIPPED
from profiling.reference import ReferenceWorker
from profiling.subject import Opening
from zoo.data import load_dataset
from zoo.preprocess import Preprocessing

BATCHES = (1, 8)
EAGER = Opening("openers:real", "resnet_20")
BUDGET_S = 0.3
LIMIT_S = 6.0  # above any call here, on a loaded machine too


def subject(opener: str, path: str = "/nowhere", **facts: object) -> Subject:
    defaults = {"model": "m", "precision": "fp32", "artifact_sha256": "ab" * 32, "file_bytes": 1}
    return Subject(**defaults | {"backend": opener, **facts}, opener=f"openers:{opener}", path=path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def reports() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def records(folder: Path, reports: list[Progress]) -> dict[tuple[str, int], Measurement]:
    """One benchmark of everything that can happen, by backend and batch size."""
    subjects = [
        subject("real", "resnet_20", num_classes=100),
        subject("segfault"),
        subject("missing"),
        subject("HungSession"),
        subject("FragileSession"),
        subject("WrongSession"),
        subject("DriftingSession"),
        subject("SlowSession"),
        subject("LoggingSession", str(folder / "first"), backend="first"),
        subject("GreedySession", str(folder / "second"), backend="second"),
        subject("real", backend="unavailable", unavailable="there is no compiler"),
        subject("StarvedSession"),
        subject("real", "resnet_20", backend="same", eager=EAGER),
        subject("swapped", "resnet_20", eager=EAGER),
        subject("real", "resnet_20", backend="alone", eager=Opening("openers:segfault", "")),
    ]
    found = benchmark(
        subjects,
        batches=(8, 1),
        budget_s=BUDGET_S,
        threads=1,
        time_limit_s=LIMIT_S,
        on_progress=reports.append,
    )
    assert [(r.backend, r.batch) for r in found] == [
        (one.backend, batch) for one in subjects for batch in BATCHES
    ]
    return {(record.backend, record.batch): record for record in found}


Records = dict[tuple[str, int], Measurement]


@pytest.mark.parametrize("batch", BATCHES)
def test_real_model(records: Records, batch: int) -> None:
    record = records["real", batch]

    assert (record.status, record.reason) == (OK, None)
    assert record.runtime == f"torch {torch.__version__}"
    assert record.environment.threads == 1
    assert record.input == "random"
    assert len(record.samples_ms) == sum(record.round_calls) >= 3
    assert len(record.round_reference_ms) == len(record.round_calls)
    assert 0.05 < record.samples_ms[0] < 10_000
    assert record.first_call_ms is not None
    assert record.load_s is not None
    assert record.warmup_calls >= 1
    assert record.budget_exhausted == (not record.ci_reached)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("backend", "status", "reason"),
    [
        ("segfault", FAILED, "the process was ended by SIGSEGV"),
        ("HungSession", FAILED, f"no answer to 'first_call' within {LIMIT_S:g} s: stopped"),
        ("unavailable", SKIPPED, "there is no compiler"),
        (
            "missing",
            SKIPPED,
            "--backend trt needs the package tensorrt, which is not installed: in a clone of "
            "cifar-zoo run pip install '.[trt]'",
        ),
    ],
)
def test_what_cannot_run_leaves_its_reason(
    records: Records, backend: str, batch: int, status: str, reason: str
) -> None:
    record = records[backend, batch]

    assert (record.status, record.reason) == (status, reason)
    assert record.samples_ms == record.round_calls == record.round_reference_ms == ()
    timings = (record.load_s, record.first_call_ms, record.peak_memory_mib, record.p50_ms)
    assert timings == (None,) * 4


def test_wrong_answers_leave_no_numbers(records: Records) -> None:
    record = records["WrongSession", 1]

    assert record.reason == "wrong answer: some logits are not finite"
    assert record.samples_ms == ()


def test_an_answer_that_turns_wrong_later_leaves_no_numbers(records: Records) -> None:
    record = records["DriftingSession", 1]

    assert record.samples_ms == ()
    assert record.reason == (
        "wrong answer: some logits are not finite (in the call after the last round)"
    )


def test_an_error_is_cut_to_its_first_line(records: Records) -> None:
    assert records["WrongSession", 8].reason == "RuntimeError: this file takes batch 1 only"


@pytest.mark.parametrize("batch", BATCHES)
def test_an_answer_that_is_not_eagers_leaves_no_numbers(records: Records, batch: int) -> None:
    same, swapped = records["same", batch], records["swapped", batch]

    assert same.status == OK
    assert same.logits_error is not None
    assert same.logits_error <= AGREEMENT["fp32"]
    assert records["real", batch].logits_error is None  # nothing to compare with
    assert (swapped.status, swapped.samples_ms) == (FAILED, ())
    assert str(swapped.reason).startswith("wrong answer: logits differ from eager's by ")


def test_a_wrong_network_has_no_accuracy() -> None:
    data = few_images(load_dataset("cifar100-mini"))
    source = replace(SOURCE, dataset_digest=data.digest)
    facts = {"source": source, "preprocessing": Preprocessing.of(data), "is_unevaluated": True}

    right, wrong = benchmark(
        [
            subject("real", "resnet_20", backend="same", eager=EAGER, **facts),
            subject("swapped", "resnet_20", eager=EAGER, **facts),
        ],
        batches=(1,),
        budget_s=0.05,
        threads=1,
        data=data,
    )

    assert (right.status, wrong.status) == (OK, FAILED)
    assert right.accuracy_images == 64
    assert (wrong.top1, wrong.top5, wrong.accuracy_images) == (None, None, None)


def test_what_failed_keeps_what_it_is() -> None:
    trial = Trial(subject("real"), 8, 1.0, precision="fp16", runtime="onnxruntime 1.31")
    trial.samples_ms = [1.0]

    trial.end(FAILED, "no")

    assert (trial.precision, trial.runtime, trial.samples_ms) == ("fp16", "onnxruntime 1.31", [])


@pytest.mark.parametrize("found", ["logits", "probabilities"])
@pytest.mark.parametrize("expected", ["logits", "probabilities"])
def test_probabilities_are_compared_with_probabilities(
    expected: str, found: str, tmp_path: Path
) -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    answers = {"logits": logits, "probabilities": logits.softmax(1)}
    write(answers[expected], str(tmp_path / "answer.npy"))

    difference = error(str(tmp_path / "answer.npy"), answers[found])

    # A network that ends in probabilities cannot give logits.
    agrees = (expected, found) != ("probabilities", "logits")
    assert (difference < 1e-6) == agrees


def test_without_eagers_answer_there_is_no_number(records: Records) -> None:
    record = records["alone", 8]

    assert record.samples_ms == ()
    assert record.reason == (
        "its answer cannot be checked: eager: the process was ended by SIGSEGV"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS, which Linux enforces")
@pytest.mark.parametrize("batch", BATCHES)
def test_memory_that_runs_out_is_said(records: Records, batch: int) -> None:
    record = records["StarvedSession", batch]

    assert (record.status, record.samples_ms) == (FAILED, ())
    assert str(record.reason).startswith("out of memory: RuntimeError: ")


def test_cpu_time_and_reference_of_every_round(records: Records) -> None:
    record, idle = records["real", 1], records["SlowSession", 1]

    assert len(record.samples_cpu_ms) == len(record.samples_ms)
    assert record.samples_enqueue_ms == record.samples_device_ms == ()
    assert record.reference_kernel == REFERENCE
    for calls in (record.round_reference_samples_ms, record.round_reference_samples_cpu_ms):
        assert len(calls) == len(record.round_calls)
        assert min(map(len, calls)) >= 2 * REFERENCE_CALLS
    first = statistics.median(record.round_reference_samples_ms[0])
    assert record.round_reference_ms[0] == first
    assert record.relative is not None
    assert record.relative.value > 0
    assert idle.cpu_p50_ms is not None
    assert idle.cpu_p50_ms < 50 < 200 <= min(idle.samples_ms)  # it sleeps: no CPU time
    assert (record.gpu, record.is_l2_flushed) == (None, False)


def test_a_dead_worker_is_replaced_for_the_next_batch_size(records: Records) -> None:
    assert records["FragileSession", 1].reason == "the process was ended by SIGSEGV"
    assert records["FragileSession", 8].status == OK


def test_a_library_that_prints_does_not_disturb(records: Records) -> None:
    assert records["second", 8].status == OK


def test_at_least_three_calls_under_a_tiny_budget(records: Records) -> None:
    record = records["SlowSession", 1]

    assert len(record.samples_ms) == 3
    assert min(record.samples_ms) >= 200
    assert record.budget_exhausted
    assert not record.is_stationary


def test_sessions_take_turns(records: Records, folder: Path) -> None:
    log = [line.split() for line in (folder / "log").read_text().splitlines()]

    assert [batch for batch, _ in groupby(batch for _, batch in log)] == ["1", "8"]
    for batch in BATCHES:
        turns = [who for who, _ in groupby(who for who, size in log if size == str(batch))]
        # Both are prepared and then timed in rounds; one may be done before the other.
        rounds = min(len(records[who, batch].round_calls) for who in ("first", "second"))
        assert rounds >= 2
        assert turns[: 2 + 2 * rounds] == ["first", "second"] * (1 + rounds)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which only Linux has")
def test_peak_memory_of_what_a_session_keeps_and_uses(records: Records) -> None:
    record = records["second", 1]
    if record.memory_method != RESIDENT:
        pytest.skip("needs a /proc/self/clear_refs that can be written")

    assert record.peak_memory_mib is not None
    assert 128 <= record.peak_memory_mib < 160
    small = records["SlowSession", 1].peak_memory_mib
    assert small is not None
    assert small < 32


def test_progress_reports_every_end(records: Records, reports: list[Progress]) -> None:
    ends = [(r.subject.backend, r.batch) for r in reports if r.stage in (OK, FAILED, SKIPPED)]

    assert sorted(ends) == sorted(records)
    shares = [report.share for report in reports]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_no_worker_is_left(records: Records) -> None:
    assert workers_of(os.getpid()) == []


class DyingReference(ReferenceWorker):
    """Dies before its first answer, and then before that of any batch size but 1."""

    is_killed = False

    def ask(self, do: str, *, limit_s: float, **arguments: object) -> dict[str, object]:
        if not self.is_killed or arguments["batch"] != 1:
            self.is_killed = True
            os.kill(self.pid, signal.SIGKILL)
        return super().ask(do, limit_s=limit_s, **arguments)


@pytest.mark.slow
def test_a_dead_reference_is_replaced_once_and_then_costs_what_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("profiling.bench.ReferenceWorker", DyingReference)

    first, second = benchmark([subject("SlowSession")], batches=(1, 8), budget_s=0.1)

    assert (first.batch, first.status) == (1, OK)
    assert (second.batch, second.status) == (8, FAILED)
    assert second.reason == (
        "the reference kernel failed twice: the process was ended by SIGKILL (out of memory?)"
    )


@pytest.mark.parametrize(("batches", "budget_s"), [((), 1.0), ((0, 1), 1.0), ((1,), 0.0)])
def test_impossible_benchmarks_are_refused(batches: tuple[int, ...], budget_s: float) -> None:
    with pytest.raises(ValueError, match="no benchmark with batches"):
        benchmark([], batches=batches, budget_s=budget_s)


def test_interrupt_ends_the_workers() -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "warming up":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark([subject("SlowSession")], batches=(1,), on_progress=interrupt)

    assert workers_of(os.getpid()) == []


def test_worker_ignores_what_hits_the_terminal() -> None:
    with WorkerProcess() as worker:
        assert os.getpgid(worker._process.pid) != os.getpgid(0)


def test_a_signal_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -40 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    with WorkerProcess() as worker, pytest.raises(WorkerError, match="was ended by signal 40$"):
        worker.ask("hello", limit_s=60, device="cpu", threads=1)


def test_last_words_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho the licence has run out >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    with (
        WorkerProcess() as worker,
        pytest.raises(WorkerError, match="ended with exit code 3: the licence has run out$"),
    ):
        worker.ask("hello", limit_s=60, device="cpu", threads=1)
