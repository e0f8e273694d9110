"""The options of `zoo-bench` and `zoo-report`."""

from pathlib import Path

from zoo import command

RUNS, RESULTS = Path("runs"), Path("bench_results")
IMAGE_SIZE = 32
BUDGET_S = 5.0


def bench_parser() -> command.Parser:
    """All options of `zoo-bench`."""
    parser = command.Parser(
        "zoo-bench",
        "Measure a run on torch and on every artifact that was exported from it, side by side, an "
        "ONNX file of any origin, or an untrained network on torch; writes one JSON record for "
        "each backend and batch size.",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="run folder, .onnx file, or names of models such as resnet_20,timm:resnet18, which "
        "are measured untrained; without any, the newest complete run",
    )
    parser.add_argument(
        "--model",
        type=command.names,
        metavar="NAMES",
        help="package.module:function, networks of yours: measured untrained or, with a run of "
        "one, imported to measure that run",
    )
    parser.add_argument(
        "--zoo", action="store_true", help="measure every model of the catalogue, untrained"
    )
    parser.add_argument(
        "--group", type=command.names, metavar="NAMES", help="of --zoo, only these groups"
    )
    parser.add_argument(
        "--image-size",
        type=command.image_size,
        metavar="N",
        help=f"height and width of the images of untrained networks ({IMAGE_SIZE})",
    )
    parser.add_argument(
        "--batch",
        type=command.positive_ints,
        default="1,256",
        metavar="SIZES",
        help="images in one call, with commas between",
    )
    parser.add_argument(
        "--budget",
        type=command.positive_seconds,
        default=BUDGET_S,
        metavar="SECONDS",
        help="for each measurement, warm-up included; opening and the first call come on top",
    )
    parser.add_argument(
        "--backend",
        type=command.names,
        metavar="NAMES",
        help="only these, with commas between, such as eager,compile,onnx; without it, all",
    )
    parser.add_argument(
        "--device", type=command.device, default="cpu", metavar="NAME", help="cpu, cuda or cuda:N"
    )
    parser.add_argument(
        "--threads",
        type=command.positive_int,
        metavar="N",
        help="of each backend on the CPU; without it, what torch chooses",
    )
    parser.add_argument(
        "--l2-flush",
        action="store_true",
        help="on a GPU, overwrite its L2 cache before each call",
    )
    parser.add_argument(
        "--price-per-hour",
        type=command.positive_number,
        metavar="PRICE",
        help="of this machine, in any currency: adds the price of a million images at the fastest "
        "batch size",
    )
    parser.add_argument(
        "--latency-bound",
        type=command.positive_number,
        metavar="MS",
        help="of --price-per-hour: only batch sizes with 99%% of the calls within this time",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"write to DIR/records/ in place of the run's own folder ({RESULTS} for a file)",
    )
    parser.add_argument("--all", action="store_true", help="measure every run below --runs")
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="DIR", help="where runs are sought"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the run's data set lies; else ZOO_DATA"
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="time nothing: count parameters, MACs, norms, activations and FLOPs a byte",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="time and count the layers of one network in eager torch; writes no record",
    )
    parser.add_argument(
        "--roofline",
        action="store_true",
        help="measure again how fast the device copies and multiplies, and nothing else",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="measure nothing: compare two record files or folders of records",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="of --cost, --layers, --roofline and --compare: print JSON",
    )
    return parser


def report_parser() -> command.Parser:
    """All options of `zoo-report`."""
    parser = command.Parser(
        "zoo-report",
        "Turn the records of zoo-bench into a table (Markdown, CSV), a Pareto plot (PNG, SVG) and "
        "one static page; with those of zoo-sweep, the tables and figures of the studies too, as "
        "DIR/study (CSV, Markdown, LaTeX, JSON, PNG, SVG and one page).",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help=f"where records and sweeps are sought; without one, {RUNS} and {RESULTS}",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="where the report goes"
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="write the tables to this Markdown file too"
    )
    parser.add_argument(
        "--price-per-hour",
        type=command.positive_number,
        metavar="PRICE",
        help="of the machine that was measured, in any currency: adds the price of a million "
        "images to the tables of the studies",
    )
    parser.add_argument(
        "--import",
        dest="evidence",
        type=Path,
        metavar="DIR",
        help="instead, merge what make gpu wrote on another machine into this clone of cifar-zoo",
    )
    return parser
