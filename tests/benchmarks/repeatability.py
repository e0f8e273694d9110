"""Run zoo-bench again and again: how far its ratios to the reference kernel differ.

Ten runs on an idle machine and ten beside a process that keeps one core busy, on one thread. A
quarter of an hour:

    PYTHONPATH=. .venv/bin/python tests/benchmarks/repeatability.py
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from profiling import Measurement, benchmark
from profiling.runs import model_subjects
from zoo import command
from zoo.environment import capture, git_commit
from zoo.files import write_json

ROOT = Path(__file__).parents[2]
OUT = ROOT / "bench_results" / "trust" / "repeatability.json"
MODEL = "resnet_20"
RUNS = 10
BATCHES = (1, 64)
LIMITS = {"idle": 0.03, "loaded": 0.06}  # of the coefficient of variation
SPIN = (sys.executable, "-c", "while True: pass")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, and fail where the ratios vary by more than the limit."""
    parser = command.Parser("repeatability", "Run zoo-bench again and again.")
    parser.add_argument(
        "--runs", type=command.positive_int, default=RUNS, metavar="N", help="of either kind"
    )
    parser.add_argument(
        "--budget", type=command.positive_seconds, default=8.0, metavar="SECONDS", help="of each"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="where it is written")
    args = parser.parse_args(argv)
    return command.run("repeatability", lambda: _repeat(args))


def _repeat(args: argparse.Namespace) -> int:
    found: dict[str, list[list[Measurement]]] = {"idle": [], "loaded": []}
    for _ in range(args.runs):
        found["idle"].append(one_run(args.budget))
        with subprocess.Popen(SPIN) as other:
            try:
                found["loaded"].append(one_run(args.budget))
            finally:
                other.kill()
    rows = [row(kind, batch, runs) for kind, runs in found.items() for batch in BATCHES]
    for one in rows:
        print("{kind} b{batch}: ratios vary by {variation:.2%}, at most {limit:.0%}".format(**one))
    head = {"model": MODEL, "commit": git_commit(ROOT), "environment": capture().to_json()}
    write_json(args.out, head | {"rows": rows})
    print(args.out)
    return int(not all(one["holds"] for one in rows))


def one_run(budget_s: float) -> list[Measurement]:
    """What one zoo-bench --threads 1 --backend eager measures."""
    subjects = [one for one in model_subjects(MODEL) if one.backend == "eager"]
    return benchmark(subjects, batches=BATCHES, budget_s=budget_s, threads=1)


def row(kind: str, batch: int, runs: Sequence[Sequence[Measurement]]) -> dict[str, Any]:
    """How far the runs of one kind differ at one batch size."""
    records = [record for run in runs for record in run if record.batch == batch]
    ratios = [record.relative.value for record in records if record.relative is not None]
    hosts = [record.host for record in records if record.host is not None]
    variation = statistics.stdev(ratios) / statistics.fmean(ratios)
    # That a loaded machine is called busy is part of the promise.
    is_said = kind == "idle" or all(host.is_busy for host in hosts)
    return {
        "kind": kind,
        "batch": batch,
        "ratios": ratios,
        "p50_ms": [record.p50_ms for record in records],
        "others": [host.others for host in hosts],
        "busy": sum(host.is_busy for host in hosts),
        "variation": variation,
        "limit": LIMITS[kind],
        "holds": variation < LIMITS[kind] and is_said,
    }


if __name__ == "__main__":
    raise SystemExit(main())
