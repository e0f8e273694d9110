"""Time the hot paths of the working tree against a commit: make bench-compare BASE=main."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gates.hot_paths import gated
from gates.lanes import SIDES, run_pairs
from gates.outcome import judge, markdown
from gates.sides import base_commit, write_commit, write_tree

from zoo import command
from zoo.environment import capture
from zoo.files import write_json

COMMAND = "bench_compare"
ROOT = Path(__file__).parents[2]
PAIRS = 12  # of processes
SECONDS = 13 * 60.0  # that pairs may take; the job has 15 minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the table, and tell by the exit code."""
    args = build_parser().parse_args(argv)
    return command.run(COMMAND, lambda: compare(args))


def build_parser() -> command.Parser:
    """All options."""
    parser = command.Parser(
        COMMAND,
        "Time the hot paths of the working tree against a commit, in turns. Exits with 1 where one "
        "is slower by more than is tolerated and not by chance.",
    )
    parser.add_argument("base", metavar="BASE", help="a branch or commit, such as main")
    parser.add_argument("--only", metavar="REGEX", help="hot paths whose names it is found in")
    parser.add_argument(
        "--pairs", type=command.positive_int, default=PAIRS, metavar="N", help="of processes"
    )
    parser.add_argument(
        "--seconds",
        type=command.positive_seconds,
        default=SECONDS,
        metavar="SECONDS",
        help="after which no more pair is begun",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all samples as JSON")
    return parser


def compare(args: argparse.Namespace) -> int:
    """Make both sides, time them, and judge."""
    chosen = gated(args.only)
    commit = base_commit(ROOT, args.base)
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as place:
        homes = [Path(place) / side for side in SIDES]
        folders = [Path(place) / f"files-{side}" for side in SIDES]
        for folder in folders:
            folder.mkdir()
        write_commit(ROOT, commit, homes[0])
        write_tree(ROOT, homes[1])
        samples = run_pairs(
            homes,
            folders,
            [path.name for path in chosen],
            cold=[path.name for path in chosen if path.is_cold],
            pairs=args.pairs,
            seconds=args.seconds,
            tell=lambda text: print(f"{COMMAND}: {text}", file=sys.stderr, flush=True),
        )
    outcome = judge(samples)
    table = markdown(outcome, base=f"{args.base} ({commit[:12]})", change="the working tree")
    print(table)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a") as file:
            print(table, file=file)
    if args.out is not None:
        facts = {"base": commit, "environment": capture().to_json()}
        write_json(args.out, {**facts, "samples": asdict(samples), "outcome": outcome.to_json()})
    if outcome.complaint is not None:
        print(f"{COMMAND}: {outcome.complaint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
