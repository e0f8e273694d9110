"""Where CIFAR-100 and CIFAR-10 come from: a folder, ZOO_DATA, the cache, a download."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from zoo import cifar100_mini
from zoo.data_formats import (
    LEVELS,
    NAMES_FILE,
    Arrays,
    ClassNames,
    Layout,
    Progress,
    holds,
    read_folder,
)
from zoo.errors import DataError, MachineError
from zoo.files import atomic_file, write_json

T = TypeVar("T")
Accept = Callable[[Arrays, str, str], T]  # arrays, their place, what to do if they are wrong

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_MIRROR = "https://huggingface.co/datasets"
LAYOUTS = {
    "cifar100": Layout(
        name="cifar100",
        rows={"train": 50_000, "test": 10_000},
        class_names=cifar100_mini.class_names,
        torchvision_class="CIFAR100",
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        meta_file="meta",
        label_keys=("fine_labels", "coarse_labels"),
        name_keys=("fine_label_names", "coarse_label_names"),
        mirror=f"{_MIRROR}/uoft-cs/cifar100/resolve/aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        mirror_files={
            "train": "cifar100/train-00000-of-00001.parquet",
            "test": "cifar100/test-00000-of-00001.parquet",
        },
        image_column="img",
        label_columns=("fine_label", "coarse_label"),
    ),
    "cifar10": Layout(
        name="cifar10",
        rows={"train": 50_000, "test": 10_000},
        class_names=lambda: ClassNames(fine=CIFAR10_CLASSES),
        torchvision_class="CIFAR10",
        folder="cifar-10-batches-py",
        files={
            "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test": ("test_batch",),
        },
        meta_file="batches.meta",
        label_keys=("labels",),
        name_keys=("label_names",),
        mirror=f"{_MIRROR}/uoft-cs/cifar10/resolve/0b2714987fa478483af9968de7c934580d0bb9a2",
        mirror_files={
            "train": "plain_text/train-00000-of-00001.parquet",
            "test": "plain_text/test-00000-of-00001.parquet",
        },
        image_column="img",
        label_columns=("label",),
    ),
}


def find(
    layout: Layout, data_dir: Path | None, *, accept: Accept[T], on_progress: Progress | None = None
) -> T:
    """Give the arrays of the first source that has them to `accept`, and return its answer.

    Sources: `data_dir`, ZOO_DATA, the cache, a download into the cache. `data_dir` must hold the
    data set, and so must ZOO_DATA for cifar100; as it usually points at CIFAR-100, cifar10 passes
    it over where it has none. `accept` raises DataError if the arrays are not the published ones.

    Raises:
        DataError: there are no data and no network, or the data are damaged.
        MachineError: the cache cannot be written.
    """
    if data_dir is not None:
        return _from_folder(layout, data_dir, "--data-dir", accept)
    if variable := os.environ.get("ZOO_DATA"):
        folder = Path(variable).expanduser()
        if layout.name == "cifar100" or not folder.is_dir() or holds(folder, layout):
            return _from_folder(layout, folder, "ZOO_DATA", accept)
    root = cache_root()
    cache = root / layout.name
    try:
        if not is_complete(cache):
            (root / "downloads").mkdir(parents=True, exist_ok=True)
            from zoo.download import one_at_a_time

            with one_at_a_time(root / "downloads" / f"{layout.name}.lock", on_progress):
                if not is_complete(cache):  # no other process was faster
                    return _fetch(layout, root, accept, on_progress)
    except OSError as reason:
        raise MachineError(
            f"the cache folder {root} cannot be written ({reason.strerror}): set ZOO_CACHE to "
            "another with 0.6 GB free, or ZOO_DATA to a folder with the data"
        ) from None
    return _from_folder(layout, cache, "the cache", accept)


def _from_folder(layout: Layout, folder: Path, given_by: str, accept: Accept[T]) -> T:
    if not folder.is_dir():
        raise DataError(f"{given_by} {folder} is not a folder, expected one with {layout.name}")
    if given_by == "the cache":
        remedy = f"remove {folder} and run the command again"
    else:
        remedy = f"unpack {layout.name} again, or point {given_by} at another folder"
    try:
        arrays = read_folder(folder, layout)
    except DataError as reason:
        raise DataError(f"{reason}: {remedy}") from None
    if arrays is None:
        raise DataError(
            f"{given_by} {folder} does not hold {layout.name}: looked for decoded arrays "
            f"(train_images.npy and its companions, with the names of {layout.name} in "
            f"{NAMES_FILE}) and for the official folder {layout.folder}: {remedy}"
        )
    return accept(arrays, str(folder), remedy)


def _fetch(layout: Layout, root: Path, accept: Accept[T], on_progress: Progress | None) -> T:
    """Download, check, store; what was downloaded is removed once the arrays are stored."""
    from zoo.download import download

    cache, downloads = root / layout.name, root / "downloads" / layout.name
    downloads.mkdir(exist_ok=True)

    def accept_and_store(arrays: Arrays, place: str) -> T:
        accepted = accept(arrays, place, "it was not kept")
        _store(arrays, layout, cache)
        return accepted

    try:
        accepted = download(layout, downloads, accept=accept_and_store, on_progress=on_progress)
    except DataError as reason:
        raise DataError(
            f"no {layout.name} in the cache {cache}, and no download worked ({reason}): set "
            "ZOO_DATA or --data-dir to a folder that has it, connect to the network, or use "
            "--dataset cifar100-mini"
        ) from None
    shutil.rmtree(downloads, ignore_errors=True)
    return accepted


def is_complete(cache: Path) -> bool:
    """Whether a folder of the cache holds a whole data set."""
    return (cache / NAMES_FILE).exists()  # the last file that _store writes


def _store(arrays: Arrays, layout: Layout, cache: Path) -> None:
    """Write the decoded format, each file whole or not at all."""
    for stem, array in arrays.items():
        with atomic_file(cache / f"{stem}.npy") as part:
            np.save(part, array.astype(np.uint8), allow_pickle=False)
    names = layout.class_names()
    by_level = zip(LEVELS, (names.fine, names.coarse), strict=True)
    write_json(cache / NAMES_FILE, {level: value for level, value in by_level if value})


def cache_root() -> Path:
    """The folder of all downloads: ZOO_CACHE, else cifar-zoo in the user's cache folder."""
    if chosen := os.environ.get("ZOO_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "cifar-zoo"
    except RuntimeError:
        raise MachineError("this user has no home folder for the cache: set ZOO_CACHE") from None
