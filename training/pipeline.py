"""Where training images lie: on a GPU, or where the data set has them, which is copied no more."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data import Split

SHARE = 0.25  # of a GPU's free memory, at most, that the images may take


class Source(Protocol):
    """Images to train with, numbered from 0, and their labels (N,)."""

    @property
    def labels(self) -> Tensor:
        """All labels: (N,) int64."""
        ...

    def bring(self, numbers: Tensor) -> None:
        """Make images ready for the next `batch`: their numbers, on the host."""
        ...

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, H) uint8 and labels (B,) of numbers given on the device.

        Static shapes, and no wait.
        """
        ...


def make_source(
    train: Split, rows: NDArray[np.int64], device: torch.device, *, batch: int
) -> Source:
    """Those rows of the training images: a copy on a GPU, where it fits, and else none."""
    if is_copied(train.images, device):
        return OnDevice(train, rows, device)
    if device.type == "cuda":
        return OnHost(train, rows, device, batch=batch)
    return AsStored(train, rows)


def is_copied(images: NDArray[np.uint8], device: torch.device) -> bool:
    """Whether images go to this device: a GPU that takes them and has enough left to train."""
    return device.type == "cuda" and images.nbytes <= SHARE * torch.cuda.mem_get_info(device)[0]


class AsStored:
    """Images that stay where the data set has them, for a CPU."""

    def __init__(self, train: Split, rows: NDArray[np.int64]) -> None:
        self.images, self.rows, self.labels = train.images, rows, _labels(train, rows)

    def bring(self, numbers: Tensor) -> None:
        """Nothing to bring."""

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of these images, and their labels."""
        images = _by_channel(self.images[self.rows[numbers.numpy()]])
        return torch.from_numpy(np.ascontiguousarray(images)), self.labels[numbers]


class OnDevice:
    """One copy of all images on the device."""

    def __init__(self, train: Split, rows: NDArray[np.int64], device: torch.device) -> None:
        images = np.ascontiguousarray(_by_channel(train.images[rows]))
        self.images = torch.from_numpy(images).to(device)  # (N, 3, H, H)
        self.labels = _labels(train, rows).to(device)

    def bring(self, numbers: Tensor) -> None:
        """Nothing to bring."""

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of these numbers."""
        return self.images.index_select(0, numbers), self.labels.index_select(0, numbers)


class OnHost:
    """Images on the host: two pinned buffers, filled in turn while the device works.

    On the device lies one batch, in the same place all the time, as a captured step needs it.
    """

    def __init__(
        self, train: Split, rows: NDArray[np.int64], device: torch.device, *, batch: int
    ) -> None:
        self.images, self.rows = train.images, rows
        self.labels = _labels(train, rows).to(device)
        pinned = device.type == "cuda"
        size = train.images.shape[1]
        shape = (batch, 3, size, size)
        self.slots = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self.copied = [torch.cuda.Event() if pinned else None for _ in self.slots]
        self.here = torch.empty(shape, dtype=torch.uint8, device=device)
        self.turn = 0

    def bring(self, numbers: Tensor) -> None:
        """Gather these images on the host and start their copy, behind the work under way."""
        slot, event = self.slots[self.turn], self.copied[self.turn]
        if event is not None:
            event.synchronize()  # the copy of the batch before the last
        np.copyto(slot.numpy(), _by_channel(self.images[self.rows[numbers.numpy()]]))
        self.here.copy_(slot, non_blocking=True)
        if event is not None:
            event.record()
        self.turn = 1 - self.turn

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """What was brought, and the labels of these numbers."""
        return self.here, self.labels.index_select(0, numbers)


def _by_channel(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view: (B, H, H, 3) -> (B, 3, H, H)."""
    return images.transpose(0, 3, 1, 2)


def _labels(train: Split, rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(train.fine[rows])
