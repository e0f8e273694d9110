import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cifar_files import (
    NOBODY,
    archive_of,
    digest_of,
    official_archive,
    official_files,
    parquet_of,
    small_world,
    ten_classes,
)
from file_host import ARCHIVE, COLUMNS, TEST, TRAIN, Host, promise_md5_of, serving
from torchvision import datasets

from zoo import download
from zoo.data import load_dataset
from zoo.data_formats import Arrays
from zoo.data_sources import LAYOUTS
from zoo.download import fetch
from zoo.errors import DataError


@pytest.fixture(autouse=True)
def arrays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Arrays:
    return small_world(monkeypatch, tmp_path)


@pytest.fixture(autouse=True)
def host(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with serving(monkeypatch) as host:
        yield host


class TestSources:
    def test_the_official_archive_is_fetched_once_and_kept_decoded(
        self, host: Host, arrays: Arrays, tmp_path: Path
    ) -> None:
        first = load_dataset()
        second = load_dataset()

        assert host.requests == [(ARCHIVE, None)]
        assert first.digest == second.digest == digest_of(arrays)
        np.testing.assert_array_equal(first.train.images, second.train.images)
        assert first.class_names == second.class_names
        kept = sorted(path.name for path in (tmp_path / "cache" / "cifar100").iterdir())
        assert len(kept) == 7
        assert kept[0] == "class_names.json"
        assert not (tmp_path / "cache" / "downloads" / "cifar100").exists()
        assert load_dataset(data_dir=tmp_path / "cache" / "cifar100").digest == first.digest

    def test_progress_is_reported_to_the_caller(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "CHUNK_BYTES", 100_000)
        reports: list[tuple[str, int, int | None]] = []

        load_dataset(on_progress=lambda *report: reports.append(report))

        size = len(host.files[ARCHIVE])
        done = [bytes_done for _, bytes_done, _ in reports]
        assert {(label, total) for label, _, total in reports} == {(ARCHIVE[1:], size)}
        assert len(done) > 4
        assert done == sorted(done)
        assert done[-1] == size

    def test_the_mirror_is_the_second_source(self, host: Host, arrays: Arrays) -> None:
        host.refused[ARCHIVE] = 503

        found = load_dataset()

        assert [path for path, _ in host.requests] == [ARCHIVE, TRAIN, TEST]
        assert found.digest == digest_of(arrays)

    def test_an_archive_that_arrives_damaged_leads_to_the_mirror(
        self, host: Host, arrays: Arrays, tmp_path: Path
    ) -> None:
        host.files[ARCHIVE] = host.files[ARCHIVE][:-100] + bytes(100)
        host.refused[TEST] = 404

        with pytest.raises(DataError, match="has MD5 .*, expected .*: damaged on its way"):
            load_dataset()
        assert [
            path.name for path in (tmp_path / "cache" / "downloads" / "cifar100").iterdir()
        ] == ["cifar100-train.parquet"]

        del host.refused[TEST]
        assert load_dataset().digest == digest_of(arrays)
        assert [path for path, _ in host.requests].count(TRAIN) == 1

    def test_code_in_the_archive_is_not_run(
        self, host: Host, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layout = LAYOUTS["cifar100"]
        files = official_files(arrays, layout)
        files["meta"] = b"cposix\nsystem\n(S'touch " + os.fsencode(tmp_path / "ran") + b"'\ntR."
        archive = archive_of({f"{layout.folder}/{name}": text for name, text in files.items()})
        host.files = {ARCHIVE: archive}
        promise_md5_of(archive, monkeypatch)

        with pytest.raises(DataError, match=r"posix.system: refused, nothing was run"):
            load_dataset()

        assert not (tmp_path / "ran").exists()

    def test_other_images_in_both_sources_are_refused(
        self, host: Host, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changed = {**arrays, "test_images": arrays["test_images"] ^ 1}
        archive = official_archive(changed, LAYOUTS["cifar100"])
        host.files[ARCHIVE], host.files[TEST] = archive, parquet_of(changed, "test", COLUMNS)
        promise_md5_of(archive, monkeypatch)

        with pytest.raises(DataError) as caught:
            load_dataset()

        message = str(caught.value)
        assert message.count(f"digest {digest_of(changed)}, expected {digest_of(arrays)}") == 2
        assert not list((tmp_path / "cache").rglob("*.npy"))
        assert not list((tmp_path / "cache").rglob("*.parquet"))

    def test_no_network_names_three_ways_out_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(datasets.CIFAR100, "url", NOBODY + ARCHIVE)
        unreachable = replace(LAYOUTS["cifar100"], mirror=f"{NOBODY}/mirror")
        monkeypatch.setitem(LAYOUTS, "cifar100", unreachable)

        with pytest.raises(DataError) as caught:
            load_dataset()

        message = str(caught.value)
        assert "\n" not in message
        assert message.count("127.0.0.1:9: Connection refused") == 2
        assert message.endswith(
            "set ZOO_DATA or --data-dir to a folder that has it, connect to the network, "
            "or use --dataset cifar100-mini"
        )

    def test_a_source_whose_package_is_missing_is_left_out(
        self, host: Host, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        del host.files[ARCHIVE]
        with pytest.raises(DataError, match="HTTP 404 .*; pyarrow, which reads the mirror: import"):
            load_dataset()
        monkeypatch.setitem(sys.modules, "torchvision", None)
        with pytest.raises(DataError, match=r"\(torchvision, which knows the official URL: import"):
            load_dataset()
        assert len(host.requests) == 1

        monkeypatch.delitem(sys.modules, "pyarrow")
        assert load_dataset().digest == digest_of(arrays)

    def test_cifar10_comes_from_both_sources_too(
        self, host: Host, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ten = ten_classes(arrays)
        archive = official_archive(ten, LAYOUTS["cifar10"])
        for split in ("train", "test"):
            path = f"/mirror/plain_text/{split}-00000-of-00001.parquet"
            host.files[path] = parquet_of(ten, split, ("img", "label"))
        promise_md5_of(archive, monkeypatch, "CIFAR10")

        by_mirror = load_dataset("cifar10")
        monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "other"))
        host.files["/cifar-10-python.tar.gz"] = archive
        host.requests.clear()
        by_archive = load_dataset("cifar10")

        assert host.requests == [("/cifar-10-python.tar.gz", None)]
        assert by_mirror.digest == by_archive.digest == digest_of(ten)
        assert by_mirror.num_classes == 10


class TestResume:
    def test_a_cut_connection_is_taken_up_where_it_broke(self, host: Host, arrays: Arrays) -> None:
        host.cuts = [100_000, 50_000, 1]

        found = load_dataset()

        ranges = [asked for _, asked in host.requests]
        assert ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]
        assert found.digest == digest_of(arrays)

    def test_a_later_run_goes_on_with_what_an_earlier_one_got(
        self, host: Host, arrays: Arrays, tmp_path: Path
    ) -> None:
        host.cuts = [70_000, 0, 0, 0]
        del host.files[TRAIN]
        with pytest.raises(DataError, match="the connection was cut after 70000 of"):
            load_dataset()
        part = tmp_path / "cache" / "downloads" / "cifar100" / f"{ARCHIVE[1:]}.part"
        assert part.stat().st_size == 70_000
        host.requests.clear()

        found = load_dataset()

        assert host.requests == [(ARCHIVE, "bytes=70000-")]
        assert found.digest == digest_of(arrays)

    def test_a_file_of_the_mirror_is_resumed_as_well(self, host: Host, arrays: Arrays) -> None:
        host.refused[ARCHIVE] = 403
        host.moved[TRAIN] = "/cdn/train"
        host.files["/cdn/train"] = host.files[TRAIN]
        host.cuts = [1000]

        found = load_dataset()

        assert host.requests[3:5] == [(TRAIN, "bytes=1000-"), ("/cdn/train", "bytes=1000-")]
        assert found.digest == digest_of(arrays)

    def test_a_server_without_ranges_is_read_from_the_start(
        self, host: Host, tmp_path: Path
    ) -> None:
        host.knows_ranges = False
        (tmp_path / "file.part").write_bytes(b"from another time")

        fetch(host.url + ARCHIVE, tmp_path / "file")

        assert host.requests == [(ARCHIVE, "bytes=17-")]
        assert (tmp_path / "file").read_bytes() == host.files[ARCHIVE]
        assert not (tmp_path / "file.part").exists()

    @pytest.mark.parametrize("extra", [0, 1])
    def test_a_part_that_is_whole_or_too_long(self, host: Host, tmp_path: Path, extra: int) -> None:
        (tmp_path / "file.part").write_bytes(host.files[ARCHIVE] + bytes(extra))

        fetch(host.url + ARCHIVE, tmp_path / "file")

        assert (tmp_path / "file").read_bytes() == host.files[ARCHIVE]
        assert len(host.requests) == 1 + extra

    def test_a_server_that_brings_nothing_more_is_given_up(
        self, host: Host, tmp_path: Path
    ) -> None:
        host.cuts = [1000, *[0] * 9]

        with pytest.raises(DataError, match=r"^127.0.0.1:\d+: the connection was cut after 1000"):
            fetch(host.url + ARCHIVE, tmp_path / "file")

        assert len(host.requests) == 1 + download.FRUITLESS_TRIES

    def test_a_silent_server_counts_as_cut(
        self, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "TIMEOUT_S", 0.1)
        with (
            socket.create_server(("127.0.0.1", 0)) as silent,
            pytest.raises(DataError, match="timed out"),
        ):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path / "file")

    def test_an_interrupted_transfer_keeps_its_bytes(self, host: Host, tmp_path: Path) -> None:
        def interrupt(label: str, done: int, total: int | None) -> None:
            if done > 100_000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch(host.url + ARCHIVE, tmp_path / "file", on_progress=interrupt)

        assert (tmp_path / "file.part").stat().st_size > 100_000
        assert not (tmp_path / "file").exists()
