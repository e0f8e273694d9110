import io
from pathlib import Path

import pytest
from rich.console import Console

from training.display import TrainingDisplay, duration, step_text
from training.loop import EpochMetrics, Progress
from zoo.display import TransferDisplay


def test_a_download_is_one_plain_line_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    with TransferDisplay() as show:
        for done in (0, 5_000_000, 10_000_000):
            show("a.tar.gz", done, 10_000_000)
        show("waiting", 0, None)

    assert capsys.readouterr().err == "a.tar.gz (10 MB)\nwaiting\n"


def test_a_bar_is_taken_down_when_a_download_fails() -> None:
    display = TransferDisplay()
    display.console = Console(file=io.StringIO(), force_terminal=True)
    display.bar.live.console = display.console
    display.bar.disable = False

    with pytest.raises(OSError, match="cut"):
        fail_under_way(display)

    assert not display.bar.live.is_started


def fail_under_way(display: TransferDisplay) -> None:
    with display:
        display("a", 1, None)
        assert display.bar.live.is_started
        raise OSError("cut")


def test_training_is_told_in_plain_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = {"epochs": 2, "steps": 10, "images_per_s": 640.4}
    metrics = EpochMetrics(
        epoch=1,
        train_loss=3.25,
        train_top1=0.125,
        val_top1=0.25,
        learning_rate=0.1,
        train_seconds=1.0,
        evaluation_seconds=1.0,
        images_per_s=640.4,
    )

    with TrainingDisplay() as show:
        show(Progress(epoch=0, step=0, seconds_left=3725.0, **place))
        show(Progress(epoch=1, step=5, seconds_left=10.0, loss=3.3, **place))  # within a minute
        show(Progress(epoch=1, step=10, seconds_left=61.0, metrics=metrics, **place))

    assert capsys.readouterr().err.splitlines() == [
        "predicted: 1:02:05 for the steps and evaluations of this run on this machine, "
        "about 640 img/s",
        "epoch 1/2  640 img/s  loss 3.250  train 12.50%  val 25.00%  1:01 left",
    ]


def test_the_bar_tells_speed_loss_accuracy_and_time_left() -> None:
    progress = Progress(
        epoch=1,
        epochs=2,
        step=5,
        steps=10,
        seconds_left=75.0,
        images_per_s=640.4,
        loss=3.3,
        top1=0.1234,
    )

    assert step_text(progress) == "640 img/s  loss 3.300  train 12.34%  1:15 left"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3600, "1:00:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
