import hashlib
import io
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cifar_files import digest_of, shuffled, small_arrays, small_world, split_of, write_decoded
from PIL import Image

from zoo import cifar100_mini, data
from zoo.cifar100_mini.build import encode_sheet, select
from zoo.data import MEAN, STD, Dataset, Split, load_dataset, validation_split
from zoo.data_formats import Arrays
from zoo.errors import DataError

FULL = os.environ.get("ZOO_DATA")
needs_full_data = pytest.mark.skipif(
    not FULL, reason="needs the full CIFAR-100: set ZOO_DATA to its folder"
)


@pytest.fixture(scope="session")
def mini() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="session")
def full() -> Dataset:
    assert FULL
    return load_dataset("cifar100", data_dir=Path(FULL))


@pytest.fixture
def arrays() -> Arrays:
    return small_arrays()


class TestSubset:
    def test_has_40_training_and_10_test_images_of_each_class(self, mini: Dataset) -> None:
        assert mini.num_classes == 100
        assert set(Counter(mini.train.fine.tolist()).items()) == {(k, 40) for k in range(100)}
        assert set(Counter(mini.test.fine.tolist()).items()) == {(k, 10) for k in range(100)}

    def test_has_its_digest(self, mini: Dataset) -> None:
        expected = data.DIGESTS["cifar100-mini"]

        assert mini.digest == expected
        assert slow_digest(mini.train, mini.test) == expected

    def test_has_no_image_twice(self, mini: Dataset) -> None:
        images = [*mini.train.images, *mini.test.images]

        assert len({image.tobytes() for image in images}) == 5000

    def test_knows_the_coarse_class_of_each_fine_one(self, mini: Dataset) -> None:
        assert mini.coarse_names is not None
        assert mini.coarse_of_fine is not None
        pairs = zip(mini.class_names, mini.coarse_of_fine, strict=True)
        coarse = {fine: mini.coarse_names[index] for fine, index in pairs}

        assert coarse["apple"] == "fruit_and_vegetables"
        assert coarse["wolf"] == "large_carnivores"
        assert set(Counter(coarse.values()).values()) == {5}
        assert mini.test.coarse is not None
        np.testing.assert_array_equal(
            np.array(mini.coarse_of_fine)[mini.test.fine], mini.test.coarse
        )

    def test_is_small_enough_to_ship(self) -> None:
        folder = Path(cifar100_mini.__file__).parent

        assert sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) < 9_500_000
        assert "Learning Multiple Layers of Features" in (folder / "README.md").read_text()

    def test_uses_the_mean_and_deviation_of_cifar100(self, mini: Dataset) -> None:
        assert (mini.mean, mini.std) == (MEAN, STD)

    def test_a_sheet_is_lossless_and_the_same_each_time(self, mini: Dataset) -> None:
        tiles = mini.train.images[:20]

        first, second = encode_sheet(tiles), encode_sheet(tiles)

        assert first == second
        sheet = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
        np.testing.assert_array_equal(sheet[32:64, 32:64], tiles[11])

    def test_a_changed_archive_is_refused(
        self, mini: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(data.DIGESTS, "cifar100-mini", "0" * 64)

        with pytest.raises(DataError, match="is not cifar100-mini as published.*install cifar-zoo"):
            load_dataset("cifar100-mini")

    def test_does_not_take_a_data_dir(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"--data-dir .* does not go with cifar100-mini"):
            load_dataset("cifar100-mini", data_dir=tmp_path)


class TestCanonicalForm:
    def test_arrays_are_typed_contiguous_and_read_only(self, mini: Dataset) -> None:
        for split, rows in ((mini.train, 4000), (mini.test, 1000)):
            assert split.coarse is not None
            assert (split.images.dtype, split.images.shape) == (np.uint8, (rows, 32, 32, 3))
            for array in (split.images, split.fine, split.coarse):
                assert array.flags.c_contiguous
                assert not array.flags.writeable
            assert split.fine.dtype == split.coarse.dtype == np.int64

    def test_rows_ascend_by_the_hash_of_pixels_and_labels(self, mini: Dataset) -> None:
        digests = slow_image_digests(mini.test)

        assert digests == sorted(digests)
        assert data.image_digests(mini.test) == digests

    def test_the_order_of_a_source_does_not_matter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrays = small_world(monkeypatch, tmp_path)
        first, second = (
            load_dataset(data_dir=write_decoded(tmp_path / str(seed), shuffled(arrays, seed)))
            for seed in (1, 2)
        )

        assert first.digest == second.digest
        for one, other in ((first.train, second.train), (first.test, second.test)):
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.fine, other.fine)

    def test_a_label_a_pixel_and_a_split_change_the_digest(self, arrays: Arrays) -> None:
        label = arrays["train_coarse"].copy()
        label[0] = (label[0] + 1) % 20
        pixel = arrays["test_images"].copy()
        pixel[-1, -1, -1, -1] ^= 1
        train, test = split_of(arrays, "train"), split_of(arrays, "test")

        digests = {
            digest_of(arrays),
            digest_of({**arrays, "train_coarse": label}),
            digest_of({**arrays, "test_images": pixel}),
            data.dataset_digest(test, train),
        }

        assert len(digests) == 4

    def test_importing_it_loads_nothing_heavy(self) -> None:
        code = (
            "import sys, zoo.data; heavy = {'torch', 'torchvision', 'PIL', 'pyarrow', 'ssl'};"
            "print(sorted(heavy & set(sys.modules)))"
        )

        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_100", "no data set named 'cifar_100': did you mean .*cifar100"),
        ("imagenet", "no data set named 'imagenet': choose one of cifar10, cifar100, cifar100-m"),
        ("folder:", "no data set named 'folder:': did you mean folder:PATH"),
        ("", "no data set named ''"),
    ],
)
def test_an_unknown_name(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(name)


class TestValidationSplit:
    def test_takes_a_tenth_of_every_class(self, mini: Dataset) -> None:
        train, held_out = validation_split(mini.train)

        assert set(np.bincount(mini.train.fine[held_out])) == {4}
        np.testing.assert_array_equal(np.sort(np.r_[train, held_out]), np.arange(4000))
        for rows in (train, held_out):
            assert rows.dtype == np.int64
            assert (np.diff(rows) > 0).all()

    def test_is_the_same_for_ever(self, mini: Dataset) -> None:
        rows = [validation_split(mini.train, seed=seed)[1] for seed in (0, 0, 1)]

        np.testing.assert_array_equal(rows[0], rows[1])
        assert rows[0].tolist() != rows[2].tolist()
        stored = hashlib.sha256(rows[0].astype("<i8").tobytes()).hexdigest()
        assert stored == "036b56c5dd8fa7c29d4cb01ef608d6158ec3f01f4f52e094c04fe5100f268beb"

    def test_is_a_matter_of_content_not_of_order(self, mini: Dataset) -> None:
        order = np.random.default_rng(0).permutation(4000)
        assert mini.train.coarse is not None
        mixed = Split(
            images=mini.train.images[order],
            fine=mini.train.fine[order],
            coarse=mini.train.coarse[order],
        )

        found = validation_split(mixed)[1]

        expected = validation_split(mini.train)[1]
        assert sorted(order[found].tolist()) == expected.tolist()

    def test_each_class_gives_one_at_least(self, arrays: Arrays) -> None:
        held_out = validation_split(split_of(arrays, "train"))[1]

        assert set(np.bincount(arrays["train_fine"][held_out])) == {1}

    def test_a_class_with_one_image_is_too_small(self, arrays: Arrays) -> None:
        with pytest.raises(DataError, match="class 0 has 1 training images, too few to hold out 1"):
            validation_split(split_of(arrays, "test"))

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
    def test_the_fraction_lies_between_0_and_1(self, arrays: Arrays, fraction: float) -> None:
        with pytest.raises(DataError, match="between 0 and 1, got"):
            validation_split(split_of(arrays, "train"), fraction=fraction)


@needs_full_data
class TestFullSet:
    def test_loads_with_the_published_digest(self, full: Dataset) -> None:
        assert full.digest == data.DIGESTS["cifar100"]
        assert len(full.train.images) == 50_000
        assert len(full.test.images) == 10_000
        mini = load_dataset("cifar100-mini")
        assert full.coarse_of_fine == mini.coarse_of_fine

    def test_the_constants_are_its_mean_and_deviation(self, full: Dataset) -> None:
        mean, std = data._statistics(full.train.images)

        np.testing.assert_allclose((mean, std), (MEAN, STD), atol=2.1e-4)

    def test_the_validation_split_has_5000_images(self, full: Dataset) -> None:
        train, held_out = validation_split(full.train)

        assert (len(train), len(held_out)) == (45_000, 5_000)
        assert set(np.bincount(full.train.fine[held_out])) == {50}

    def test_the_subset_is_what_the_builder_makes(self, full: Dataset) -> None:
        rows, shipped = select(full), cifar100_mini.read()

        for split in ("train", "test"):
            images = getattr(full, split).images[np.concatenate(rows[split])]
            np.testing.assert_array_equal(images, shipped[f"{split}_images"])
        pixels = {image.tobytes() for image in shipped["train_images"]}
        assert pixels.isdisjoint(image.tobytes() for image in full.test.images)
        pixels = {image.tobytes() for image in shipped["test_images"]}
        assert pixels.isdisjoint(image.tobytes() for image in full.train.images)


def slow_image_digests(split: Split) -> list[bytes]:
    assert split.coarse is not None
    return [
        hashlib.sha256(image.tobytes() + struct.pack("<HH", fine, coarse)).digest()
        for image, fine, coarse in zip(split.images, split.fine, split.coarse, strict=True)
    ]


def slow_digest(train: Split, test: Split) -> str:
    text = b"train" + b"".join(sorted(slow_image_digests(train)))
    text += b"test" + b"".join(sorted(slow_image_digests(test)))
    return hashlib.sha256(text).hexdigest()
