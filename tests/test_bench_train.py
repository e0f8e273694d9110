"""The training benchmark: what it counts, how it compares, and that everyone really trains."""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from benchmarks.train_bench import contenders, records, table
from benchmarks.train_bench.contenders import CONTENDERS, Loop, Task, chosen
from benchmarks.train_bench.process import Stoppable
from benchmarks.train_bench.records import Lane, Run, Writer
from benchmarks.train_bench.roofline import Traffic, traffic_of, traffic_of_network
from benchmarks.train_bench.rounds import steps_of_round
from few_images import few_images
from torch import nn

from profiling.process import WorkerError
from zoo.data import load_dataset
from zoo.environment import capture
from zoo.errors import RecordError, ZooError
from zoo.models import create_model

SCRIPT = Path(__file__).parent / "benchmarks" / "bench_train.py"
FOLDER = Path(__file__).parents[1] / "bench_results" / "training"
TASK = Task(model="resnet_20", dataset="cifar100-mini", batch=16, device="cpu", data_workers=1)


# What an image must move ------------------------------------------------------------------------


def test_traffic_of_resnet_20_by_hand() -> None:
    stages = 7 * 16 * 32**2 + 6 * 32 * 16**2 + 6 * 64 * 8**2  # what each 3x3 convolution returns
    shortcuts = 32 * 16**2 + 64 * 8**2

    found = traffic_of("resnet_20", 100)

    # Convolution, norm and ReLU of each; convolution and norm of a shortcut; the logits.
    assert found.activations == 3 * stages + 2 * shortcuts + 100
    assert found.params == 278_324
    assert found.bytes_per_image(128) == pytest.approx(
        6 * found.activations + 5 * 3072 + 24 * 278_324 / 128
    )


def test_views_and_what_is_changed_in_place_move_nothing() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Identity(), nn.Flatten(), nn.Linear(4096, 7)
    )

    assert traffic_of_network(network).activations == 4 * 32 * 32 + 7


# How it is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("round_s", "step_s", "burst", "steps"),
    [
        pytest.param(6.0, 0.5, 1, 12, id="fills the round"),
        pytest.param(6.0, 0.45, 1, 14, id="rounded up"),
        pytest.param(1.0, 3.0, 1, 2, id="never less than two"),
        pytest.param(2.0, 0.1, 16, 32, id="whole bursts of the loader"),
        pytest.param(2.0, 0.5, 16, 4, id="no room for a burst"),
    ],
)
def test_steps_of_a_round(round_s: float, step_s: float, burst: int, steps: int) -> None:
    assert steps_of_round(round_s, step_s, burst) == steps


def test_a_device_has_its_contenders() -> None:
    on_cpu = {contender.name for contender in chosen(None, "cpu")}
    on_gpu = {contender.name for contender in chosen(None, "cuda")}

    everywhere = {
        f"{who}-{how}" for who in ("ours", "torchvision", "timm") for how in ("eager", "compile")
    }
    assert on_cpu - everywhere == {"ours-compile-fp32", "timm-compile-bf16"}
    assert on_gpu - everywhere == {"ours-eager-nograph", "ours-compile-nograph"}
    assert everywhere == on_cpu & on_gpu


def test_a_contender_that_nobody_knows() -> None:
    with pytest.raises(ZooError) as caught:
        chosen(("tim-eager",), "cpu")

    message = str(caught.value)
    assert message.startswith("no contender named 'tim-eager': did you mean timm-eager or ")


def build(name: str) -> Loop:
    module = import_module(f"benchmarks.train_bench.{CONTENDERS[name].loop}")
    loop: Loop = module.build(CONTENDERS[name], TASK)
    return loop


@pytest.mark.parametrize("name", ["ours-eager", "torchvision-eager", "timm-eager"])
def test_each_loop_trains_the_same_network_from_the_same_weights(name: str) -> None:
    torch.manual_seed(contenders.SEED)
    expected = create_model("resnet_20").state_dict()

    loop = build(name)
    network: nn.Module = loop.trainer.plain if name == "ours-eager" else loop.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    steps = iter(loop)
    losses = [float(next(steps)) for _ in range(3)]

    assert all(torch.equal(value, expected[key]) for key, value in before.items())
    assert all(torch.tensor(losses).isfinite())
    after = network.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before if "weight" in key)
    assert (loop.data_s > 0) == loop.uses_data_workers
    assert loop.augment(2) == (not loop.uses_data_workers)


def test_our_loop_goes_on_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    two_steps = few_images(load_dataset("cifar100-mini"), train=2 * TASK.batch)
    monkeypatch.setattr("benchmarks.train_bench.ours.load_dataset", lambda name: two_steps)
    loop = build("ours-eager")
    trainer = loop.trainer

    steps = iter(loop)
    places = []
    for _ in range(4):
        next(steps)
        places.append((trainer.stepper.epoch, trainer.stepper.step))
        loop.augment(1)

    assert places == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_peers_compute_on_a_cpu_in_what_their_users_get() -> None:
    from benchmarks.train_bench.peer_data import precision_of

    assert precision_of(CONTENDERS["torchvision-eager"], TASK) == "fp32"
    assert precision_of(CONTENDERS["timm-compile-bf16"], TASK) == "bf16"


def test_torchvision_augments_as_its_reference_does() -> None:
    loop = build("torchvision-eager")

    steps = loop.loader.dataset.transform.transforms

    assert [type(step).__name__ for step in steps] == [
        *("RandomCrop", "RandomHorizontalFlip", "TrivialAugmentWide", "PILToTensor"),
        *("ToDtype", "Normalize", "RandomErasing", "ToPureTensor"),
    ]
    images, _ = next(iter(loop.loader))
    assert images.shape == (16, 3, 32, 32)
    assert images.dtype == torch.float32


def test_timm_applies_one_operation_of_even_strength() -> None:
    loop = build("timm-eager")

    crop, flip, policy, _ = loop.loader.dataset.transform.transforms

    assert (crop.size, crop.padding, flip.p) == ((32, 32), 4, 0.5)
    assert policy.num_layers == 1
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in policy.ops} == {
        (1.0, 10, float("inf"))
    }
    assert loop.loader.random_erasing.probability == 0.5


# Processes that take turns ----------------------------------------------------------------------


def state_of(process: int) -> str | None:
    """One letter of ps, None where the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def wait_for(process: int, states: tuple[str | None, ...]) -> None:
    limit = time.monotonic() + 20
    while state_of(process) not in states:
        assert time.monotonic() < limit, f"{process} is {state_of(process)}, not {states}"
        time.sleep(0.01)


def test_a_worker_holds_still_between_its_turns() -> None:
    with Stoppable(threads=1) as worker:
        process = worker._process.pid

        worker.stop()
        wait_for(process, ("T",))
        worker.go_on()

        with pytest.raises(WorkerError, match="has no attribute 'tea'"):
            worker.ask("tea", limit_s=60)
        worker.stop()

    assert state_of(process) is None


DRIVER = """\
import time
from benchmarks.train_bench.process import Stoppable
from profiling.process import WorkerError

worker = Stoppable(threads=1)
try:
    worker.ask("tea", limit_s=60)
except WorkerError:
    pass
worker.stop()
print(worker._process.pid, flush=True)
time.sleep(60)
"""


def test_a_stopped_worker_ends_with_its_parent() -> None:
    path = os.pathsep.join((str(Path(__file__).parent), *filter(None, sys.path)))
    command = (sys.executable, "-c", DRIVER)
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        process = int(driver.stdout.readline())
        wait_for(process, ("T",))

        driver.kill()

        wait_for(process, (None, "Z"))


# Records and tables -----------------------------------------------------------------------------


def start(**changes: object) -> dict[str, object]:
    facts = {
        "started_at": "2026-11-26T12:00:00+00:00",
        "model": "resnet_20",
        "dataset": "cifar100",
        "batch": 100,
        "device": "cpu",
        "data_workers": 2,
        "threads": None,
        "seconds": 6.0,
        "rounds": 3,
        "seed": 0,
        "cold_compiler": True,
        "contenders": ["timm-eager", "ours-compile", "torchvision-eager"],
        "commit": "abc",
        "environment": capture().to_json(),
        "versions": {"torch": "2.14.1"},
        "activations": 500_000,
        "params": 1_000_000,
    }
    return facts | changes


def prepared(loss: float = 4.8) -> dict[str, object]:
    return {"precision": "fp32", "once_s": 12.34, "loss": loss}


def one_round(number: int, seconds: float, augment_s: float | None = None) -> dict[str, object]:
    facts = {"round": number, "steps": 10, "seconds": seconds, "data_s": 0.2, "cpu_s": 3.0}
    return facts | {"augment_s": augment_s}


def end(**changes: object) -> dict[str, object]:
    facts = {"loss": 4.2, "device_mib": None, "host_mib": 1234.5, "data_workers_mib": 0.0}
    return facts | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three rounds: ours twice, three times and four times as fast as timm; torchvision broke."""
    writer = Writer(tmp_path, "now resnet_20")
    writer.append(records.START, **start())
    writer.append(records.COPY, round=1, bytes_per_s=[8e9, 10e9, 12e9])
    for name in ("ours-compile", "timm-eager"):
        writer.append(records.PREPARED, contender=name, **prepared())
    writer.append(records.FAILED, contender="torchvision-eager", reason="it is not installed")
    for number, (mine, other) in enumerate(((1.0, 2.0), (2.0, 6.0), (1.0, 4.0)), start=1):
        writer.append(
            records.ROUND, contender="ours-compile", **one_round(number, mine, augment_s=0.05)
        )
        writer.append(records.ROUND, contender="timm-eager", **one_round(number, other))
    writer.append(records.END, contender="ours-compile", **end())
    writer.append(records.END, contender="timm-eager", **end(data_workers_mib=300.2))
    return tmp_path


def test_ratios_are_taken_within_a_round(folder: Path) -> None:
    (run,) = records.read(folder / records.RECORDS)

    assert table.ratios(run.lanes["ours-compile"], run.lanes["timm-eager"], 100) == [2.0, 3.0, 4.0]


def test_a_round_that_one_of_them_has_not_is_left_out(folder: Path) -> None:
    (run,) = records.read(folder / records.RECORDS)
    del run.lanes["timm-eager"].rounds[2]

    assert table.ratios(run.lanes["ours-compile"], run.lanes["timm-eager"], 100) == [2.0, 4.0]


def test_the_table_of_a_run(folder: Path) -> None:
    (run,) = records.read(folder / records.RECORDS)

    header, *rows = table.cells(run)

    # 3 * 2 * 500,000 + 5 * 3,072 + 24 * 1,000,000 / 100 bytes an image; copies of 10 GB/s.
    assert header == [
        *("contender", "format", "images/s", "times", "step ms", "data ms", "compute ms"),
        *("CPU ms", "once s", "device MiB", "host MiB", "data MiB", "roof", "loss"),
    ]
    assert rows == [
        [
            *("ours-compile", "fp32", "1,000 (500 to 1,000)", "", "100", "5.00 (5.0%)", "95.0"),
            *("300", "12.3", "", "1,234", "0", "32.6%", "4.80 to 4.20"),
        ],
        [
            *(
                "timm-eager",
                "fp32",
                "250 (167 to 500)",
                "3.00 (2.00 to 4.00)",
                "400",
                "20.0 (5.0%)",
            ),
            *("380", "300", "12.3", "", "1,234", "300", "8.1%", "4.80 to 4.20"),
        ],
        ["torchvision-eager", "", "failed", *[""] * 11],
    ]
    assert table.section(run).endswith("\ntorchvision-eager: it is not installed\n")


def test_a_contender_whose_loss_rose_has_no_speed(folder: Path) -> None:
    reason = "wrong answer: the loss went from 4.800 to nan"
    Writer(folder, "now resnet_20").append(records.FAILED, contender="timm-eager", reason=reason)

    (run,) = records.read(folder / records.RECORDS)

    assert ["timm-eager", "", "failed", *[""] * 11] in table.cells(run)


def test_an_interval_covers_the_median_of_the_rounds() -> None:
    found = table.estimate([1.0, 2.0, 3.0, 4.0, 100.0])

    assert found.median == 3.0
    assert 1.0 <= found.low < 3.0 < found.high <= 100.0
    assert table.estimate([2.0] * 5) == (2.0, 2.0, 2.0)
    assert table.estimate([1.0, 2.0, 3.0, 4.0, 100.0]) == found  # the same on every reading


def test_an_end_at_any_moment_keeps_what_was_done(folder: Path) -> None:
    path = folder / records.RECORDS
    whole = path.read_bytes()

    for length in range(whole.index(b"\n") + 1, len(whole), 37):
        path.write_bytes(whole[:length])
        (run,) = records.read(path)
        rounds = whole[:length].count(b'"kind": "round"')
        kept = sum(len(lane.rounds) for lane in run.lanes.values())
        assert kept in (rounds - 1, rounds)
        assert table.readme([run])


def test_a_line_that_is_no_record(folder: Path) -> None:
    path = folder / records.RECORDS
    path.write_text(path.read_text() + "{}\n")

    with pytest.raises(RecordError) as caught:
        records.read(path)

    assert str(caught.value) == f"{path} holds a line that is no record: 'run'"


def test_the_readme_shows_the_newest_run_of_each(folder: Path) -> None:
    old, new = "old resnet_20", "new resnet_20"
    for name, params in ((old, 1), (new, 2)):
        writer = Writer(folder, name)
        writer.append(records.START, **start(params=params, commit=name))
        writer.append(records.PREPARED, contender="timm-eager", **prepared())
        writer.append(records.ROUND, contender="timm-eager", **one_round(1, 1.0))
    Writer(folder, "empty").append(records.START, **start(commit="empty"))

    text = table.readme(records.read(folder / records.RECORDS))

    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## resnet_20, batch 100, cpu"
    ]
    assert f"commit {new}." in text


def test_what_a_lane_is_compared_with() -> None:
    run = Run(start(), lanes={name: Lane(name) for name in ("timm-eager", "ours-eager")})
    assert table.measure_of(run) is None

    run.lanes["ours-eager"].rounds[1] = one_round(1, 1.0)

    assert table.measure_of(run) is run.lanes["ours-eager"]
    assert table.traffic(run) == Traffic(activations=500_000, params=1_000_000)


@pytest.mark.skipif(
    not (FOLDER / records.RECORDS).exists(),
    reason="needs bench_results/training/records.jsonl: make bench-train",
)
def test_the_committed_table_is_that_of_the_records() -> None:
    runs = records.read(FOLDER / records.RECORDS)

    assert (FOLDER / table.README).read_text() == table.readme(runs)


# The whole --------------------------------------------------------------------------------------


def bench(*options: str, before: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(before) if before else "", *sys.path)))
    return subprocess.run(
        (sys.executable, str(SCRIPT), *options),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": ""},  # the script's folder counts
        check=False,
    )


@pytest.mark.slow
def test_a_peer_that_is_missing_does_not_stop_the_rest(tmp_path: Path) -> None:
    out, packages = tmp_path / "out", tmp_path / "packages"
    packages.mkdir()
    (packages / "timm.py").write_text("raise ImportError('no timm here')\n")

    done = bench(
        *("--contenders", "ours-eager,torchvision-eager,timm-eager", "--dataset", "cifar100-mini"),
        *("--batch", "64", "--seconds", "1", "--rounds", "2", "--threads", "1", "--device", "cpu"),
        *("--out", str(out)),
        before=packages,
    )

    assert done.returncode == 1, done.stderr
    (run,) = records.read(out / records.RECORDS)
    assert run.lanes["timm-eager"].reason == "ImportError: no timm here"
    for name in ("ours-eager", "torchvision-eager"):
        lane = run.lanes[name]
        assert lane.reason is None, lane.reason
        assert sorted(lane.rounds) == [1, 2]
        assert lane.end is not None
    assert len(run.copies) == 10
    assert (out / table.README).read_text() == table.readme([run])
    assert done.stdout.rstrip("\n") == table.section(run).rstrip("\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            ("--models", "resnet_21", "--device", "cpu"),
            "bench_train: no model named 'resnet_21': did you mean resnet_",
            id="model",
        ),
        pytest.param(
            ("--seconds", "0"),
            "bench_train: argument --seconds: expected a number of seconds above 0, got '0' "
            "(see bench_train --help)",
            id="seconds",
        ),
    ],
)
def test_a_mistake_is_one_line(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = bench(*options, "--dataset", "cifar100-mini", "--out", str(tmp_path / "out"))

    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_raw_records_are_lines_of_json(folder: Path) -> None:
    lines = (folder / records.RECORDS).read_text().splitlines()

    assert all(json.loads(line)["run"] == "now resnet_20" for line in lines)
