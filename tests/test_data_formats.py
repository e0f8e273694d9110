import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cifar_files import (
    archive_of,
    digest_of,
    official_files,
    parquet_of,
    python2_pickle,
    small_world,
    write_decoded,
    write_official,
)

from zoo.data import MEAN, STD, Dataset, load_dataset
from zoo.data_formats import Arrays, read_archive, read_parquet, unpickle
from zoo.data_sources import LAYOUTS
from zoo.errors import DataError

COLUMNS = ("img", "fine_label", "coarse_label")
SQUARES = archive_of({"a": b" ".join(str(n * n).encode() for n in range(10_000))})
NOISE = np.random.default_rng(0).bytes(50_000)  # does not compress


@pytest.fixture(autouse=True)
def arrays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Arrays:
    return small_world(monkeypatch, tmp_path)


class TestFolders:
    def test_decoded_and_official_folders_give_the_same(
        self, arrays: Arrays, tmp_path: Path
    ) -> None:
        decoded = write_decoded(tmp_path / "decoded", arrays)
        layout = LAYOUTS["cifar100"]
        official = write_official(tmp_path / "root" / "cifar-100-python", arrays, layout)

        expected = load_dataset(data_dir=decoded)

        assert_same(load_dataset(data_dir=official.parent), expected)
        assert_same(load_dataset(data_dir=official), expected)
        assert expected.digest == digest_of(arrays)
        assert (expected.mean, expected.std) == (MEAN, STD)

    def test_pickles_written_by_python_3_are_read_too(self, arrays: Arrays, tmp_path: Path) -> None:
        layout = LAYOUTS["cifar100"]
        folder = write_official(tmp_path / "cifar-100-python", arrays, layout)
        expected = load_dataset(data_dir=folder)
        for name in ("train", "test", "meta"):
            with (folder / name).open("rb") as stream:
                table = unpickle(stream, name)
            (folder / name).write_bytes(pickle.dumps(table, protocol=2))

        assert_same(load_dataset(data_dir=folder), expected)

    def test_other_content_names_both_digests_and_the_folder(
        self, arrays: Arrays, tmp_path: Path
    ) -> None:
        changed = {**arrays, "train_images": arrays["train_images"] ^ 1}
        folder = write_decoded(tmp_path / "data", changed)

        with pytest.raises(DataError) as caught:
            load_dataset(data_dir=folder)

        message = str(caught.value)
        assert "\n" not in message
        for part in (str(folder), digest_of(changed), digest_of(arrays), "unpack cifar100 again"):
            assert part in message

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: (f / "test_fine.npy").unlink(), "test_fine.npy is missing"),
            (lambda f: (f / "class_names.json").unlink(), "class_names.json does not exist"),
            (lambda f: (f / "class_names.json").write_text("{"), "class_names.json is not valid"),
            (lambda f: truncate(f / "train_images.npy"), "train_images.npy is not a whole .npy"),
            (lambda f: (f / "test_images.npy").write_bytes(b""), "test_images.npy is not a whole"),
            (
                lambda f: np.save(f / "train_images.npy", np.zeros((7, 3072), np.uint8)),
                r"train_images.npy holds uint8 of shape \(7, 3072\), expected .*\(300, 32, 32, 3\)",
            ),
            (
                lambda f: np.save(f / "train_images.npy", np.zeros((300, 32, 32, 3))),
                r"train_images.npy holds float64 .*, expected uint8",
            ),
            (
                lambda f: np.save(f / "train_fine.npy", np.zeros(299, np.uint8)),
                r"train_fine.npy holds uint8 of shape \(299,\), expected whole numbers .*300",
            ),
            (
                lambda f: np.save(f / "train_fine.npy", np.zeros(300)),
                "train_fine.npy holds float64 .*, expected whole numbers",
            ),
            (
                lambda f: np.save(f / "test_coarse.npy", np.full(100, 20)),
                "test_coarse.npy holds labels from 20 to 20, expected 0 to 19",
            ),
            (
                lambda f: np.save(f / "test_fine.npy", np.zeros(100, np.uint8)),
                "test_fine.npy has not the same number of images of every class",
            ),
            (
                lambda f: (f / "test_fine.npy").write_bytes(npz()),
                "test_fine.npy is not a whole .npy file",
            ),
        ],
    )
    def test_damaged_decoded_arrays_are_named(
        self, arrays: Arrays, tmp_path: Path, damage: Callable[[Path], object], message: str
    ) -> None:
        folder = write_decoded(tmp_path / "data", arrays)
        damage(folder)

        with pytest.raises(DataError, match=message) as caught:
            load_dataset(data_dir=folder)

        assert "\n" not in str(caught.value)
        assert "unpack cifar100 again, or point --data-dir at another" in str(caught.value)

    def test_an_npy_with_a_pickle_in_it_is_not_loaded(self, arrays: Arrays, tmp_path: Path) -> None:
        folder = write_decoded(tmp_path / "data", arrays)
        trap = np.array([Trap(tmp_path / "ran")], dtype=object)
        np.save(folder / "train_fine.npy", trap, allow_pickle=True)

        with pytest.raises(DataError, match=r"train_fine.npy is not a whole .npy file"):
            load_dataset(data_dir=folder)

        assert not (tmp_path / "ran").exists()


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.path}'",)


class TestPickles:
    @pytest.fixture
    def folder(self, arrays: Arrays, tmp_path: Path) -> Path:
        return write_official(tmp_path / "cifar-100-python", arrays, LAYOUTS["cifar100"])

    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("name", ["train", "test", "meta"])
    def test_code_in_a_pickle_is_not_run(
        self, folder: Path, tmp_path: Path, name: str, protocol: int
    ) -> None:
        (folder / name).write_bytes(pickle.dumps({"data": Trap(tmp_path / "ran")}, protocol))

        with pytest.raises(DataError, match=rf"/{name} .*posix.system: refused, nothing was run"):
            load_dataset(data_dir=folder)

        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        "call",
        [
            b"c__builtin__\neval\n(U\x031+1tR",
            b"cbuiltins\ngetattr\n(cnumpy\nndarray\nU\x05dumpstR",
            b"cnumpy\nload\n(U\x05x.npytR",
            b"cnumpy.testing\nrundocs\n)R",
            b"\x8c\x05numpy\x8c\x13ndarray.__reduce_ex_\x93",
            b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR",
            b"c_codecs\nencode\n(U\x01aU\x03hextR",
        ],
    )
    def test_every_other_name_is_refused(self, folder: Path, call: bytes) -> None:
        (folder / "train").write_bytes(b"\x80\x04}(U\x04data" + call + b"u.")

        with pytest.raises(DataError, match="/train is not a table of arrays in Python's pickle"):
            load_dataset(data_dir=folder)

    def test_a_pickle_cannot_change_a_type_of_numpy(self, folder: Path) -> None:
        state = b"(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        swapped = b"cnumpy\ndtype\n(U\x02i8K\x00K\x01tR" + state
        (folder / "train").write_bytes(b"\x80\x02}(U\x04data" + swapped + b"u.")

        with pytest.raises(DataError, match="/train is not a table of 'data'"):
            load_dataset(data_dir=folder)

        assert np.array([1], dtype="i8").tobytes() == struct.pack("=q", 1)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: truncate(f / "train"), "/train is not a table of arrays in Python's pickle"),
            (lambda f: (f / "train").write_bytes(b""), "/train is not a table of arrays"),
            (lambda f: (f / "test").unlink(), "/test is missing"),
            (lambda f: (f / "meta").unlink(), "/meta is missing"),
            (lambda f: (f / "meta").write_bytes(python2_pickle([1])), "/meta holds a list"),
            (
                lambda f: (f / "meta").write_bytes(python2_pickle({"fine_label_names": ["cat"]})),
                "/meta does not hold the class names of cifar100",
            ),
            (
                lambda f: (f / "test").write_bytes(python2_pickle({"data": [1]})),
                "/test is not a table of 'data' with 3072 bytes a row and fine_labels and coarse",
            ),
            (
                lambda f: (f / "test").write_bytes(
                    python2_pickle(
                        {
                            "data": np.zeros((2, 3072), np.uint8),
                            "fine_labels": [0, 1],
                            "coarse_labels": [0, 1],
                        }
                    )
                ),
                r"/test \(test_images\) holds uint8 of shape \(2, 32, 32, 3\), expected",
            ),
        ],
    )
    def test_damaged_files_are_named(
        self, folder: Path, damage: Callable[[Path], object], message: str
    ) -> None:
        damage(folder)

        with pytest.raises(DataError, match=message) as caught:
            load_dataset(data_dir=folder)

        assert "\n" not in str(caught.value)


class TestArchive:
    def read(self, content: bytes, tmp_path: Path) -> Arrays:
        path = tmp_path / "archive.tar.gz"
        path.write_bytes(content)
        return read_archive(path, LAYOUTS["cifar100"])

    def test_nothing_is_unpacked(self, arrays: Arrays, tmp_path: Path) -> None:
        layout = LAYOUTS["cifar100"]
        files = official_files(arrays, layout)
        members = {f"{layout.folder}/{name}": text for name, text in files.items()}
        outside = {"../../evil": b"x", "/tmp/evil": b"x", "cifar-100-python/../evil": b"x"}
        before = set(tmp_path.parent.rglob("*"))

        found = self.read(archive_of({**outside, **members}), tmp_path)

        assert digest_of(found) == digest_of(arrays)
        assert set(tmp_path.parent.rglob("*")) - before == {tmp_path / "archive.tar.gz"}
        assert not Path("/tmp/evil").exists()

    def test_a_link_does_not_stand_for_a_file(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            link = tarfile.TarInfo("cifar-100-python/train")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)

        with pytest.raises(DataError, match="has no cifar-100-python/meta"):
            self.read(file.getvalue(), tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"<html>sign in to this network</html>", "is not a whole .tar.gz archive"),
            (archive_of({"cifar-100-python/train": b"."}), "is not a table of arrays"),
            (
                archive_of({"cifar-100-python/train": python2_pickle({})}),
                "has no cifar-100-python/meta",
            ),
            (archive_of({"a": NOISE})[:20_000], "is not a whole .tar.gz archive"),
            (SQUARES[:100] + b"\xff" * 40 + SQUARES[140:], "is not a whole .tar.gz archive"),
        ],
    )
    def test_archives_that_are_none(self, content: bytes, message: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=message) as caught:
            self.read(content, tmp_path)

        assert "\n" not in str(caught.value)


class TestParquet:
    def read(self, train: bytes, arrays: Arrays, tmp_path: Path) -> Arrays:
        paths = {split: tmp_path / f"{split}.parquet" for split in ("train", "test")}
        paths["train"].write_bytes(train)
        paths["test"].write_bytes(parquet_of(arrays, "test", COLUMNS))
        return read_parquet(paths, LAYOUTS["cifar100"])

    def test_it_holds_the_same_images(self, arrays: Arrays, tmp_path: Path) -> None:
        found = self.read(parquet_of(arrays, "train", COLUMNS), arrays, tmp_path)

        assert found.keys() == arrays.keys()
        for stem, array in arrays.items():
            np.testing.assert_array_equal(found[stem], array)

    @pytest.mark.parametrize(
        "make",
        [
            lambda arrays: parquet_of(arrays, "train", COLUMNS)[:-20],
            lambda arrays: b"",
            lambda arrays: b"<html>sign in to this network</html>",
            lambda arrays: parquet_of(arrays, "train", ("img", "label", "coarse_label")),
            lambda arrays: parquet_of(arrays, "train", ("fine_label", "img", "coarse_label")),
            lambda arrays: parquet_of(
                {**arrays, "train_images": np.zeros((300, 16, 16, 3), np.uint8)}, "train", COLUMNS
            ),
        ],
        ids=["cut", "empty", "html", "other columns", "swapped columns", "small images"],
    )
    def test_files_that_are_none(
        self, arrays: Arrays, make: Callable[[Arrays], bytes], tmp_path: Path
    ) -> None:
        message = "train.parquet is not parquet with the columns img, fine_label, coarse_label"

        with pytest.raises(DataError, match=message) as caught:
            self.read(make(arrays), arrays, tmp_path)

        assert "\n" not in str(caught.value)

    def test_too_few_rows(self, arrays: Arrays, tmp_path: Path) -> None:
        fewer = {stem: array[:200] for stem, array in arrays.items()}

        with pytest.raises(DataError, match=r"\(train_images\) holds .*\(200, 32, 32, 3\), expect"):
            self.read(parquet_of(fewer, "train", COLUMNS), arrays, tmp_path)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, np.zeros(100))
    return file.getvalue()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def assert_same(found: Dataset, expected: Dataset) -> None:
    for split in ("train", "test"):
        for kind in ("images", "fine", "coarse"):
            np.testing.assert_array_equal(
                getattr(getattr(found, split), kind), getattr(getattr(expected, split), kind)
            )
    assert found.digest == expected.digest
    assert found.class_names == expected.class_names
    assert found.coarse_names == expected.coarse_names
