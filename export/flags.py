"""What `zoo-export`, `zoo-eval` and `zoo-predict` may be told."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from export import PRECISIONS, TARGETS
from zoo import command
from zoo.errors import ZooError

_INT8 = ("--int8-method", "--int8-max-drop", "--int8-images")
_TENSORRT = (
    *("--trt-flavor", "--trt-opt-batch", "--trt-workspace", "--trt-timing-cache"),
    *("--trt-version-compatible", "--trt-hardware-compatible"),
)
# Options that only some files are written with -> the option that asks for such a file, and with
# which values.
READ_BY: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "--preprocess": ("--to", ("onnx",)),
    "--provider": ("--to", ("onnx",)),
    "--opset": ("--to", ("onnx", "trt", "openvino")),
    **dict.fromkeys(_INT8, ("--precision", ("int8",))),
    **dict.fromkeys(_TENSORRT, ("--to", ("trt",))),
}
OF_WRITING = tuple(name for name in READ_BY if name != "--provider")
OF_RUNS = ("--all", "--data-dir", "--device", "--provider", "--model")


def export_parser() -> argparse.ArgumentParser:
    """All options of `zoo-export`."""
    parser = command.Parser(
        "zoo-export",
        "Write trained models in formats that other runtimes execute. Each file is compared with "
        "the model on test images and evaluated on the whole test split before it is kept; one "
        "that this machine cannot run waits for its proof.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="run folders, or files with --prove, --triton or --bundle; without any, the newest "
        "complete run",
    )
    parser.add_argument(
        "--to",
        type=command.names,
        metavar="TARGETS",
        help=f"formats with commas between: {', '.join(TARGETS)}; without it, onnx, and with "
        "--prove whatever is there",
    )
    parser.add_argument(
        "--precision",
        type=command.names,
        metavar="NAMES",
        help=f"number formats with commas between: {', '.join(PRECISIONS)}; not every format is "
        "written in each; without it, fp32, and with --prove whatever is there",
    )
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="write a second .onnx file that takes bytes (NHWC) and gives probabilities",
    )
    parser.add_argument(
        "--opset", type=command.positive_int, metavar="N", help="of ONNX graphs; without it, 20"
    )
    parser.add_argument(
        "--prove",
        action="store_true",
        help="write nothing: prove files that were written where they do not run",
    )
    parser.add_argument(
        "--all",
        nargs="?",
        const=True,
        metavar="RUNS",
        help="every complete run below RUNS; without a folder, below --runs",
    )
    parser.add_argument(
        "--triton",
        type=Path,
        metavar="DIR",
        help="add each file to a model repository of Triton Inference Server",
    )
    parser.add_argument(
        "--bundle",
        nargs="?",
        const=True,
        metavar="DIR",
        help="put each file into a folder with all that is needed to run it, below DIR or bundles "
        "in its run",
    )
    _add_common(parser, device=None)
    int8 = parser.add_argument_group("int8")
    int8.add_argument(
        "--int8-method",
        default="auto",
        metavar="NAME",
        help="how ranges are found: minmax, percentile, entropy, or auto, whichever of these "
        "changes the logits least",
    )
    int8.add_argument(
        "--int8-max-drop",
        type=command.share,
        default=0.005,
        metavar="SHARE",
        help="of top-1 on the validation split that may be lost; layers stay in "
        "float until it is kept",
    )
    int8.add_argument(
        "--int8-images",
        type=command.positive_int,
        default=512,
        metavar="N",
        help="training images to find ranges from",
    )
    tensorrt = parser.add_argument_group("TensorRT")
    tensorrt.add_argument(
        "--trt-flavor", choices=("tensorrt", "rtx"), help="without it, what is installed"
    )
    tensorrt.add_argument(
        "--trt-opt-batch",
        type=command.positive_int,
        default=256,
        metavar="N",
        help="images of the batch that engines are tuned for; other sizes run too, but slower",
    )
    tensorrt.add_argument(
        "--trt-workspace",
        type=command.positive_int,
        metavar="MIB",
        help="memory that building may use; without it, all",
    )
    tensorrt.add_argument(
        "--trt-timing-cache", type=Path, metavar="FILE", help="read and updated by each build"
    )
    tensorrt.add_argument(
        "--trt-version-compatible", action="store_true", help="for later releases too, but slower"
    )
    tensorrt.add_argument(
        "--trt-hardware-compatible", action="store_true", help="for other GPUs too, but slower"
    )
    return parser


def refuse_idle(args: argparse.Namespace) -> None:
    """Refuse options that would change nothing about the files to be written.

    Raises:
        ZooError: one was given, and no target or precision that reads it.
    """
    for option in given(args, READ_BY):
        asking, values = READ_BY[option]
        asked = getattr(args, _place(asking))
        if not set(values).intersection(asked):
            raise ZooError(
                f"{option} is for {asking} {' or '.join(values)}, got {asking} {','.join(asked)}: "
                "leave it out"
            )


def given(args: argparse.Namespace, options: Iterable[str]) -> list[str]:
    """Those of the options of `zoo-export` that do not have the value that they have unasked."""
    parser = export_parser()
    places = ((option, _place(option)) for option in options)
    return [name for name, place in places if getattr(args, place) != parser.get_default(place)]


def _place(option: str) -> str:
    """The name of an option's value."""
    return option.removeprefix("--").replace("-", "_")


def eval_parser() -> argparse.ArgumentParser:
    """All options of `zoo-eval`."""
    parser = command.Parser(
        "zoo-eval",
        "Measure the accuracy of a run or of one exported file on the test split: top-1 and top-5, "
        "by class and by superclass.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="PATH",
        help="run folder or exported file; without one, the newest complete run",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--batch", type=command.positive_int, default=256, metavar="N", help="images in one call"
    )
    _add_trust(parser)
    _add_common(parser)
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """All options of `zoo-predict`."""
    parser = command.Parser(
        "zoo-predict",
        "Name what is on images, such as PNG and JPEG files, of any size: their central square is "
        "resized as for training.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--artifact", type=Path, metavar="PATH", help="exported file to ask")
    source.add_argument(
        "--run",
        type=Path,
        metavar="RUN",
        help="run folder to ask; without either, the newest complete run",
    )
    parser.add_argument(
        "--top", type=command.positive_int, default=5, metavar="N", help="guesses for an image"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_trust(parser)
    _add_machine(parser)
    return parser


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="open a file that its manifest does not vouch for; engines and .pt2 files run code",
    )


def _add_common(parser: argparse.ArgumentParser, *, device: str | None = "cpu") -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the run's data set lies; else ZOO_DATA",
    )
    _add_machine(parser, device=device)


def _add_machine(parser: argparse.ArgumentParser, *, device: str | None = "cpu") -> None:
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where the newest run is sought",
    )
    parser.add_argument(
        "--device",
        type=command.device,
        default=device,
        metavar="NAME",
        help="cpu, cuda or cuda:N"
        + ("" if device else "; without it cpu, for trt a GPU where there is one"),
    )
    parser.add_argument(
        "--provider",
        metavar="NAME",
        help="of ONNX Runtime: cpu, or with --device cuda one of cuda, tensorrt; never replaced "
        "by another",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="of a run of package.module:function: repeat its name to have the module imported",
    )
