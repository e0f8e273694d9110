"""What a format has to offer: write a model, open the file, name its tolerance."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from zoo.errors import MissingPackageError
from zoo.session import InferenceSession

MAX_BATCH = 4096  # images; the upper end of the dynamic batch of every target


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
    def tolerance(self) -> Mapping[str, float]:
        """By precision: allowed error of a logit as a share of the largest (see `parity.compare`).

        Its keys are the precisions that the target writes.
        """
        ...

    def export(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path,
        *,
        precision: str,
        metadata: Mapping[str, str],
    ) -> None:
        """Write `model` to `path` with a free batch axis.

        Shapes:
            example: (B, 3, H, W) with B of 2 or more; a batch of 1 would become a constant.
        """
        ...

    def open(self, path: Path, *, device: str) -> InferenceSession:
        """Run what `export` wrote."""
        ...

    def versions(self) -> dict[str, str]:
        """Of the packages that write and run the format."""
        ...


def require(package: str, *, extra: str, needed_by: str) -> None:
    """Refuse to go on without an optional package.

    Raises:
        MissingPackageError: it is not installed; the message holds the command that installs it.
    """
    if find_spec(package) is None:
        raise MissingPackageError(package, extra=extra, needed_by=needed_by)
