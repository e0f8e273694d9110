"""Which images int8 is made with: some to find ranges from, others to judge the result by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from export.ranges import METHODS
from export.raw import Bytes
from zoo.data import Dataset, Split, validation_split
from zoo.errors import ZooError, nearest
from zoo.evaluate import guesses
from zoo.preprocess import Preprocessing

if TYPE_CHECKING:
    import onnx

AUTO = "auto"  # whichever method gives the smallest error
SEED = 0  # of the choice among the training images
PIXELS = 16 * 32 * 32  # in one batch, all of whose values in the network lie in memory at once


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """Training images for int8, never one of the test split.

    Shapes:
        images (N, H, W, 3) uint8; of `validation` those of a split, none of them in `images`.
    """

    images: np.ndarray
    validation: Split
    is_held_out: bool  # whether training did without the validation images
    preprocessing: Preprocessing
    methods: Sequence[str]  # of METHODS; the best of them is taken
    max_drop: float  # of top-1 on the validation images, in [0, 1]
    eager_right: Callable[[], Tensor]  # (V,) bool: which validation images eager gets right

    def batches(self, proto: "onnx.ModelProto") -> Iterator[np.ndarray]:
        """The calibration images as the graph takes them."""
        size = max(1, PIXELS // self.preprocessing.image_size**2)
        for start in range(0, len(self.images), size):
            yield as_fed(proto, self.images[start : start + size], self.preprocessing)


def methods_of(name: str) -> Sequence[str]:
    """The methods that --int8-method asks for: all of METHODS by `auto`.

    Raises:
        ZooError: there is no method of this name; the nearest ones are told.
    """
    if name == AUTO:
        return METHODS
    if name not in METHODS:
        raise ZooError(f"no int8 method named {name!r}: {nearest(name, (AUTO, *METHODS))}")
    return (name,)


def divided(data: Dataset) -> tuple[np.ndarray, Split]:
    """Rows of the training images to calibrate with, and the validation images.

    They are the same that training divides them into.
    """
    rows, held = validation_split(data.train)
    return rows, Split(images=data.train.images[held], fine=data.train.fine[held])


def chosen(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows, or all where there are fewer: the same in every call, ascending."""
    generator = np.random.default_rng(SEED)
    return np.sort(generator.choice(rows, min(count, len(rows)), replace=False))


def as_fed(
    proto: "onnx.ModelProto", images: np.ndarray, preprocessing: Preprocessing
) -> np.ndarray:
    """Stored images as the graph takes them: normalised, or the bytes of a raw one."""
    import onnx

    batch = preprocessing.to_batch(images)
    if proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        batch = Bytes(preprocessing.mean, preprocessing.std).restore(batch)
    array: np.ndarray = batch.contiguous().numpy()
    return array


def right(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Which first guesses are the class: (N, K), (N,) -> (N,) bool."""
    return guesses(logits) == torch.from_numpy(labels.copy())
