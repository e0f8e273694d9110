"""The folder that make gpu fills, and the data that it is given."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.evidence import data, store
from benchmarks.evidence.place import Place
from benchmarks.evidence.runs import find_run
from benchmarks.evidence.store import Store, begin_from
from evidence_files import a_place, a_run, run, speaking

from profiling.evidence import read_evidence
from zoo import cifar100_mini
from zoo.data import Dataset, load_dataset
from zoo.errors import MachineError, RecordError, ZooError


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return a_place(tmp_path)


# The folder -------------------------------------------------------------------------------------


def test_a_line_cut_short_by_the_end_of_a_call_is_dropped(place: Place) -> None:
    run(place, speaking("one", ""))
    file = place.store.folder / "records.jsonl"
    with file.open("a") as records:
        records.write('{"schema": 1, "kind": "st')

    read = place.store.read()  # as after the transfer of a folder
    place.store.open()  # as another call begins
    found = run(place, speaking("two", ""))

    assert [step.step for step in read.steps] == ["one"]
    assert list(found) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1, is damaged (Expecting property name"),
        ('{"kind": "step"}', "line 1, is damaged ('schema')"),
        ('{"schema": 2}', "line 1, has schema 2, this version reads up to 1: update cifar-zoo"),
        ('{"schema": 1, "kind": "step"}', "line 1, is damaged (it holds no value)"),
        (
            '{"schema": 1, "kind": "step", "value": {"step": 1}}',
            "line 1, is damaged (step is no str): copy the folder again",
        ),
        (
            '{"schema": 1, "kind": "dream", "value": {}}',
            "line 1, is of kind 'dream', which is unknown: update cifar-zoo",
        ),
    ],
)
def test_a_damaged_record_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(line + "\n")

    with pytest.raises(RecordError) as error:
        read_evidence(tmp_path)

    assert f"{tmp_path / 'records.jsonl'}, {complaint}" in str(error.value)


def test_records_go_on_in_files_that_stay_small(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"step {number}" for number in range(5)]
    run(place, speaking(names[0], ""))
    size = (place.store.folder / "records.jsonl").stat().st_size
    monkeypatch.setattr(store, "MOST_BYTES", int(2.5 * size))

    for name in names[1:]:
        run(place, speaking(name, ""))
    begin_from(place.store.folder, tmp_path / "elsewhere")

    files = sorted(tmp_path.joinpath("elsewhere").glob("records*.jsonl"))
    assert [file.name for file in files] == ["records-2.jsonl", "records-3.jsonl", "records.jsonl"]
    assert all(file.stat().st_size <= 2.5 * size for file in files)
    for folder in (place.store.folder, tmp_path / "elsewhere"):
        assert [step.step for step in read_evidence(folder).steps] == names


def test_a_line_cut_short_in_a_later_file_is_dropped(place: Place) -> None:
    run(place, speaking("one", ""))
    later = place.store.folder / "records-2.jsonl"
    later.write_text('{"schema": 1, "kind": "st')

    place.store.open()
    found = run(place, speaking("two", ""))

    assert list(found) == ["one", "two"]
    assert later.read_text().count("\n") == 1


def test_weights_are_kept_as_they_are_in_files_that_stay_small(
    place: Place, mini: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [a_run(tmp_path / str(seed), mini, seed=seed) for seed in range(3)]
    monkeypatch.setattr(store, "MOST_BYTES", 1_000_000)  # room for one in each of two archives

    for seed, path in enumerate(runs):
        place.store.add_run(f"study ghost_resnet_20 s{seed}", path, wall_s=1.0)
    found = place.store.read()

    assert [one.weights for one in found.runs] == ["weights-1.zip", "weights-2.zip", None]
    for run_, path in zip(found.runs[:2], runs, strict=False):
        assert found.weights_of(run_) == (path / "weights.safetensors").read_bytes()
    assert found.weights_of(found.runs[2]) is None


def test_weights_above_the_limit_stay_behind(
    place: Place, mini: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.evidence, "MOST_WEIGHTS", 1000)

    place.store.add_run("study ghost_resnet_20 s0", a_run(tmp_path / "run", mini), wall_s=1.0)

    assert [one.weights for one in place.store.read().runs] == [None]


def test_a_later_call_goes_on_from_a_copy(place: Place, mini: Dataset, tmp_path: Path) -> None:
    run(place, speaking("one", ""))
    place.store.add_run("study ghost_resnet_20 s0", a_run(tmp_path / "run", mini), wall_s=1.0)
    elsewhere = tmp_path / "elsewhere"

    begin_from(place.store.folder, elsewhere)
    begin_from(tmp_path / "nothing", elsewhere)  # it has evidence of its own by now
    copied = replace(place, store=Store(elsewhere), work=tmp_path / "fresh")
    restored = find_run(copied, "ghost_resnet_20")

    assert list(copied.store.outcomes()) == ["one"]
    assert restored is not None
    weights = (tmp_path / "run" / "weights.safetensors").read_bytes()
    assert (restored / "weights.safetensors").read_bytes() == weights
    with pytest.raises(ZooError, match=r"nothing holds no records\.jsonl: leave it out"):
        begin_from(tmp_path / "nothing", tmp_path / "other")


def test_a_committed_run_is_used_as_a_copy(place: Place) -> None:
    rehearsed = find_run(place, "resnet_20")
    found = find_run(replace(place, is_rehearsal=False), "resnet_20")

    assert rehearsed is None
    assert found is not None
    assert found.is_relative_to(place.work)  # what is exported from it stays out of the checkout


# The data ---------------------------------------------------------------------------------------

UNPACK = """\
import pathlib, shutil, sys, zipfile
here, there = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[1])
for half in ("0", "1"):
    zipfile.ZipFile(here / f"cifar100-webp-{half}.zip").testzip()
there.mkdir(parents=True)
for name in ("train_images", "train_fine", "train_coarse", "test_images", "test_fine",
             "test_coarse"):
    (there / f"{name}.npy").touch()
shutil.copy(here / "checksums.json", there / "class_names.json")
"""


def class_names() -> str:
    names = cifar100_mini.class_names()
    return json.dumps({"fine": names.fine, "coarse": names.coarse})


@pytest.fixture
def halves(tmp_path: Path) -> list[Path]:
    """Folders with one archive each, as they arrive in two transfers."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        with zipfile.ZipFile(folder / f"cifar100-webp-{number}.zip", "w") as archive:
            archive.writestr("train/00.webp", b"")
    (folders[0] / "unpack.py").write_text(UNPACK)
    (folders[0] / "checksums.json").write_text(class_names())
    return folders


def test_archives_may_come_one_at_a_time(halves: list[Path], tmp_path: Path) -> None:
    work = tmp_path / "work"

    with pytest.raises(ZooError) as first:
        data.prepare(halves[:1], work)
    found = data.prepare(halves[1:], work)

    assert str(first.value) == (
        f"of the data, cifar100-webp-1.zip has not come yet; the rest is kept in "
        f"{work / 'archives'}: call again with its folder as --data"
    )
    assert found == work / "data"
    assert data.prepare((), work) == found  # later calls need neither


def test_archives_that_are_damaged_have_to_come_again(halves: list[Path], tmp_path: Path) -> None:
    (halves[1] / "cifar100-webp-1.zip").write_bytes(b"no archive")

    with pytest.raises(MachineError) as error:
        data.prepare(halves, tmp_path / "work")

    assert str(error.value) == (
        "the data cannot be unpacked (zipfile.BadZipFile: File is not a zip file): "
        "copy both archives again"
    )
    assert not list((tmp_path / "work" / "archives").iterdir())


def test_a_folder_with_arrays_is_used_as_it_is(tmp_path: Path) -> None:
    for name in ("images", "fine", "coarse"):
        for split in ("train", "test"):
            (tmp_path / f"{split}_{name}.npy").touch()
    (tmp_path / "class_names.json").write_text(class_names())

    assert data.prepare([tmp_path], tmp_path / "work") == tmp_path
    assert data.prepare([], tmp_path / "work") is None


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError) as without:
        data.prepare([tmp_path], tmp_path / "work")
    with pytest.raises(ZooError) as missing:
        data.prepare([tmp_path / "nowhere"], tmp_path / "work")

    assert str(without.value) == (
        f"{tmp_path} holds neither train_images.npy nor cifar100-webp-0.zip: name the folder of "
        "CIFAR-100 with --data"
    )
    assert str(missing.value) == (
        f"the data folder {tmp_path / 'nowhere'} does not exist: name another with --data"
    )
