import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.cli import main
from training.options import Job, build_parser, make_job
from training.recipes import QUICK, STUDY
from zoo.checkpoint import Checkpoint
from zoo.data import load_dataset

PICTURES = 12  # of each class


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The options that train on a small folder of real images."""
    data = load_dataset("cifar100-mini")
    root = tmp_path_factory.mktemp("pictures")
    for label in range(5):
        folder = root / data.class_names[label]
        folder.mkdir()
        for number, row in enumerate(np.flatnonzero(data.train.fine == label)[:PICTURES]):
            Image.fromarray(data.train.images[row]).save(folder / f"{number}.png")
    return ("--dataset", f"folder:{root}", "--device", "cpu", "--batch-size", "10")


MINI = ("--dataset", "cifar100-mini", "--device", "cpu")


def job(*argv: str) -> Job:
    return make_job(build_parser().parse_args(argv))


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(argv)
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return code, err


def test_the_command_of_the_readme_means_the_study_on_cifar100() -> None:
    wanted = job("improved_resnet20_convnext", "--compile")

    assert wanted.recipe == STUDY
    assert (wanted.dataset, wanted.seed, wanted.runtime.compile) == ("cifar100", 0, True)
    assert wanted.runs == Path("runs")


def test_options_change_the_recipe() -> None:
    wanted = job(
        *("resnet_20", "--recipe", "quick", "--epochs", "5", "--batch-size", "64"),
        *("--set", "peak_lr=0.2", "--full-train"),
    )

    assert (wanted.recipe.epochs, wanted.recipe.warmup_epochs) == (5, 1.0)
    assert (wanted.recipe.batch_size, wanted.recipe.peak_lr) == (64, 0.2)
    assert wanted.recipe.full_train
    assert wanted.recipe.nesterov == QUICK.nesterov


def test_the_recipe_is_that_of_the_model() -> None:
    assert job("convnext_tiny").recipe.peak_lr == 4e-3
    assert job("resnet_20", "--recipe", "strong").recipe.name == "strong"


def test_the_rate_follows_the_batch_only_where_asked() -> None:
    scaled = job("resnet_20", "--batch-size", "256", "--scale-lr").recipe
    kept = job("resnet_20", "--batch-size", "256").recipe

    assert (scaled.batch_size, scaled.peak_lr) == (256, 0.025)
    assert (kept.batch_size, kept.peak_lr) == (256, 0.1)
    mine = job("resnet_20", "--batch-size", "256", "--scale-lr", "--set", "peak_lr=0.4").recipe
    assert (mine.batch_size, mine.peak_lr) == (256, 0.1)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ((), "zoo-train: no model given: zoo-train MODEL, such as zoo-train resnet_20\n"),
        (("resnet_20", "--recipe", "qick"), "no recipe named 'qick': did you mean quick?"),
        (("resnet_20", "--set", "peak_lr"), "--set expects FIELD=VALUE, such as"),
        (("resnet_20", "--set", "x=1"), "a recipe has no field 'x': choose one of"),
        (
            ("resnet_20", "--set", "peak_lr=inf"),
            "peak_lr must be above 0 and finite in float32, got inf",
        ),
        (
            ("resnet_20", "--set", "peak_lr=-1"),
            "recipe 'study': peak_lr must be above 0 and finite in float32, got -1",
        ),
        *(
            (("resnet_20", *option, "--set", text), f"--set {text} give the same field")
            for option, text in (
                (("--epochs", "3"), "epochs=4"),
                (("--batch-size", "400"), "batch_size=10"),
                (("--full-train",), "full_train=false"),
                (("--freeze-backbone",), "freeze_backbone=false"),
                (("--set", "peak_lr=0.1"), "peak_lr=0.2"),
            )
        ),
        (
            ("resnet_20", "--scale-lr"),
            "--scale-lr follows the batch size: name one with --batch-size",
        ),
        (
            ("resnet_20", "--compile-mode", "default"),
            "--compile-mode default says how: pass --compile beside it",
        ),
        (
            ("resnet_20", "--compile", "--compile-mode", "reduce-overhead", "--accumulate", "2"),
            "--compile-mode reduce-overhead gives each part of a batch the memory of the one "
            "before: with --accumulate 2 pass --compile-mode default",
        ),
        (
            ("resnet_20", "--rdzv-id", "x"),
            "--rdzv-endpoint and --rdzv-id are for several nodes: pass --nnodes",
        ),
        (
            ("resnet_20", "--nnodes", "2:4"),
            "--nnodes 2:4 needs a place where the nodes meet: pass --rdzv-endpoint",
        ),
        (
            ("resnet_20", "--max-restarts", "0"),
            "--max-restarts is for several processes: pass --nproc or --nnodes",
        ),
        (
            ("resnet_20", *MINI, "--device", "cpu", "--cuda-graphs", "on"),
            "--cuda-graphs on needs a GPU: leave it out on CPUs",
        ),
        (("--resume", "auto"), "no model given: zoo-train MODEL"),
        (("--replay", "no/run"), "there is no run no/run: train one with zoo-train"),
        (("resnet_21",), "no model named 'resnet_21': did you mean"),
        (("resnet_20", "--resume", "no/run"), "there is no run no/run: train one with zoo-train"),
        (
            ("resnet_20", *MINI, "--batch-size", "5000"),
            "batch size 5000 exceeds the 3600 training images of cifar100-mini",
        ),
        (("resnet_20", *MINI, "--set", "precision=fp16"), "precision fp16 needs a GPU"),
        (("resnet_20", "--dataset", "cifar10O"), "cifar10"),
        (("resnet_20", "--dataset", "folder:no/such"), "no/such"),
        (("resnet_20", "--data-dir", "no/such"), "no/such"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    argv: tuple[str, ...],
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    code = main(argv)

    (shown,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.strip() in shown
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.parametrize(
    "argv",
    [
        ("--epochs", "0"),
        ("--batch-size", "x"),
        ("--unknown",),
        ("--seed", "-1"),
        ("--nnodes", "4:2"),
        ("--max-restarts", "x"),
        ("--save-seconds", "0"),
        ("--seed", "9" * 23),
    ],
)
def test_usage_errors_exit_with_2(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["resnet_20", *argv])

    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_truncated_data_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.save(tmp_path / "train_images.npy", np.zeros((10, 32, 32, 3), np.uint8))
    whole = (tmp_path / "train_images.npy").read_bytes()
    (tmp_path / "train_images.npy").write_bytes(whole[:500])

    code, line = failure(capsys, "resnet_20", "--data-dir", str(tmp_path))

    assert code == 2
    assert str(tmp_path) in line


def test_a_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    code = main(
        ["resnet_20", *MINI, "--recipe", "smoke", "--runs", str(tmp_path / "file" / "runs")]
    )

    (shown,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert shown == f"zoo-train: {tmp_path / 'file' / 'runs'}: Not a directory"


def test_a_full_disk_leaves_no_half_run(pictures: tuple[str, ...], tmp_path: Path) -> None:
    script = (
        "import resource, sys; from training.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = (*pictures, "--recipe", "smoke", "--epochs", "1", "--runs", str(tmp_path))

    answer = subprocess.run(
        [sys.executable, "-c", script, "resnet_20", *options], capture_output=True, text=True
    )

    assert answer.returncode == 1
    state = tmp_path / "resnet_20-s0" / "state" / "last.pt"
    assert answer.stderr.splitlines()[-1] == f"zoo-train: {state}: File too large"
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_last_complete_epoch(
    number: signal.Signals, code: int, pictures: tuple[str, ...], tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "training.cli", "resnet_20", *pictures, "--recipe", "smoke"),
        *("--epochs", "5000", "--runs", str(tmp_path), "--save-seconds", "0.1"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    weights = tmp_path / "resnet_20-s0" / "weights.safetensors"
    deadline = time.monotonic() + 120
    while not weights.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)

    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()

    assert process.returncode == code, err
    assert "Traceback" not in err
    left = Checkpoint.open(tmp_path / "resnet_20-s0")
    assert left.model()
    assert left.meta.finished_at is None


def test_a_run_is_trained_and_resumed_by_the_command(
    pictures: tuple[str, ...], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "training.cli"]
    options = (*pictures, "--recipe", "smoke", "--epochs", "1", "--compile")
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1"}  # compiling has its own test

    answer = subprocess.run(
        [*command, "resnet_20", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "runs/resnet_20-s0\n"
    shown = answer.stderr.splitlines()
    assert shown[0].startswith(f"resnet_20 on {pictures[1]}, recipe smoke, 1 epochs, batch 10,")
    assert shown[1].startswith("predicted: ")
    assert shown[2].startswith("epoch 1/1  ")
    assert re.fullmatch(
        r"compiled in [\d.]+ s, 0 recompiled later; a step takes [\d.]+ ms instead of [\d.]+ ms: "
        r"(it does not pay|it pays after [\d.]+ epochs)",
        shown[3],
    )
    assert shown[4].startswith("test top-1 ")
    meta = json.loads((tmp_path / "runs/resnet_20-s0/meta.json").read_text())
    assert meta["dataset"]["name"] == pictures[1]

    again = subprocess.run(
        [*command, "--resume", "runs/resnet_20-s0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert again.returncode == 2
    (line,) = again.stderr.splitlines()
    assert "is complete (1 epoch," in line


def test_every_option_is_a_decision() -> None:
    options = {name for action in build_parser()._actions for name in action.option_strings}

    assert options == {
        *(
            "-h",
            "--help",
            "--version",
            "--recipe",
            "--recipes",
            "--epochs",
            "--batch-size",
            "--set",
        ),
        *(
            "--full-train",
            "--seed",
            "--dataset",
            "--data-dir",
            "--compile",
            "--no-compile",
            "--device",
        ),
        *("--runs", "--resume", "--model", "--image-size", "--pretrained", "--pretrained-file"),
        *("--freeze-backbone", "--scale-lr", "--replay", "--log", "--compile-mode"),
        *(
            "--cuda-graphs",
            "--memory-format",
            "--accumulate",
            "--deterministic",
            "--save-seconds",
            "--nproc",
        ),
        *("--nnodes", "--rdzv-endpoint", "--rdzv-id", "--max-restarts", "--sync-batchnorm"),
        *("--comm-hook", "--init-from", "--teacher"),
    }
