"""The commands `zoo-export` and `zoo-eval`."""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export import (
    PLANNED,
    PRECISIONS,
    TARGETS,
    check_precision,
    check_target,
    export_model,
    load_target,
)
from zoo import command
from zoo.errors import ZooError

if TYPE_CHECKING:
    from export.artifact import Artifact
    from zoo.data import Dataset

ARTIFACT_SUFFIXES = (".onnx",)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-export`."""
    args = _export_parser().parse_args(argv)
    return command.run("zoo-export", lambda: _export(args))


def main_eval(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-eval`."""
    args = _eval_parser().parse_args(argv)
    return command.run("zoo-eval", lambda: _evaluate(args))


def _export_parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        "zoo-export",
        "Write a trained model in formats that other runtimes execute. Each file is compared with "
        "the model on test images and evaluated on the whole test split before it is kept.",
    )
    _add_path(parser, "RUN", "run folder; without one, the newest complete run")
    parser.add_argument(
        "--to",
        type=command.names,
        default="onnx",
        metavar="TARGETS",
        help=f"formats with commas between: {', '.join(TARGETS)} "
        f"({', '.join(PLANNED)} in later versions)",
    )
    parser.add_argument(
        "--precision",
        type=command.names,
        default="fp32",
        metavar="NAMES",
        help=f"number formats with commas between: {', '.join(PRECISIONS)}",
    )
    _add_common(parser)
    return parser


def _eval_parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        "zoo-eval",
        "Measure the accuracy of a run or of one exported file on the test split: top-1 and top-5, "
        "by class and by superclass.",
    )
    _add_path(parser, "PATH", "run folder or exported file; without one, the newest complete run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--batch", type=command.positive_int, default=256, metavar="N", help="images in one call"
    )
    _add_common(parser)
    return parser


def _add_path(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    parser.add_argument("path", nargs="?", type=Path, metavar=metavar, help=text)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where the newest run is sought",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the run's data set lies; else ZOO_DATA",
    )
    parser.add_argument(
        "--device", type=command.device, default="cpu", metavar="NAME", help="cpu, cuda or cuda:N"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="of a run of package.module:function: repeat its name to have the module imported",
    )


def _export(args: argparse.Namespace) -> int:
    for name in args.to:
        check_target(name)
    for name in args.precision:
        check_precision(name)

    from zoo.checkpoint import Checkpoint
    from zoo.doctor import require_kernels

    run = Checkpoint.open(_path(args))
    run.require_consent(args.model)
    require_kernels(args.device)
    targets, codes = [], []
    for target in args.to:
        try:
            load_target(target)
            targets.append(target)
        except ZooError as error:
            codes.append(_report(error))
    data = _dataset(run.meta.dataset.name, args) if targets else None
    for target, precision in itertools.product(targets, args.precision):
        assert data is not None
        _say(f"exporting {run.path} to {target} {precision}")
        try:
            artifact = export_model(
                run,
                target=target,
                precision=precision,
                data=data,
                device=args.device,
                allow=args.model,
            )
        except (ZooError, OSError) as error:
            codes.append(_report(error))
            continue
        _say(_summary(artifact))
        print(artifact.path, flush=True)
    return codes[0] if codes else 0


def _evaluate(args: argparse.Namespace) -> None:
    from export.artifact import find_artifact, open_artifact
    from export.scores import evaluate_scores, table
    from export.write import check_dataset
    from zoo.checkpoint import Checkpoint
    from zoo.doctor import require_kernels
    from zoo.session import open_eager

    path = _path(args)
    is_artifact = path.is_file() or path.suffix in ARTIFACT_SUFFIXES
    source = find_artifact(path) if is_artifact else Checkpoint.open(path).meta
    require_kernels(args.device)
    if is_artifact:
        session = open_artifact(str(path), args.device)
    else:
        session = open_eager(str(path), args.device, allow=args.model)
    data = _dataset(source.dataset.name, args)
    check_dataset(path, source.dataset, data)
    result = evaluate_scores(
        session,
        data,
        model=source.model,
        subject=str(path),
        preprocessing=source.input_preprocessing,
        batch=args.batch,
    )
    print(json.dumps(result.to_json(), indent=1) if args.json else table(result))


def _path(args: argparse.Namespace) -> Path:
    from zoo.checkpoint import newest_run

    given: Path | None = args.path
    return given or newest_run(args.runs)


def _dataset(name: str, args: argparse.Namespace) -> "Dataset":
    from zoo.data import load_dataset
    from zoo.display import TransferDisplay

    with TransferDisplay() as display:
        return load_dataset(name, data_dir=args.data_dir, on_progress=display)


def _summary(artifact: "Artifact") -> str:
    parity, accuracy = artifact.parity, artifact.accuracy
    return (
        f"{artifact.target} {artifact.precision} agrees with eager: largest error of a logit "
        f"{parity.max_abs_error:.1e} (allowed {parity.limit:.1e}), same class for "
        f"{parity.top1_agreement:.1%} of {parity.images} images; "
        f"top-1 {accuracy.top1:.2%}, top-5 {accuracy.top5:.2%} on {accuracy.images} test images"
    )


def _report(error: ZooError | OSError) -> int:
    """Print one failure of several; return the exit code that it alone would give."""
    if isinstance(error, ZooError):
        _say(str(error))
        return error.exit_code
    _say(command.describe(error))
    return 1


def _say(text: str) -> None:
    print(f"zoo-export: {text}", file=sys.stderr)
