"""What a format has to offer: write a model, open the file, name its tolerance."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from zoo.errors import MissingPackageError
from zoo.session import InferenceSession

if TYPE_CHECKING:
    import onnx

    from export.calibrate import Calibration

MAX_BATCH = 4096  # images; the upper end of the dynamic batch of every target
INT8_MAX_DROP = 0.005  # of top-1, in [0, 1], unless told otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far an artifact of one precision may stray from eager."""

    logits: float | None  # error of a logit as a share of the largest; None: reported, not held
    max_drop: float | None = None  # of top-1 on the test split, in [0, 1]; None: logits say it all
    noise: float | None = None  # see export.parity; None: reported, not held
    is_lossy: bool = False  # whether `max_drop` is there to be used, and exceeded by chance alone


# However far off logits may be, they have to tell images apart as eager's do: an answer that does
# not depend on the image has a noise of 1, and that of another network more. An untrained
# cspresnet50_asrun, whose logits for a few images are ten times the others', has 0.69 in int8.
NOISE = 0.75
# Of formats whose kernels compute as torch's do.
FLOATS: Mapping[str, Tolerance] = {
    "fp32": Tolerance(logits=1e-4),
    "fp16": Tolerance(logits=5e-2, max_drop=0.0015, noise=NOISE),
    "bf16": Tolerance(logits=1e-1, max_drop=0.0015, noise=NOISE),
}
INT8 = Tolerance(logits=None, max_drop=INT8_MAX_DROP, noise=NOISE, is_lossy=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What a writer may be told; a target reads the fields that concern it."""

    device: str = "cpu"  # what the file is made for: cpu, cuda or cuda:N
    opset: int | None = None  # of the ONNX graph; None: the target's own
    int8_method: str = "auto"  # or a name in export.ranges.METHODS
    int8_images: int = 512  # training images to find ranges from
    int8_max_drop: float = INT8_MAX_DROP  # of top-1 on validation and test split, in [0, 1]
    calibration: "Calibration | None" = None  # made of these by whoever knows the run
    trt_opt_batch: int = 256  # images; the batch that an engine is tuned for
    trt_flavor: str | None = None  # "tensorrt" or "rtx"; None: what is installed
    trt_workspace_mib: int | None = None  # None: all that the device has
    trt_timing_cache: Path | None = None
    trt_version_compatible: bool = False
    trt_hardware_compatible: bool = False


class ExportTarget(Protocol):
    """One format: how it is written and how it is run."""

    @property
    def name(self) -> str:
        """As in `--to`."""
        ...

    @property
    def suffix(self) -> str:
        """Of the file, with its dot."""
        ...

    @property
    def tolerance(self) -> Mapping[str, Tolerance]:
        """By precision; its keys are the precisions that the target writes."""
        ...

    def export(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path,
        *,
        precision: str,
        metadata: Mapping[str, str],
        options: ExportOptions,
    ) -> Mapping[str, Any] | None:
        """Write `model` to `path` with a free batch axis; return facts for the manifest, if any.

        `path` lies in a folder of its own. Whatever is left in it, such as the weights of an .xml,
        belongs to the artifact and has to have its name, but for the suffix.

        Shapes:
            example: (B, 3, H, W) with B of 2 or more; a batch of 1 would become a constant.
        """
        ...

    def open(self, path: Path, *, device: str) -> InferenceSession:
        """Run what `export` wrote."""
        ...

    def pending(self, path: Path, *, device: str) -> str | None:
        """Why this machine cannot run what was just written, in one line; None: it can."""
        ...

    def versions(self) -> dict[str, str]:
        """Of the packages that write and run the format."""
        ...


@runtime_checkable
class HasProxy(Protocol):
    """A target whose files may be written where they do not run."""

    def proxy(self, path: Path) -> InferenceSession:
        """Run the graph that the file at `path`, just written, was built from."""
        ...


@runtime_checkable
class HasGraph(Protocol):
    """A target that shows what it computes as ONNX, with the names that torch's exporter gave."""

    def graph(self, path: Path) -> "onnx.ModelProto":
        """The graph that the file at `path`, just written, holds or was built from."""
        ...


def require(package: str, *, extra: str, needed_by: str) -> None:
    """Refuse to go on without an optional package.

    Raises:
        MissingPackageError: it is not installed; the message holds the command that installs it.
    """
    if find_spec(package) is None:
        raise MissingPackageError(package, extra=extra, needed_by=needed_by)
