"""Files that other runtimes execute, each with the proof that it is still the model.

Importing this package loads neither torch nor onnx; the first export does.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from zoo.errors import ZooError, nearest

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.target import ExportOptions, ExportTarget
    from zoo.checkpoint import Checkpoint
    from zoo.data import Dataset

# name -> "module:class"; the module is imported when the target is first used
TARGETS: Mapping[str, str] = MappingProxyType(
    {
        "onnx": "export.to_onnx:OnnxTarget",
        "trt": "export.to_tensorrt:TensorRtTarget",
        "aoti": "export.to_aoti:AotInductorTarget",
        "torchexport": "export.to_torchexport:TorchExportTarget",
        "openvino": "export.to_openvino:OpenVinoTarget",
    }
)
SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        ".onnx": "onnx",
        ".engine": "trt",
        ".aoti.pt2": "aoti",
        ".export.pt2": "torchexport",
        ".xml": "openvino",
    }
)
NATIVE = frozenset({"trt", "aoti", "torchexport"})  # a file may run code when it is opened

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def export_model(
    run: "Path | str | Checkpoint",
    *,
    target: str = "onnx",
    precision: str = "fp32",
    data: "Dataset",
    device: str = "cpu",
    allow: str | None = None,
    raw: bool = False,
    options: "ExportOptions | None" = None,
) -> "Artifact":
    """Write a run's model in another format, prove it, and leave a manifest beside it.

    `data` is the data set that the run was trained on: parity and accuracy are measured on its test
    split. `device` is where the artifact runs for that; the reference is always eager on the CPU.
    An artifact of the same target and precision is replaced. A run of somebody's own network,
    named package.module:function, is opened only where `allow` repeats that name. With `raw` an
    ONNX file takes the bytes of images and gives probabilities, beside the one of logits.

    Raises:
        ZooError: the run, the target, the precision or the data set does not fit.
        MachineError: the artifact does not compute what the model computes; nothing was written.
    """
    check_precision(precision)
    writer = load_target(target)
    check_written(writer, precision)

    from dataclasses import replace

    from export.proof import Reference
    from export.target import ExportOptions
    from export.write import check_dataset, write_artifact
    from zoo.checkpoint import Checkpoint

    checkpoint = run if isinstance(run, Checkpoint) else Checkpoint.open(run)
    check_dataset(checkpoint.path, checkpoint.meta.dataset, data)
    return write_artifact(
        Reference(checkpoint, data, allow=allow),
        writer,
        precision=precision,
        options=replace(options or ExportOptions(), device=device),
        raw=raw,
    )


def load_target(name: str, *, provider: str | None = None) -> "ExportTarget":
    """The target of this name; `provider` is ONNX Runtime's, as in --provider.

    Raises:
        ZooError: it is unknown, or has no providers.
    """
    check_target(name)
    if provider is not None and name != "onnx":
        raise ZooError(f"--provider is for .onnx files, not for {name}: leave it out")
    module, _, attribute = TARGETS[name].partition(":")
    build: Callable[..., ExportTarget] = getattr(import_module(module), attribute)
    return build() if provider is None else build(provider=provider)


def target_of(path: Path) -> str | None:
    """The target whose suffix a file has."""
    return next((name for end, name in SUFFIXES.items() if path.name.endswith(end)), None)


def check_target(name: str) -> None:
    """Refuse a name that is no target, with the nearest ones."""
    if name not in TARGETS:
        raise ZooError(f"no export target named {name!r}: {nearest(name, TARGETS)}")


def check_precision(name: str) -> None:
    """Refuse a name that is no precision, with the nearest ones."""
    if name not in PRECISIONS:
        raise ZooError(f"no precision named {name!r}: {nearest(name, PRECISIONS)}")


def check_written(target: "ExportTarget", precision: str) -> None:
    """Refuse a precision that a target does not write."""
    if precision not in target.tolerance:
        written = ", ".join(target.tolerance)
        raise ZooError(f"--to {target.name} does not write {precision}: use {written}")
