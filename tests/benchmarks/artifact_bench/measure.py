"""Write the artifacts of a network, then time them and torch in turns."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export import check_written, load_target
from export.artifact import Artifact
from export.proof import Reference
from export.target import ExportOptions
from export.write import write_artifact
from profiling.bench import benchmark
from profiling.record import Measurement
from profiling.runs import run_subjects
from profiling.samples import by_round
from profiling.subject import Opening, Subject
from zoo.environment import git_commit
from zoo.errors import ZooError

from .eager_nchw import BACKEND, OPENER
from .networks import Network
from .say import say
from .sheet import ALL_BITS, Entry, Sheet, Timing
from .training import trained_images

# Targets and the precisions that they compute in on a CPU.
WRITTEN = (
    *(("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8")),
    *(("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")),
    *(("aoti", "fp32"), ("torchexport", "fp32")),
)


def measure(
    network: Network,
    *,
    written: Sequence[tuple[str, str]] = WRITTEN,
    batches: Sequence[int],
    threads: Sequence[int],
    budget_s: float,
) -> Sheet:
    """Everything that the page tells of this network."""
    artifacts, failed = write(network, written)
    entries: dict[tuple[str, str], Entry] = {}
    timings: dict[tuple[str, str], list[Timing]] = {}
    environment = None
    for count in threads:
        say(f"{network.run.meta.model}: timing on {count} thread{'s' if count > 1 else ''}")
        records = benchmark(
            subjects(network, artifacts, evaluate=not entries),
            batches=batches,
            budget_s=budget_s,
            threads=count,
            data=network.data,
        )
        environment = environment or records[0].environment
        for record in records:
            label = (record.backend, record.precision)
            timing = _timing(record, count, folder=network.run.path)
            timings.setdefault(label, []).append(timing)
            if label not in entries:
                entries[label] = _entry(record, artifacts)
    assert environment is not None  # at least one number of threads
    meta = network.run.meta
    return Sheet(
        model=meta.model,
        run=network.run.path.name,
        trained_images=trained_images(meta),
        weights_sha256=meta.weights_sha256,
        dataset=meta.dataset.name,
        dataset_digest=meta.dataset.digest,
        environment=environment.to_json(),
        commit=git_commit(Path(__file__).resolve().parents[3]),
        budget_s=budget_s,
        entries=(
            *(replace(entry, timings=tuple(timings[label])) for label, entry in entries.items()),
            *failed,
        ),
    )


def write(
    network: Network, written: Sequence[tuple[str, str]]
) -> tuple[list[Artifact], list[Entry]]:
    """The artifacts that were proven, and why the others are none."""
    options = ExportOptions()
    reference = Reference(network.run, network.data)
    artifacts, failed = [], []
    for name, precision in written:
        say(f"{network.run.meta.model}: writing {name} {precision}")
        try:
            target = load_target(name)
            check_written(target, precision)
            artifacts.append(
                write_artifact(reference, target, precision=precision, options=options)
            )
        except ZooError as error:
            reason = _within(network.run.path, str(error))
            failed.append(Entry(backend=name, precision=precision, reason=reason))
    return artifacts, failed


def subjects(network: Network, artifacts: Sequence[Artifact], *, evaluate: bool) -> list[Subject]:
    """torch in both memory formats, compiled, and the artifacts."""
    eager, compiled, *files = run_subjects(network.run.path, artifacts=artifacts)
    contiguous = replace(
        eager,
        backend=BACKEND,
        opener=OPENER,
        eager=Opening(eager.opener, eager.path),
    )
    return [
        replace(one, top1=None, top5=None, accuracy_images=None, is_unevaluated=evaluate)
        for one in (contiguous, eager, compiled)
    ] + files


def _entry(record: Measurement, artifacts: Sequence[Artifact]) -> Entry:
    label = (record.backend, record.precision)
    artifact = next((one for one in artifacts if (one.backend, one.precision) == label), None)
    parity = None if artifact is None else artifact.parity
    return Entry(
        backend=record.backend,
        precision=record.precision,
        runtime=record.runtime,
        file_bytes=record.file_bytes,
        top1=record.top1,
        accuracy_images=record.accuracy_images,
        agreement=parity and parity.top1_agreement,
        agreement_images=parity and parity.images,
        max_abs_error=parity and parity.max_abs_error,
        weight_bits=_weight_bits(artifact),
    )


def _weight_bits(artifact: Artifact | None) -> int:
    if artifact is None or "int8" not in artifact.facts:
        return ALL_BITS
    return int(artifact.facts["int8"]["weight_bits"])


def _timing(record: Measurement, threads: int, *, folder: Path) -> Timing:
    cpu_ms, wall_ms = (
        tuple(round(statistics.median(taken), 5) for taken in by_round(ms, record.round_calls))
        for ms in (record.samples_cpu_ms, record.samples_ms)
    )
    return Timing(
        threads=threads,
        batch=record.batch,
        status=record.status,
        reason=record.reason and _within(folder, record.reason),
        calls=record.round_calls,
        cpu_ms=cpu_ms,
        wall_ms=wall_ms,
    )


def _within(folder: Path, text: str) -> str:
    """Without the name of a folder that is gone when the record is read."""
    return text.replace(f"{folder}/", "")
