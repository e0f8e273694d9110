"""TensorRT and TensorRT-RTX: one API, two packages; which of them is here, and what it runs on."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from zoo.doctor import stack_for
from zoo.errors import MachineError, MissingPackageError, ZooError, first_line, nearest
from zoo.machine import Gpu, driver_gpu, rtx_has_code

# flavour -> modules, the first that is there is used; the bindings alone are all that is needed
MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "rtx": ("tensorrt_rtx_bindings",),
}
TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
INSTALL = "in a clone of cifar-zoo run pip install"
VOLTA, TURING, AMPERE = (7, 0), (7, 5), (8, 0)  # compute capabilities
LAST_WITH_VOLTA = (10, 4)  # of TensorRT


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavor:
    """A TensorRT that could be imported."""

    name: str  # as in --trt-flavor
    trt: Any  # its module

    @property
    def version(self) -> str:
        """As the package gives it: "11.4.0.106"."""
        return str(self.trt.__version__)

    def __str__(self) -> str:
        return f"{TITLES[self.name]} {self.version}"


class MessageLog:
    """What TensorRT reports while it works: its logger, and what was given to that."""

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.notes: list[str] = []
        errors, notes = self.errors, self.notes
        severity_of = trt.ILogger.Severity

        class Logger(trt.ILogger):  # type: ignore[misc]  # the base comes from a module without types
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (severity_of.ERROR, severity_of.INTERNAL_ERROR):
                    errors.append(message)
                elif severity != severity_of.VERBOSE:
                    notes.append(message)

        self.logger = Logger()

    def clear(self) -> None:
        """Forget what was given to it."""
        self.errors.clear()
        self.notes.clear()

    def reason(self) -> str:
        """The first error in one line, or words in its place."""
        return one_line(self.errors[0]) if self.errors else "it gave no reason"


@cache
def message_log(trt: Any) -> MessageLog:
    """The logger of this process: TensorRT holds on to the first that it is given for good."""
    return MessageLog(trt)


def one_line(message: str) -> str:
    """A message of TensorRT; it writes the numbers of a version as characters of that code."""
    text = " ".join(message.split())
    return "".join(char if char.isprintable() else str(ord(char)) for char in text)


def installed(*, device: str) -> tuple[str, ...]:
    """The flavours that can be imported, that to prefer first.

    TensorRT builds on the GPU that the engine is for; TensorRT-RTX also builds where there is none.
    """
    order = ("tensorrt", "rtx") if device.startswith("cuda") else ("rtx", "tensorrt")
    return tuple(name for name in order if _module(name))


def load_flavor(name: str | None, *, device: str) -> Flavor:
    """Import the flavour of this name, or the one to prefer of those installed.

    Raises:
        ZooError: there is no such flavour.
        MissingPackageError: it is not installed, or none is.
        MachineError: it is installed and cannot be imported.
    """
    if name is not None and name not in MODULES:
        raise ZooError(f"no TensorRT flavor named {name!r}: {nearest(name, MODULES)}")
    found = installed(device=device)
    chosen = name or (found[0] if found else None)
    if chosen is None or chosen not in found:
        raise _missing(name)
    module = _module(chosen)
    assert module is not None
    try:
        return Flavor(name=chosen, trt=import_module(module))
    except Exception as reason:  # its libraries may fail to load in any way
        raise MachineError(f"{module} cannot be imported: {first_line(reason)}") from None


def check_gpu(flavor: Flavor, gpu: Gpu | None) -> None:
    """Refuse a GPU that a flavour has no code for.

    Raises:
        MachineError: it has none; the message names what runs on that GPU.
    """
    if gpu is None or _has_code(flavor, gpu.capability):
        return
    stack = stack_for(gpu)
    advice = "use --to onnx in its place"
    if stack == "v100":
        advice = f"TensorRT 10.4 is the last that has, {INSTALL} '.[v100,v100-trt]'"
    elif stack == "gpu":
        advice = f"{INSTALL} '.[gpu,trt]'"
    raise MachineError(f"{flavor} has no code for the {gpu}: {advice}")


def _has_code(flavor: Flavor, capability: tuple[int, int]) -> bool:
    if flavor.name == "rtx":
        return rtx_has_code(capability)
    major_minor = tuple(map(int, flavor.version.split(".")[:2]))
    return capability >= (VOLTA if major_minor <= LAST_WITH_VOLTA else TURING)


def _module(flavor: str) -> str | None:
    return next((name for name in MODULES[flavor] if find_spec(name)), None)


def _missing(name: str | None) -> MissingPackageError:
    stack = stack_for(driver_gpu())
    if name is None:
        name = "rtx" if stack == "cpu" else "tensorrt"
    extra = "trt-rtx" if name == "rtx" else "v100-trt" if stack == "v100" else "trt"
    return MissingPackageError(MODULES[name][0], extra=extra, needed_by="--to trt")
