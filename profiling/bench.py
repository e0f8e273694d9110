"""Measure several backends side by side: one worker process each, in turns.

Within a batch size every backend gets a short round in turn, and a reference kernel runs between
the turns and within them: what slows the machine down for a while hits all of them alike.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling import samples
from profiling.answers import Answers
from profiling.host import LoadMeter, idlest_core
from profiling.lane import RUNNING, Lane, Stored, Trial
from profiling.latency import REFERENCE
from profiling.process import WorkerError, WorkerProcess
from profiling.record import FAILED, OK, Measurement, now
from profiling.reference import ReferenceWorker
from profiling.subject import Progress, Subject
from zoo.environment import Environment, git_commit
from zoo.errors import MachineError
from zoo.preprocess import Preprocessing
from zoo.signals import held_signals

if TYPE_CHECKING:
    from zoo.data import Dataset


def benchmark(
    subjects: Sequence[Subject],
    *,
    batches: Sequence[int] = (1, 256),
    budget_s: float = 10.0,
    device: str = "cpu",
    threads: int | None = None,
    data: "Dataset | None" = None,
    time_limit_s: float = 900.0,
    l2_flush: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Measurement]:
    """Measure each subject at each batch size, in turns; one record each, whatever happens.

    A measurement ends when the 95% confidence interval of its median is within 2% of it, or when
    `budget_s` is spent on warm-up and timing, with at least three calls. Opening a session and its
    first call, which compiles, come on top. The images are those of `data`'s test split where the
    subject was trained on it, otherwise random. Where the same network in eager torch is known,
    an answer that differs from its logits gives no number. `time_limit_s` is how long a session
    may take to open, or for one call or one round, before it counts as hung. With `l2_flush` a
    GPU's L2 cache is overwritten before each call.

    All sessions are open at once: give one model's backends in one call, not a whole catalogue.

    Raises:
        ValueError: no batch size, or one below 1, or no budget, or `l2_flush` without a GPU.
        MachineError: not even the reference kernel runs on `device`.
    """
    if not batches or min(batches) < 1 or not budget_s > 0:
        raise ValueError(f"no benchmark with batches {tuple(batches)} and budget_s {budget_s}")
    if l2_flush and not device.startswith("cuda"):
        raise ValueError(f"no L2 cache to flush on device {device!r}")
    trials = [
        [Trial(subject, batch, budget_s) for subject in subjects] for batch in sorted(set(batches))
    ]
    tell = _teller(trials, on_progress)
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder, ExitStack() as stack:

        def start() -> WorkerProcess:
            with held_signals():
                return stack.enter_context(WorkerProcess(threads=threads))

        # One worker works at a time, so all can share a core.
        core = idlest_core() if (device, threads) == ("cpu", 1) else None
        greeting = {"device": device, "threads": threads, "core": core}
        stored = _store(data, Path(folder)) if data is not None else None
        answers = Answers(Path(folder))
        reference = ReferenceWorker(start, greeting)
        lanes = [
            Lane(
                subject,
                start,
                greeting=greeting | {"l2_flush": l2_flush},
                limit_s=time_limit_s,
                stored=_stored_for(subject, stored, data),
                expected=answers,
                tell=tell,
            )
            for subject in subjects
        ]
        answers.compute(
            subjects,
            sorted(set(batches)),
            start,
            greeting=greeting,
            limit_s=time_limit_s,
            stored_for=lambda subject: _stored_for(subject, stored, data),
        )
        try:
            environment = _meet(reference, lanes, time_limit_s)
        except WorkerError as error:  # a lane keeps its own errors
            raise MachineError(f"no benchmark on device {device!r}: {error}") from None
        for lane in lanes:
            lane.open()
        for same_batch in trials:
            try:
                _measure(lanes, same_batch, reference, core, time_limit_s, tell)
            except WorkerError as error:
                for trial in same_batch:
                    if trial.status == RUNNING:
                        trial.end(FAILED, f"the reference kernel failed twice: {error}")
                        tell(trial.subject, trial.batch, trial.status)
        for lane, of_subject in zip(lanes, zip(*trials, strict=True), strict=True):
            if any(trial.status == OK for trial in of_subject):
                lane.evaluate(max(batches))
    commit = git_commit()
    return [
        _measurement(trial, lane, environment, commit, l2_flush=l2_flush)
        for lane, of_subject in zip(lanes, zip(*trials, strict=True), strict=True)
        for trial in of_subject
    ]


def _meet(reference: ReferenceWorker, lanes: Sequence[Lane], limit_s: float) -> Environment:
    """Wait until every worker has loaded torch: that beside a measurement would disturb it."""
    found = reference.hello()
    reference.ask("reference", limit_s=limit_s, batch=1)
    for lane in lanes:
        lane.meet()
    return Environment.from_json(found)


def _measure(
    lanes: Sequence[Lane],
    trials: Sequence[Trial],
    reference: ReferenceWorker,
    core: int | None,
    limit_s: float,
    tell: Callable[[Subject, int | None, str], None],
) -> None:
    """All subjects at one batch size: prepare each, then round-robin until none is left."""
    pairs = list(zip(lanes, trials, strict=True))
    for lane, trial in pairs:
        lane.prepare(trial)
        if trial.status != RUNNING:
            tell(trial.subject, trial.batch, trial.status)
    meter = LoadMeter(lambda: [reference.pid, *(lane.pid for lane in lanes if lane.pid)], core=core)
    batch = trials[0].batch

    def clock() -> dict[str, Any]:
        return reference.ask("reference", limit_s=limit_s, batch=batch)

    last = clock()
    while pairs := [(lane, trial) for lane, trial in pairs if trial.status == RUNNING]:
        for lane, trial in pairs:
            last = lane.round(trial, clock, last)
            if trial.status == RUNNING:
                lane.finish(trial, meter)
            stage = "timing" if trial.status == RUNNING else trial.status
            tell(trial.subject, trial.batch, stage)


def _teller(
    trials: Sequence[Sequence[Trial]], on_progress: Callable[[Progress], None] | None
) -> Callable[[Subject, int | None, str], None]:
    """A function that reports a stage with what the trials hold by then."""
    every = [trial for same_batch in trials for trial in same_batch]

    def tell(subject: Subject, batch: int | None, stage: str) -> None:
        if on_progress is None:
            return
        current = (t for t in every if t.subject is subject and t.batch == batch)
        trial = next(current, None)
        taken = trial.samples_ms if trial else []
        on_progress(
            Progress(
                subject=subject,
                batch=batch,
                stage=stage,
                share=statistics.fmean(trial.share for trial in every),
                calls=len(taken),
                p50_ms=statistics.median(taken) if taken else None,
                half_width=trial.half_width if trial else None,
                reason=trial.reason if trial else None,
            )
        )

    return tell


def _measurement(
    trial: Trial,
    lane: Lane,
    environment: Environment,
    commit: str | None,
    *,
    l2_flush: bool,
) -> Measurement:
    subject = trial.subject
    known: dict[str, Any] = {
        "top1": subject.top1,
        "top5": subject.top5,
        "images": subject.accuracy_images,
    }
    accuracy = known if lane.accuracy is None or trial.status != OK else lane.accuracy
    return Measurement(
        status=trial.status,
        reason=trial.reason,
        model=subject.model,
        backend=subject.backend,
        runtime=trial.runtime,
        precision=trial.precision or subject.precision,
        batch=trial.batch,
        input="random" if lane.stored is None else "test images",
        image_shape=subject.image_shape,
        params=subject.params,
        macs=subject.macs,
        file_bytes=subject.file_bytes,
        artifact_sha256=subject.artifact_sha256,
        top1=accuracy["top1"],
        top5=accuracy["top5"],
        accuracy_images=accuracy["images"],
        source=subject.source,
        load_s=trial.load_s,
        first_call_ms=trial.first_call_ms,
        warmup_calls=trial.warmup_calls,
        is_stationary=trial.is_stationary,
        samples_ms=tuple(trial.samples_ms),
        round_calls=tuple(trial.round_calls),
        round_reference_ms=tuple(trial.round_reference_ms),
        budget_s=trial.budget_s,
        budget_exhausted=trial.status == OK
        and not samples.is_known(trial.samples_ms, trial.round_calls),
        peak_memory_mib=trial.peak_memory_mib,
        memory_method=trial.memory_method,
        environment=environment,
        commit=commit,
        created_at=now(),
        samples_cpu_ms=tuple(trial.samples_cpu_ms),
        samples_enqueue_ms=tuple(trial.samples_enqueue_ms),
        samples_device_ms=tuple(trial.samples_device_ms),
        is_l2_flushed=l2_flush,
        reference_kernel=REFERENCE,
        round_reference_samples_ms=tuple(trial.round_reference_samples_ms),
        round_reference_samples_cpu_ms=tuple(trial.round_reference_samples_cpu_ms),
        logits_error=trial.logits_error,
        host=trial.host,
        gpu=trial.gpu,
        footprint=subject.footprint,
        build_s=subject.build_s,
        parity_max_error=subject.parity_max_error,
        parity_agreement=subject.parity_agreement,
    )


def _stored_for(subject: Subject, stored: Stored | None, data: "Dataset | None") -> Stored | None:
    """Where the subject's worker finds images and how it prepares them; None: random images."""
    if data is None or stored is None or subject.source is None:
        return None
    if subject.source.dataset_digest != data.digest:
        return None
    preprocessing = subject.preprocessing or Preprocessing.of(data)
    return stored | {"preprocessing": asdict(preprocessing)}


def _store(data: "Dataset", folder: Path) -> Stored:
    """Write the test split where the workers find it."""
    import numpy as np

    stored: Stored = {"images": str(folder / "images.npy"), "labels": str(folder / "labels.npy")}
    np.save(stored["images"], data.test.images)
    np.save(stored["labels"], data.test.fine)
    return stored
