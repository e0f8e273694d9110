"""Small data sets of real images, for runs of a second."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from training import Recipe, named_recipe
from zoo.data import Dataset, Split

# One epoch of two steps over `few_images`.
QUIET: Recipe = replace(named_recipe("smoke"), epochs=1, batch_size=10, full_train=True)


def few_images(data: Dataset, *, train: int = 20, test: int = 64) -> Dataset:
    """The first images of each split, with all class names."""
    return replace(
        data, train=_first(data.train, train), test=_first(data.test, test), digest="few"
    )


def picture_folder(data: Dataset, root: Path, *, classes: int = 3, each: int = 12) -> str:
    """Write images as PNG files, one sub-folder for each class; return the name of the data set."""
    for label in range(classes):
        folder = root / data.class_names[label]
        folder.mkdir(parents=True)
        rows = (data.train.fine == label).nonzero()[0][:each]
        for number, row in enumerate(rows):
            Image.fromarray(data.train.images[row]).save(folder / f"{number}.png")
    return f"folder:{root}"


def _first(split: Split, count: int) -> Split:
    coarse = None if split.coarse is None else split.coarse[:count]
    return Split(images=split.images[:count], fine=split.fine[:count], coarse=coarse)
