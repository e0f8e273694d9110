"""What TensorBoard reads of a run."""

import json
from pathlib import Path

import pytest
from small_runs import CPU, FOLDER, SHORT, TINY, Signal, few_of_each

from training import train
from training.cli import main
from training.event_log import FOLDER as EVENTS

FEW = few_of_each()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, as TensorBoard itself reads them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run / EVENTS))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def told(run: Path, field: str) -> list[tuple[int, float]]:
    """The same of metrics.jsonl."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["epoch"], pytest.approx(line[field])) for line in lines]


def test_it_holds_what_the_metrics_hold(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")

    run = train(TINY, SHORT, CPU, FEW, runs=tmp_path, tensorboard=True).path

    found = scalars(run)
    assert found == {
        "loss/train": told(run, "train_loss"),
        "top1/train": told(run, "train_top1"),
        "top1/validation": told(run, "val_top1"),
        "learning_rate": told(run, "learning_rate"),
        "images_per_s": told(run, "images_per_s"),
    }
    assert len(found["loss/train"]) == SHORT.epochs


def test_a_resumed_run_shows_each_epoch_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, CPU, FEW, runs=tmp_path, tensorboard=True, on_progress=Signal(1))

    run = train(TINY, SHORT, CPU, FEW, resume=tmp_path / FOLDER, tensorboard=True).path

    assert scalars(run)["loss/train"] == told(run, "train_loss")


def test_there_is_none_unless_it_was_asked_for(tmp_path: Path) -> None:
    run = train(TINY, SHORT, CPU, FEW, runs=tmp_path).path

    assert not (run / EVENTS).exists()


def test_the_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.event_log.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)

    code = main(["resnet_20", "--dataset", "cifar100-mini", "--log", "tensorboard"])

    assert code == 2
    assert capsys.readouterr().err == (
        "zoo-train: --log tensorboard needs the package tensorboard, which is not installed: "
        "in a clone of cifar-zoo run pip install '.[tensorboard]'\n"
    )
    assert list(tmp_path.iterdir()) == []
