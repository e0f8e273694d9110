"""The commands `zoo-bench` and `zoo-report`."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo import command
from zoo.errors import ZooError

if TYPE_CHECKING:
    from profiling.record import Measurement
    from profiling.subject import Subject
    from zoo.data import Dataset

RUNS, RESULTS = Path("runs"), Path("bench_results")
TORCH_BACKENDS = ("eager", "compile")
ONNX_ON_TENSORRT = "onnx-tensorrt"  # measured only where --backend names it
IMAGE_SIZE = 32


class Job(NamedTuple):
    """What is measured side by side; its subjects are made when its turn comes."""

    name: str
    out: Path
    subjects: Callable[[], list["Subject"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-bench`."""
    args = bench_parser().parse_args(argv)
    return command.run("zoo-bench", lambda: _bench(args))


def main_report(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-report`."""
    args = report_parser().parse_args(argv)
    return command.run("zoo-report", lambda: _report(args))


def bench_parser() -> command.Parser:
    """All options of `zoo-bench`."""
    parser = command.Parser(
        "zoo-bench",
        "Measure a run on torch and on every artifact that was exported from it, side by side, an "
        "ONNX file of any origin, or an untrained network on torch; writes one JSON record for "
        "each backend and batch size.",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="run folder, .onnx file, or names of models such as resnet_20,timm:resnet18, which "
        "are measured untrained; without any, the newest complete run",
    )
    parser.add_argument(
        "--model",
        type=command.names,
        metavar="NAMES",
        help="package.module:function, networks of yours: measured untrained or, with a run of "
        "one, imported to measure that run",
    )
    parser.add_argument(
        "--zoo", action="store_true", help="measure every model of the catalogue, untrained"
    )
    parser.add_argument(
        "--group", type=command.names, metavar="NAMES", help="of --zoo, only these groups"
    )
    parser.add_argument(
        "--image-size",
        type=command.positive_int,
        metavar="N",
        help=f"height and width of the images of untrained networks ({IMAGE_SIZE})",
    )
    parser.add_argument(
        "--batch",
        type=command.positive_ints,
        default="1,256",
        metavar="SIZES",
        help="images in one call, with commas between",
    )
    parser.add_argument(
        "--budget",
        type=command.positive_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for each measurement, warm-up included; opening and the first call come on top",
    )
    parser.add_argument(
        "--backend",
        type=command.names,
        metavar="NAMES",
        help="only these, with commas between, such as eager,compile,onnx; without it, all",
    )
    parser.add_argument(
        "--device", type=command.device, default="cpu", metavar="NAME", help="cpu, cuda or cuda:N"
    )
    parser.add_argument(
        "--threads",
        type=command.positive_int,
        metavar="N",
        help="of each backend on the CPU; without it, what torch chooses",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"write to DIR/records/ in place of the run's own folder ({RESULTS} for a file)",
    )
    parser.add_argument("--all", action="store_true", help="measure every run below --runs")
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="DIR", help="where runs are sought"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the run's data set lies; else ZOO_DATA"
    )
    return parser


def report_parser() -> command.Parser:
    """All options of `zoo-report`."""
    parser = command.Parser(
        "zoo-report",
        "Turn the records of zoo-bench into a table (Markdown, CSV), a Pareto plot (PNG, SVG) and "
        "one static page.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help=f"where records are sought; without one, {RUNS} and {RESULTS}",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="where the report goes"
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="write the tables to this Markdown file too"
    )
    parser.add_argument(
        "--import",
        dest="evidence",
        type=Path,
        metavar="DIR",
        help="instead, merge what make gpu wrote on another machine into this clone of cifar-zoo",
    )
    return parser


def _bench(args: argparse.Namespace) -> int:
    from profiling.record import FAILED, OK
    from zoo.doctor import require_kernels

    known = _known_backends()
    for name in args.backend or ():
        if name not in known:
            from zoo.errors import nearest

            raise ZooError(f"no backend named {name!r}: {nearest(name, known)}")
    require_kernels(args.device)
    jobs = _jobs(args)  # mistakes before minutes
    for out in {job.out for job in jobs}:
        _check_writable(out)
    code = 0
    for number, job in enumerate(jobs, start=1):
        if len(jobs) > 1:
            _say(f"{number} of {len(jobs)}: {job.name}")
        records = _measure(job.subjects(), args)
        _print(records)
        written = {record.write(job.out).parent for record in records}
        for folder in sorted(written):
            _say(f"wrote {len(records)} records to {folder}")
        # What is missing but was not asked for is a fact of this machine, not a failure.
        bad = {FAILED} if args.backend is None else {record.status for record in records} - {OK}
        code = max(code, int(any(record.status in bad for record in records)))
    return code


def _known_backends() -> tuple[str, ...]:
    from export import TARGETS

    return (*TORCH_BACKENDS, *TARGETS, "onnx-raw", ONNX_ON_TENSORRT)


def _check_writable(folder: Path) -> None:
    """Fail before minutes of measuring rather than after; OSError ends in one line."""
    from profiling.record import RECORDS

    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder / RECORDS):
        pass


def _jobs(args: argparse.Namespace) -> list[Job]:
    """Runs and files, then networks, in the order in which they were named."""
    from profiling.choice import catalogue, paths_and_models
    from profiling.runs import check_model

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
        paths += _runs(args)
    jobs = []
    for path in dict.fromkeys(paths):
        subjects = _subjects(path, args)
        jobs.append(Job(str(path), _out(path, args), partial(list, subjects)))
    for name in models:
        jobs.append(Job(name, args.out or RESULTS, partial(_untrained, name, size, args)))
    return jobs


def _runs(args: argparse.Namespace) -> list[Path]:
    from zoo.checkpoint import complete_runs

    runs = [run.path for run in complete_runs(args.runs)]
    return runs if args.all else runs[-1:]


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


def _subjects(path: Path, args: argparse.Namespace) -> list["Subject"]:
    from export import target_of
    from profiling.runs import onnx_subject

    run = _run_of(path)
    if run is None and path.is_file() and target_of(path) not in (None, "onnx"):
        raise ZooError(f"{path} lies in no run: only .onnx files are measured alone")
    if run is None and (path.is_file() or path.suffix == ".onnx"):
        subjects = [onnx_subject(path, opener="export.opening:open_foreign")]
    else:
        subjects = _run_subjects(run or path, args)
        if path.is_file():
            subjects = [s for s in subjects if Path(s.path).resolve() == path.resolve()]
            if not subjects:
                raise ZooError(f"{path} is no artifact: give a run, or an .onnx file")
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


def _run_subjects(run: Path, args: argparse.Namespace) -> list["Subject"]:
    """Eager, compile and every artifact of a run."""
    from export.artifact import find_artifacts
    from profiling.runs import run_subjects
    from zoo.checkpoint import Checkpoint

    model = Checkpoint.open(run).meta.model
    named = args.model or ()
    allow = model if model in named else next(iter(named), None)
    subjects = run_subjects(
        run,
        artifacts=find_artifacts(run),
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
            on_progress=display,
        )


def _data(subjects: Sequence["Subject"], data_dir: Path | None) -> "Dataset | None":
    """The data set that the subjects were trained on; None, with a note, where it is not here."""
    source = subjects[0].source
    if source is None:
        return None
    from zoo.data import load_dataset
    from zoo.display import TransferDisplay
    from zoo.errors import DataError

    without = "times are taken with random images, and what has no accuracy yet gets none"
    try:
        with TransferDisplay() as display:
            data = load_dataset(source.dataset, data_dir=data_dir, on_progress=display)
    except DataError as error:
        _say(f"{error}; {without}")
        return None
    if data.digest != source.dataset_digest:
        _say(f"{data.name} is not what {source.run} was trained on (other digest): {without}")
        return None
    return data


def _print(records: Sequence["Measurement"]) -> None:
    from profiling.display import heading, results

    print(heading(records[0]))
    print(results(records), flush=True)


def _report(args: argparse.Namespace) -> int:
    if args.evidence is not None:
        return _import(args)
    from profiling.record import read_records

    folders = args.folders or [folder for folder in (RUNS, RESULTS) if folder.is_dir()]
    records = read_records(*folders)
    if not records:
        sought = " and ".join(map(str, folders or (RUNS, RESULTS)))
        raise ZooError(f"no records in {sought}: measure a run with zoo-bench")
    from profiling.report import write_report

    report = write_report(records, args.out, readme=args.readme)
    print(report.markdown)
    print(report.page)
    return 0


def _import(args: argparse.Namespace) -> int:
    from profiling.evidence_import import merge_here
    from training.curves import draw_curves

    return merge_here(args.evidence, others=args.folders, draw=draw_curves)


def _say(text: str) -> None:
    print(f"zoo-bench: {text}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
