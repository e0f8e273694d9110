"""What int8 costs in accuracy, on a trained network of each family with convolutions: make int8.

A run in `bench_results/runs` is taken as it is; of the other families one network is trained
briefly. A tenth of the training images is held out, and int8 chooses on it which layers stay in
float. Accuracy is of the whole test split.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from artifact_bench.int8 import Cost, Int8, page, read_cost
from artifact_bench.measure import write
from artifact_bench.networks import prepare
from artifact_bench.sheet import in_order
from artifact_bench.training import WORK, trained

from zoo import command
from zoo.display import load_shown
from zoo.environment import capture, git_commit
from zoo.files import write_atomic, write_json
from zoo.models import model_spec

COMMAND = "int8"
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench_results"
RECORDS, PAGE = "networks", "README.md"
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
        run = trained(name, args.trained, args.runs, dataset=args.dataset, max_macs=args.max_macs)
        with tempfile.TemporaryDirectory(prefix="zoo-int8-") as folder:
            artifacts, failed = write(prepare(run, data, Path(folder)), WRITTEN)
        found = [Int8.of(artifact) for artifact in artifacts]
        found += [Int8.failed(entry) for entry in failed]
        cost = Cost.of(
            run.meta, found, quantised_in=capture("cpu").to_json(), commit=git_commit(ROOT)
        )
        write_json(record, cost.to_json())
        write_page(args.out)
    print(write_page(args.out))


def write_page(out: Path) -> Path:
    """From all records, in the order of NETWORKS."""
    found = in_order(out / RECORDS, NETWORKS)
    missing = [name for name in NETWORKS if name not in {path.stem for path in found}]
    write_atomic(out / PAGE, page([read_cost(path) for path in found], missing))
    return out / PAGE


if __name__ == "__main__":
    raise SystemExit(main())
