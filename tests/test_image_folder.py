import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo import cifar100_mini
from zoo.data import Dataset, load_dataset, validation_split
from zoo.errors import DataError


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """4,000 real images, ordered by class."""
    return cifar100_mini.read()["train_images"]


def save(folder: Path, images: Sequence[np.ndarray], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}{suffix}")


@pytest.fixture
def pets(photos: np.ndarray, tmp_path: Path) -> Path:
    """20 images of dogs and 10 of cats."""
    save(tmp_path / "pets" / "dog", photos[:20])
    save(tmp_path / "pets" / "cat", photos[40:50])
    return tmp_path / "pets"


def load(folder: Path) -> Dataset:
    return load_dataset(f"folder:{folder}")


def pixels(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_a_fifth_of_every_class_is_the_test_split(pets: Path, photos: np.ndarray) -> None:
    found = load(pets)

    assert found.name == f"folder:{pets}"
    assert found.class_names == ("cat", "dog")
    assert found.coarse_names is found.coarse_of_fine is found.test.coarse is None
    assert Counter(found.test.fine.tolist()) == {0: 2, 1: 4}
    assert Counter(found.train.fine.tolist()) == {0: 8, 1: 16}
    cats = pixels(found.train.images[found.train.fine == 0])
    assert cats | pixels(found.test.images[found.test.fine == 0]) == pixels(photos[40:50])
    assert pixels(found.train.images).isdisjoint(pixels(found.test.images))
    assert not found.train.images.flags.writeable
    assert len(validation_split(found.train)[1]) == 3


def test_mean_and_deviation_are_those_of_the_training_split(pets: Path) -> None:
    found = load(pets)

    scaled = found.train.images / 255
    np.testing.assert_allclose(found.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_a_channel_that_never_varies_can_be_divided_by(tmp_path: Path) -> None:
    images = [np.full((32, 32, 3), (level, 7, 0), np.uint8) for level in range(10)]
    for name in ("a", "b"):
        save(tmp_path / name, images)

    assert load(tmp_path).std[1:] == (1.0, 1.0)


def test_names_of_files_do_not_decide_the_split(pets: Path) -> None:
    before = load(pets)
    for number, path in enumerate(sorted((pets / "dog").iterdir(), reverse=True)):
        path.rename(path.with_name(f"other{number}.PNG"))

    after = load(pets)

    assert after.digest == before.digest
    np.testing.assert_array_equal(after.test.images, before.test.images)


def test_copies_of_an_image_stay_on_one_side(pets: Path) -> None:
    for path in tuple((pets / "dog").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
        shutil.copy(path, pets / "cat" / f"copy-{path.name}")

    found = load(pets)

    assert len(found.train.fine) + len(found.test.fine) == 70
    assert pixels(found.train.images).isdisjoint(pixels(found.test.images))


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_the_users_own_split_is_kept(photos: np.ndarray, tmp_path: Path, test_folder: str) -> None:
    for first, name in enumerate(("cat", "dog")):
        save(tmp_path / "train" / name, photos[40 * first :][:5])
        save(tmp_path / test_folder / name, photos[40 * first + 10 :][:1])

    found = load(tmp_path)

    assert found.class_names == ("cat", "dog")
    assert (len(found.train.fine), len(found.test.fine)) == (10, 2)
    assert pixels(found.test.images) == pixels(photos[[10, 50]])


def test_a_class_in_one_split_only(photos: np.ndarray, tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/cow"):
        save(tmp_path / name, photos[:2])

    with pytest.raises(DataError, match="the class 'cow' is in only one of train and test"):
        load(tmp_path)


def test_formats_and_modes_become_rgb(photos: np.ndarray, tmp_path: Path) -> None:
    image, grey = Image.fromarray(photos[0]), Image.fromarray(photos[0]).convert("L")
    for number, name in enumerate(("a", "b")):
        save(tmp_path / name, photos[10 * number + 1 :][:4], suffix=".webp")
        save(tmp_path / name, photos[10 * number + 5 :][:4], suffix=".JPEG")
        save(tmp_path / name, photos[10 * number + 15 :][:4], suffix=".bmp")
        (tmp_path / name / "notes.txt").write_text("not an image")
        (tmp_path / name / ".hidden.png").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    grey.save(tmp_path / "a" / "grey.png")
    transparent = image.convert("RGBA")
    transparent.putalpha(0)
    transparent.save(tmp_path / "a" / "alpha.png")
    palette = image.convert("P")
    palette.save(tmp_path / "a" / "palette.png", transparency=bytes(256))

    found = load(tmp_path)

    everything = pixels(found.train.images) | pixels(found.test.images)
    assert len(everything) == 27
    for expected in (image, grey.convert("RGB"), palette.convert("RGB")):
        assert np.asarray(expected).tobytes() in everything


def test_the_central_square_is_resampled(tmp_path: Path) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, :64] = (255, 0, 0)  # outside the central square
    wide[:, 64:128] = (0, 200, 0)
    wide[:, 128:] = (0, 0, 255)
    save(tmp_path / "a", [wide, wide])
    save(tmp_path / "b", [wide[:, :64], wide[:, 128:]])
    for name in ("test", "train"):
        shutil.copytree(tmp_path / "a", tmp_path / "split" / name / "a")
        shutil.copytree(tmp_path / "b", tmp_path / "split" / name / "b")

    found = load(tmp_path / "split")

    square = found.train.images[found.train.fine == 0][0]
    assert (square == (0, 200, 0)).all()


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16] = 255  # the sky
    turned = Image.fromarray(np.rot90(upright))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    for name in ("train/a", "train/b", "test/a", "test/b"):
        save(tmp_path / name, [255 - upright, upright])
        turned.save(tmp_path / name / "photo.png", exif=exif)

    found = load(tmp_path)

    assert Counter(image.tobytes() for image in found.test.images)[upright.tobytes()] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "/pets is not a folder: folder:PATH needs one sub-folder"),
        (lambda f: shutil.rmtree(f / "dog"), "/pets has 1 sub-folder, expected one for each"),
        (lambda f: (f / "cow").mkdir(), r"/pets/cow has 0 images \(.png, .*expected at least 2"),
        (
            lambda f: [path.unlink() for path in sorted((f / "cat").iterdir())[1:]],
            "/pets/cat has 1 image .*, expected at least 2",
        ),
        (
            lambda f: (f / "cat" / "1.png").write_bytes(b"GIF89a"),
            "/pets/cat/1.png cannot be read as an image .*: mend or remove it",
        ),
        (
            lambda f: (f / "cat" / "1.png").write_bytes((f / "cat" / "1.png").read_bytes()[:99]),
            "/pets/cat/1.png cannot be read as an image",
        ),
        (
            lambda f: [shutil.copy(f / "dog/1.png", path) for path in (f / "cat").iterdir()],
            "/pets/cat: all images are copies of those in the test split",
        ),
    ],
)
def test_bad_folders(pets: Path, change: Callable[[Path], object], message: str) -> None:
    change(pets)

    with pytest.raises(DataError, match=message) as caught:
        load(pets)

    assert "\n" not in str(caught.value)


def test_a_data_dir_beside_it_is_refused(pets: Path) -> None:
    with pytest.raises(DataError, match="--data-dir .* does not go with folder:"):
        load_dataset(f"folder:{pets}", data_dir=pets)
