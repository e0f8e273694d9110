"""Files that other runtimes execute, each with the proof that it is still the model.

Importing this package loads neither torch nor onnx; the first export does.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from zoo.errors import MissingPackageError, ZooError, nearest

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.target import ExportTarget
    from zoo.checkpoint import Checkpoint
    from zoo.data import Dataset

# name -> "module:class"; the module is imported when the target is first used
TARGETS: Mapping[str, str] = MappingProxyType(
    {
        "onnx": "export.to_onnx:OnnxTarget",
    }
)

# Names that later versions write: the package that they need (its extra has the target's name) and
# what they are called. Refused with a way out.
PLANNED: Mapping[str, tuple[str | None, str]] = MappingProxyType(
    {
        "aoti": (None, "AOTInductor packages"),
        "openvino": ("openvino", "OpenVINO models"),
        "torchexport": (None, "torch.export programs"),
        "trt": ("tensorrt", "TensorRT engines"),
    }
)

PRECISIONS = ("fp32",)
PLANNED_PRECISIONS = ("bf16", "fp16", "int8")


def export_model(
    run: "Path | str | Checkpoint",
    *,
    target: str = "onnx",
    precision: str = "fp32",
    data: "Dataset",
    device: str = "cpu",
    allow: str | None = None,
) -> "Artifact":
    """Write a run's model in another format, prove it, and leave a manifest beside it.

    `data` is the data set that the run was trained on: parity and accuracy are measured on its test
    split. `device` is where the artifact runs for that; the reference is always eager on the CPU.
    An artifact of the same target and precision is replaced. A run of somebody's own network,
    named package.module:function, is opened only where `allow` repeats that name.

    Raises:
        ZooError: the run, the target, the precision or the data set does not fit.
        MachineError: the artifact does not compute what the model computes; nothing was written.
    """
    check_target(target)
    check_precision(precision)
    writer = load_target(target)

    from export.write import write_artifact
    from zoo.checkpoint import Checkpoint

    checkpoint = run if isinstance(run, Checkpoint) else Checkpoint.open(run)
    return write_artifact(
        checkpoint, writer, precision=precision, data=data, device=device, allow=allow
    )


def load_target(name: str) -> "ExportTarget":
    """The target of this name.

    Raises:
        ZooError: it is unknown, or of a later version.
    """
    check_target(name)
    if name in PLANNED:
        raise ZooError(_refusal(name))
    module, _, attribute = TARGETS[name].partition(":")
    target: ExportTarget = getattr(import_module(module), attribute)()
    return target


def check_target(name: str) -> None:
    """Refuse a name that no version knows, with the nearest ones."""
    if name not in TARGETS and name not in PLANNED:
        raise ZooError(f"no export target named {name!r}: {nearest(name, (*TARGETS, *PLANNED))}")


def check_precision(name: str) -> None:
    """Refuse a precision that is not written."""
    if name in PRECISIONS:
        return
    known = ", ".join(PRECISIONS)
    if name in PLANNED_PRECISIONS:
        raise ZooError(f"this version of cifar-zoo does not write {name} yet: use {known}")
    near = nearest(name, (*PRECISIONS, *PLANNED_PRECISIONS))
    raise ZooError(f"no precision named {name!r}: {near}")


def _refusal(name: str) -> str:
    package, what = PLANNED[name]
    later = f"this version of cifar-zoo writes no {what} yet: use --to {', '.join(TARGETS)}"
    if package is not None and find_spec(package) is None:
        missing = MissingPackageError(package, extra=name, needed_by=f"--to {name}")
        return f"{missing}; but {later}"
    return f"--to {name}: {later}"
