"""The runs whose artifacts are measured: copies, since artifacts are written into a run."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from export.write import check_dataset
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset

LEFT = shutil.ignore_patterns("artifacts", "records", "state")


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A run whose artifacts may be written into it, and the images for that."""

    run: Checkpoint
    data: Dataset


def prepare(run: Checkpoint, data: Dataset, folder: Path) -> Network:
    """A copy of this run in `folder`.

    Raises:
        DataError: it was trained on other images than `data`.
    """
    check_dataset(run.path, run.meta.dataset, data)
    copy = shutil.copytree(run.path, folder / run.path.name, ignore=LEFT)
    return Network(run=Checkpoint.open(copy), data=data)
