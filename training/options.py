"""The options of zoo-train, and what they ask for."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.elastic import MAX_RESTARTS, Launch
from training.recipe import (
    COMM_HOOKS,
    COMPILE_MODES,
    CUDA_GRAPHS,
    DEVICES,
    MEMORY_FORMATS,
    Recipe,
    Runtime,
    read_settings,
    scaled,
    with_epochs,
    with_settings,
)
from training.recipes import RECIPES, recipe_for
from zoo.command import Parser, image_size, positive_int, positive_seconds, seed
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.checkpoint import RunMeta

AUTO = "auto"
SHARE_OF_TEACHER = 0.9  # of the loss, where the recipe names none
REPLAYED = ("replay", "model", "named", "dataset", "data_dir", "teacher")  # what a replay looks at
REPLAYED_SPEED = ("device", "memory_format", "accumulate", "deterministic")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one call of zoo-train is to do."""

    model: str
    image_size: int | None  # None: as stored
    pretrained: bool
    pretrained_file: Path | None
    init_from: Path | None  # a run
    teacher: Path | None  # a run
    recipe: Recipe
    runtime: Runtime
    dataset: str
    data_dir: Path | None
    seed: int
    runs: Path
    resume: str | None  # a run folder, or "auto"
    launch: Launch | None  # the processes to start; None: this one alone
    tensorboard: bool


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
        type=image_size,
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
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="RUN",
        help="start from the weights of a run of the same model, such as zoo-pretrain leaves, "
        "under a new classifier",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="RUN",
        help=f"learn from the answers of another run too: {SHARE_OF_TEACHER} of the loss",
    )
    parser.add_argument("--freeze-backbone", action="store_true", help="train the classifier alone")
    parser.add_argument("--recipe", help=f"one of {', '.join(RECIPES)} (study unless resumed)")
    parser.add_argument(
        "--recipes",
        action="store_true",
        help="list them with their commands and what to expect, and end",
    )
    parser.add_argument(
        "--epochs", type=positive_int, help="instead of the recipe's; warm-up keeps its share"
    )
    parser.add_argument("--batch-size", type=positive_int, help="images a step, all processes")
    parser.add_argument(
        "--scale-lr",
        action="store_true",
        help="change the learning rate in proportion to --batch-size",
    )
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
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument(
        "--resume",
        metavar="RUN|auto",
        help="continue an interrupted run; auto: the newest one like this, else begin one",
    )
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="RUN",
        help="show where the values of a run stopped being finite, and end",
    )
    parser.add_argument("--log", choices=("tensorboard",), help="beside metrics.jsonl")
    _add_speed(parser)
    _add_processes(parser)
    return parser


def _add_speed(parser: Parser) -> None:
    group = parser.add_argument_group("speed")
    group.add_argument("--device", choices=DEVICES, default="auto")
    group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="use torch.compile, or do not"
    )
    group.add_argument(
        "--compile-mode", choices=COMPILE_MODES, help="of torch.compile, with --compile"
    )
    group.add_argument(
        "--cuda-graphs",
        choices=CUDA_GRAPHS,
        default="auto",
        help="a whole step as one CUDA graph; auto: on a GPU of a single process",
    )
    group.add_argument(
        "--memory-format",
        choices=MEMORY_FORMATS,
        help=f"how images and weights lie in memory ({MEMORY_FORMATS[0]} unless resumed)",
    )
    group.add_argument(
        "--accumulate",
        type=positive_int,
        metavar="N",
        help="take each batch in N parts, one after another, which needs less memory (1 unless "
        "resumed)",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="only algorithms that give the same bits every time on one device",
    )
    group.add_argument(
        "--save-seconds",
        type=positive_seconds,
        default=30.0,
        metavar="S",
        help="at least, between two saves of what a resume needs",
    )


def _add_processes(parser: Parser) -> None:
    group = parser.add_argument_group("several processes")
    group.add_argument("--nproc", type=positive_int, metavar="N", help="processes on this node")
    group.add_argument(
        "--nnodes", type=node_range, metavar="LEAST:MOST", help="nodes, such as 2 or 2:4"
    )
    group.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the nodes meet")
    group.add_argument(
        "--rdzv-id",
        metavar="NAME",
        help="of the job, the endpoint unless given: the "
        "same command goes on with the unfinished run of this name, another name begins one",
    )
    group.add_argument(
        "--max-restarts",
        type=whole_number,
        metavar="N",
        help=f"from the last save, where a process was lost ({MAX_RESTARTS} unless given)",
    )
    group.add_argument(
        "--sync-batchnorm",
        action="store_true",
        help="batch norms see the images of all processes; GPUs only",
    )
    group.add_argument(
        "--comm-hook",
        choices=COMM_HOOKS,
        default="none",
        help="send gradients between GPUs in half precision",
    )


def node_range(text: str) -> tuple[int, int]:
    """Read '2' as (2, 2) and '2:4' as (2, 4).

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    least, _, most = text.partition(":")
    if not (
        least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)
    ):
        raise argparse.ArgumentTypeError(f"expected a number or LEAST:MOST, like 2:4; got {text!r}")
    return int(least), int(most or least)


def whole_number(text: str) -> int:
    """Read a whole number, 0 included."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def make_job(args: argparse.Namespace) -> Job:
    """Resolve the options to one value.

    Raises:
        ZooError: no model was named, or a recipe or one of its fields is unknown or out of range.
    """
    model, seed, dataset = args.model or args.named, args.seed, args.dataset
    if args.model and args.named:
        raise ZooError(f"two models given, {args.model} and {args.named}: leave one out")
    if args.resume in (None, AUTO):
        if model is None:
            raise ZooError("no model given: zoo-train MODEL, such as zoo-train resnet_20")
        recipe, began = recipe_for(args.recipe or "study", model), None
    else:
        from training.state import stored_recipe
        from zoo.checkpoint import Checkpoint

        stored = Checkpoint.open(args.resume)
        stored.require_classifier()
        meta = began = stored.meta
        if model is None:  # else it is compared with the run's own, as its seed is
            stored.require_consent(None)
        model = model or meta.model
        recipe = recipe_for(args.recipe, model) if args.recipe else stored_recipe(Path(args.resume))
        seed = meta.seed if seed is None else seed
        dataset = dataset or meta.dataset.name
    _require_one_origin(args)
    if args.epochs is not None:
        recipe = with_epochs(recipe, args.epochs)
    named = {
        "batch_size": args.batch_size,
        "full_train": args.full_train,
        "freeze_backbone": args.freeze_backbone,
    }
    settings = read_settings(args.set, epochs=args.epochs, **named)
    if args.scale_lr and args.batch_size is None:
        raise ZooError("--scale-lr follows the batch size: name one with --batch-size")
    if args.scale_lr:
        if "peak_lr" in settings:
            recipe = with_settings(recipe, {"peak_lr": settings.pop("peak_lr")})
        recipe = scaled(recipe, args.batch_size)
    settings |= {field: str(value) for field, value in named.items() if value}
    if args.teacher is not None and recipe.distillation == 0:
        settings.setdefault("distillation", str(SHARE_OF_TEACHER))
    return Job(
        model=model,
        image_size=args.image_size,
        pretrained=args.pretrained,
        pretrained_file=args.pretrained_file,
        init_from=args.init_from,
        teacher=args.teacher,
        recipe=with_settings(recipe, settings),
        runtime=make_runtime(args, began),
        dataset=dataset or "cifar100",
        data_dir=args.data_dir,
        seed=seed or 0,
        runs=args.runs,
        resume=args.resume,
        launch=_launch(args),
        tensorboard=args.log == "tensorboard",
    )


def require_replay(args: argparse.Namespace, stored: "RunMeta") -> None:
    """Refuse what a replay, which takes a step as its run took it, would not look at.

    Raises:
        ZooError: such an option is given, or another data set than the run's.
    """
    unsaid = vars(build_parser().parse_args([]))
    idle = sorted(
        ("--no-" if value is False else "--") + name.replace("_", "-")
        for name, value in vars(args).items()
        if value != unsaid[name] and name not in REPLAYED + REPLAYED_SPEED
    )
    if idle:
        raise ZooError(
            f"--replay takes a step as {args.replay} took it: leave out {', '.join(idle)}"
        )
    if args.dataset not in (None, stored.dataset.name):
        raise ZooError(
            f"{args.replay} learned from {stored.dataset.name}, got --dataset {args.dataset}: "
            "leave it out"
        )


def _require_one_origin(args: argparse.Namespace) -> None:
    given = {
        "--pretrained": args.pretrained,
        "--pretrained-file": args.pretrained_file,
        "--init-from": args.init_from,
    }
    named = [option for option, value in given.items() if value]
    if args.init_from and len(named) > 1:
        raise ZooError(f"{' and '.join(named)} name weights to start from: pass one of them")


def make_runtime(args: argparse.Namespace, began: "RunMeta | None" = None) -> Runtime:
    """What the options say about speed; where they do not, a run goes on as it `began`.

    How its processes work together is not kept: another time there may be one, or a CPU.

    Raises:
        ZooError: an option needs another one.
    """
    before = {} if began is None else {"compile": began.compiled, **(began.runtime or {})}
    compiles = before.get("compile", False) if args.compile is None else args.compile
    if args.compile_mode and not compiles:
        raise ZooError(f"--compile-mode {args.compile_mode} says how: pass --compile beside it")
    channels_last = args.memory_format == MEMORY_FORMATS[0]
    if args.memory_format is None:
        channels_last = before.get("channels_last", True)
    return Runtime(
        device=args.device,
        compile=compiles,
        compile_mode=args.compile_mode or before.get("compile_mode", "default"),
        cuda_graphs=args.cuda_graphs,
        channels_last=channels_last,
        accumulate=args.accumulate or before.get("accumulate", 1),
        deterministic=args.deterministic or before.get("deterministic", False),
        save_seconds=args.save_seconds,
        sync_batchnorm=args.sync_batchnorm,
        comm_hook=args.comm_hook,
    )


def _launch(args: argparse.Namespace) -> Launch | None:
    if args.nproc is None and args.nnodes is None:
        if args.rdzv_endpoint or args.rdzv_id:
            raise ZooError("--rdzv-endpoint and --rdzv-id are for several nodes: pass --nnodes")
        if args.max_restarts is not None:
            raise ZooError("--max-restarts is for several processes: pass --nproc or --nnodes")
        return None
    return Launch(
        nproc=args.nproc or 1,
        nodes=args.nnodes or (1, 1),
        endpoint=args.rdzv_endpoint,
        id=args.rdzv_id,
        max_restarts=MAX_RESTARTS if args.max_restarts is None else args.max_restarts,
    )
