import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cifar_files import digest_of, small_world, ten_classes, write_decoded, write_official
from file_host import ARCHIVE, Host, serving

from zoo.data import load_dataset
from zoo.data_formats import Arrays
from zoo.data_sources import LAYOUTS
from zoo.download import fetch
from zoo.errors import DataError, MachineError


@pytest.fixture(autouse=True)
def arrays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Arrays:
    return small_world(monkeypatch, tmp_path)


@pytest.fixture(autouse=True)
def host(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with serving(monkeypatch) as host:
        yield host


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


class TestGivenFolders:
    def test_zoo_data_is_read_and_data_dir_goes_first(
        self, arrays: Arrays, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = write_decoded(tmp_path / "good", arrays)
        monkeypatch.setenv("ZOO_DATA", str(good))
        assert load_dataset().digest == digest_of(arrays)

        with pytest.raises(DataError, match="--data-dir .*empty does not hold cifar100"):
            load_dataset(data_dir=empty)

    def test_a_given_folder_without_the_data_is_an_error_despite_a_full_cache(
        self, arrays: Arrays, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_decoded(tmp_path / "cache" / "cifar100", arrays)
        assert load_dataset().digest == digest_of(arrays)
        looked_for = r"looked for decoded arrays \(train_images.npy .* folder cifar-100-python"

        with pytest.raises(DataError, match=looked_for):
            load_dataset(data_dir=empty)
        monkeypatch.setenv("ZOO_DATA", str(empty))
        with pytest.raises(DataError, match=f"ZOO_DATA .*{looked_for}"):
            load_dataset()

    @pytest.mark.parametrize("name", ["cifar100", "cifar10"])
    def test_a_folder_that_does_not_exist(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(DataError, match=f"--data-dir .*/none is not a folder.*{name}"):
            load_dataset(name, data_dir=tmp_path / "none")
        monkeypatch.setenv("ZOO_DATA", str(tmp_path / "none"))
        with pytest.raises(DataError, match=f"ZOO_DATA .*/none is not a folder.*{name}"):
            load_dataset(name)


class TestCifar10:
    def test_the_official_folder(self, arrays: Arrays, tmp_path: Path) -> None:
        ten, layout = ten_classes(arrays), LAYOUTS["cifar10"]
        write_official(tmp_path / "cifar-10-batches-py", ten, layout)

        found = load_dataset("cifar10", data_dir=tmp_path)

        assert found.class_names[3] == "cat"
        assert found.coarse_names is found.coarse_of_fine is found.train.coarse is None
        assert found.digest == digest_of(ten)
        pixels = ten["train_images"] / 255
        np.testing.assert_allclose(found.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(found.std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)

    def test_a_data_dir_with_cifar100_is_refused(self, arrays: Arrays, tmp_path: Path) -> None:
        folder = write_decoded(tmp_path / "data", arrays)

        with pytest.raises(DataError, match="does not hold cifar10: .*cifar-10-batches-py"):
            load_dataset("cifar10", data_dir=folder)

    def test_zoo_data_with_cifar100_is_passed_over(
        self, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ZOO_DATA", str(write_decoded(tmp_path / "data", arrays)))
        ten = ten_classes(arrays)
        cached = write_decoded(tmp_path / "cache" / "cifar10", ten)
        names = LAYOUTS["cifar10"].class_names()
        (cached / "class_names.json").write_text(json.dumps({"fine": names.fine}))

        assert load_dataset("cifar10").digest == digest_of(ten)

    def test_zoo_data_with_both_gives_each(
        self, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, ten = write_decoded(tmp_path / "data", arrays), ten_classes(arrays)
        write_official(folder / "cifar-10-batches-py", ten, LAYOUTS["cifar10"])
        monkeypatch.setenv("ZOO_DATA", str(folder))

        assert load_dataset("cifar10").digest == digest_of(ten)
        assert load_dataset("cifar100").digest == digest_of(arrays)

    def test_unequal_classes_are_refused(self, arrays: Arrays, tmp_path: Path) -> None:
        ten = ten_classes(arrays)
        ten["train_fine"] = np.where(np.arange(300) == 0, 5, ten["train_fine"])
        write_official(tmp_path / "cifar-10-batches-py", ten, LAYOUTS["cifar10"])

        with pytest.raises(DataError, match="data_batch_1 .*not the same number of images"):
            load_dataset("cifar10", data_dir=tmp_path)


class TestCache:
    def test_two_processes_at_once_fetch_it_once(self, host: Host, arrays: Arrays) -> None:
        host.cuts = [1000]
        reports: list[str] = []

        with ThreadPoolExecutor(4) as pool:  # a lock of each open file, as between processes
            jobs = [
                pool.submit(load_dataset, on_progress=lambda label, *_: reports.append(label))
                for _ in range(4)
            ]

        assert {job.result().digest for job in jobs} == {digest_of(arrays)}
        assert [path for path, _ in host.requests] == [ARCHIVE, ARCHIVE]
        assert "waiting for another process's download" in reports

    def test_a_cache_that_was_not_finished_is_filled_again(
        self, host: Host, arrays: Arrays, tmp_path: Path
    ) -> None:
        cache = write_decoded(tmp_path / "cache" / "cifar100", arrays)
        (cache / "class_names.json").unlink()
        (cache / "test_fine.npy").unlink()

        assert load_dataset().digest == digest_of(arrays)
        assert host.requests

    def test_a_damaged_cache_is_named_and_not_replaced(
        self, host: Host, arrays: Arrays, tmp_path: Path
    ) -> None:
        cache = write_decoded(tmp_path / "cache" / "cifar100", arrays)
        np.save(cache / "test_images.npy", arrays["test_images"] ^ 1)

        with pytest.raises(DataError, match=f"{cache} is not cifar100 .*: remove {cache} and run"):
            load_dataset()

        assert not host.requests

    def test_a_cache_that_cannot_be_written(
        self, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file" / "cache"))

        with pytest.raises(MachineError, match="file/cache cannot be written .*: set ZOO_CACHE"):
            load_dataset()

        assert not host.requests

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
    def test_a_full_disk_is_not_taken_for_a_lost_connection(
        self, host: Host, tmp_path: Path
    ) -> None:
        (tmp_path / "file.part").symlink_to("/dev/full")

        with pytest.raises(MachineError, match="cannot write .*file.part: No space left"):
            fetch(host.url + ARCHIVE, tmp_path / "file")

        assert len(host.requests) == 1

    def test_the_place_follows_xdg(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ZOO_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        load_dataset()
        assert (tmp_path / "xdg" / "cifar-zoo" / "cifar100" / "train_images.npy").exists()

        monkeypatch.setenv("XDG_CACHE_HOME", "relative: to be ignored")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        load_dataset()
        cache = tmp_path / "home" / ".cache" / "cifar-zoo"
        assert (cache / "cifar100" / "train_images.npy").exists()
