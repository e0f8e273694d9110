import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.errors import CheckpointError, ZooError
from zoo.files import (
    atomic_file,
    atomic_files,
    new_folder,
    read_json,
    sha256_file,
    write_atomic,
    write_json,
)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep" / "a.txt", "text")

    assert (tmp_path / "deep" / "a.txt").read_text() == "text"
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["a.txt"]


def fail_half_way(target: Path) -> None:
    with atomic_file(target) as part:
        part.write_text("half")
        raise RuntimeError("boom")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")

    with pytest.raises(RuntimeError, match="boom"):
        fail_half_way(target)

    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "model.aoti.pt2") as part:
        assert part.name.endswith(".aoti.pt2")


def test_files_that_belong_together_are_moved_out_together(tmp_path: Path) -> None:
    write_atomic(tmp_path / "net.xml", "old")

    with atomic_files(tmp_path / "net.xml", last=tmp_path / "net.json") as part:
        for suffix in (".xml", ".bin", ".json"):
            part.with_suffix(suffix).write_text(f"new {suffix}")
        assert part.name == "net.xml"
        assert (tmp_path / "net.xml").read_text() == "old"

    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {
        name: f"new {Path(name).suffix}" for name in ("net.xml", "net.bin", "net.json")
    }


def fill_the_disk(main: Path, last: Path) -> None:
    with atomic_files(main, last=last) as part:
        part.write_text("new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part.with_suffix(".bin")))


def test_files_that_belong_together_stay_as_they_were_if_one_fails(tmp_path: Path) -> None:
    main, last = tmp_path / "net.xml", tmp_path / "net.json"
    write_atomic(main, "old")

    with pytest.raises(OSError, match="No space left on device") as caught:
        fill_the_disk(main, last)

    assert caught.value.filename == str(tmp_path / "net.bin")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"net.xml": "old"}


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    left, held, young = (tmp_path / f".part-{name}" for name in ("left", "held", "young"))
    for folder in (left, held, young):
        folder.mkdir()
        (folder / "net.xml").write_text("half")
    for folder in (left, held):
        os.utime(folder, (0, 0))
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)

    with atomic_files(tmp_path / "net.xml", last=tmp_path / "net.json") as part:
        part.write_text("new")

    os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [held.name, young.name, "net.xml"]
    assert (held / "net.xml").read_text() == "half"


def test_of_two_that_end_at_once_the_files_are_those_of_one(tmp_path: Path) -> None:
    meet = threading.Barrier(2)

    def write(who: str) -> None:
        with atomic_files(tmp_path / "net.xml", last=tmp_path / "net.json") as part:
            for suffix in (".xml", ".bin", ".json"):
                part.with_suffix(suffix).write_text(who)
            meet.wait()

    for _ in range(100):
        writers = [threading.Thread(target=write, args=(who,)) for who in "ab"]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len({path.read_text() for path in tmp_path.iterdir()}) == 1


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(before)

    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from zoo.files import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: write_atomic(Path(sys.argv[1]), b'x' * 101)\n"
        "except OSError as error: print(error.filename, error.strerror)"
    )

    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "big")], capture_output=True, text=True
    )

    assert answer.stdout == f"{tmp_path / 'big'} File too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda folder: write_atomic(folder / "a.txt", "new"), "a.txt"),
        (lambda folder: fill_the_disk(folder / "net.xml", folder / "net.json"), ""),
    ],
)
def test_what_cannot_be_begun_names_no_temporary_file(
    write: Callable[[Path], None], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path, prefix: str, suffix: str = "") -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{dir}/{prefix}12345678{suffix}")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)

    with pytest.raises(OSError, match="Read-only file system") as caught:
        write(tmp_path)

    assert caught.value.filename == str(tmp_path / named)


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})

    assert read_json(tmp_path / "a.json") == {"b": [1, None]}


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"b": float("nan")})

    assert list(tmp_path.iterdir()) == []


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"b": ')

    with pytest.raises(CheckpointError, match=r"a.json is not valid JSON .*: is it damaged\?"):
        read_json(tmp_path / "a.json", CheckpointError)
    with pytest.raises(ZooError, match="none.json does not exist"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        (r'"\uD83d!"', "surrogates not allowed"),
    ],
)
def test_what_only_python_takes_for_json_is_damage(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"b": {text}}}')

    with pytest.raises(ZooError, match=f"a.json is not valid JSON .*{reason}"):
        read_json(tmp_path / "a.json")


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(r'"\ud83d\ude00"')

    assert read_json(tmp_path / "a.json") == "\N{GRINNING FACE}"


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")

    digest = sha256_file(tmp_path / "a")

    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "new") as part:
        (part / "in").mkdir()
        (part / "in" / "a.txt").write_text("text")
        assert not (tmp_path / "deep" / "new").exists()

    assert (tmp_path / "deep" / "new" / "in" / "a.txt").read_text() == "text"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "deep" / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def fill_a_folder(folder: Path) -> None:
    with new_folder(folder) as part:
        write_atomic(part / "a.txt", "new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "source", None, str(part / "b.txt"))


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        fill_a_folder(tmp_path / "new")

    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "new"), None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "a.txt", "old")

    with pytest.raises(OSError, match="not empty") as caught, new_folder(tmp_path / "new") as part:
        (part / "a.txt").write_text("new")

    assert caught.value.filename == str(tmp_path / "new")
    assert (tmp_path / "new" / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
