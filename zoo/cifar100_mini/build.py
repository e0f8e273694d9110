"""Build the embedded subset from the full CIFAR-100: python -m zoo.cifar100_mini.build.

The same images for everyone, and with the same Pillow the same bytes. About 15 s on one core.
"""

import argparse
import io
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.cifar100_mini import ARCHIVE, COLUMNS, PER_CLASS
from zoo.data import Dataset, Split, load_dataset
from zoo.errors import ZooError
from zoo.files import write_atomic

EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's first date: no clock in the archive


def select(full: Dataset) -> dict[str, list[NDArray[np.int64]]]:
    """Choose the rows of each split, one array a class, by content alone.

    In canonical order, which is that of the content hash: the first of each class whose pixels
    have not come before in their own split and do not occur in the other one at all.
    """
    pixels = {
        "train": [image.tobytes() for image in full.train.images],
        "test": [image.tobytes() for image in full.test.images],
    }
    rows = {}
    for name, other in (("train", "test"), ("test", "train")):
        split: Split = getattr(full, name)
        seen = set(pixels[other])
        chosen: list[list[int]] = [[] for _ in full.class_names]
        for row, (content, label) in enumerate(zip(pixels[name], split.fine, strict=True)):
            if content not in seen and len(chosen[label]) < PER_CLASS[name]:
                chosen[label].append(row)
            seen.add(content)
        rows[name] = [np.array(of_class, dtype=np.int64) for of_class in chosen]
    return rows


def encode_sheet(tiles: NDArray[np.uint8]) -> bytes:
    """Lossless WebP of tiles in rows of ten: (N, 32, 32, 3), N a multiple of 10."""
    from PIL import Image

    grid = tiles.reshape(-1, COLUMNS, 32, 32, 3).transpose(0, 2, 1, 3, 4)
    file = io.BytesIO()
    # Quality 100 needs 12 times as long for 0.1% fewer bytes (Pillow 13, 5 sheets).
    Image.fromarray(grid.reshape(-1, COLUMNS * 32, 3)).save(
        file, "WEBP", lossless=True, quality=90, method=6, exact=True
    )
    return file.getvalue()


def build(full: Dataset, path: Path) -> None:
    """Write the archive of the subset to `path`: a stored zip with one sheet a class."""
    rows = select(full)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for label in range(full.num_classes):
            tiles = np.concatenate(
                [full.train.images[rows["train"][label]], full.test.images[rows["test"][label]]]
            )
            entry = zipfile.ZipInfo(f"{label:02d}.webp", EPOCH)
            entry.create_system = 3  # the same on every system
            archive.writestr(entry, encode_sheet(tiles))
    write_atomic(path, file.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Load the full set, from --data-dir, ZOO_DATA or wherever it is found, and build."""
    parser = argparse.ArgumentParser(prog="python -m zoo.cifar100_mini.build", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder with the full CIFAR-100")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / ARCHIVE, help="archive to write"
    )
    args = parser.parse_args(argv)
    try:
        build(load_dataset("cifar100", data_dir=args.data_dir), args.out)
    except ZooError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out} ({os.path.getsize(args.out)} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
