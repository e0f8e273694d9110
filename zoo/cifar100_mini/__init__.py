"""The subset of CIFAR-100 inside the package: 40 training and 10 test images a class.

`README.md` beside this file names its source and terms; `build.py` makes it from the full set.
"""

import functools
import io
import json
import zipfile
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data_formats import Arrays, ClassNames
from zoo.errors import DataError

ARCHIVE = "images.zip"  # one lossless WebP sheet a class
NAMES = "class_names.json"
PER_CLASS = {"train": 40, "test": 10}
COLUMNS = 10  # tiles a row: four rows of training images, one of test images


def class_names() -> ClassNames:
    """The official names of CIFAR-100's classes; the subset has all of them."""
    return ClassNames(fine=tuple(_names()["fine"]), coarse=tuple(_names()["coarse"]))


def read() -> Arrays:
    """Decode the subset.

    Raises:
        DataError: the installation lacks the archive, or it is damaged.
    """
    from PIL import Image

    coarse_of_fine = np.array(_names()["coarse_of_fine"], dtype=np.int64)
    sheets = []
    try:
        with zipfile.ZipFile(io.BytesIO(_packaged(ARCHIVE))) as archive:
            for label in range(len(coarse_of_fine)):
                with Image.open(io.BytesIO(archive.read(f"{label:02d}.webp"))) as sheet:
                    sheets.append(_tiles(np.asarray(sheet.convert("RGB"))))
        images = np.stack(sheets)  # (100, 50, 32, 32, 3)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as reason:
        raise DataError(
            f"the archive {ARCHIVE} of cifar100-mini is damaged ({reason}): install cifar-zoo again"
        ) from None
    arrays: Arrays = {}
    parts = np.split(images, [PER_CLASS["train"]], axis=1)
    for (split, count), part in zip(PER_CLASS.items(), parts, strict=True):
        fine = np.repeat(np.arange(len(coarse_of_fine)), count)
        arrays[f"{split}_images"] = part.reshape(-1, 32, 32, 3)
        arrays[f"{split}_fine"] = fine
        arrays[f"{split}_coarse"] = coarse_of_fine[fine]
    return arrays


def _tiles(sheet: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut a sheet into its tiles: (rows * 32, 320, 3) -> (rows * 10, 32, 32, 3)."""
    tiles = sheet.reshape(-1, 32, COLUMNS, 32, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, 32, 32, 3)


@functools.cache
def _names() -> dict[str, list[Any]]:
    names: dict[str, list[Any]] = json.loads(_packaged(NAMES))
    return names


def _packaged(name: str) -> bytes:
    try:
        return (resources.files(__name__) / name).read_bytes()
    except OSError:
        raise DataError(
            f"the package has no cifar100_mini/{name}: install cifar-zoo again"
        ) from None
