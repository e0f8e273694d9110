"""A user's own images, one sub-folder a class, as the same arrays that CIFAR comes in."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.data_formats import IMAGE_SHAPE, Arrays
from zoo.errors import DataError
from zoo.text import counted

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # for some others Pillow starts programs
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError)  # what Pillow raises
TEST_FRACTION = 0.2
TEST_FOLDERS = ("test", "val")

Pixels = NDArray[np.uint8]  # (32, 32, 3)


def read_image_folder(folder: Path) -> tuple[Arrays, tuple[str, ...]]:
    """Read `folder`: the arrays of both splits without coarse labels, and the class names.

    With the sub-folders train and test (or val) the split is the user's. Otherwise 20% of every
    class, at least one image, become the test split: those whose pixels have the smallest
    SHA-256, so the split depends on nothing but the images. Copies of an image stay on one side,
    also across classes.

    Labels are the positions of the sorted class names. Files and folders whose name begins with
    a dot are passed over. An image is turned as its EXIF tag says, converted to RGB (transparency
    dropped), cut to its central square and resampled to 32x32 with Pillow's Lanczos filter; one of
    32x32 keeps its pixels.

    Raises:
        DataError: no class folders, an unreadable image, or a class with too few images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: folder:PATH needs one sub-folder a class")
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test_folder is None or not (folder / "train").is_dir():
        classes = _read_classes(folder, at_least=2)
        train, test = _split_by_content(classes, folder)
    else:
        train = _read_classes(folder / "train", at_least=2)
        test = _read_classes(test_folder, at_least=1)
        if train.keys() != test.keys():
            only = sorted(train.keys() ^ test.keys())[0]
            raise DataError(
                f"{folder}: the class {only!r} is in only one of train and {test_folder.name}; "
                "give both the same sub-folders"
            )
    names = tuple(sorted(train))
    return _arrays("train", train, names) | _arrays("test", test, names), names


def _read_classes(folder: Path, *, at_least: int) -> dict[str, list[Pixels]]:
    class_folders = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")
    ]
    if len(class_folders) < 2:
        raise DataError(
            f"{folder} has {counted(len(class_folders), 'sub-folder')}, expected one for each "
            f"of at least 2 classes, as in {folder}/cat/1.png and {folder}/dog/1.png"
        )
    classes = {}
    for class_folder in class_folders:
        files = [
            path
            for path in sorted(class_folder.iterdir())
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
        if len(files) < at_least:
            raise DataError(
                f"{class_folder} has {counted(len(files), 'image')} ({', '.join(SUFFIXES)}), "
                f"expected at least {at_least}"
            )
        classes[class_folder.name] = [read_image(path) for path in files]
    return classes


def read_image(path: Path) -> Pixels:
    """Read one image as `read_image_folder` describes; one of 16 bits keeps the upper 8.

    Raises:
        DataError: it is missing, damaged or no image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # convert would cut off all above 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if "transparency" in image.info:  # a palette's, which convert("RGB") would warn about
                image = image.convert("RGBA")
            image = image.convert("RGB")
    except (*UNREADABLE, Image.DecompressionBombError) as reason:
        detail = str(reason) or type(reason).__name__
        raise DataError(
            f"{path} cannot be read as an image ({detail}): mend or remove it"
        ) from None
    height, width = IMAGE_SHAPE[:2]
    if image.size != (width, height):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # Two steps: with a box for the square, resize would mix in pixels from outside it.
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _split_by_content(
    classes: dict[str, list[Pixels]], folder: Path
) -> tuple[dict[str, list[Pixels]], dict[str, list[Pixels]]]:
    """Give each class's smallest hashes to the test split, and all their copies with them."""
    hashes = {name: [_pixel_hash(image) for image in images] for name, images in classes.items()}
    in_test: set[bytes] = set()
    for of_class in hashes.values():
        distinct = sorted(set(of_class))
        in_test.update(distinct[: max(1, round(TEST_FRACTION * len(distinct)))])
    train: dict[str, list[Pixels]] = defaultdict(list)
    test: dict[str, list[Pixels]] = defaultdict(list)
    for name, images in classes.items():
        for image, key in zip(images, hashes[name], strict=True):
            (test if key in in_test else train)[name].append(image)
        if name not in train:
            raise DataError(
                f"{folder / name}: all images are copies of those in the test split; "
                "add different ones, or make the folders train and test yourself"
            )
    return train, test


def _pixel_hash(image: Pixels) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _arrays(split: str, classes: dict[str, list[Pixels]], names: Iterable[str]) -> Arrays:
    images = [image for name in names for image in classes[name]]
    labels = [label for label, name in enumerate(names) for _ in classes[name]]
    return {f"{split}_images": np.stack(images), f"{split}_fine": np.array(labels, dtype=np.int64)}
