"""Artifacts of six networks against torch on this CPU: accuracy, size and time. make artifacts.

A run in `bench_results/runs` is taken as it is; the other networks are trained briefly.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from artifact_bench.measure import measure
from artifact_bench.networks import prepare
from artifact_bench.page import page
from artifact_bench.sheet import in_order, read_sheet
from artifact_bench.training import WORK, trained

from zoo import command
from zoo.display import load_shown
from zoo.files import write_atomic, write_json
from zoo.models import model_spec

COMMAND = "artifacts"
RESULTS = Path(__file__).parents[2] / "bench_results"
RECORDS, PAGE = "networks", "README.md"
NETWORKS = (
    *("resnet_20", "resnet_56", "improved_resnet20_convnext", "coatnet_cifar_opt"),
    *("convnext_tiny", "resnet_18"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each network that has no record yet; write the page."""
    args = build_parser().parse_args(argv)
    return command.run(COMMAND, lambda: run(args))


def build_parser() -> command.Parser:
    """All options."""
    parser = command.Parser(COMMAND, "Hold the artifacts of networks against torch on this CPU.")
    parser.add_argument("--models", type=command.names, default=NETWORKS, metavar="NAMES")
    parser.add_argument("--dataset", default="cifar100", metavar="NAME")
    parser.add_argument("--threads", type=command.positive_ints, default=(1, 2), metavar="N,...")
    parser.add_argument(
        "--budget",
        type=command.positive_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for each backend at each batch size",
    )
    parser.add_argument("--max-macs", type=float, default=WORK, metavar="N", help="of a training")
    parser.add_argument("--trained", type=Path, default=RESULTS / "runs", metavar="FOLDER")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/artifacts"), metavar="FOLDER", help="of the others"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "artifacts", metavar="FOLDER")
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
        run = trained(name, args.trained, args.runs, dataset=args.dataset, max_macs=args.max_macs)
        with tempfile.TemporaryDirectory(prefix="zoo-artifacts-") as folder:
            sheet = measure(
                prepare(run, data, Path(folder)),
                batches=(1, 256),
                threads=args.threads,
                budget_s=args.budget,
            )
        write_json(record, sheet.to_json())
        write_page(args.out)
    print(write_page(args.out))


def write_page(out: Path) -> Path:
    """From all records, those of NETWORKS first and in their order."""
    found = in_order(out / RECORDS, NETWORKS)
    write_atomic(out / PAGE, page([read_sheet(path) for path in found]))
    return out / PAGE


if __name__ == "__main__":
    raise SystemExit(main())
