"""Loss, accuracy and speed of a run as TensorBoard reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from training.folder import RunFolder
from training.loop import EpochMetrics
from zoo.errors import MissingPackageError

FOLDER = "tensorboard"

Log = Callable[[EpochMetrics], None]


def require_tensorboard() -> None:
    """Check that what writes the events is installed.

    Raises:
        MissingPackageError: it is not.
    """
    if find_spec("tensorboard") is None:
        raise MissingPackageError("tensorboard", extra="tensorboard", needed_by="--log tensorboard")


@contextmanager
def event_log(folder: RunFolder, *, wanted: bool) -> Iterator[Log]:
    """What writes each epoch into the folder of the run, by the first process, where wanted."""
    if not wanted or folder.trainer.rank != 0:
        yield lambda metrics: None
        return
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    # A resumed run takes epochs once more that were shown but not yet saved.
    writer = SummaryWriter(folder.path / FOLDER, purge_step=len(folder.lines) + 1)

    def write(metrics: EpochMetrics) -> None:
        shown = {
            "loss/train": metrics.train_loss,
            "top1/train": metrics.train_top1,
            "top1/validation": metrics.val_top1,
            "learning_rate": metrics.learning_rate,
            "images_per_s": metrics.images_per_s,
        }
        for name, value in shown.items():
            if value is not None:
                writer.add_scalar(name, value, metrics.epoch)

    try:
        yield write
    finally:
        writer.close()
