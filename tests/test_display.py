import io
import subprocess
import sys
from pathlib import Path

import pytest
from few_images import picture_folder
from rich.console import Console

from training.display import TrainingDisplay, duration, step_text
from training.loop import EpochMetrics, Progress
from zoo.data import load_dataset
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


WITHOUT = """
import sys
from types import SimpleNamespace as Progress
sys.modules["rich"] = sys.modules["matplotlib"] = None
"""


def test_without_rich_the_lines_are_the_same() -> None:
    script = """
from profiling.display import BenchDisplay
from training.display import TrainingDisplay
from zoo.display import TransferDisplay
with TransferDisplay() as show:
    show("a.tar.gz", 0, 10_000_000)
    show("a.tar.gz", 10_000_000, 10_000_000)
with BenchDisplay(), TrainingDisplay() as show:
    place = {"epochs": 2, "steps": 10, "images_per_s": 640.4, "metrics": None}
    show(Progress(epoch=0, step=0, seconds_left=3725.0, **place))
    show(Progress(epoch=1, step=5, seconds_left=10.0, loss=3.3, **place))
    show.note("stopping")
"""

    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT + script], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.splitlines() == [
        "a.tar.gz (10 MB)",
        "predicted: 1:02:05 for the steps and evaluations of this run on this machine, "
        "about 640 img/s",
        "stopping",
    ]


@pytest.mark.slow
def test_a_network_is_trained_without_rich_and_matplotlib(tmp_path: Path) -> None:
    pictures = picture_folder(load_dataset("cifar100-mini"), tmp_path / "pictures")
    options = ("resnet_20", "--dataset", pictures, "--device", "cpu", "--recipe", "smoke")
    options += ("--batch-size", "10", "--epochs", "1", "--runs", str(tmp_path / "runs"))
    script = f"{WITHOUT}\nfrom training.cli import main\nsys.exit(main(sys.argv[1:]))"

    answer = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stderr
    shown = answer.stderr.splitlines()
    assert shown[2].startswith("epoch 1/1  ")
    assert shown[3] == "curves.png is left out: matplotlib is not installed"
    assert (tmp_path / "runs" / "resnet_20-s0" / "meta.json").exists()
    assert not (tmp_path / "runs" / "resnet_20-s0" / "curves.png").exists()


def test_the_bar_is_gone_at_the_end() -> None:
    assert TrainingDisplay().bar.live.transient
    assert not TransferDisplay().bar.live.transient


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
