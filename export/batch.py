"""Which images a file takes, where its runtime would not say so itself."""

from pathlib import Path

import torch
from torch import Tensor

from export.target import MAX_BATCH
from zoo.errors import MachineError


def check_batch(images: Tensor, shape: tuple[str, int, int, int], path: Path) -> None:
    """Refuse images that a file would misread, or read beyond.

    Raises:
        MachineError: they are not 1 to MAX_BATCH float32 images of the size of `shape`.
    """
    size = tuple(images.shape[1:])
    if size != shape[1:] or not 1 <= len(images) <= MAX_BATCH or images.dtype != torch.float32:
        wanted = ", ".join(str(axis) for axis in shape[1:])
        found = str(images.dtype).removeprefix("torch.")
        raise MachineError(
            f"{path} takes float32 images of shape (1 to {MAX_BATCH}, {wanted}), "
            f"got {found} of {tuple(images.shape)}"
        )
