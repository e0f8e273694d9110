"""The command zoo-train."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.recipe import Recipe, Runtime, with_epochs, with_settings
from training.recipes import RECIPES, named_recipe
from zoo.command import Parser, positive_int, run, seed
from zoo.errors import ZooError
from zoo.preprocess import STORED_SIZE

if TYPE_CHECKING:
    from training.loop import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one call of zoo-train is to do."""

    model: str
    image_size: int | None  # None: as stored
    pretrained: bool
    pretrained_file: Path | None
    recipe: Recipe
    runtime: Runtime
    dataset: str
    data_dir: Path | None
    seed: int
    runs: Path
    resume: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-train`."""
    args = build_parser().parse_args(argv)
    return run("zoo-train", lambda: _train(args))


def build_parser() -> Parser:
    """All options of `zoo-train`."""
    parser = Parser("zoo-train", "Train a model of the zoo; prints the folder of the run.")
    parser.add_argument("model", nargs="?", help="such as resnet_20, or timm:resnet18 of timm")
    parser.add_argument(
        "--model",
        dest="named",
        metavar="NAME",
        help="the same, or package.module:function: a network of yours",
    )
    parser.add_argument(
        "--image-size",
        type=positive_int,
        metavar="S",
        help="bring the images to SxS pixels after augmentation (32: as they are stored)",
    )
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="start from trained weights: ours, or for timm:NAME those of ImageNet from the Hub",
    )
    parser.add_argument(
        "--pretrained-file",
        type=Path,
        metavar="FILE",
        help="start from the weights in a .safetensors file",
    )
    parser.add_argument("--freeze-backbone", action="store_true", help="train the classifier alone")
    parser.add_argument("--recipe", help=f"one of {', '.join(RECIPES)} (study unless resumed)")
    parser.add_argument(
        "--epochs", type=positive_int, help="instead of the recipe's; warm-up keeps its share"
    )
    parser.add_argument("--batch-size", type=positive_int, help="images a step, all processes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="one recipe field"
    )
    parser.add_argument(
        "--full-train",
        action="store_true",
        help="train on all training images and keep the last epoch; else a tenth is held out "
        "to choose the epoch",
    )
    parser.add_argument("--seed", type=seed, help="of weights, order and augmentation (0)")
    parser.add_argument(
        "--dataset", help="cifar100, cifar100-mini (shipped), cifar10 or folder:PATH (cifar100)"
    )
    parser.add_argument("--data-dir", type=Path, help="where the data lies; else ZOO_DATA")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run")
    return parser


def make_job(args: argparse.Namespace) -> Job:
    """Resolve the options to one value.

    Raises:
        ZooError: no model was named, or a recipe or one of its fields is unknown or out of range.
    """
    model, seed, dataset = args.model or args.named, args.seed, args.dataset
    if args.model and args.named:
        raise ZooError(f"two models given, {args.model} and {args.named}: leave one out")
    if args.resume is None:
        if model is None:
            raise ZooError("no model given: zoo-train MODEL, such as zoo-train resnet_20")
        recipe = named_recipe(args.recipe or "study")
    else:
        from training.state import stored_recipe
        from zoo.checkpoint import Checkpoint

        stored = Checkpoint.open(args.resume)
        meta = stored.meta
        if model is None:  # else it is compared with the run's own, as its seed is
            stored.require_consent(None)
        recipe = named_recipe(args.recipe) if args.recipe else stored_recipe(args.resume)
        model = model or meta.model
        seed = meta.seed if seed is None else seed
        dataset = dataset or meta.dataset.name
    if args.epochs is not None:
        recipe = with_epochs(recipe, args.epochs)
    settings = dict(_setting(text) for text in args.set)
    if args.batch_size is not None:
        settings["batch_size"] = str(args.batch_size)
    if args.full_train:
        settings["full_train"] = "true"
    if args.freeze_backbone:
        settings["freeze_backbone"] = "true"
    return Job(
        model=model,
        image_size=args.image_size,
        pretrained=args.pretrained,
        pretrained_file=args.pretrained_file,
        recipe=with_settings(recipe, settings),
        runtime=Runtime(device=args.device, compile=args.compile),
        dataset=dataset or "cifar100",
        data_dir=args.data_dir,
        seed=seed or 0,
        runs=args.runs,
        resume=args.resume,
    )


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ZooError(f"--set expects FIELD=VALUE, such as --set peak_lr=0.05; got {text!r}")
    return name, value


def _train(args: argparse.Namespace) -> None:
    job = make_job(args)
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes, the first one
    from training.display import TrainingDisplay
    from training.run import train
    from zoo.data import load_dataset
    from zoo.display import TransferDisplay

    _check_model(job)  # before any data is fetched
    with TransferDisplay() as display:
        data = load_dataset(
            job.dataset, data_dir=job.data_dir, on_progress=display if speaks else None
        )
    if speaks:
        print(
            f"{job.model} on {data.name}, recipe {job.recipe.name}, {job.recipe.epochs} epochs, "
            f"batch {job.recipe.batch_size}, seed {job.seed}{_size(job)}",
            file=sys.stderr,
        )
    with TrainingDisplay() as bar:

        def show(progress: "Progress") -> None:
            if speaks:
                bar(progress)

        done = train(
            job.model,
            job.recipe,
            job.runtime,
            data,
            seed=job.seed,
            runs=job.runs,
            resume=job.resume,
            image_size=job.image_size,
            pretrained=job.pretrained,
            pretrained_file=job.pretrained_file,
            on_progress=show,
        )
    if speaks:
        meta = done.meta
        chosen = f"epoch {meta.epoch}, the {_selection(meta.selection)}"
        print(
            f"test top-1 {meta.test_top1:.2%}, top-5 {meta.test_top5:.2%} ({chosen})",
            file=sys.stderr,
        )
        print(done.path)


def _check_model(job: Job) -> None:
    """Refuse what can be refused without the data; of a network of the user's, import the module.

    Raises:
        ZooError: the model, its image size or the weights that it is to start from do not exist.
    """
    from zoo.adopt import check_file, check_hub
    from zoo.models import model_spec
    from zoo.neighbours import Neighbour
    from zoo.own import is_own, load_function

    if job.pretrained_file is not None and job.resume is None:
        check_file(job.pretrained_file)
    if is_own(job.model):
        load_function(job.model)
        return
    spec = model_spec(job.model)
    size = job.image_size or STORED_SIZE
    if job.image_size is not None and size not in spec.sizes:
        raise ZooError(f"model {job.model!r} takes images of {spec.sizes}, got {size}")
    is_from_hub = job.pretrained and job.pretrained_file is None and job.resume is None
    if is_from_hub and isinstance(spec, Neighbour):
        check_hub(spec, image_size=size)


def _size(job: Job) -> str:
    return "" if job.image_size is None else f", {job.image_size}x{job.image_size} pixels"


def _selection(selection: str) -> str:
    return "last of all training images" if selection == "last" else "best on held-out images"


if __name__ == "__main__":
    raise SystemExit(main())
