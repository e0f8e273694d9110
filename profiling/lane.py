"""One subject and its worker through a benchmark; whatever breaks ends in a reason."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiling import answers, samples
from profiling.host import LoadMeter
from profiling.process import START_LIMIT_S, WorkerError, WorkerProcess
from profiling.record import FAILED, OK, SKIPPED, GpuState, HostLoad
from profiling.subject import Subject

ROUNDS = 12  # into which a budget is cut
# Of a round on a CPU, between two turns of the reference kernel; on a GPU, whose speed changes
# slowly and whose energy counter too, a round is one piece.
PIECE_S = 0.1
LEAST_ROUNDS = 6  # before a measurement may end: fewer give no interval of their medians
LEAST_CALLS = 3
MOST_CALLS = 400  # of one round that are kept: so a record of four clocks stays below 240 kB
WARM_UP_SHARE = 0.2  # of the budget, at most
SETTLE_SHARE = 0.2  # a call shorter than this share of a piece may go uncounted at its start
RUNNING = "running"  # the status of a trial that has not ended
Answer = dict[str, Any]  # of a worker


@dataclass
class Trial:
    """One subject at one batch size, while it is measured."""

    subject: Subject
    batch: int
    budget_s: float
    status: str = RUNNING
    reason: str | None = None
    load_s: float | None = None
    runtime: str | None = None
    precision: str | None = None
    first_call_ms: float | None = None
    takes_bytes: bool = False  # in place of normalised images
    warmup_calls: int = 0
    is_stationary: bool | None = None
    call_ms: float = 0.0  # median of the last round or warm-up window
    untimed: int = 0  # calls between the timed ones
    spent_s: float = 0.0  # of the budget
    samples_ms: list[float] = field(default_factory=list)
    samples_cpu_ms: list[float] = field(default_factory=list)
    samples_enqueue_ms: list[float] = field(default_factory=list)
    samples_device_ms: list[float] = field(default_factory=list)
    round_calls: list[int] = field(default_factory=list)
    round_reference_ms: list[float] = field(default_factory=list)
    round_reference_samples_ms: list[tuple[float, ...]] = field(default_factory=list)
    round_reference_samples_cpu_ms: list[tuple[float, ...]] = field(default_factory=list)
    round_gpu: list[dict[str, Any]] = field(default_factory=list)  # worker.Worker._gpu_state
    logits_error: float | None = None
    host: HostLoad | None = None
    peak_memory_mib: float | None = None
    memory_method: str | None = None

    @property
    def is_enough(self) -> bool:
        """Whether the median is known, or the budget is spent."""
        if len(self.samples_ms) < LEAST_CALLS:
            return False
        if self.spent_s >= self.budget_s:
            return True
        if len(self.round_calls) < LEAST_ROUNDS:
            return False
        return samples.is_known(self.samples_ms, self.round_calls)

    @property
    def half_width(self) -> float | None:
        """The wider one of the interval of the median so far, as a share of it."""
        return samples.relative_half_width(self.samples_ms, self.round_calls)

    @property
    def share(self) -> float:
        """How much of it is done."""
        return min(1.0, self.spent_s / self.budget_s) if self.status == RUNNING else 1.0

    def keep(self, pieces: Sequence[Answer], references: Sequence[Answer]) -> None:
        """Add a round: the answers of its pieces, and of the reference kernel around each."""
        for taken in pieces:
            self.samples_ms += taken["wall_ms"]
            self.samples_cpu_ms += taken["cpu_ms"]
            self.samples_enqueue_ms += taken["enqueue_ms"]
            self.samples_device_ms += taken["device_ms"]
            self.untimed += taken["untimed"]
            self.round_gpu += [taken["gpu"]] if taken["gpu"] is not None else []
        self.round_calls.append(sum(len(taken["wall_ms"]) for taken in pieces))
        wall_ms, cpu_ms = (
            tuple(ms for reference in references for ms in reference[clock])
            for clock in ("wall_ms", "cpu_ms")
        )
        self.round_reference_ms.append(statistics.median(wall_ms))
        self.round_reference_samples_ms.append(wall_ms)
        self.round_reference_samples_cpu_ms.append(cpu_ms)
        self.call_ms = statistics.median(pieces[-1]["wall_ms"])

    @property
    def gpu(self) -> GpuState | None:
        """What NVML said after the rounds."""
        if not self.round_gpu:
            return None

        def each(name: str) -> list[Any]:
            return [state[name] for state in self.round_gpu if state[name] is not None]

        energies = each("energy_mj")
        images = self.batch * (sum(self.round_calls) + self.untimed)
        is_metered = len(energies) == len(self.round_gpu)
        reasons = {reason for met in each("throttled_by") for reason in met}
        return GpuState(
            clock_mhz=tuple(each("clock_mhz")),
            memory_clock_mhz=tuple(each("memory_clock_mhz")),
            temperature_c=tuple(each("temperature_c")),
            throttled_by=tuple(sorted(reasons)) if each("throttled_by") else None,
            peak_memory_mib=max(each("grown_mib"), default=None),
            energy_mj_per_image=round(sum(energies) / images, 6) if is_metered else None,
        )

    def end(self, status: str, reason: str) -> None:
        """Keep the status, the reason and what the session said it is; drop every number."""
        ended = Trial(self.subject, self.batch, self.budget_s, status, reason)
        ended.precision, ended.runtime = self.precision, self.runtime
        self.__dict__.update(ended.__dict__)


Stored = dict[str, Any]  # where a worker finds the test split; see bench._store
Tell = Callable[[Subject, int | None, str], None]  # (subject, batch, stage)


class Lane:
    """The worker of one subject, from its opening to its accuracy."""

    def __init__(
        self,
        subject: Subject,
        start: Callable[[], WorkerProcess],
        *,
        greeting: Mapping[str, Any],
        limit_s: float,
        stored: Stored | None,
        expected: answers.Answers,
        tell: Tell,
    ) -> None:
        self.subject = subject
        self.stored = stored
        self.accuracy: dict[str, Any] | None = None
        self._start = start
        self._greeting = greeting
        self._expected = expected
        self._limit_s = limit_s
        self._tell = tell
        self._opened: dict[str, Any] | None = None  # the answer of the open session
        self._closed: tuple[str, str] | None = None  # status and reason: never to be opened
        self._worker: WorkerProcess | None = None
        if subject.unavailable is None:
            self._worker = start()
        else:
            self._closed = SKIPPED, subject.unavailable

    @property
    def pid(self) -> int | None:
        """The process of its worker; None where there is none."""
        return self._worker.pid if self._worker is not None and self._worker.is_alive else None

    def meet(self) -> None:
        """Wait until the worker has loaded torch."""
        if self._closed is None:
            try:
                self._worker_at_work().ask("hello", limit_s=START_LIMIT_S, **self._greeting)
            except WorkerError as error:
                self._closed = FAILED, str(error)

    def open(self) -> None:
        """Open the session."""
        if self._closed is None:
            self._tell(self.subject, None, "opening")
            try:
                self._opened = self._ask(
                    "open",
                    opener=self.subject.opener,
                    path=self.subject.path,
                    allow=self.subject.allow,
                )
            except WorkerError as error:
                self._closed = SKIPPED if error.is_missing else FAILED, str(error)

    def prepare(self, trial: Trial) -> None:
        """First call, check of the answer, warm-up."""
        self._revive()
        if self._closed is not None:
            trial.end(*self._closed)
            return
        try:
            self._first_call(trial)
            if trial.status == RUNNING:
                self._warm_up(trial)
        except WorkerError as error:
            trial.end(FAILED, str(error))

    def round(self, trial: Trial, reference: Callable[[], Answer], before: Answer) -> Answer:
        """Time calls for a part of the budget; `before` is the reference kernel's last answer.

        The kernel runs after each piece, for a machine may change its speed within a second. Its
        last answer is returned, and begins the next round. Where a call fails, none is kept.
        """
        left_s = max(0.0, trial.budget_s - trial.spent_s)
        seconds = min(trial.budget_s / ROUNDS, left_s)
        is_cpu = self._greeting["device"] == "cpu"
        count = max(1, round(seconds / PIECE_S)) if is_cpu else 1
        pieces: list[Answer] = []
        references = [before]
        spent_s = 0.0
        while not pieces or spent_s < seconds:
            missing = LEAST_CALLS - len(trial.samples_ms) - sum(len(p["wall_ms"]) for p in pieces)
            try:
                taken = self._ask(
                    "time",
                    seconds=seconds / count,
                    least=1 if seconds < left_s else max(1, missing),
                    most=max(1, MOST_CALLS // count),
                    settle=1e-3 * trial.call_ms < SETTLE_SHARE * seconds / count,
                )
            except WorkerError as error:
                trial.end(FAILED, str(error))
                return reference()
            pieces.append(taken)
            references.append(reference())
            spent_s += taken["seconds"]
        trial.spent_s += spent_s
        trial.keep(pieces, references)
        return references[-1]

    def finish(self, trial: Trial, meter: LoadMeter) -> None:
        """After the last round check the answer again; take the peak memory and the load."""
        if not trial.is_enough:
            return
        try:
            peak, last = self._ask("peak_memory"), self._ask("last_call")
        except WorkerError as error:
            trial.end(FAILED, str(error))
            return
        assert trial.precision is not None
        reason = complaint(last, trial, trial.precision)
        if reason is not None:
            trial.end(FAILED, f"{reason} (in the call after the last round)")
            return
        trial.logits_error = max(
            (one for one in (trial.logits_error, last["error"]) if one is not None), default=None
        )
        trial.peak_memory_mib, trial.memory_method = peak["mib"], peak["method"]
        trial.host = meter.read()
        trial.status = OK

    def evaluate(self, batch: int) -> None:
        """Measure an accuracy that nobody knows yet; where that fails it stays unknown."""
        is_open = self._worker is not None and self._worker.is_alive and self._opened is not None
        if self.subject.is_unevaluated and self.stored is not None and is_open:
            self._tell(self.subject, None, "evaluating")
            try:
                self.accuracy = self._ask("evaluate", stored=self.stored, batch=batch)
            except WorkerError as error:
                self._tell(self.subject, None, f"no accuracy: {error}")

    def _revive(self) -> None:
        """Open the session again where its worker died at an earlier batch size."""
        if self._closed is None and self._worker is not None and not self._worker.is_alive:
            self._worker = self._start()
            self.meet()
            self.open()

    def _first_call(self, trial: Trial) -> None:
        assert self._opened is not None
        self._tell(self.subject, trial.batch, "first call")
        precision = trial.precision = self._opened["precision"]
        trial.runtime = self._opened["runtime"]
        first = self._ask(
            "first_call",
            batch=trial.batch,
            image_shape=self.subject.image_shape,
            stored=self.stored,
            expected=self._expected.expected(self.subject, trial.batch),
        )
        trial.takes_bytes = first["takes_bytes"]
        reason = complaint(first, trial, precision)
        if reason is not None:
            trial.end(FAILED, reason)
            return
        trial.first_call_ms, trial.logits_error = first["ms"], first["error"]
        trial.load_s = self._opened["load_s"]

    def _warm_up(self, trial: Trial) -> None:
        self._tell(self.subject, trial.batch, "warming up")
        warm = self._ask("warm_up", seconds=WARM_UP_SHARE * trial.budget_s)
        trial.warmup_calls, trial.is_stationary = warm["calls"], warm["is_stationary"]
        trial.call_ms, trial.spent_s = warm["call_ms"], warm["seconds"]

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self._worker_at_work().ask(do, limit_s=self._limit_s, **arguments)
        except WorkerError as error:
            if error.is_hung:  # once is long enough
                self._closed = FAILED, str(error)
            raise

    def _worker_at_work(self) -> WorkerProcess:
        assert self._worker is not None  # only a lane that is closed from the start has none
        return self._worker


def complaint(found: dict[str, Any], trial: Trial, precision: str) -> str | None:
    """What is wrong with the logits of a call; None where nothing is."""
    shape, classes = tuple(found["shape"]), trial.subject.num_classes
    if shape[:1] != (trial.batch,) or (classes is not None and shape[1:] != (classes,)):
        width = "K" if classes is None else classes
        return f"wrong answer: logits of shape {shape}, expected ({trial.batch}, {width})"
    if not found["is_finite"]:
        return "wrong answer: some logits are not finite"
    error, limit = found["error"], answers.limit(precision, takes_bytes=trial.takes_bytes)
    if error is not None and error > limit:
        return (
            f"wrong answer: logits differ from eager's by {error:.2g} of the largest, more than "
            f"the {limit:g} of {precision}"
        )
    return None
