"""The images as arrays, with their labels and names; no augmentation, no torch.

Every source of CIFAR-100 ends in the same arrays: rows are put into canonical order, by the
SHA-256 of an image's pixels and labels. Splits, the embedded subset and shuffles start there.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import cifar100_mini
from zoo.data_formats import Arrays, ClassNames, Layout, Progress
from zoo.data_sources import LAYOUTS, find
from zoo.errors import DataError, nearest

Channels = tuple[float, float, float]  # red, green, blue

MEAN: Channels = (0.5071, 0.4867, 0.4408)  # of the training images of CIFAR-100, in [0, 1]
STD: Channels = (0.2675, 0.2565, 0.2761)

MINI, FOLDER_PREFIX = "cifar100-mini", "folder:"
DATASETS = ("cifar100", MINI, "cifar10")  # and folder:PATH

# Content digests, computed from the real data. CIFAR-10 has none
# yet: its official archive is checked by torchvision's MD5, the mirror by counts per class only.
DIGESTS = {
    "cifar100": "0f32efd6bfa6c6b1875d3f56d3d994054b5bdd262a56e613960801ef7ddfd2ed",
    MINI: "daef2567bf6c921fbed5de1f031a1d3f8dba197e702469862eda14383f0885ed",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Images and labels; the arrays are contiguous and read-only.

    Shapes:
        images (N, 32, 32, 3) uint8 RGB, fine and coarse (N,) int64.
    """

    images: NDArray[np.uint8]
    fine: NDArray[np.int64]
    coarse: NDArray[np.int64] | None = None  # None where the data set has one set of labels


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """One data set, in canonical order."""

    name: str  # as given to load_dataset
    train: Split
    test: Split
    class_names: tuple[str, ...]  # in the order of the fine labels
    coarse_names: tuple[str, ...] | None
    mean: Channels  # per channel, of pixels in [0, 1]
    std: Channels
    digest: str  # SHA-256 of all images and labels, see dataset_digest

    @property
    def num_classes(self) -> int:
        """How many fine classes there are."""
        return len(self.class_names)

    @property
    def coarse_of_fine(self) -> tuple[int, ...] | None:
        """The coarse label of each fine label; None without coarse labels."""
        if self.train.coarse is None:
            return None
        first_rows = np.unique(self.train.fine, return_index=True)[1]
        return tuple(self.train.coarse[first_rows].tolist())


def load_dataset(
    name: str = "cifar100",
    *,
    data_dir: Path | None = None,
    on_progress: Progress | None = None,
) -> Dataset:
    """Load a data set by name: cifar100, cifar100-mini, cifar10 or folder:PATH.

    The two published sets come from the first of: `data_dir`, the folder ZOO_DATA, the cache
    (ZOO_CACHE, else cifar-zoo below XDG_CACHE_HOME or ~/.cache), a download into the cache. A
    folder holds decoded arrays (`train_images.npy` and its companions) or the official folder.
    `data_dir` must hold the data set; so must ZOO_DATA for cifar100. As ZOO_DATA usually points
    at CIFAR-100, cifar10 passes it over where it has none. The embedded cifar100-mini is loaded
    only by its name.

    `on_progress` is called during a download with a label, the bytes done and the bytes in all,
    None if unknown.

    Raises:
        DataError: no such name, no data and no network, or data that are damaged or not the
            published ones.
        MachineError: the cache cannot be written.
    """
    if name in LAYOUTS:
        return _load_published(LAYOUTS[name], data_dir, on_progress)
    is_folder = name.startswith(FOLDER_PREFIX) and name != FOLDER_PREFIX
    if name != MINI and not is_folder:
        raise DataError(f"no data set named {name!r}: {nearest(name, (*DATASETS, 'folder:PATH'))}")
    if data_dir is not None:
        raise DataError(
            f"--data-dir {data_dir} does not go with {name}, which has its own place: leave it out"
        )
    if is_folder:
        from zoo.image_folder import read_image_folder

        arrays, classes = read_image_folder(Path(name.removeprefix(FOLDER_PREFIX)).expanduser())
        return _assemble(name, arrays, ClassNames(fine=classes))
    dataset = _assemble(MINI, cifar100_mini.read(), cifar100_mini.class_names())
    return _with_expected_digest(dataset, "the installed package", "install cifar-zoo again")


def image_digests(split: Split) -> list[bytes]:
    """SHA-256 of each image: its pixels, then its labels as 16-bit little-endian numbers."""
    labels = [split.fine] if split.coarse is None else [split.fine, split.coarse]
    tails = np.stack(labels, axis=1).astype("<u2").tobytes()
    pixels = np.ascontiguousarray(split.images).reshape(-1).data
    step, tail = split.images[0].size if len(split.images) else 0, 2 * len(labels)
    digests = []
    for row in range(len(split.images)):
        digest = hashlib.sha256(pixels[row * step : (row + 1) * step])
        digest.update(tails[row * tail : (row + 1) * tail])
        digests.append(digest.digest())
    return digests


def dataset_digest(train: Split, test: Split) -> str:
    """SHA-256 over the sorted digests of both splits; the order of rows does not matter."""
    return _combine(sorted(image_digests(train)), sorted(image_digests(test)))


def validation_split(
    train: Split, *, fraction: float = 0.1, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the rows of `train` into training and validation rows, both ascending.

    Each class gives `fraction` of its images, rounded, and at least one. Those with the smallest
    SHA-256 of seed and image are taken, so the choice depends on nothing but the content: neither
    on the order of rows nor on a version of NumPy.

    Raises:
        DataError: the fraction is not between 0 and 1, or a class has too few images for it.
    """
    if not 0 < fraction < 1:
        raise DataError(f"a validation split takes a fraction between 0 and 1, got {fraction}")
    prefix = f"{seed}:".encode()
    keys = [hashlib.sha256(prefix + digest).digest() for digest in image_digests(train)]
    held_out = np.zeros(len(keys), dtype=bool)
    for label in np.unique(train.fine):
        rows = np.flatnonzero(train.fine == label).tolist()
        count = max(1, round(fraction * len(rows)))
        if count >= len(rows):
            raise DataError(
                f"class {label} has {len(rows)} training images, too few to hold out {count} of "
                "them for validation: add images or lower the fraction"
            )
        held_out[sorted(rows, key=keys.__getitem__)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _load_published(layout: Layout, data_dir: Path | None, on_progress: Progress | None) -> Dataset:
    def accept(arrays: Arrays, place: str, remedy: str) -> Dataset:
        dataset = _assemble(layout.name, arrays, layout.class_names())
        return _with_expected_digest(dataset, place, remedy)

    return find(layout, data_dir, accept=accept, on_progress=on_progress)


def _assemble(name: str, arrays: Arrays, names: ClassNames) -> Dataset:
    """Put both splits into canonical order and compute what describes them."""
    train, train_digests = _in_canonical_order("train", arrays)
    test, test_digests = _in_canonical_order("test", arrays)
    mean, std = (MEAN, STD) if name in ("cifar100", MINI) else _statistics(train.images)
    return Dataset(
        name=name,
        train=train,
        test=test,
        class_names=names.fine,
        coarse_names=names.coarse,
        mean=mean,
        std=std,
        digest=_combine(train_digests, test_digests),
    )


def _in_canonical_order(split: str, arrays: Arrays) -> tuple[Split, list[bytes]]:
    coarse = arrays.get(f"{split}_coarse")
    given = Split(images=arrays[f"{split}_images"], fine=arrays[f"{split}_fine"], coarse=coarse)
    digests = image_digests(given)
    order = sorted(range(len(digests)), key=digests.__getitem__)
    ordered = Split(
        images=_frozen(given.images[order]),
        fine=_frozen(given.fine[order].astype(np.int64)),
        coarse=None if coarse is None else _frozen(coarse[order].astype(np.int64)),
    )
    return ordered, [digests[row] for row in order]


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _combine(train_digests: list[bytes], test_digests: list[bytes]) -> str:
    whole = hashlib.sha256()
    for tag, digests in ((b"train", train_digests), (b"test", test_digests)):
        whole.update(tag)
        whole.update(b"".join(digests))
    return whole.hexdigest()


def _with_expected_digest(dataset: Dataset, place: str, remedy: str) -> Dataset:
    expected = DIGESTS.get(dataset.name)
    if expected is not None and dataset.digest != expected:
        raise DataError(
            f"{place} is not {dataset.name} as published: its content has the digest "
            f"{dataset.digest}, expected {expected}: {remedy}"
        )
    return dataset


def _statistics(images: NDArray[np.uint8]) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel of pixels in [0, 1], from exact integer sums.

    A channel that never varies gets 1, so that one can divide by it.
    """
    counts = np.zeros((3, 256), dtype=np.int64)
    for chunk in np.array_split(images.reshape(-1, 3), max(1, images.size >> 22)):
        for channel in range(3):
            counts[channel] += np.bincount(chunk[:, channel], minlength=256)
    levels = np.arange(256)
    pixels = images.size // 3
    means, deviations = [], []
    for histogram in counts:
        total, squares = (
            int(histogram @ levels),
            int(histogram @ levels**2),
        )  # Python's: of any size
        means.append(total / (255 * pixels))
        deviations.append(math.sqrt(pixels * squares - total**2) / (255 * pixels) or 1.0)
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
