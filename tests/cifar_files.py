"""CIFAR as its publishers lay it out, made from real images: pickles, .tar.gz and parquet."""

import functools
import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from torchvision import datasets

from zoo import cifar100_mini, data
from zoo.data import Split, dataset_digest
from zoo.data_formats import Arrays, Layout
from zoo.data_sources import LAYOUTS

TRAIN_PER_CLASS, TEST_PER_CLASS = 3, 1
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Arrays:
    """Make CIFAR-100 the 400 images that are returned, CIFAR-10 as small; no cache, no network."""
    arrays = small_arrays()
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(data.DIGESTS, "cifar100", digest_of(arrays))
    for name, layout in tuple(LAYOUTS.items()):
        rows = {"train": 100 * TRAIN_PER_CLASS, "test": 100 * TEST_PER_CLASS}
        small = replace(layout, rows=rows, mirror=f"{NOBODY}/mirror")
        monkeypatch.setitem(LAYOUTS, name, small)
        known = getattr(datasets, layout.torchvision_class)
        monkeypatch.setattr(known, "url", f"{NOBODY}/{known.filename}")
    return arrays


@functools.cache
def small_arrays() -> Arrays:
    """Real images of all 100 classes, three for training and one for testing, ordered by class."""
    mini, arrays = cifar100_mini.read(), {}
    for split, count in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        of_class = cifar100_mini.PER_CLASS[split]
        for kind in ("images", "fine", "coarse"):
            array = mini[f"{split}_{kind}"]
            rows = array.reshape(100, of_class, *array.shape[1:])[:, :count]
            arrays[f"{split}_{kind}"] = rows.reshape(-1, *array.shape[1:])
    return arrays


def ten_classes(arrays: Arrays) -> Arrays:
    """The same images with labels 0 to 9 in turn and no coarse ones, as CIFAR-10 has them."""
    return {
        stem: np.arange(len(array)) % 10 if stem.endswith("fine") else array
        for stem, array in arrays.items()
        if not stem.endswith("coarse")
    }


def digest_of(arrays: Arrays) -> str:
    return dataset_digest(*(split_of(arrays, name) for name in ("train", "test")))


def split_of(arrays: Arrays, name: str) -> Split:
    return Split(
        images=arrays[f"{name}_images"],
        fine=arrays[f"{name}_fine"],
        coarse=arrays.get(f"{name}_coarse"),
    )


def shuffled(arrays: Arrays, seed: int) -> Arrays:
    generator, mixed = np.random.default_rng(seed), {}
    for split in ("train", "test"):
        order = generator.permutation(len(arrays[f"{split}_fine"]))
        mixed.update({stem: a[order] for stem, a in arrays.items() if stem.startswith(split)})
    return mixed


def write_decoded(folder: Path, arrays: Arrays) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in arrays.items():
        np.save(folder / f"{stem}.npy", array.astype(np.uint8))
    names = cifar100_mini.class_names()
    (folder / "class_names.json").write_text(
        json.dumps({"fine": names.fine, "coarse": names.coarse})
    )
    return folder


def official_files(arrays: Arrays, layout: Layout) -> dict[str, bytes]:
    """The pickles of the official folder, byte for byte as Python 2 wrote that kind."""
    files = {}
    levels = ("fine", "coarse")[: len(layout.label_keys)]
    for split in ("train", "test"):
        names = layout.files[split]
        parts = np.array_split(np.arange(len(arrays[f"{split}_fine"])), len(names))
        for name, rows in zip(names, parts, strict=True):
            planes = arrays[f"{split}_images"][rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
            table: dict[str, Any] = {"batch_label": "one of many", "data": planes}
            for key, level in zip(layout.label_keys, levels, strict=True):
                table[key] = arrays[f"{split}_{level}"][rows].tolist()
            files[name] = python2_pickle(table)
    names = layout.class_names()
    meta = dict(zip(layout.name_keys, (names.fine, names.coarse), strict=False))
    files[layout.meta_file] = python2_pickle(
        {key: list(value or ()) for key, value in meta.items()}
    )
    return files


def write_official(folder: Path, arrays: Arrays, layout: Layout) -> Path:
    folder.mkdir(parents=True)
    for name, content in official_files(arrays, layout).items():
        (folder / name).write_bytes(content)
    return folder


def archive_of(files: Mapping[str, bytes]) -> bytes:
    """A .tar.gz with these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def official_archive(arrays: Arrays, layout: Layout) -> bytes:
    files = official_files(arrays, layout)
    return archive_of({f"{layout.folder}/{name}": content for name, content in files.items()})


def parquet_of(arrays: Arrays, split: str, columns: Sequence[str]) -> bytes:
    """The mirror's file of one split: an image column with PNG bytes, then the labels."""
    images = [
        {"bytes": png(image), "path": f"{row}.png"}
        for row, image in enumerate(arrays[f"{split}_images"])
    ]
    labels = [arrays[f"{split}_{level}"] for level in ("fine", "coarse")[: len(columns) - 1]]
    table = pyarrow.table(dict(zip(columns, (images, *labels), strict=True)))
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 with the opcodes of Python 2: byte strings, and NumPy's old module names."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case dict():
            items = b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items())
            return b"}(" + items + b"u"
        case list():
            return b"](" + b"".join(_opcodes(item) for item in value) + b"e"
        case str():
            return b"T" + struct.pack("<i", len(value)) + value.encode("latin1")
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case np.ndarray():
            dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            dtype += b"J\xff\xff\xff\xffK\x00tb"
            shape = b"(" + b"".join(_opcodes(size) for size in value.shape) + b"t"
            new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
            return new + b"(K\x01" + shape + dtype + b"\x89" + _opcodes(value.tobytes()) + b"tb"
        case _:
            raise TypeError(type(value))
