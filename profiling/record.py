"""A measurement as one JSON file. Imports no torch, so reports build anywhere."""

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from profiling import samples
from zoo.environment import Environment
from zoo.errors import RecordError
from zoo.files import read_json, write_atomic
from zoo.plain import from_plain

SCHEMA = 1
OK, FAILED, SKIPPED = "ok", "failed", "skipped"
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
    round_reference_ms: tuple[float, ...]  # median of the reference kernel in each of those rounds
    budget_s: float
    budget_exhausted: bool  # the time ended before the median was known
    peak_memory_mib: float | None  # None where it cannot be told
    memory_method: str | None  # one of profiling.memory.METHODS
    environment: Environment
    commit: str | None  # of cifar-zoo, where it ran from a checkout
    created_at: str  # ISO 8601, UTC
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        checks = {
            "status": self.status in (OK, FAILED, SKIPPED),
            "batch": self.batch >= 1,
            "samples_ms": all(ms > 0 for ms in self.samples_ms),
            "round_reference_ms": all(ms > 0 for ms in self.round_reference_ms)
            and len(self.round_reference_ms) == len(self.round_calls),
            "round_calls": sum(self.round_calls) == len(self.samples_ms)
            and all(calls > 0 for calls in self.round_calls),
        }
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
    def p50_ms(self) -> float | None:
        """Median time of a call."""
        return statistics.median(self.samples_ms) if self.samples_ms else None

    @property
    def p90_ms(self) -> float | None:
        """Nine calls of ten are at least as fast."""
        return samples.percentile(self.samples_ms, 0.90) if self.samples_ms else None

    @property
    def p99_ms(self) -> float | None:
        """Of fewer than 100 calls, the slowest."""
        return samples.percentile(self.samples_ms, 0.99) if self.samples_ms else None

    @property
    def min_ms(self) -> float | None:
        """The fastest call."""
        return min(self.samples_ms, default=None)

    @property
    def images_per_s(self) -> float | None:
        """Throughput at the median time, one call after the other."""
        return 1e3 * self.batch / statistics.median(self.samples_ms) if self.samples_ms else None

    @property
    def ci_half_width(self) -> float | None:
        """Half the 95% confidence interval of the median, as a share of it."""
        return samples.relative_half_width(self.samples_ms)

    @property
    def ci_reached(self) -> bool:
        """Whether the median is known as well as the bench wants it."""
        return samples.is_known(self.samples_ms)

    @property
    def reference_ratio(self) -> float | None:
        """Median over the rounds of their median time by that of the reference kernel.

        What slows the whole machine down slows both, so this drifts less than a time.
        """
        ratios = []
        start = 0
        for calls, reference_ms in zip(self.round_calls, self.round_reference_ms, strict=True):
            ratios.append(statistics.median(self.samples_ms[start : start + calls]) / reference_ms)
            start += calls
        return statistics.median(ratios) if ratios else None

    @property
    def file_name(self) -> str:
        """Says what was measured; the folder says where."""
        parts = (self.model, self.backend, self.precision, f"b{self.batch}")
        label = "-".join((*parts, self.artifact_sha256[:12]))
        return re.sub(r"[^A-Za-z0-9._-]", "_", label) + ".json"

    def write(self, folder: Path) -> Path:
        """Write to <folder>/records/<environment key>/, in place of an older one of this name."""
        path = folder / RECORDS / self.environment.key / self.file_name
        value = asdict(self) | {"environment": self.environment.to_json()}
        lines = (f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
        write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
        return path


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


def read_records(*folders: Path) -> list[Measurement]:
    """Every record in a folder named `records` at or below one of `folders`; other JSON is left.

    A folder with a `study.json` has a report of its own: its records are read where it is named,
    and left by whoever names a folder above it.

    Raises:
        RecordError: a record is damaged or of a newer schema, or a folder does not exist.
    """
    found: dict[Path, Measurement] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(f"there is no folder {folder}: measure a run with zoo-bench")
        for path in _record_files(folder.resolve()):
            found.setdefault(path, read_record(path))
    return list(found.values())


def _record_files(folder: Path) -> Iterator[Path]:
    above = (folder.parent.name, folder.name)  # someone may name <run>/records or its one key
    studies = {path.parent for path in folder.rglob(STUDY)} - {folder}
    for path in sorted(folder.rglob("*.json")):
        is_record = RECORDS in (*above, *path.relative_to(folder).parts[:-1])
        if is_record and studies.isdisjoint(path.parents):
            yield path
