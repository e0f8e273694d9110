"""Show what the time gate is worth: comparisons of the code with itself, and planted slowdowns.

Each trial is written as it ends, and one that is there already is left: call it again to go on.
Two hours on 2 cores for 20 trials of either kind:

    PYTHONPATH=. .venv/bin/python tests/benchmarks/gate_trials.py
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gates.trials import (
    PLANTED,
    SELF,
    TRIALS,
    Bench,
    holds,
    read_trials,
    readme,
    trial_file,
    verdict,
)

from zoo import command
from zoo.files import write_atomic

COMMAND = "gate_trials"
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench_results" / "gate"
PAIRS = 10  # of processes in a trial, two fewer than the gate has: for the time they take


def main(argv: Sequence[str] | None = None) -> int:
    """Do the trials that are missing, then say what all of them show."""
    args = build_parser().parse_args(argv)
    return command.run(COMMAND, lambda: trials(args))


def build_parser() -> command.Parser:
    """All options."""
    parser = command.Parser(COMMAND, "Try the time gate on no slowdown and on planted ones.")
    parser.add_argument(
        "--trials", type=command.positive_int, default=TRIALS, metavar="N", help="of either kind"
    )
    parser.add_argument(
        "--pairs", type=command.positive_int, default=PAIRS, metavar="N", help="of processes"
    )
    parser.add_argument(
        "--seconds",
        type=command.positive_seconds,
        default=24 * 3600.0,
        metavar="SECONDS",
        help="after which no more trial is begun",
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER, metavar="DIR", help="where trials and outcome go"
    )
    return parser


def trials(args: argparse.Namespace) -> int:
    """Alternate both kinds; 1 where what is there falls short of what the gate promises."""
    end = time.monotonic() + args.seconds
    todo = [(kind, seed) for seed in range(args.trials) for kind in (SELF, PLANTED)]
    with tempfile.TemporaryDirectory(prefix="gate-trials-") as name:
        place = Path(name)
        bench: Bench | None = None
        for kind, seed in todo:
            if trial_file(args.out, kind, seed).exists():
                continue
            if time.monotonic() > end:
                break
            bench = bench or Bench(ROOT, place, pairs=args.pairs, say=say)
            found = bench.trial(kind, seed)
            write_atomic(trial_file(args.out, kind, seed), json.dumps(found) + "\n")
            say(f"{kind} {seed}: {verdict(found)}")
    done = read_trials(args.out)
    write_atomic(args.out / "README.md", readme(done))
    print(readme(done))
    return 0 if holds(done) else 1


def say(text: str) -> None:
    """A word on stderr."""
    print(f"{COMMAND}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
