"""What int8 costs in accuracy, on a trained network of each family with convolutions: make int8.

A run in `bench_results/runs` is taken as it is. Of the other families one network is trained, for
EPOCHS epochs or WORK multiply-accumulates (three forward passes an image), whatever is less; a
tenth of the training images is held out, and int8 chooses on it which layers stay in float.
Accuracy is of the whole test split.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from artifact_bench.int8 import Cost, Int8, page, read_cost
from artifact_bench.measure import write
from artifact_bench.networks import prepare
from artifact_bench.sheet import in_order

from training.recipes import QUICK_ADAMW
from training.sweep_jobs import Job, work_of
from training.sweep_steps import train_arguments
from zoo import command
from zoo.checkpoint import META, Checkpoint, folder_name
from zoo.display import load_shown
from zoo.environment import capture, git_commit
from zoo.errors import MachineError
from zoo.files import write_atomic, write_json
from zoo.models import model_spec

COMMAND = "int8"
RESULTS = Path(__file__).parents[2] / "bench_results"
RECORDS, PAGE = "networks", "README.md"
SEED = 0
WORK = 1e13  # multiply-accumulates of a training
EPOCHS = 2
# Images, with repetition; AdamW below. With SGD res2net_50 learnt nothing from 5,000; from 90,000
# ghost_resnet_20 learnt more with SGD (27% top-1) than with AdamW (11%).
FEW = 20_000
OPTIMISER = ("optimizer", "peak_lr", "nesterov", "weight_decay")  # of the recipe for AdamW
WRITTEN = (("onnx", "int8"), ("openvino", "int8"))
NETWORKS = (
    *("resnet_20", "improved_resnet20_convnext", "eca_resnet_20", "ghost_resnet_20"),
    *("hyaresnet_20", "cspresnet50_asrun", "edgenext_small", "coatnet_cifar_opt", "coatnet_0"),
    *("hornet_tiny", "lsknet_tiny", "convnext_tiny", "segnext_mscan_tiny", "ghostnet_100"),
    *("resnet_18", "resnet_18_ca", "resnext_50", "res2net_50", "resnest50d"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and quantise each network that has no record yet; write the page."""
    args = build_parser().parse_args(argv)
    return command.run(COMMAND, lambda: run(args))


def build_parser() -> command.Parser:
    """All options."""
    parser = command.Parser(COMMAND, "Measure what int8 costs in accuracy, family by family.")
    parser.add_argument("--models", type=command.names, default=NETWORKS, metavar="NAMES")
    parser.add_argument("--dataset", default="cifar100", metavar="NAME")
    parser.add_argument("--max-macs", type=float, default=WORK, metavar="N", help="of a training")
    parser.add_argument("--trained", type=Path, default=RESULTS / "runs", metavar="FOLDER")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/int8"), metavar="FOLDER", help="of the others"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "int8", metavar="FOLDER")
    return parser


def run(args: argparse.Namespace) -> None:
    """Add what is missing."""
    for name in args.models:
        model_spec(name)
    data = load_shown(args.dataset, None)
    for name in args.models:
        record = args.out / RECORDS / f"{name}.json"
        if record.exists():
            continue
        runs = args.trained
        if not (runs / folder_name(name, SEED) / META).is_file():
            runs = args.runs
            train(name, runs, dataset=args.dataset, max_macs=args.max_macs)
        trained = Checkpoint.open(runs / folder_name(name, SEED))
        with tempfile.TemporaryDirectory(prefix="zoo-int8-") as folder:
            network = prepare(name, runs, data, Path(folder))
            artifacts, failed = write(network, WRITTEN, say)
        found = [Int8.of(artifact) for artifact in artifacts]
        found += [Int8.failed(entry) for entry in failed]
        cost = Cost.of(
            trained.meta, found, quantised_in=capture("cpu").to_json(), commit=git_commit()
        )
        write_json(record, cost.to_json())
        write_page(args.out)
    print(write_page(args.out))


def train(name: str, runs: Path, *, dataset: str, max_macs: float) -> None:
    """Train a network within the bound, or go on with that; what is trained is left as it is."""
    begun = runs / folder_name(name, SEED)
    if (begun / META).is_file() and Checkpoint.open(begun).meta.finished_at is not None:
        return
    job = Job(
        model=name,
        recipe="quick",
        seed=SEED,
        dataset=dataset,
        settings={"full_train": "false"},
        epochs=EPOCHS,
        max_macs=max_macs,
    )
    work = work_of(job)
    if work.steps is not None and work.steps * work.batch_size < FEW:
        adamw = {name: str(getattr(QUICK_ADAMW, name)).lower() for name in OPTIMISER}
        job = replace(job, settings=job.settings | adamw)
        work = work_of(job)
    argv = ("zoo-train", *train_arguments(job, work, runs))
    say(" ".join(argv))
    code = subprocess.run((Path(sys.executable).with_name(argv[0]), *argv[1:])).returncode
    if code:
        raise MachineError(f"{name} was not trained: zoo-train ended with {code}")


def write_page(out: Path) -> Path:
    """From all records, in the order of NETWORKS."""
    found = in_order(out / RECORDS, NETWORKS)
    missing = [name for name in NETWORKS if name not in {path.stem for path in found}]
    write_atomic(out / PAGE, page([read_cost(path) for path in found], missing))
    return out / PAGE


def say(text: str) -> None:
    """A word on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
