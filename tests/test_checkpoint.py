import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_run import sample_run

from zoo.checkpoint import Checkpoint, all_runs, newest_run, save_run
from zoo.data import Dataset, load_dataset
from zoo.errors import CheckpointError
from zoo.models import create_model


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load_dataset("cifar100-mini")


def test_a_run_survives_the_disk(mini: Dataset, tmp_path: Path) -> None:
    saved = sample_run(tmp_path / "run", mini)

    opened = Checkpoint.open(tmp_path / "run")

    assert opened == saved
    assert not opened.model().training
    assert opened.meta.dataset.class_names == mini.class_names


def test_no_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run .*none: train one with zoo-train"):
        Checkpoint.open(tmp_path / "none")


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run: it holds no meta.json"):
        Checkpoint.open(tmp_path)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only its file systems take a name that is no text"
)
def test_a_name_that_is_no_text_is_told(mini: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", mini)
    other = run.path.rename(tmp_path / os.fsdecode(b"caf\xe9"))

    with pytest.raises(CheckpointError, match=r"caf.* is not UTF-8: rename the folder$"):
        Checkpoint.open(other)


def test_truncated_weights_are_refused(mini: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", mini)
    weights = run.path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match=r"weights.safetensors is damaged \("):
        run.model()


def test_another_runs_weights_are_refused(mini: Dataset, tmp_path: Path) -> None:
    first = sample_run(tmp_path / "a", mini, seed=0)
    second = sample_run(tmp_path / "b", mini, seed=1)
    stolen = (second.path / "weights.safetensors").read_bytes()
    (first.path / "weights.safetensors").write_bytes(stolen)

    with pytest.raises(CheckpointError, match=r"meta.json promises .*belongs to another run"):
        first.model()


def test_another_models_weights_are_refused(mini: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", mini)
    tensors = create_model("resnet_32").state_dict()

    foreign = save_run(run.path, run.meta, tensors)

    with pytest.raises(CheckpointError, match="weights of another model than resnet_20"):
        foreign.model()


def test_missing_weights_are_named(mini: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", mini)
    (run.path / "weights.safetensors").unlink()

    with pytest.raises(CheckpointError, match="no epoch of this run was completed"):
        run.model()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "has schema 99, this version reads up to 1: update cifar-zoo"),
        ({"dataset": None}, "is not the meta.json of a run"),
        ({"dataset": {}}, "is not the meta.json of a run"),
        ({"weights_sha256": 5}, "weights_sha256 is no str"),
        ({"finished_at": 5}, "finished_at is no str"),
    ],
)
def test_foreign_facts_are_refused(
    change: dict[str, object], message: str, mini: Dataset, tmp_path: Path
) -> None:
    run = sample_run(tmp_path / "run", mini)
    meta = run.path / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | change))

    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(run.path)


def test_damaged_facts_are_named(mini: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", mini)
    (run.path / "meta.json").write_text("{")

    with pytest.raises(CheckpointError, match="meta.json is not valid JSON"):
        Checkpoint.open(run.path)


def test_the_newest_run_is_the_last_complete_one(mini: Dataset, tmp_path: Path) -> None:
    for name, finished in (("a", "2026-01-02"), ("b", "2026-01-03"), ("c", "2026-01-01")):
        run = sample_run(tmp_path / name, mini)
        save_run(run.path, replace(run.meta, finished_at=finished))
    unfinished = sample_run(tmp_path / "d", mini)
    save_run(unfinished.path, replace(unfinished.meta, finished_at=None))

    assert newest_run(tmp_path) == tmp_path / "b"
    assert [path.name for path in all_runs(tmp_path)] == ["a", "b", "c", "d"]


def test_a_damaged_run_does_not_hide_the_others(mini: Dataset, tmp_path: Path) -> None:
    good = sample_run(tmp_path / "good", mini)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "meta.json").write_text("{")

    assert newest_run(tmp_path) == good.path
    (good.path / "meta.json").unlink()
    with pytest.raises(CheckpointError, match="bad/meta.json is not valid JSON"):
        newest_run(tmp_path)


def test_weights_are_no_pickle(mini: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", mini)

    data = (run.path / "weights.safetensors").read_bytes()

    length = int.from_bytes(data[:8], "little")
    assert set(json.loads(data[8 : 8 + length])) >= set(run.model().state_dict())
