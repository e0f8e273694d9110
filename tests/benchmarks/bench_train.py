"""Train beside torchvision's and timm's loops on the same images: make bench-train."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from train_bench import records, table
from train_bench.contenders import CONTENDERS, Task, chosen

from zoo import command
from zoo.data import load_dataset
from zoo.files import write_atomic

FOLDER = Path(__file__).parents[2] / "bench_results" / "training"
COMMAND = "bench_train"
BATCH = {"cpu": 128, "cuda": 1024}
SECONDS = {"cpu": 60.0, "cuda": 12.0}
ROUNDS = {"cpu": 10, "cuda": 6}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every network that is asked for, then write the tables."""
    args = build_parser().parse_args(argv)
    return command.run(COMMAND, lambda: bench(args))


def bench(args: argparse.Namespace) -> int:
    """Measure; 1 where a contender failed."""
    import torch
    from train_bench.rounds import Budget, measure

    from zoo.models import model_spec

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    entrants = chosen(args.contenders, device)
    for model in args.models:
        model_spec(model)
    num_classes = load_dataset(args.dataset).num_classes
    budget = Budget(seconds=args.seconds or SECONDS[device], rounds=args.rounds or ROUNDS[device])
    is_complete = True
    for model in args.models:
        task = Task(
            model=model,
            dataset=args.dataset,
            batch=args.batch or BATCH[device],
            device=device,
            data_workers=args.workers or len(os.sched_getaffinity(0)),
        )
        start = time.perf_counter()
        is_complete &= measure(
            task,
            entrants,
            budget,
            threads=args.threads,
            num_classes=num_classes,
            folder=args.out,
            tell=lambda text, model=model: print(f"{model}: {text}", file=sys.stderr, flush=True),
        )
        runs = records.read(args.out / records.RECORDS)
        print(table.section(runs[-1]), flush=True)
        print(f"{model}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        write_atomic(args.out / table.README, table.readme(runs))
    return 0 if is_complete else 1


def build_parser() -> command.Parser:
    """All options."""
    parser = command.Parser(
        COMMAND,
        "Train a network in our loop, in that of torchvision's reference script and in timm's, in "
        "turns on the same images. Every round is written to OUT/records.jsonl as it ends.",
    )
    parser.add_argument(
        "--models",
        type=command.names,
        default=("resnet_20",),
        metavar="NAMES",
        help="networks of the zoo, one after the other",
    )
    parser.add_argument(
        "--batch", type=command.positive_int, help="images a step (CPU 128, GPU 1024)"
    )
    parser.add_argument(
        "--seconds",
        type=command.positive_seconds,
        help="timed for each contender and network, start and compilation apart (CPU 60, GPU 12)",
    )
    parser.add_argument(
        "--rounds", type=command.positive_int, help="into which they are cut (CPU 10, GPU 6)"
    )
    parser.add_argument(
        "--contenders",
        type=command.names,
        metavar="NAMES",
        help=f"of {', '.join(CONTENDERS)}; without any, those that fit the device",
    )
    parser.add_argument(
        "--threads",
        type=command.positive_int,
        help="of torch in each contender; torch's own choice",
    )
    parser.add_argument(
        "--workers",
        type=command.positive_int,
        help="processes of a peer's data loader; as many as there are cores",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the GPU where there is one")
    parser.add_argument(
        "--dataset", default="cifar100", help="cifar100 (see ZOO_DATA) or cifar100-mini"
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder of records.jsonl and README.md"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
