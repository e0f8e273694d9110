"""The command `zoo-bench`."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from profiling.options import IMAGE_SIZE, RESULTS, bench_parser
from zoo import command
from zoo.errors import RecordError, ZooError
from zoo.text import counted

if TYPE_CHECKING:
    from profiling.record import Measurement
    from profiling.subject import Subject
    from zoo.data import Dataset

TORCH_BACKENDS = ("eager", "compile")
ONNX_ON_TENSORRT = "onnx-tensorrt"  # measured only where --backend names it


class Job(NamedTuple):
    """What is measured side by side; its subjects are made when its turn comes."""

    name: str
    out: Path
    subjects: Callable[[], list["Subject"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-bench`."""
    args = bench_parser().parse_args(argv)
    return command.run("zoo-bench", lambda: _mode(args)(args))


def _mode(args: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """What to do; --compare, --cost, --layers and --roofline take the place of a benchmark."""
    modes = {"compare": _compare, "cost": _cost, "layers": _layers, "roofline": _roofline}
    chosen = [name for name in modes if getattr(args, name)]
    if len(chosen) > 1:
        raise ZooError(f"--{chosen[0]} and --{chosen[1]} exclude each other: leave one out")
    for name in ("price_per_hour", "latency_bound", "l2_flush"):
        if chosen and getattr(args, name):
            option = name.replace("_", "-")
            raise ZooError(f"--{option} is for a benchmark: leave it or --{chosen[0]} out")
    if args.json and not chosen:
        raise ZooError("--json is for --compare, --cost, --layers or --roofline: add one of them")
    return modes[chosen[0]] if chosen else _bench


def _bench(args: argparse.Namespace) -> int:
    from profiling.record import FAILED, OK
    from zoo.doctor import require_kernels

    known = _known_backends()
    for name in args.backend or ():
        if name not in known:
            from zoo.errors import nearest

            raise ZooError(f"no backend named {name!r}: {nearest(name, known)}")
    if args.l2_flush and not args.device.startswith("cuda"):
        raise ZooError("--l2-flush is for a GPU: add --device cuda, or leave it out")
    if args.latency_bound and not args.price_per_hour:
        raise ZooError("--latency-bound chooses the batch of --price-per-hour: add it")
    require_kernels(args.device)
    damaged: list[ZooError] = []
    jobs = _jobs(args, damaged)  # mistakes before minutes
    for out in {job.out for job in jobs}:
        _check_writable(out)
    code = int(bool(damaged))
    for number, job in enumerate(jobs, start=1):
        if len(jobs) > 1:
            _say(f"{number} of {len(jobs)}: {job.name}")
        records = _measure(job.subjects(), args)
        written = {record.write(job.out).parent for record in records}
        _print(records, args, job.out)
        for folder in sorted(written):
            _say(f"wrote {counted(len(records), 'record')} to {folder}")
        # What is missing but was not asked for is a fact of this machine, not a failure.
        bad = {FAILED} if args.backend is None else {record.status for record in records} - {OK}
        code = max(code, int(any(record.status in bad for record in records)))
    return code


def _compare(args: argparse.Namespace) -> int:
    from profiling.compare import compare, text, to_json

    if args.what or args.model or args.all or args.zoo:
        raise ZooError("--compare measures nothing: name no run or model beside its two paths")
    damaged: list[RecordError] = []
    comparison = compare(*args.compare, on_damage=damaged.append)
    for error in damaged:
        _say(f"left out: {error}")
    print(json.dumps(to_json(comparison), indent=1) if args.json else text(comparison).rstrip())
    return 1 if damaged or comparison.has_broken else 0


def _cost(args: argparse.Namespace) -> int:
    from profiling.costs import cost_rows, cost_text

    damaged: list[ZooError] = []
    jobs = _jobs(args, damaged)
    subjects = [s for job in jobs for s in job.subjects() if s.backend != "compile"]
    if not subjects:
        raise ZooError("--cost counts networks and files, compile is neither: add --backend eager")
    if args.json:
        print(json.dumps(cost_rows(subjects, args.batch), indent=1))
    else:
        print(cost_text(subjects, args.batch), end="")
    return int(bool(damaged))


def _layers(args: argparse.Namespace) -> int:
    from profiling.layers import layers_text, of_subject

    if args.backend:
        raise ZooError("--layers takes eager torch, whose layers can be timed: no --backend")
    subjects = [s for job in _jobs(args, []) for s in job.subjects() if s.backend == "eager"]
    if len(subjects) != 1:
        raise ZooError(f"--layers takes one run or one model, got {len(subjects)}: name one")
    times = of_subject(
        subjects[0],
        batches=args.batch,
        budget_s=args.budget,
        device=args.device,
        threads=args.threads,
    )
    if args.json:
        print(json.dumps([one.to_json() for one in times], indent=1))
    else:
        print("\n".join(layers_text(one) for one in times), end="")
    return 0


def _roofline(args: argparse.Namespace) -> int:
    from profiling import roofline
    from zoo.doctor import require_kernels

    if args.what or args.model or args.all or args.zoo:
        raise ZooError("--roofline measures the device alone: name no run or model beside it")
    require_kernels(args.device)
    roof, is_disturbed = roofline.measure(args.device, args.threads)
    folders = [folder for folder in (roofline.cache(), args.out) if folder is not None]
    paths = [roofline.keep(roof, folder) for folder in folders]
    print(json.dumps(roof.to_json(), indent=1) if args.json else roofline.text(roof))
    for path in paths:
        _say(f"wrote {path}")
    if is_disturbed:
        _say(f"{roofline.DISTURBED}: measure again when it is idle")
    return 0


def _known_backends() -> tuple[str, ...]:
    from export import TARGETS

    return (*TORCH_BACKENDS, *TARGETS, "onnx-raw", ONNX_ON_TENSORRT)


def _check_writable(folder: Path) -> None:
    """Fail before minutes of measuring rather than after; OSError ends in one line."""
    from profiling.record import RECORDS
    from zoo.files import naming

    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    with naming(folder / RECORDS), tempfile.TemporaryFile(dir=folder / RECORDS):
        pass


def _jobs(args: argparse.Namespace, damaged: list[ZooError]) -> list[Job]:
    """Runs and files, then networks, in the order in which they were named.

    What of a folder or a run cannot be read is said, added to `damaged`, and left out.
    """
    from profiling.choice import catalogue, paths_and_models
    from profiling.runs import check_model

    def leave_out(error: ZooError) -> None:
        damaged.append(error)
        _say(f"left out: {error}")

    paths, named = paths_and_models(args.what)
    if not paths and not args.all:  # with a run, it allows to import the code of that run
        named += args.model or ()
    size = args.image_size or IMAGE_SIZE
    for name in named:
        check_model(name, image_size=size)
    if args.group and not args.zoo:
        raise ZooError("--group chooses among the models of --zoo: add it")
    # A network of the catalogue that does not take this size fails alone, with a record.
    models = list(dict.fromkeys((*named, *(catalogue(args.group) if args.zoo else ()))))
    if args.image_size and not models:
        raise ZooError("--image-size is for untrained networks: name a model, or leave it out")
    for backend in args.backend or ():
        if models and backend not in TORCH_BACKENDS:
            raise ZooError(f"{models[0]} without a run has no --backend {backend}: leave one out")
    if args.all or not (paths or models):
        paths += _runs(args, leave_out)
    jobs = []
    for path in dict.fromkeys(paths):
        subjects = _subjects(path, args, leave_out)
        jobs.append(Job(str(path), _out(path, args), partial(list, subjects)))
    for name in models:
        jobs.append(Job(name, args.out or RESULTS, partial(_untrained, name, size, args)))
    return jobs


def _runs(args: argparse.Namespace, on_damage: Callable[[ZooError], None]) -> list[Path]:
    from zoo.checkpoint import complete_runs, newest_run

    if not args.all:
        return [newest_run(args.runs)]
    return [run.path for run in complete_runs(args.runs, on_damage=on_damage)]


def _untrained(name: str, image_size: int, args: argparse.Namespace) -> list["Subject"]:
    from profiling.runs import model_subjects

    subjects = model_subjects(name, image_size=image_size, device=args.device)
    return [s for s in subjects if args.backend is None or s.backend in args.backend]


def _out(path: Path, args: argparse.Namespace) -> Path:
    """Where the records of a subject go: --out, its run, or the folder of results."""
    out: Path | None = args.out
    return out or _run_of(path) or RESULTS


def _run_of(path: Path) -> Path | None:
    """The run that a path is, or that holds it as an artifact."""
    from zoo.checkpoint import META

    if path.is_dir():
        return path
    from export.artifact import FOLDER, manifest_path

    folder = path.absolute().parent
    is_artifact = folder.name == FOLDER and manifest_path(path).is_file()
    return folder.parent if is_artifact and (folder.parent / META).is_file() else None


def _subjects(
    path: Path, args: argparse.Namespace, on_damage: Callable[[ZooError], None]
) -> list["Subject"]:
    from export import target_of
    from export.artifact import manifest_path, read_manifest
    from profiling.runs import onnx_subject

    run = _run_of(path)
    if run is None and path.is_file() and target_of(path) not in (None, "onnx"):
        raise ZooError(
            f"{path} has no manifest beside it in a run, which has to vouch for it: only .onnx "
            "files are measured alone"
        )
    if run is None and (path.is_file() or path.suffix == ".onnx"):
        subjects = [onnx_subject(path, opener="export.opening:open_foreign")]
    else:
        subjects = _run_subjects(run or path, args, on_damage)
        if path.is_file():
            subjects = [s for s in subjects if Path(s.path).resolve() == path.resolve()]
            if not subjects:
                whole = read_manifest(manifest_path(path)).path
                raise ZooError(f"{path} belongs to {whole}: give that file, or its run")
    chosen = [s for s in subjects if args.backend is None or s.backend in args.backend]
    for name in args.backend or ():
        if not any(subject.backend == name for subject in chosen):
            raise ZooError(
                f"{path} has nothing for --backend {name}: export the run with "
                f"zoo-export --to {name}"
                if run is not None and path.is_dir()
                else f"{path} does not run on --backend {name}: leave it out"
            )
    return chosen


def _run_subjects(
    run: Path, args: argparse.Namespace, on_damage: Callable[[ZooError], None]
) -> list["Subject"]:
    """Eager, compile and every artifact of a run whose manifest can be read."""
    from export.artifact import find_artifacts
    from profiling.runs import run_subjects
    from zoo.checkpoint import Checkpoint

    model = Checkpoint.open(run).meta.model
    named = args.model or ()
    allow = model if model in named else next(iter(named), None)
    subjects = run_subjects(
        run,
        artifacts=find_artifacts(run, on_damage=on_damage),
        device=args.device,
        allow=None if args.all and allow != model else allow,
    )
    if ONNX_ON_TENSORRT not in (args.backend or ()):
        return subjects
    opener = "export.opening:open_on_tensorrt"
    return subjects + [
        replace(
            subject,
            backend=ONNX_ON_TENSORRT,
            opener=opener,
            top1=None,  # its accuracy is another runtime's
            top5=None,
            accuracy_images=None,
            parity_max_error=None,
            parity_agreement=None,
            is_unevaluated=True,
        )
        for subject in subjects
        if subject.backend == "onnx"
    ]


def _measure(subjects: Sequence["Subject"], args: argparse.Namespace) -> list["Measurement"]:
    from profiling.bench import benchmark
    from profiling.display import BenchDisplay

    data = _data(subjects, args.data_dir)
    with BenchDisplay() as display:
        return benchmark(
            subjects,
            batches=args.batch,
            budget_s=args.budget,
            device=args.device,
            threads=args.threads,
            data=data,
            l2_flush=args.l2_flush,
            on_progress=display,
        )


def _data(subjects: Sequence["Subject"], data_dir: Path | None) -> "Dataset | None":
    """The data set that the subjects were trained on; None, with a note, where it is not here."""
    source = subjects[0].source
    if source is None:
        return None
    from zoo.display import load_shown
    from zoo.errors import DataError

    without = "times are taken with random images, and what has no accuracy yet gets none"
    try:
        data = load_shown(source.dataset, data_dir)
    except DataError as error:
        _say(f"{error}; {without}")
        return None
    if data.digest != source.dataset_digest:
        _say(f"{data.name} is not what {source.run} was trained on (other digest): {without}")
        return None
    return data


def _print(records: Sequence["Measurement"], args: argparse.Namespace, out: Path) -> None:
    from profiling.display import heading, notes, results
    from profiling.price import Price
    from profiling.roofline import roof_of

    roof = roof_of(records, args.device, args.threads, out, _say)
    price = Price(args.price_per_hour, args.latency_bound) if args.price_per_hour else None
    print(heading(records[0]))
    print(results(records, price=price, roof=roof), end="")
    for note in notes(records, price=price, roof=roof):
        print(note)
    print(flush=True)


def _say(text: str) -> None:
    print(f"zoo-bench: {text}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
