"""The commands that use what was trained and exported: `zoo-eval` and `zoo-predict`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export import target_of
from export.flags import eval_parser, predict_parser
from zoo import command
from zoo.errors import ArtifactError, ZooError, first_line, one_line

if TYPE_CHECKING:
    from export.artifact import Artifact
    from zoo.checkpoint import RunMeta
    from zoo.session import InferenceSession


def main_eval(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-eval`."""
    args = eval_parser().parse_args(argv)
    return command.run("zoo-eval", lambda: _evaluate(args))


def main_predict(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-predict`."""
    args = predict_parser().parse_args(argv)
    return command.run("zoo-predict", lambda: _predict(args))


def _evaluate(args: argparse.Namespace) -> None:
    from export.scores import evaluate_scores, table
    from export.write import check_dataset
    from zoo.checkpoint import newest_run
    from zoo.display import load_shown

    path: Path = args.path or newest_run(args.runs)
    source, session = _opened(path, args)
    data = load_shown(source.dataset.name, args.data_dir)
    check_dataset(path, source.dataset, data)
    with one_line(path, where_full="pass a smaller --batch"):
        result = evaluate_scores(
            session,
            data,
            model=source.model,
            subject=str(path),
            preprocessing=source.input_preprocessing,
            batch=args.batch,
        )
    print(json.dumps(result.to_json(), indent=1) if args.json else table(result))


def _predict(args: argparse.Namespace) -> int:
    """Classify images; one that cannot be read stops no other."""
    from dataclasses import asdict

    from export.predict import predict_files, table
    from zoo.checkpoint import newest_run

    path: Path = args.artifact or args.run or newest_run(args.runs)
    source, session = _opened(path, args)
    found = []
    with one_line(path, where_full="name fewer images"):
        for prediction in predict_files(
            session,
            args.images,
            class_names=source.dataset.class_names,
            preprocessing=source.input_preprocessing,
            top=args.top,
        ):
            found.append(prediction)
            if prediction.error is not None:
                print(f"zoo-predict: {prediction.error}", file=sys.stderr)
            elif not args.json:
                print(table(prediction), flush=True)
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    return ZooError.exit_code if any(one.error is not None for one in found) else 0


def _opened(
    path: Path, args: argparse.Namespace
) -> tuple["Artifact | RunMeta", "InferenceSession"]:
    """A run or an artifact, ready to run, and what it says of its images."""
    from export.opening import open_artifact
    from zoo.checkpoint import Checkpoint
    from zoo.doctor import require_kernels
    from zoo.session import open_eager

    is_artifact = path.is_file() or target_of(path) is not None
    source = _source(path, trust=args.trust) if is_artifact else Checkpoint.open(path).meta
    require_kernels(args.device)
    if is_artifact:
        session = open_artifact(str(path), args.device, trust=args.trust, provider=args.provider)
    elif args.provider is not None:
        raise ZooError("--provider is for .onnx files: leave it out for a run")
    else:
        session = open_eager(str(path), args.device, allow=args.model)
    return source, session


def _source(path: Path, *, trust: bool) -> "Artifact | RunMeta":
    """What says which images a file takes: its manifest or, for one that is trusted, its run."""
    from export.artifact import find_artifact
    from export.opening import run_of, vouched

    try:
        return find_artifact(path) if trust else vouched(path)
    except ArtifactError as reason:
        run = run_of(path)
        if run is not None and trust:
            return run.meta
        if run is not None and path.is_file() and target_of(path) is not None:
            raise ArtifactError(f"{reason}; --trust opens it all the same") from None
        if trust and path.is_file():
            raise ArtifactError(
                f"{first_line(reason)}; outside its run nothing else says which images it takes: "
                "put it back, or its manifest beside it"
            ) from None
        raise
