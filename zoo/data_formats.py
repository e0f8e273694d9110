"""The formats that CIFAR comes in: decoded arrays, the official pickles, parquet."""

import io
import pickle
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError, first_line
from zoo.files import read_json

Arrays = dict[str, NDArray[Any]]  # "train_images", "train_fine", "train_coarse", "test_images" ...
Progress = Callable[[str, int, int | None], None]  # label, bytes done, bytes in all if known
SPLITS = ("train", "test")
LEVELS = ("fine", "coarse")
NAMES_FILE = "class_names.json"
IMAGE_SHAPE = (32, 32, 3)  # height, width, RGB
_WRONG_COLUMNS = (LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassNames:
    """The names of the labels, in index order."""

    fine: tuple[str, ...]
    coarse: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one published data set is laid out wherever it lies."""

    name: str  # of --dataset
    rows: Mapping[str, int]  # images of each split
    class_names: Callable[[], ClassNames]
    torchvision_class: str  # its attributes are the archive's URL, file name and MD5
    folder: str  # in the official archive
    files: Mapping[str, tuple[str, ...]]  # pickles of each split, in the folder
    meta_file: str
    label_keys: tuple[str, ...]  # in a pickle and in the meta file: fine, then coarse
    name_keys: tuple[str, ...]
    mirror: str  # what the parquet files' URLs begin with
    mirror_files: Mapping[str, str]
    image_column: str
    label_columns: tuple[str, ...]  # fine, then coarse

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the decoded arrays, which are the keys of `Arrays`."""
        kinds = ("images", *LEVELS[: len(self.label_keys)])
        return tuple(f"{split}_{kind}" for split in SPLITS for kind in kinds)


def read_folder(folder: Path, layout: Layout) -> Arrays | None:
    """Read the decoded arrays or the official folder in `folder`; None if it has neither.

    Decoded arrays count only if their class names are those of `layout`: the folder that has
    CIFAR-100 holds no CIFAR-10.

    Raises:
        DataError: the data are there but incomplete, damaged or of the wrong shape.
    """
    try:
        if _has_decoded(folder, layout):
            return _read_decoded(folder, layout)
        official = _official_folder(folder, layout)
        return None if official is None else _read_official(official, layout)
    except OSError as reason:
        raise DataError(f"cannot read {reason.filename or folder}: {reason.strerror}") from None


def holds(folder: Path, layout: Layout) -> bool:
    """Whether `folder` has the data set in a format that read_folder knows, whole or not."""
    return _has_decoded(folder, layout) or _official_folder(folder, layout) is not None


def read_archive(path: Path, layout: Layout) -> Arrays:
    """Read the official .tar.gz in one pass; nothing is unpacked to disk.

    Raises:
        DataError: the archive is damaged, lacks a file, or asks for code to be run.
    """
    wanted = {f"{layout.folder}/{name}": name for name in _members(layout)}
    tables: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.isreg() and (name := wanted.get(member.name)):
                    stream = archive.extractfile(member)
                    assert stream is not None  # a regular file
                    tables[name] = unpickle(stream, f"{path} ({member.name})")
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as reason:
        raise DataError(f"{path} is not a whole .tar.gz archive ({first_line(reason)})") from None
    missing = sorted(set(_members(layout)) - set(tables))
    if missing:
        raise DataError(f"{path} has no {layout.folder}/{missing[0]}")
    return _join(tables, layout, lambda name: f"{path} ({layout.folder}/{name})")


def read_parquet(paths: Mapping[str, Path], layout: Layout) -> Arrays:
    """Read the mirror's two parquet files, whose images are PNG.

    Raises:
        DataError: a file is damaged, lacks a column or holds an image of another size.
    """
    from pyarrow import ArrowException, parquet

    columns = [layout.image_column, *layout.label_columns]
    arrays: Arrays = {}
    for split, path in paths.items():
        images: list[NDArray[np.uint8]] = []
        labels: list[list[int]] = [[] for _ in layout.label_columns]
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1000, columns=columns):
                    encoded = batch.column(layout.image_column).field("bytes")
                    images += [_decode(image) for image in encoded.to_pylist()]
                    for level, column in zip(labels, layout.label_columns, strict=True):
                        level += batch.column(column).to_pylist()
            arrays[f"{split}_images"] = np.array(images, dtype=np.uint8)
            for level_name, level in zip(LEVELS, labels, strict=False):
                arrays[f"{split}_{level_name}"] = np.array(level, dtype=np.int64)
        except (ArrowException, OSError, SyntaxError, *_WRONG_COLUMNS) as reason:
            detail = f"{', '.join(columns)} ({first_line(reason)})"
            raise DataError(f"{path} is not parquet with the columns {detail}") from None
    return _checked(arrays, layout, lambda stem: f"{paths[stem.partition('_')[0]]} ({stem})")


def unpickle(stream: IO[bytes], place: str) -> dict[str, Any]:
    """Load one pickled table of an official file, which may name arrays and nothing else.

    Raises:
        DataError: the file is no pickle of a table, is cut short, or asks for anything but NumPy
            arrays; what it asks for is neither imported nor run.
    """
    try:
        table = _ArrayUnpickler(stream, encoding="latin1").load()
    except Exception as reason:  # a damaged pickle can raise nearly anything
        raise DataError(
            f"{place} is not a table of arrays in Python's pickle ({first_line(reason)})"
        ) from None
    if not isinstance(table, dict):
        raise DataError(f"{place} holds a {type(table).__name__} where a table was expected")
    return table


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Give the few callables that rebuild an array; refuse every other name."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}: refused, nothing was run"
            ) from None


def _plain_dtype(code: str, align: object = 0, copy: object = 1) -> np.dtype[Any]:
    if not re.fullmatch(r"[<>|=]?[biu][1-8]", code):
        raise pickle.UnpicklingError(f"dtype {code!r}")
    return np.dtype(code, False, True)  # a copy: the pickle sets its state


def _latin1(text: str, encoding: str) -> bytes:
    if encoding.lower() not in {"latin1", "latin-1"}:
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_reconstruct = np.empty(0).__reduce__()[0]  # the private name behind every pickled array
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _plain_dtype,
    ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes for Python 2
}


def _has_decoded(folder: Path, layout: Layout) -> bool:
    if not any((folder / f"{stem}.npy").exists() for stem in layout.stems):
        return False
    return _same_names(read_json(folder / NAMES_FILE, DataError), LEVELS, layout)


def _official_folder(folder: Path, layout: Layout) -> Path | None:
    known = layout.files["train"]
    places = (folder / layout.folder, folder)
    return next((at for at in places if any((at / name).is_file() for name in known)), None)


def _read_decoded(folder: Path, layout: Layout) -> Arrays:
    arrays = {stem: _load_npy(folder / f"{stem}.npy") for stem in layout.stems}
    return _checked(arrays, layout, lambda stem: str(folder / f"{stem}.npy"))


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing beside the other decoded arrays") from None
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError) as reason:
        raise DataError(f"{path} is not a whole .npy file ({first_line(reason)})") from None
    return array


def _read_official(folder: Path, layout: Layout) -> Arrays:
    tables = {}
    for name in _members(layout):
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing beside the other files of {layout.folder}")
        with path.open("rb") as stream:
            tables[name] = unpickle(stream, str(path))
    return _join(tables, layout, lambda name: str(folder / name))


def _members(layout: Layout) -> tuple[str, ...]:
    return (*layout.files["train"], *layout.files["test"], layout.meta_file)


def _join(
    tables: Mapping[str, dict[str, Any]], layout: Layout, place: Callable[[str], str]
) -> Arrays:
    """Put the tables of each split together; planes of 1024 bytes become interleaved RGB."""
    if not _same_names(tables[layout.meta_file], layout.name_keys, layout):
        raise DataError(f"{place(layout.meta_file)} does not hold the class names of {layout.name}")
    arrays: Arrays = {}
    for split in SPLITS:
        images, labels = [], []
        for name in layout.files[split]:
            pixels = tables[name].get("data")
            columns = [tables[name].get(key) for key in layout.label_keys]
            if not (
                isinstance(pixels, np.ndarray)
                and pixels.dtype == np.uint8
                and pixels.shape[1:] == (3072,)
                and all(_are_labels(column, len(pixels)) for column in columns)
            ):
                raise DataError(
                    f"{place(name)} is not a table of 'data' with 3072 bytes a row"
                    f" and {' and '.join(layout.label_keys)}"
                )
            images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # (N, 32, 32, 3)
            labels.append(np.array(columns, dtype=np.int64))  # (levels, N)
        arrays[f"{split}_images"] = np.concatenate(images)
        for level, column in zip(LEVELS, np.concatenate(labels, axis=1), strict=False):
            arrays[f"{split}_{level}"] = column
    files = {split: " and ".join(place(name) for name in layout.files[split]) for split in SPLITS}
    return _checked(arrays, layout, lambda stem: f"{files[stem.partition('_')[0]]} ({stem})")


def _are_labels(column: object, rows: int) -> bool:
    return (
        isinstance(column, list)
        and len(column) == rows
        and all(isinstance(label, int) and 0 <= label < 1000 for label in column)
    )


def _same_names(found: object, keys: tuple[str, ...], layout: Layout) -> bool:
    """Whether a table has the class names of `layout` under `keys`: fine, then coarse."""
    names = layout.class_names()
    expected = [names.fine] if names.coarse is None else [names.fine, names.coarse]
    return isinstance(found, dict) and all(
        isinstance(found.get(key), list) and tuple(found[key]) == value
        for key, value in zip(keys, expected, strict=False)
    )


def _checked(arrays: Arrays, layout: Layout, place: Callable[[str], str]) -> Arrays:
    """Check shape, dtype and range of every array.

    Raises:
        DataError: names the place of the array, what it holds and what was expected.
    """
    names = layout.class_names()
    classes = {"fine": len(names.fine), "coarse": len(names.coarse or ())}
    for stem in layout.stems:
        split, _, kind = stem.partition("_")
        array, rows = arrays[stem], layout.rows[split]
        found = f"{place(stem)} holds {array.dtype} of shape {array.shape}"
        if kind == "images":
            if array.dtype != np.uint8 or array.shape != (rows, *IMAGE_SHAPE):
                raise DataError(f"{found}, expected uint8 of shape {(rows, *IMAGE_SHAPE)}")
        elif array.dtype.kind not in "iu" or array.shape != (rows,):
            raise DataError(f"{found}, expected whole numbers of shape ({rows},)")
        elif not 0 <= array.min() <= array.max() < classes[kind]:
            raise DataError(
                f"{place(stem)} holds labels from {array.min()} to {array.max()}, "
                f"expected 0 to {classes[kind] - 1}"
            )
        elif kind == "fine" and len(set(np.bincount(array, minlength=classes[kind]))) > 1:
            raise DataError(f"{place(stem)} has not the same number of images of every class")
    return arrays


def _decode(image: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(image)) as file:
        pixels = np.asarray(file.convert("RGB"))
    if pixels.shape != IMAGE_SHAPE:
        raise ValueError(f"an image has shape {pixels.shape}")
    return pixels
