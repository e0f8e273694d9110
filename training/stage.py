"""One stage of a policy on a batch: an operation and a strength for each image."""

import torch
from torch import Tensor

from training import geometry, trivial
from training.auto_augment import OPERATIONS, Tables


def moves(tables: Tables, operation: Tensor, column: Tensor) -> Tensor:
    """Which pixel each pixel is taken from, S * S being black: (B,), (B,) -> (B, S * S) int64."""
    is_moving = (operation >= trivial.MOVES.start) & (operation < trivial.MOVES.stop)
    row = torch.where(is_moving, operation - trivial.MOVES.start + 1, 0)  # row 0: nothing moves
    return tables.sources[row, column]


def retouch_all(tables: Tables, images: Tensor, operation: Tensor, column: Tensor) -> Tensor:
    """Change the values of the images by doing everything to all and keeping what was chosen.

    Static shapes and no look at a value: for a GPU, a captured graph, `torch.compile`.

    Shapes:
        (B, 3, S, S) uint8, (B,), (B,) -> (B, 3, S, S) uint8.
    """
    changed, magnitude = images, tables.magnitudes[operation, column].view(-1, 1, 1, 1)
    for row, one in enumerate(OPERATIONS):
        if one.retouch:
            is_chosen = (operation == row).view(-1, 1, 1, 1)
            changed = torch.where(is_chosen, one.retouch(images, magnitude), changed)
    return changed


def retouch_groups(tables: Tables, images: Tensor, operation: Tensor, column: Tensor) -> Tensor:
    """The same by doing to each image its own operation only: for a CPU.

    Note:
        Reads the operations: on a GPU it waits for the device.
    """
    order = operation.argsort(stable=True)
    counts: list[int] = operation.bincount(minlength=len(OPERATIONS)).tolist()
    magnitude = tables.magnitudes[operation, column][order].view(-1, 1, 1, 1)
    groups = zip(
        OPERATIONS,
        torch.split(images.index_select(0, order), counts),
        torch.split(magnitude, counts),
        strict=True,
    )
    done = [
        one.retouch(group, strength) if one.retouch and len(group) else group
        for one, group, strength in groups
    ]
    return torch.cat(done).index_select(0, order.argsort())


def apply_stage(
    tables: Tables, images: Tensor, operation: Tensor, column: Tensor, crop: Tensor | None = None
) -> Tensor:
    """Move, or change the values of, each image: by groups on a CPU, all at once elsewhere.

    With `crop`, the table of a move to make first, pixels are moved once for both.

    Shapes:
        (B, 3, H, H) uint8, (B,), (B,), (B, S * S) -> (B, 3, S, S) uint8, on the same device.
    """
    pixels = moves(tables, operation, column)
    if crop is not None:
        pixels = geometry.after(crop, pixels, black=images[0, 0].numel())
    images = geometry.move(images, pixels)
    retouch = retouch_groups if images.device.type == "cpu" else retouch_all
    return retouch(tables, images, operation, column)
