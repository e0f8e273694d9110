"""The command zoo-pretrain."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.options import AUTO
from training.pretraining import METHODS, Pretraining, pretraining_for
from training.recipe import DEVICES, read_settings, with_epochs, with_settings
from zoo.command import Parser, positive_int, positive_seconds, run, seed
from zoo.errors import CheckpointError
from zoo.plain import from_plain

if TYPE_CHECKING:
    from training.pretrain_folder import PretrainingMetrics
    from zoo.checkpoint import RunMeta


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-pretrain`."""
    args = build_parser().parse_args(argv)
    return run("zoo-pretrain", lambda: _pretrain(args))


def build_parser() -> Parser:
    """All options of `zoo-pretrain`."""
    parser = Parser(
        "zoo-pretrain",
        "Pre-train the backbone of a model without labels; prints the folder of the run, which "
        "zoo-train takes as --init-from.",
    )
    parser.add_argument("model", help="such as resnet_20, or package.module:function of yours")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--epochs", type=positive_int, help="instead of 200")
    parser.add_argument("--batch-size", type=positive_int, help="images a step (512)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="one setting more"
    )
    parser.add_argument("--seed", type=seed, help="of weights, order and views (0)")
    parser.add_argument(
        "--dataset", help="cifar100 (unless given), cifar100-mini (shipped), cifar10 or folder:PATH"
    )
    parser.add_argument("--data-dir", type=Path, help="where the data lies; else ZOO_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument(
        "--resume",
        metavar="RUN|auto",
        help="continue an interrupted run, with its own settings, seed and data set; auto: the "
        "newest incomplete one of this command, or a new one",
    )
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="RUN",
        help="show where the values of a run stopped being finite, and end",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument(
        "--save-seconds",
        type=positive_seconds,
        default=30.0,
        metavar="S",
        help="at least, between two saves of what a resume needs",
    )
    return parser


def make_settings(args: argparse.Namespace, began: "RunMeta | None" = None) -> Pretraining:
    """Resolve the options, over those that a run `began` with, to one value.

    Raises:
        ZooError: a setting is unknown, out of range or given twice.
        CheckpointError: those of the run are damaged.
    """
    settings = pretraining_for(args.method)
    if began is not None and began.pretraining == args.method:
        try:
            settings = from_plain(Pretraining, began.recipe)
        except (TypeError, ValueError) as reason:
            raise CheckpointError(
                f"the settings of {_named(args)} are damaged ({reason}): start a new run"
            ) from None
    if args.epochs is not None:
        settings = with_epochs(settings, args.epochs)
    changes = read_settings(args.set, epochs=args.epochs, batch_size=args.batch_size)
    if args.batch_size is not None:
        changes["batch_size"] = str(args.batch_size)
    return with_settings(settings, changes)


def _pretrain(args: argparse.Namespace) -> None:
    began = _began(_named(args))
    settings = make_settings(args, began)
    _check(args.model)  # before any data is fetched

    from training.display import TrainingDisplay, duration
    from training.pretrain import pretrain, replay
    from zoo.display import load_shown

    if args.seed is None:
        args.seed = 0 if began is None else began.seed
    data = load_shown(
        args.dataset or ("cifar100" if began is None else began.dataset.name), args.data_dir
    )
    if args.replay is not None:
        for found in replay(
            *(args.replay, args.model, settings, data),
            device=args.device,
            seed=args.seed,
            on_note=lambda line: print(line, file=sys.stderr),
        ):
            print(found)
        return
    wanted = (
        f"{args.model} on {data.name} by {settings.name}, {settings.epochs} epochs, "
        f"batch {settings.batch_size}, seed {args.seed}"
    )
    with TrainingDisplay() as bar:

        def show(line: "PretrainingMetrics", seconds_left: float) -> None:
            bar.note(
                f"epoch {line.epoch}/{settings.epochs}  {line.images_per_s:.0f} img/s  "
                f"loss {line.loss:.3f}  kNN {line.knn_top1:.2%}  {duration(seconds_left)} left"
            )

        done = pretrain(
            args.model,
            settings,
            data,
            device=args.device,
            save_seconds=args.save_seconds,
            seed=args.seed,
            runs=args.runs,
            resume=args.resume,
            on_begin=lambda run: bar.note(wanted),
            on_progress=bar,
            on_epoch=show,
            on_note=bar.note,
        )
    print(done.path)


def _named(args: argparse.Namespace) -> Path | None:
    """The run to go on with or to look at."""
    if args.replay is not None or args.resume in (None, AUTO):
        replayed: Path | None = args.replay
        return replayed
    return Path(args.resume)


def _began(run: Path | None) -> "RunMeta | None":
    """The facts of the run that is named."""
    from training.pretrain_folder import require_begun
    from zoo.checkpoint import Checkpoint

    if run is None:
        return None
    require_begun(run)
    return Checkpoint.open(run).meta


def _check(model: str) -> None:
    """Refuse what can be refused without the data."""
    from training.methods import require_lightly
    from zoo.models import model_spec
    from zoo.own import is_own, load_function

    if is_own(model):
        load_function(model)
    else:
        model_spec(model)
    require_lightly()


if __name__ == "__main__":
    raise SystemExit(main())
