"""Merge a folder of evidence into a clone: records, runs, and weights that are better or new."""

import hashlib
import json
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from profiling import evidence
from profiling.evidence import Evidence, TrainedRun, read_evidence
from profiling.evidence_summary import summary
from profiling.record import read_record
from profiling.roofline import keep, kept
from zoo import checkpoint
from zoo.errors import RecordError, ZooError
from zoo.files import write_atomic, write_json
from zoo.pretrained import Card, card, store_weights

RESULTS = "bench_results"
DATASET = "cifar100"  # whose weights are shipped
PAGE, README = "gpu", "README.md"  # the folder of what has no other place

Draw = Callable[[Sequence[Mapping[str, Any]], Path], None]  # metrics of a run, as a picture


@dataclass
class Merged:
    """What an import did."""

    written: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def merge_here(folder: Path, *, others: Sequence[Path], draw: Draw) -> int:
    """Merge into the clone around the working folder, and print what was written.

    Raises:
        ZooError: there are other folders, or the working folder lies in no clone.
        RecordError: as `merge`.
    """
    if others:
        raise ZooError(f"--import merges one folder: leave {others[0]} out")
    checkout = find_checkout(Path.cwd())
    done = merge(folder, checkout, draw=draw)
    for path in done.written:
        print(path.relative_to(checkout))
    for note in done.notes if done.written else ("everything was there already",):
        print(f"zoo-report: {note}", file=sys.stderr)
    return 0


def find_checkout(folder: Path) -> Path:
    """The clone of cifar-zoo that `folder` lies in.

    Raises:
        ZooError: it lies in none, such as beside an installed package.
    """
    for place in (folder, *folder.parents):
        project = place / "pyproject.toml"
        if project.is_file() and (place / "zoo" / "weights").is_dir():
            name = tomllib.loads(project.read_text()).get("project", {}).get("name")
            if name == "cifar-zoo":
                return place
    raise ZooError(
        f"--import writes into a clone of cifar-zoo, and {folder} lies in none: change into one"
    )


def merge(folder: Path, checkout: Path, *, draw: Draw) -> Merged:
    """Merge the evidence in `folder` into `checkout`; what is there already is left as it is.

    Weights replace those in the clone where their accuracy on held-out images is higher, and fill
    a place that is empty; those of a training on all images have none and only fill. Accuracy on
    test images decides nothing.

    Raises:
        RecordError: the folder is no evidence, is a rehearsal, or is damaged; nothing was written.
    """
    found = read_evidence(folder)
    if not found.machines:
        raise RecordError(f"{folder} holds no evidence yet: run make gpu to its end")
    if any(machine.is_rehearsal for machine in found.machines):
        raise RecordError(f"{folder} is a rehearsal, which shows nothing: run make gpu")
    weights = {run.step: _checked_weights(found, run) for run in found.runs}
    _summary(found)
    results = checkout / RESULTS
    done = Merged()
    _merge_measurements(found, results, done)
    _merge_lines(found, results, done)
    folders = {
        run.step: _merge_run(run, weights[run.step], results, draw, done) for run in found.runs
    }
    _merge_weights(found.runs, folders, checkout / "zoo" / "weights", done)
    return done


def _checked_weights(found: Evidence, run: TrainedRun) -> bytes | None:
    data = found.weights_of(run)
    if data is not None and hashlib.sha256(data).hexdigest() != run.meta.weights_sha256:
        raise RecordError(
            f"{found.folder / str(run.weights)} holds other weights than those of {run.step!r}: "
            "copy it again"
        )
    return data


def _summary(found: Evidence) -> str:
    try:
        return summary(found)
    except (AttributeError, KeyError, TypeError, ValueError) as reason:
        raise RecordError(
            f"{found.folder} is damaged ({type(reason).__name__}: {reason}): copy it again"
        ) from None


def _merge_measurements(found: Evidence, results: Path, done: Merged) -> None:
    for record in found.measurements:
        path = results / "records" / record.environment.key / record.file_name
        if path.is_file() and read_record(path).created_at >= record.created_at:
            continue
        done.written.append(record.write(results))
    for roof in found.roofs:
        known = kept(roof.environment.key, results)
        if known is None or known.created_at < roof.created_at:
            done.written.append(keep(roof, results))


def _merge_lines(found: Evidence, results: Path, done: Merged) -> None:
    """Append the lines that are not there yet; then the page follows from them."""
    lines = [dict(line) for line in found.training]
    _append(results / "training" / "records.jsonl", lines, done)
    kinds = ((evidence.MACHINE, found.machines), (evidence.STEP, found.steps))
    records = [_line(_plain(value), kind) for kind, values in kinds for value in values]
    records += [_line(dict(value), evidence.ARTIFACT) for value in found.artifacts]
    runs = [_line(asdict(replace(run, metrics=(), weights=None, entry=None))) for run in found.runs]
    own = results / PAGE
    before = len(done.written)
    _append(own / evidence.RECORDS, records, done)
    _append(own / evidence.RUNS, runs, done)
    if len(done.written) > before:
        write_atomic(own / README, _summary(read_evidence(own)))
        done.written.append(own / README)


def _plain(value: Any) -> dict[str, Any]:
    plain = asdict(value)
    if isinstance(value, evidence.Machine):
        plain["environment"] = value.environment.to_json()
    return plain


def _line(value: dict[str, Any], kind: str | None = None) -> dict[str, Any]:
    head = {"schema": evidence.SCHEMA} | ({} if kind is None else {"kind": kind})
    return head | {"value": value}


def _append(path: Path, lines: Iterable[dict[str, Any]], done: Merged) -> None:
    text = path.read_text() if path.is_file() else ""
    there = set(text.splitlines())
    new = [line for line in map(json.dumps, lines) if line not in there]
    if new:
        whole = text if not text or text.endswith("\n") else text + "\n"
        write_atomic(path, whole + "\n".join(dict.fromkeys(new)) + "\n")
        done.written.append(path)


def _merge_run(
    run: TrainedRun, weights: bytes | None, results: Path, draw: Draw, done: Merged
) -> Path:
    """The folder of a run: the one that it has already, or a new one."""
    runs = results / "runs"
    for file in sorted(runs.glob(f"*/{checkpoint.META}")):
        there = checkpoint.Checkpoint.open(file.parent)
        if _identity(there.meta) == _identity(run.meta):
            return there.path
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs, prefix=".part-") as name:
        part = Path(name) / "run"
        if weights is not None:
            write_atomic(part / checkpoint.WEIGHTS, weights)
        write_json(part / checkpoint.RECIPE, dict(run.recipe))
        lines = "".join(json.dumps(line) + "\n" for line in run.metrics)
        write_atomic(part / checkpoint.METRICS, lines)
        draw(run.metrics, part / checkpoint.CURVES)
        write_json(part / checkpoint.META, asdict(run.meta))
        names = checkpoint.numbered(runs, checkpoint.folder_name(run.meta.model, run.meta.seed))
        path = next(path for path in names if not path.exists())
        part.rename(path)
    done.written.append(path)
    return path


def _identity(meta: checkpoint.RunMeta) -> tuple[Any, ...]:
    return (meta.model, meta.seed, meta.started_at, meta.weights_sha256)


def _merge_weights(
    runs: Sequence[TrainedRun], folders: Mapping[str, Path], shipped: Path, done: Merged
) -> None:
    from zoo.models import MODELS

    usable = [
        run
        for run in runs
        if run.meta.model in MODELS
        and run.meta.dataset.name == DATASET
        and run.meta.finished_at is not None
        and (folders[run.step] / checkpoint.WEIGHTS).is_file()
    ]
    for model in dict.fromkeys(run.meta.model for run in usable):
        mine = [run for run in usable if run.meta.model == model and _is_committed(run.meta)]
        if not mine:
            done.notes.append(f"{model}: left: trained by code that was not committed")
            continue
        there = (shipped / f"{model}.json").is_file()
        chosen, note = choose(mine, card(model, weights=shipped) if there else None)
        if chosen is not None:
            done.written.append(store_weights(folders[chosen.step], shipped, force=True))
        done.notes.append(f"{model}: {note}")


def _is_committed(meta: checkpoint.RunMeta) -> bool:
    """Whether the code that trained a run can be looked up."""
    return meta.commit is not None and "dirty" not in meta.commit


def choose(runs: Sequence[TrainedRun], shipped: Card | None) -> tuple[TrainedRun | None, str]:
    """Whose weights are to be shipped, and why; None leaves what is there."""
    measured = [run for run in runs if run.meta.val_top1 is not None]
    best = max(measured, key=lambda run: run.meta.val_top1 or 0.0, default=None)
    if shipped is None:
        if best is not None:
            return best, f"new weights, {_val(best.meta.val_top1)}"
        return runs[0], "new weights of a training on all images, those of its last epoch"
    if shipped.sha256 in {run.meta.weights_sha256 for run in runs}:
        return None, "the weights are there already"
    if best is None:
        return None, "kept: none of the new weights has an accuracy on held-out images"
    if shipped.val_top1 is None or shipped.dataset_digest != best.meta.dataset.digest:
        return None, "kept: the weights that are there cannot be compared with the new ones"
    if (best.meta.val_top1 or 0.0) > shipped.val_top1:
        return best, f"better weights, {_val(best.meta.val_top1)}, before {_val(shipped.val_top1)}"
    return None, f"kept: {_val(shipped.val_top1)}, the new ones {_val(best.meta.val_top1)}"


def _val(top1: float | None) -> str:
    return f"{top1 or 0.0:.2%} on held-out images"
