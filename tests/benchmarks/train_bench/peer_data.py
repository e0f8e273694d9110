"""What the loops of the peers have in common: pictures one by one, and a device."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from training.precision import DTYPES, resolve_precision
from zoo.data import Split

from .contenders import Contender, Task
from .process import die_with_parent


class Pictures(Dataset[tuple[Any, int]]):
    """Stored images as PIL pictures, as torchvision's own CIFAR-100 gives them."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.images, self.labels = split.images, split.fine.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        picture = Image.fromarray(self.images[row])
        return picture if self.transform is None else self.transform(picture), self.labels[row]


def precision_of(contender: Contender, task: Task) -> str:
    """Number format of a peer's matrix products.

    On a GPU the one that the chip is made for, with which their users turn autocast on; on a CPU
    fp32, which is what they get there, unless the contender names another.
    """
    if task.device == "cpu" and contender.precision == "auto":
        return "fp32"
    return resolve_precision(contender.precision, torch.device(task.device))


def autocast_of(precision: str, device: str) -> torch.autocast:
    """The context of a peer's forward pass."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def start_data_worker(number: int) -> None:
    """Run in each process of a data loader as it starts."""
    die_with_parent()
