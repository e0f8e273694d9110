import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from profiling.report_cli import main_report
from training.cli import main_sweep
from training.sweep_cli import build_parser
from zoo.checkpoint import Checkpoint

TESTS = Path(__file__).parent
KILLS = 3
TINY = "tiny_network:tiny"
GRID = f"""
dataset = "cifar100-mini"
seeds = [0]
max_macs = 1e8

[[job]]
model = "{TINY}"
recipe = "smoke"
set = {{ peak_lr = [0.05, 0.1] }}
"""


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main_sweep(argv)
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return code, err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("comparisn",), "no list named 'comparisn': did you mean comparison?"),
        (("list.tml",), "no list named 'list.tml'"),
        (("no.toml",), "there is no file no.toml: name comparison, second-study, ablation"),
        (("ablation",), "zoo-sweep ablation STUDY: choose of eca_kernel, eca_position, "),
        (("ablation", "eca_kernl"), "no study named 'eca_kernl': did you mean eca_kernel?"),
        (
            ("comparison", "eca_kernel"),
            "only ablation takes a STUDY: leave out eca_kernel after comparison",
        ),
        (("comparison", "--recipe", "studdy"), "no recipe named 'studdy': did you mean study?"),
        (("comparison", "--to", "onxx"), "no target named 'onxx': did you mean onnx?"),
        (("comparison", "--backend", "trt"), "no backend named 'trt': choose one of compile, "),
        (("comparison", "--dataset", "cifar101"), "no data set named 'cifar101': did you mean"),
        (("ablation", "hyaresnet", "--data-dir", "no/such"), "no/such"),
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

    code, err = failure(capsys, *argv)

    assert code == 2
    assert err.startswith("zoo-sweep: ")
    assert line in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--shard", "3/2"), "expected I/N, from 1/N to N/N, like 2/8; got '3/2'"),
        (("--shard", "0/2"), "expected I/N, from 1/N to N/N, like 2/8; got '0/2'"),
        (("--shard", "x"), "expected I/N, from 1/N to N/N, like 2/8; got 'x'"),
        (("--seeds", "0,x"), "expected a whole number from 0 to 9223372036854775807, got 'x'"),
        (("--max-macs", "0"), "expected a number above 0, got '0'"),
        (("--max-hours", "inf"), "expected a number above 0, got 'inf'"),
        (("--epochs", "0"), "expected a whole number of 1 or more, got '0'"),
    ],
)
def test_usage_errors_exit_with_2(
    argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main_sweep(["comparison", *argv])

    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.count("\n") == 1
    assert message in err


def test_the_options() -> None:
    options = {word for action in build_parser()._actions for word in action.option_strings}

    assert options == {
        *("-h", "--help", "--version", "--seeds", "--epochs", "--dataset", "--recipe"),
        *("--max-macs", "--max-hours", "--shard", "--dry-run", "--retry-failed", "--out"),
        *("--device", "--compile", "--data-dir", "--to", "--backend", "--batch", "--budget"),
    }


def test_a_dry_run_shows_the_shard_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--dataset", "cifar100-mini", "--max-macs", "6e11", "--out", str(tmp_path / "out"))

    code = main_sweep(
        ["ablation", "eca_kernel,ghost_ratio", "--shard", "2/4", "--dry-run", *options]
    )

    lines = capsys.readouterr().out.splitlines()
    models = [line.rpartition("  ")[2].partition(",")[0] for line in lines[1:-1]]
    assert code == 0
    assert models == [  # every fourth of 9 jobs with 3 seeds, from the second on
        *("ecanet20_adaptive", "ecanet20_fixed_k9", "resnet_20", "ecanet20_fixed_k7"),
        *("ghost_resnet_20_r4", "ecanet20_fixed_k5", "ghost_resnet_20_r3"),
    ]
    assert lines[-1].startswith("7 of 7 jobs to do; 7 without a past record on this machine (")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    code, err = failure(
        capsys,
        *("ablation", "hyaresnet", "--dataset", "cifar100-mini", "--max-macs", "1e9"),
        *("--out", str(tmp_path / "file" / "out")),
    )

    assert code == 1
    assert err == f"zoo-sweep: {tmp_path / 'file' / 'out' / 'plans'}: Not a directory\n"


def test_when_the_time_is_over_nothing_begins(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--dataset", "cifar100-mini", "--max-macs", "1e9", "--max-hours", "1e-9")

    code = main_sweep(["ablation", "step_decay", "--out", str(tmp_path), *options])

    said = capsys.readouterr()
    assert code == 1
    assert said.err == "0 of 6 jobs done, 0 failed, 6 left; the same command goes on\n"
    assert said.out == f"{tmp_path}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["plans"]


# ---- real trainings --------------------------------------------------------------------------


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    code = "import sys; from training.cli import main_sweep; sys.exit(main_sweep())"
    options = ("--batch", "1", "--budget", "0.3", "--backend", "eager,onnx", *more)
    path = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        (sys.executable, "-c", code, str(folder / "grid.toml"), "--out", str(folder), *options),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow  # two minutes of 2 cores
def test_real_jobs_of_two_shards_survive_kills_and_are_done_once(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    chance = random.Random(0)
    for _ in range(KILLS):
        shards = [start(tmp_path, "--shard", f"{number}/2") for number in (1, 2)]
        time.sleep(chance.uniform(2, 14))
        for process in shards:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    last = [start(tmp_path, "--shard", f"{number}/2") for number in (1, 2)]
    for process in last:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert out == f"{tmp_path}\n"
        assert err.splitlines()[-1] == "1 of 1 jobs done, 0 failed, 0 left"

    jobs = [json.loads(path.read_text()) for path in sorted((tmp_path / "jobs").glob("*.json"))]
    assert len(jobs) == 2
    for value in jobs:
        (run,) = (tmp_path / "runs" / value["id"]).glob("*/meta.json")  # one, resumed or not
        meta = Checkpoint.open(run.parent).meta
        assert [step["name"] for step in value["steps"]] == [
            *("train", "export onnx", "bench"),
        ]
        assert (value["state"], value["failures"]) == ("done", [])
        assert value["run"] == f"runs/{value['id']}/{run.parent.name}"
        assert value["test_top1"] == meta.test_top1
        assert (value["work"]["is_bounded"], value["work"]["max_macs"]) == (True, 1e8)
        assert meta.recipe["epoch_steps"] == value["work"]["epoch_steps"]
        assert meta.epochs_done * meta.recipe["epoch_steps"] == value["work"]["steps"] >= 20
        (artifact,) = run.parent.glob("artifacts/*.json")
        assert json.loads(artifact.read_text())["accuracy"]["images"] == 1000
        assert len(list(run.parent.glob("records/*/*.json"))) == 2
    again = start(tmp_path)
    assert again.communicate(timeout=120)[1] == "2 of 2 jobs done, 0 failed, 0 left\n"
    (tmp_path / "grid.toml").write_text(GRID.replace("0.1]", "0.1, 0.2]"))
    lines = start(tmp_path, "--dry-run").communicate(timeout=120)[0].splitlines()
    assert ["  done  " in line for line in lines[1:4]] == [True, True, False]
    assert lines[4].startswith("1 of 3 jobs to do")  # trainings that were killed predict nothing
    _has_a_report(tmp_path, jobs)


def _has_a_report(folder: Path, jobs: list[dict[str, Any]]) -> None:
    assert main_report([str(folder), "--out", str(folder / "report")]) == 0

    (path,) = (folder / "report" / "study").glob("list-grid-1-cifar100-mini-*.json")
    rows = json.loads(path.read_text())["rows"]
    shown = {row["arm"]: row for row in rows}
    for value in jobs:
        row = shown[f"{TINY} peak_lr={value['job']['settings']['peak_lr']}"]
        assert row["top1"]["value"] == value["test_top1"]
        assert row["training_gmacs"] == pytest.approx(value["work"]["training_macs"] / 1e9)
        assert row["b1_best_p50_ms"]["value"] > 0


@pytest.mark.slow  # half a minute: six trainings that fail
def test_real_jobs_that_fail_are_listed_and_tried_again_when_asked(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID.replace("[0.05, 0.1]", "1e30"))

    process = start(tmp_path)
    err = process.communicate(timeout=300)[1].splitlines()
    (path,) = (tmp_path / "jobs").glob("*.json")
    failures = json.loads(path.read_text())["failures"]
    once_more = start(tmp_path)
    listed = once_more.communicate(timeout=60)[1].splitlines()
    retried = start(tmp_path, "--retry-failed")
    attempts = retried.communicate(timeout=300)[1].splitlines()

    codes = [one.returncode for one in (process, once_more, retried)]
    summary = "0 of 1 jobs done, 1 failed, 0 left; see logs/ and pass --retry-failed"
    reason = failures[-1]["reason"]
    assert codes == [1, 1, 1]
    assert [failure["step"] for failure in failures] == ["train"] * 3
    assert reason.startswith("zoo-train: the loss became ")
    assert err[-2:] == listed == [f"{path.stem} failed: {reason}", summary]
    attempt = f"{path.stem}: attempt {{}} of 3 failed in train: {reason}"
    assert [line for line in attempts if ": attempt " in line] == [
        attempt.format(number) for number in (1, 2, 3)
    ]
