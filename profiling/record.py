"""A measurement as one JSON file. Imports no torch, so reports build anywhere."""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiling import samples
from profiling.footprint import Footprint, intensity
from zoo.environment import Environment
from zoo.errors import RecordError
from zoo.files import read_json, write_atomic
from zoo.plain import from_plain

SCHEMA = 2  # described in record.schema.json
OK, FAILED, SKIPPED = "ok", "failed", "skipped"
FIRST_REFERENCE = "product of two 512 x 512 float32 matrices"  # of all records of schema 1
BUSY = 0.1  # cores in other hands, or of the measured core, that are worth saying
RECORDS = "records"  # the folder name by which records are found
STUDY = "study.json"  # in a folder whose records have a report of their own


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The training run that the measured weights come from."""

    run: str  # name of its folder
    seed: int
    recipe: str
    selection: str  # "validation": the best epoch on held-out training images; "last": the last
    weights_sha256: str
    dataset: str
    dataset_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HostLoad:
    """Who else used the CPU between the first and the last round; shares of all its cores' time."""

    others: float  # other processes of this machine
    steal: float  # other machines, where this one is virtual
    clock_mhz: float | None = None  # mean of the cores at the end; None where nothing tells
    core: int | None = None  # to which all of one thread was kept; None: it could move
    cores: int | None = None  # of which the shares are; None in older records
    of_core: float | None = None  # of the time of `core` alone: others, other machines among them

    @property
    def is_busy(self) -> bool:
        """Whether the times must be read with care; who had one core is as busy as of many."""
        return (self.others + self.steal) * (self.cores or 1) > BUSY or (self.of_core or 0.0) > BUSY


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuState:
    """What NVML said of the GPU at the end of each round; None or empty where it does not tell."""

    clock_mhz: tuple[int, ...] = ()  # of the multiprocessors
    memory_clock_mhz: tuple[int, ...] = ()
    temperature_c: tuple[int, ...] = ()
    throttled_by: tuple[str, ...] | None = None  # reasons that were met in any round
    peak_memory_mib: float | None = None  # largest of the rounds, less that before opening
    energy_mj_per_image: float | None = None  # of the whole device, over the timed calls


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One model on one backend at one batch size; facts only, statistics are derived.

    A backend that could not run leaves a status, its reason and no numbers of time or memory.

    An untrained network is as it is initialised with seed 0: it has no source, no file and no
    accuracy, and its digest is that of its name, its image size, and the name, shape and dtype of
    each entry of its state dict.
    """

    status: str  # OK, FAILED or SKIPPED (something optional is missing on this machine)
    reason: str | None  # why there are no numbers; None where status is OK
    model: str
    backend: str
    runtime: str | None  # what ran it, with its version; None if it was never opened
    precision: str
    batch: int  # images per call
    input: str  # "test images" (normalised) or "random" (standard normal, seeded)
    image_shape: tuple[int, int, int] | None = None  # (C, H, W); older records do not tell
    params: int | None  # trainable, of the network before export; None if they cannot be counted
    macs: int | None  # per image
    file_bytes: int | None  # weights file for eager and compile, the artifact otherwise
    artifact_sha256: str  # of that file; of the structure where there is none
    top1: float | None  # of this very artifact, in [0, 1]; None if not evaluated
    top5: float | None
    accuracy_images: int | None  # how many images top1 counts
    source: Source | None  # None for a file or a network that no run of ours made
    load_s: float | None  # from the opener's call to a session, library imports included
    first_call_ms: float | None  # at this batch size; holds compilation, less with a warm cache
    warmup_calls: int  # after the first call, before the samples
    is_stationary: bool | None  # successive warm-up windows agreed before their time was up
    samples_ms: tuple[float, ...]  # every timed call, input copies excluded
    round_calls: tuple[int, ...]  # how many of them each interleaved round gave
    round_reference_ms: tuple[
        float, ...
    ]  # median of the reference kernel around each of those rounds
    budget_s: float
    budget_exhausted: bool  # the time ended before the median was known
    peak_memory_mib: float | None  # None where it cannot be told
    memory_method: str | None  # one of profiling.memory.METHODS
    environment: Environment
    commit: str | None  # of cifar-zoo, where it ran from a checkout
    created_at: str  # ISO 8601, UTC
    # Since schema 2. A list that belongs to calls is empty, or has an entry for each of them.
    samples_cpu_ms: tuple[float, ...] = ()  # CPU time of the process, all its threads
    samples_enqueue_ms: tuple[float, ...] = ()  # until a call on a GPU had returned
    samples_device_ms: tuple[float, ...] = ()  # between CUDA events before and after a call
    is_l2_flushed: bool = False  # the GPU's L2 cache was overwritten before each call
    reference_kernel: str = FIRST_REFERENCE
    # Each call of it, for each round; it ran just before and just after that round.
    round_reference_samples_ms: tuple[tuple[float, ...], ...] = ()
    round_reference_samples_cpu_ms: tuple[tuple[float, ...], ...] = ()
    logits_error: float | None = None  # largest difference from eager's by its largest logit
    host: HostLoad | None = None
    gpu: GpuState | None = None
    footprint: Footprint | None = None  # of the network before export
    build_s: float | None = None  # that the export took; None where nothing was exported
    # Of the artifact and eager on the CPU, on test images, as its proof found it; None: not proven.
    parity_max_error: float | None = None  # largest difference of a logit (onnx-raw: probability)
    parity_agreement: float | None = None  # share of the images with the same class, in [0, 1]
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        checks = {
            "status": self.status in (OK, FAILED, SKIPPED),
            "batch": self.batch >= 1,
            "samples_ms": _are_times(self.samples_ms)
            and (self.status != OK or len(self.samples_ms) > 0),
            "round_reference_ms": _are_times(self.round_reference_ms)
            and len(self.round_reference_ms) == len(self.round_calls),
            "round_calls": sum(self.round_calls) == len(self.samples_ms)
            and all(calls > 0 for calls in self.round_calls),
        }
        for name in ("samples_cpu_ms", "samples_enqueue_ms", "samples_device_ms"):
            times = getattr(self, name)
            checks[name] = len(times) in (0, len(self.samples_ms)) and _are_times(times)
        for name in ("round_reference_samples_ms", "round_reference_samples_cpu_ms"):
            rounds = getattr(self, name)
            checks[name] = len(rounds) in (0, len(self.round_calls))
            checks[name] &= all(times and _are_times(times) for times in rounds)
        for name in ("top1", "top5", "parity_agreement"):
            share = getattr(self, name)
            checks[name] = share is None or 0 <= share <= 1
        for name, holds in checks.items():
            if not holds:
                raise ValueError(f"{name} does not fit the other fields")

    @property
    def is_untrained(self) -> bool:
        """Whether there is neither a run nor a file: a network as it is initialised."""
        return self.source is None and self.file_bytes is None

    @property
    def flops(self) -> int | None:
        """Two per multiply-accumulate, per image."""
        return None if self.macs is None else 2 * self.macs

    @property
    def activation_bytes(self) -> int | None:
        """The most that a call holds at once beside the weights, in float32."""
        return None if self.footprint is None else self.footprint.activation_bytes(self.batch)

    @property
    def intensity(self) -> float | None:
        """FLOPs of a call by the least bytes that it moves in this precision."""
        if self.footprint is None or self.macs is None:
            return None
        return intensity(self.footprint, self.macs, self.batch, self.precision)

    @property
    def p50_ms(self) -> float | None:
        """Median time of a call."""
        return statistics.median(self.samples_ms) if self.samples_ms else None

    @property
    def p90_ms(self) -> float | None:
        """Nine calls of ten are at least as fast."""
        return samples.percentile(self.samples_ms, 0.90) if self.samples_ms else None

    @property
    def p95_ms(self) -> float | None:
        """Of fewer than 20 calls, the slowest."""
        return samples.percentile(self.samples_ms, 0.95) if self.samples_ms else None

    @property
    def p99_ms(self) -> float | None:
        """Of fewer than 100 calls, the slowest."""
        return samples.percentile(self.samples_ms, 0.99) if self.samples_ms else None

    @property
    def min_ms(self) -> float | None:
        """The fastest call."""
        return min(self.samples_ms, default=None)

    @property
    def mean_ms(self) -> float | None:
        """Arithmetic mean of the calls."""
        return statistics.fmean(self.samples_ms) if self.samples_ms else None

    @property
    def sd_ms(self) -> float | None:
        """Standard deviation of the calls; None of a single one."""
        return statistics.stdev(self.samples_ms) if len(self.samples_ms) > 1 else None

    @property
    def cpu_p50_ms(self) -> float | None:
        """Median CPU time of a call."""
        return statistics.median(self.samples_cpu_ms) if self.samples_cpu_ms else None

    @property
    def enqueue_p50_ms(self) -> float | None:
        """Median time until a call on a GPU had returned."""
        return statistics.median(self.samples_enqueue_ms) if self.samples_enqueue_ms else None

    @property
    def device_p50_ms(self) -> float | None:
        """Median time of a call on the GPU's own clock."""
        return statistics.median(self.samples_device_ms) if self.samples_device_ms else None

    @property
    def images_per_s(self) -> float | None:
        """Throughput at the median time, one call after the other."""
        return 1e3 * self.batch / statistics.median(self.samples_ms) if self.samples_ms else None

    @property
    def ci_half_width(self) -> float | None:
        """The wider half of the median's 95% confidence interval, as a share of it."""
        return samples.relative_half_width(self.samples_ms, self.round_calls)

    @property
    def ci_reached(self) -> bool:
        """Whether the median is known as well as the bench wants it."""
        return samples.is_known(self.samples_ms, self.round_calls)

    @property
    def relative(self) -> samples.Ratio | None:
        """Time of a call in units of the reference kernel of the same moments.

        Of one thread on a CPU both are CPU times, which other processes disturb less.
        """
        return samples.ratio_of_rounds(self.round_ratios(by_cpu=self.has_cpu_ratios))

    @property
    def has_cpu_ratios(self) -> bool:
        """Whether CPU times were kept that say all of a call: those of one thread on a CPU."""
        is_alone = self.environment.device == "cpu" and self.environment.threads == 1
        return is_alone and bool(self.samples_cpu_ms and self.round_reference_samples_cpu_ms)

    def round_ratios(self, *, by_cpu: bool) -> list[float]:
        """Of each round, the time of a call in units of the reference kernel around it.

        Of CPU times both are means: where two hardware threads share a core, calls have one of two
        speeds, and a median is either of them. Of wall times both are medians.
        """
        if by_cpu:
            return samples.paired(
                self.samples_cpu_ms,
                self.round_calls,
                self.round_reference_samples_cpu_ms,
                middle=statistics.fmean,
            )
        medians = [(ms,) for ms in self.round_reference_ms]
        return samples.paired(self.samples_ms, self.round_calls, medians)

    @property
    def reference_ratio(self) -> float | None:
        """The value of `relative`."""
        ratio = self.relative
        return None if ratio is None else ratio.value

    @property
    def file_name(self) -> str:
        """Says what was measured; the folder says where."""
        parts = (self.model, self.backend, self.precision, f"b{self.batch}")
        flushed = ("l2flush",) if self.is_l2_flushed else ()
        label = "-".join((*parts, *flushed, self.artifact_sha256[:12]))
        return re.sub(r"[^A-Za-z0-9._-]", "_", label) + ".json"

    def path_in(self, folder: Path) -> Path:
        """Where it lies below a folder."""
        return folder / RECORDS / self.environment.key / self.file_name

    def write(self, folder: Path) -> Path:
        """Write to <folder>/records/<environment key>/, in place of an older one of this name."""
        path = self.path_in(folder)
        lines = (f" {json.dumps(key)}: {json.dumps(item)}" for key, item in to_json(self).items())
        write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
        return path


def _are_times(milliseconds: Sequence[float]) -> bool:
    """Whether all are finite and above 0."""
    return not milliseconds or (min(milliseconds) > 0 and math.isfinite(sum(milliseconds)))


def to_json(record: Measurement) -> dict[str, Any]:
    """What a record file holds; described in record.schema.json."""
    return asdict(record) | {"environment": record.environment.to_json()}


def now() -> str:
    """The time as records hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(path: Path) -> Measurement:
    """Read one record.

    Raises:
        RecordError: the file is damaged or of a newer schema.
    """
    value = read_json(path, RecordError)
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise RecordError(f"{path} is no measurement record: it states no schema; remove it")
    if value["schema"] > SCHEMA:
        raise RecordError(
            f"{path} has schema {value['schema']}, this version reads up to {SCHEMA}: "
            "update cifar-zoo"
        )
    try:
        return from_plain(Measurement, value)
    except (TypeError, ValueError) as reason:
        raise RecordError(
            f"{path} is a damaged record ({reason}): remove it and run zoo-bench again"
        ) from None


def read_records(
    *folders: Path, on_damage: Callable[[RecordError], None] | None = None
) -> list[Measurement]:
    """Every record in a folder named `records` at or below one of `folders`; other JSON is left.

    A folder with a `study.json` has a report of its own: its records are read where it is named,
    and left by whoever names a folder above it. With `on_damage`, a record that cannot be read is
    reported to it and left out.

    Raises:
        RecordError: a record is damaged or of a newer schema, or a folder does not exist.
    """
    found: dict[Path, Measurement | None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(f"there is no folder {folder}: measure a run with zoo-bench")
        for path in _record_files(folder.resolve()):
            if path in found:
                continue
            try:
                found[path] = read_record(path)
            except RecordError as error:
                if on_damage is None:
                    raise
                on_damage(error)
                found[path] = None
    return [record for record in found.values() if record is not None]


def _record_files(folder: Path) -> Iterator[Path]:
    above = (folder.parent.name, folder.name)  # someone may name <run>/records or its one key
    studies = {path.parent for path in folder.rglob(STUDY)} - {folder}
    for path in sorted(folder.rglob("*.json")):
        is_record = RECORDS in (*above, *path.relative_to(folder).parts[:-1])
        if is_record and studies.isdisjoint(path.parents):
            yield path
