"""The command zoo-sweep."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.sweep_steps import Means
from zoo import command
from zoo.errors import ZooError, nearest

if TYPE_CHECKING:
    from training.sweep import Planned
    from training.sweep_jobs import Group

TORCH_BACKENDS = ("eager", "compile")
LISTS = ("comparison", "second-study", "ablation")
OUT = Path("runs") / "sweep"


def sweep(argv: Sequence[str] | None, *, targets: Sequence[str]) -> int:
    """Run `zoo-sweep`; `targets` are what zoo-export writes."""
    args = build_parser().parse_args(argv)
    return command.run("zoo-sweep", lambda: _sweep(args, targets))


def build_parser() -> command.Parser:
    """All options of `zoo-sweep`."""
    parser = command.Parser(
        "zoo-sweep",
        "Train, export, evaluate and measure a list of models, one process a job. Jobs that are "
        "done are skipped, so the same command goes on after any interruption.",
    )
    parser.add_argument(
        "what",
        metavar="LIST",
        help="comparison (the models of the first study), second-study, ablation STUDY, or a "
        ".toml file with a list or a grid",
    )
    parser.add_argument(
        "study",
        nargs="?",
        type=command.names,
        metavar="STUDY",
        help="of ablation: names with commas between, such as eca_kernel,ghost_ratio, or all",
    )
    parser.add_argument("--seeds", type=seeds, metavar="SEEDS", help="such as 0,1,2 (the default)")
    parser.add_argument(
        "--epochs", type=command.positive_int, metavar="N", help="instead of the recipe's"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="as for zoo-train; cifar100 unless the file says another"
    )
    parser.add_argument("--recipe", metavar="NAME", help="instead of that of each job")
    parser.add_argument(
        "--max-macs",
        type=command.positive_number,
        metavar="N",
        help="bound each training, and each pre-training, to about N multiply-accumulates, such as "
        "6e11, but to no fewer than 20 steps; its record says so",
    )
    parser.add_argument(
        "--max-hours",
        type=command.positive_number,
        metavar="H",
        help="stop after H hours; a training under way is saved and goes on the next time, a "
        "pre-training after its last complete epoch",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        default="1/1",
        metavar="I/N",
        help="take every Nth job, from the Ith on; others may take the rest at the same time",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the jobs, their state and the times that those done in DIR foretell",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="try jobs again that failed three times"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="folder of the sweep, shared by shards"
    )
    _add_means(parser)
    return parser


def _add_means(parser: command.Parser) -> None:
    group = parser.add_argument_group("how jobs are run")
    group.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="of every step; without it training takes a GPU where there is one, the rest the CPU",
    )
    group.add_argument("--compile", action="store_true", help="train with torch.compile")
    group.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the data lies; else ZOO_DATA"
    )
    group.add_argument(
        "--to",
        type=command.names,
        default="onnx",
        metavar="TARGETS",
        help="of zoo-export, with commas between",
    )
    group.add_argument(
        "--backend", type=command.names, metavar="NAMES", help="of zoo-bench; without it, all"
    )
    group.add_argument(
        "--batch", type=command.positive_ints, default="1,256", metavar="SIZES", help="of zoo-bench"
    )
    group.add_argument(
        "--budget", type=command.positive_seconds, metavar="SECONDS", help="of zoo-bench"
    )


def seeds(text: str) -> tuple[int, ...]:
    """Read '0,1,2' as (0, 1, 2); duplicates are dropped.

    Raises:
        argparse.ArgumentTypeError: an item is no seed.
    """
    return tuple(dict.fromkeys(command.seed(item.strip()) for item in text.split(",")))


def shard(text: str) -> tuple[int, int]:
    """Read '2/8' as (2, 8).

    Raises:
        argparse.ArgumentTypeError: it is no I/N with 1 <= I <= N.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected I/N, from 1/N to N/N, like 2/8; got {text!r}")
    return int(found[1]), int(found[2])


def _sweep(args: argparse.Namespace, targets: Sequence[str]) -> int:
    _check_names(args, targets)
    from training.sweep import Planned, run_sweep, runs_folder
    from training.sweep_jobs import all_jobs, work_of
    from training.sweep_plan import table, write_plan
    from training.sweep_steps import steps_of

    groups = _groups(args)
    means = _means(args)
    planned = []
    for job in all_jobs(groups):  # mistakes before hours
        work = work_of(job)
        steps = steps_of(job, work, runs_folder(args.out, job.id), means)
        planned.append(Planned(job=job, work=work, steps=tuple(steps)))
    index, count = args.shard
    own = planned[index - 1 :: count]
    if args.dry_run:
        from zoo.environment import capture

        print(table(own, args.out, capture(_device(args.device)).key))
        return 0
    _check_data(planned, args.data_dir)
    write_plan(args.out, _name(args), groups, planned)
    deadline = None if args.max_hours is None else time.monotonic() + 3600 * args.max_hours
    outcome = run_sweep(
        own, args.out, deadline=deadline, retry_failed=args.retry_failed, on_note=_say
    )
    for job_id, reason in outcome.failed.items():
        _say(f"{job_id} failed: {reason}")
    done, failed, left = len(outcome.done), len(outcome.failed), len(outcome.left)
    helps = [
        *(["see logs/ and pass --retry-failed"] if failed else []),
        *(["the same command goes on"] if left else []),
    ]
    summary = f"{done} of {len(own)} jobs done, {failed} failed, {left} left"
    _say("; ".join([summary, *helps]))
    print(args.out)
    return int(failed + left > 0)


def _check_names(args: argparse.Namespace, targets: Sequence[str]) -> None:
    for word, given, known in (
        ("target", args.to, targets),
        ("backend", args.backend or (), (*TORCH_BACKENDS, *args.to)),
    ):
        for name in given:
            if name not in known:
                raise ZooError(f"no {word} named {name!r}: {nearest(name, known)}")
    if args.what == "ablation" and args.study is None:
        from training.ablations import STUDIES

        raise ZooError(f"zoo-sweep ablation STUDY: choose of {', '.join(STUDIES)}, or all")
    if args.what != "ablation" and args.study is not None:
        raise ZooError(
            f"only ablation takes a STUDY: leave out {','.join(args.study)} after {args.what}"
        )
    if args.what not in LISTS and not args.what.endswith(".toml"):
        known = nearest(args.what, (*LISTS, "FILE.toml"))
        raise ZooError(f"no list named {args.what!r}: {known}")


def _groups(args: argparse.Namespace) -> list["Group"]:
    from training import sweep_jobs
    from training.sweep_file import read_sweep

    scale = sweep_jobs.Scale(
        seeds=args.seeds,
        epochs=args.epochs,
        dataset=args.dataset,
        recipe=args.recipe,
        max_macs=args.max_macs,
    )
    match args.what:
        case "comparison":
            return sweep_jobs.comparison(scale)
        case "second-study":
            return sweep_jobs.second_study(scale)
        case "ablation":
            return sweep_jobs.ablation(args.study, scale)
        case path:
            return read_sweep(Path(path), scale)


def _means(args: argparse.Namespace) -> Means:
    return Means(
        device=args.device,
        compile=args.compile,
        data_dir=args.data_dir,
        to=args.to,
        backend=args.backend or (),
        batch=args.batch,
        budget_s=args.budget,
    )


def _check_data(planned: "Sequence[Planned]", data_dir: Path | None) -> None:
    """Load each data set once, with its errors and its download, before there are processes."""
    from zoo.display import load_shown

    for name in dict.fromkeys(one.job.dataset for one in planned):
        load_shown(name, data_dir)


def _name(args: argparse.Namespace) -> str:
    if args.what == "ablation":
        return "ablation-" + "-".join(args.study)
    return args.what if args.what in LISTS else Path(args.what).stem


def _device(asked: str | None) -> str:
    """What training takes."""
    import torch

    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
