"""Several processes: one command, restarts from the last save, one line for an error."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from few_images import picture_folder
from small_runs import FOLDER, TINY, lines
from torch.distributed.elastic.multiprocessing import SignalException

from training.elastic import Launch, launch
from training.processes import has_idle_parameters
from training.state import read_state
from zoo.checkpoint import Checkpoint
from zoo.data import load_dataset
from zoo.errors import CheckpointError, MachineError, ZooError
from zoo.own import load_function
from zoo.preprocess import Preprocessing

TESTS = Path(__file__).parent
SPARE, TRAP = "tiny_network:spare", "tiny_network:trap"
DEADLINE = 500.0  # seconds
UNSAFE = (
    "after a restart by torchrun the processes may not find each other: "
    "let zoo-train --nproc or --nnodes start them"
)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What trains a tiny network in two processes."""
    pictures = picture_folder(
        load_dataset("cifar100-mini"), tmp_path_factory.mktemp("pictures"), each=13
    )
    return [
        *(sys.executable, "-m", "training.cli", "--model", TINY, "--dataset", pictures),
        *("--device", "cpu", "--recipe", "smoke", "--batch-size", "4", "--nproc", "2"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accumulate"), [(TINY, "2"), (SPARE, "1"), (SPARE, "2")])
def test_parameters_that_are_not_used_are_no_trouble(
    name: str, accumulate: str, command: list[str], tmp_path: Path
) -> None:
    trained = [name if word == TINY else word for word in command]
    options = ("--epochs", "1", "--batch-size", "8", "--accumulate", accumulate)

    code, _, err = end(begin(trained, "--runs", str(tmp_path), *options))

    assert code == 0, err
    assert not any("find_unused" in line for line in err)  # torch warns where all are used


@pytest.mark.parametrize("name", [TINY, SPARE])
def test_idle_parameters(name: str) -> None:
    network = load_function(name)(num_classes=5)

    assert has_idle_parameters(network, 32) == (name == SPARE)
    assert all(parameter.grad is None for parameter in network.parameters())


def begin(command: list[str], *more: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [*command, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr."""
    try:
        out, err = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    return process.returncode, out, err.splitlines()


def wait_until_listening(place: str, process: "subprocess.Popen[str]") -> None:
    """Wait until somebody answers at HOST:PORT."""
    host, _, port = place.rpartition(":")
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


def wait_for_step(run: Path, place: list[int], process: "subprocess.Popen[str]") -> None:
    """Wait until a save of `run` lies at or behind this epoch and step."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if read_state(run / "state" / "last.pt").trainer["place"].tolist() >= place:
                return
        except (OSError, CheckpointError):
            pass
        time.sleep(0.05)


@dataclass(frozen=True, order=True)
class Worker:
    """A process that the launcher started."""

    rank: int
    pid: int
    restarts: int
    store: int  # the port where they find each other
    world: int  # how many there are on all nodes


def workers(process: "subprocess.Popen[str]") -> list[Worker]:
    """The processes that the launcher started and that have not ended, in their order."""
    found = []
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        entries = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        known = dict(entry.partition("=")[::2] for entry in entries)
        if "RANK" in known:  # else it is not yet one of ours, or not any more
            rank, restarts, port, world = (
                int(known[key])
                for key in ("RANK", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT", "WORLD_SIZE")
            )
            found.append(Worker(rank, int(child), restarts, port, world))
    return sorted(found)


def wait_for_restart(process: "subprocess.Popen[str]") -> list[Worker]:
    """The processes that took the place of those that the launcher started first."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):  # one ended while we looked
            if len(found := [each for each in workers(process) if each.restarts]) == 2:
                return found
        time.sleep(0.05)
    return []


def wait_for_world(size: int, process: "subprocess.Popen[str]") -> None:
    """Wait until the launcher has started its process as one of so many."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):  # one ended while we looked
            if [each.world for each in workers(process)] == [size]:
                return
        time.sleep(0.05)


def epoch_of(run: Path) -> int:
    """That of the last save."""
    return int(read_state(run / "state" / "last.pt").trainer["place"][0])


@pytest.mark.slow
def test_a_killed_process_leads_to_a_restart_from_the_last_save(
    command: list[str], tmp_path: Path
) -> None:
    options = ("--epochs", "40", "--save-seconds", "0.2", "--runs")
    code, out, err = end(begin(command, *options, str(tmp_path / "whole")))
    assert code == 0, err
    assert out == f"{tmp_path / 'whole' / FOLDER}\n"
    killed = begin(command, *options, str(tmp_path / "killed"))
    wait_for_step(tmp_path / "killed" / FOLDER, [2, 0], killed)

    before = workers(killed)
    os.kill(before[1].pid, signal.SIGKILL)
    after = wait_for_restart(killed)
    code, out, err = end(killed)

    assert code == 0, err
    # A store that was there before them tells them where the killed ones listened.
    assert {each.store for each in after}.isdisjoint(each.store for each in before)
    assert [each.restarts for each in after] == [1, 1]
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [FOLDER]
    again = [line for line in err if line.startswith("continuing ")]
    assert len(again) == 1
    told = "a process of this run ended: all begin again from its last save (restart 1)"
    assert err.count(told) == 1
    assert re.search(r"in epoch \d+, after \d+ of its \d steps", again[0])
    whole, resumed = (Checkpoint.open(tmp_path / name / FOLDER) for name in ("whole", "killed"))
    assert lines(resumed) == lines(whole)
    assert resumed.meta.weights_sha256 == whole.meta.weights_sha256
    assert resumed.meta.test_top1 == whole.meta.test_top1
    assert (resumed.meta.processes, resumed.meta.finished_at is None) == (2, False)


@pytest.mark.slow
def test_the_first_step_that_failed_in_any_process_is_told(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process meets the NaN one step later, in the weights that both share."""
    data = load_dataset(options[2])
    means = Preprocessing.of(data).to_batch(data.train.images).mean((1, 2, 3)).sort().values
    monkeypatch.setenv("TRAP", str((means[-1] + means[-2]).item() / 2))
    trapped = ["--model", TRAP, *options[1:-1], "--set", "crop_padding=0", "--runs"]
    told = []

    for processes in ((), ("--nproc", "2")):
        runs = tmp_path / str(len(told))
        started_ = [sys.executable, "-m", "training.cli", *trapped, str(runs), *processes]
        code, _, err = end(begin(started_))
        assert code == 1, err
        told.append(re.findall(r"infinite or NaN in (epoch 1, step \d+), ", err[-1]))

    assert len(told[0]) == 1
    assert told[1] == told[0]


LAUNCHES = ("--nproc", "torchrun", "two nodes")


def slow(how: str) -> object:
    return pytest.param(how, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of one epoch without batch norms and dropout, with an odd number of test images."""
    pictures = picture_folder(
        load_dataset("cifar100-mini"), tmp_path_factory.mktemp("pictures"), each=34
    )
    return [
        *("vit_tiny", "--dataset", pictures, "--full-train", "--device", "cpu"),
        *("--recipe", "smoke", "--batch-size", "4", "--epochs", "1", "--runs"),
    ]


@pytest.fixture(scope="module")
def one(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """What one process makes of them."""
    runs = tmp_path_factory.mktemp("one")
    code, _, err = end(begin([sys.executable, "-m", "training.cli", *options, str(runs)]))
    assert code == 0, err
    return Checkpoint.open(runs / "vit_tiny-s0")


def started(how: str, options: list[str]) -> "list[subprocess.Popen[str]]":
    """Two processes, started in one of the ways of `LAUNCHES`."""
    module, torchrun = ["-m", "training.cli"], ["-m", "torch.distributed.run"]
    if how == "--nproc":
        return [begin([sys.executable, *module, *options, "--nproc", "2"])]
    if how == "torchrun":
        wanted = ("--nproc-per-node", "2", "--max-restarts", "1")
        return [begin([sys.executable, *torchrun, *wanted, *module, *options])]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"
    nodes = ("--nnodes", "2", "--nproc", "1", "--rdzv-endpoint", meeting)
    return [begin([sys.executable, *module, *options, *nodes]) for _ in range(2)]


@pytest.mark.parametrize("how", [LAUNCHES[0], *(slow(how) for how in LAUNCHES[1:])])
def test_two_processes_take_the_steps_of_one(
    how: str,
    one: Checkpoint,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, temporary = tmp_path / "runs", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))

    ended = [end(process) for process in started(how, [*options, str(runs)])]

    assert [code for code, _, _ in ended] == [0] * len(ended), ended
    assert ended[0][2].count(UNSAFE) == (how == "torchrun")
    left = [path.name for path in temporary.iterdir()]
    cache = "torchinductor_"  # torch's own, which an earlier test may have put elsewhere
    assert how == "torchrun" or all(name.startswith(cache) for name in left), left
    assert [path.name for path in runs.iterdir()] == ["vit_tiny-s0"]
    two = Checkpoint.open(runs / "vit_tiny-s0")
    assert (one.meta.processes, two.meta.processes) == (1, 2)
    assert read_state(one.path / "state" / "last.pt").trainer["place"].tolist() == [1, 20]
    weights = two.state_dict()
    for key, tensor in one.state_dict().items():
        assert (tensor - weights[key]).abs().max() < 1e-6, key
    assert two.meta.dataset.test_images == 21
    assert two.meta.test_top1 == one.meta.test_top1
    for share in (two.meta.test_top1, two.meta.test_top5):
        assert share * 21 == pytest.approx(round(share * 21), abs=1e-9)  # each image once


@pytest.mark.slow
def test_three_processes_share_a_batch_that_does_not_divide(
    options: list[str], tmp_path: Path
) -> None:
    runs = {}
    for number in ("1", "3"):
        folder = tmp_path / number
        more = ("--batch-size", "7", "--nproc", number)
        code, _, err = end(
            begin([sys.executable, "-m", "training.cli", *options, str(folder)], *more)
        )
        assert code == 0, err
        runs[number] = Checkpoint.open(folder / "vit_tiny-s0")

    assert runs["3"].meta.processes == 3
    weights = runs["3"].state_dict()
    for key, tensor in runs["1"].state_dict().items():
        assert (tensor - weights[key]).abs().max() < 1e-6, key
    (one,), (three,) = map(lines, runs.values())
    for figure in ("train_loss", "train_top1"):
        assert three[figure] == pytest.approx(one[figure], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.slow
def test_batch_norms_of_two_gpus_see_the_images_of_both(options: list[str], tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs: torch finds {torch.cuda.device_count()}")
    command = [*(sys.executable, "-m", "training.cli", "resnet_20"), *options[1:]]
    command[command.index("cpu")] = "cuda"
    ways = {"one": (), "apart": ("--nproc", "2"), "both": ("--nproc", "2", "--sync-batchnorm")}
    means = {}

    for name, more in ways.items():
        ended = end(begin(command, str(tmp_path / name), "--set", "epoch_steps=1", *more))
        assert ended[0] == 0, ended
        tensors = Checkpoint.open(tmp_path / name / "resnet_20-s0").state_dict()
        means[name] = next(t for key, t in tensors.items() if key.endswith("running_mean"))

    gaps = [(means[name] - means["one"]).abs().max() for name in ("both", "apart")]
    assert gaps[0] < 0.1 * gaps[1]


@pytest.mark.slow
def test_a_run_that_several_processes_go_on_with_says_so(
    command: list[str], tmp_path: Path
) -> None:
    run, alone = tmp_path / FOLDER, command[: command.index("--nproc")]
    began = begin(alone, "--epochs", "60", "--runs", str(tmp_path), "--save-seconds", "0.2")
    wait_for_step(run, [2, 0], began)
    began.send_signal(signal.SIGTERM)
    assert end(began)[0] == 143
    assert Checkpoint.open(run).meta.processes == 1

    code, _, err = end(begin(command, "--epochs", "60", "--resume", str(run)))

    assert code == 0, err
    assert any(line.startswith("it has run with processes 1 and goes on with 2: ") for line in err)
    assert Checkpoint.open(run).meta.processes == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_saves_in_all_processes(
    number: signal.Signals, command: list[str], tmp_path: Path
) -> None:
    deaf = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]  # as behind & in a script
    process = begin(deaf, "--epochs", "5000", "--runs", str(tmp_path), "--save-seconds", "0.2")
    wait_for_step(tmp_path / FOLDER, [1, 0], process)
    if sys.platform == "linux":
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(status.split("SigIgn:")[1].split()[0], 16)
        assert ignored & 1 << signal.SIGINT - 1
    process.send_signal(signal.SIGINT)
    wait_for_step(tmp_path / FOLDER, [3, 0], process)
    assert process.poll() is None

    process.send_signal(number)
    code, _, err = end(process)

    assert code == 143, err
    assert err[-1] == "zoo-train: terminated"
    assert not any("Traceback" in line or "elastic" in line for line in err)
    assert Checkpoint.open(tmp_path / FOLDER).meta.epochs_done >= 1


@pytest.mark.slow
def test_a_reader_that_leaves_ends_all_processes(command: list[str], tmp_path: Path) -> None:
    """The first process alone writes: its error, between two epochs, is no reason to hang."""
    options = ("--epochs", "5000", "--runs", str(tmp_path), "--max-restarts", "0")
    with begin(command, *options) as process:
        assert process.stderr is not None
        assert any("predicted" in line for line in process.stderr)

        process.stderr.close()

        assert process.wait(timeout=DEADLINE) != 0
    assert Checkpoint.open(tmp_path / FOLDER).meta.epochs_done >= 1


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's end"
)
def test_processes_end_with_a_launcher_that_is_killed(command: list[str], tmp_path: Path) -> None:
    process = begin(command, "--epochs", "5000", "--runs", str(tmp_path), "--save-seconds", "0.2")
    wait_for_step(tmp_path / FOLDER, [2, 0], process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = [Path("/proc", number) for number in children.read_text().split()]

    process.kill()
    end(process)

    deadline = time.monotonic() + DEADLINE
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) >= 2
    assert not any(worker.exists() for worker in workers)
    assert Checkpoint.open(tmp_path / FOLDER).meta.epochs_done >= 1


@pytest.mark.slow
def test_an_error_of_the_processes_is_one_line(command: list[str], tmp_path: Path) -> None:
    code, out, err = end(begin(command, "--batch-size", "3", "--runs", str(tmp_path)))

    assert (code, out) == (2, "")
    assert len(err) == 1
    assert err[-1] == (
        "zoo-train: batch size 3 leaves less than 2 images for each of 2 processes: "
        "pass --batch-size 4 or more"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"nodes": (4, 2)}, "--nnodes 4:2: expected LEAST:MOST, such as 2:4"),
        (
            {"nodes": (2, 4)},
            "--nnodes 2:4 needs a place where the nodes meet: "
            "pass --rdzv-endpoint HOST:PORT, the same on each",
        ),
        *(
            (
                {"endpoint": place},
                f"--rdzv-endpoint {place}: expected HOST:PORT, such as node1:29400",
            )
            for place in ("node1", ":29400", "node1:port", "node1:99999")
        ),
    ],
)
def test_a_launch_that_cannot_work_is_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(ZooError) as caught:
        Launch(nproc=1, **wanted)

    assert str(caught.value) == message


def free_place() -> str:
    """Where nobody listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


@pytest.mark.slow
def test_nodes_that_do_not_meet_are_one_line(command: list[str], tmp_path: Path) -> None:
    with socket.socket() as taken:  # nobody answers there
        taken.bind(("localhost", 0))
        place = f"localhost:{taken.getsockname()[1]}"
        meeting = ("--nnodes", "2", "--rdzv-endpoint", place)

        code, out, err = end(begin(command, *meeting, "--runs", str(tmp_path)))

    assert (code, out) == (1, "")
    assert err[-1].startswith(f"zoo-train: the nodes do not meet at {place} (")
    assert not any("Traceback" in line for line in err)


@pytest.mark.slow
def test_a_node_that_stops_is_named_to_the_others(command: list[str], tmp_path: Path) -> None:
    place = free_place()
    meeting = ("--nproc", "1", "--nnodes", "2", "--rdzv-endpoint", place)
    options = ("--epochs", "5000", "--save-seconds", "0.2", "--runs", str(tmp_path))
    first = begin(command, *meeting, *options)
    wait_until_listening(place, first)
    second = begin(command, *meeting, *options)
    wait_for_step(tmp_path / FOLDER, [2, 0], first)

    first.send_signal(signal.SIGTERM)
    code, _, err = end(first)
    other, _, told = end(second)

    assert (code, err[-1]) == (143, "zoo-train: terminated")
    assert other == 1
    assert told[-1] == (
        f"zoo-train: the node at {place}, where all meet, is gone: "
        "continue with the same command and --resume auto on each"
    )
    assert not any("Traceback" in line or "frame #" in line for line in (*err, *told))


@pytest.mark.slow
def test_a_node_may_join_and_leave(command: list[str], tmp_path: Path) -> None:
    place = free_place()
    meeting = ("--nproc", "1", "--nnodes", "1:2", "--rdzv-endpoint", place)
    options = ("--epochs", "5000", "--save-seconds", "0.2", "--runs", str(tmp_path))
    first = begin(command, *meeting, *options)
    run = tmp_path / FOLDER
    wait_for_step(run, [2, 0], first)
    assert [each.world for each in workers(first)] == [1]

    second = begin(command, *meeting, *options)
    wait_for_world(2, first)
    joined = epoch_of(run)
    wait_for_step(run, [joined + 2, 0], first)
    second.send_signal(signal.SIGTERM)
    code, _, err = end(second)
    wait_for_world(1, first)
    left = epoch_of(run)
    wait_for_step(run, [left + 2, 0], first)
    first.send_signal(signal.SIGTERM)
    last, _, told = end(first)

    assert (code, err[-1]) == (143, "zoo-train: terminated")
    assert (last, told[-1]) == (143, "zoo-train: terminated")
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
    again = [line for line in told if line.startswith("continuing ")]
    assert len(again) == 2, told
    epochs = [line["epoch"] for line in lines(Checkpoint.open(run))]
    assert epochs == [*range(1, len(epochs) + 1)]
    assert not any("Traceback" in line for line in (*err, *told))


def test_processes_share_the_cores_that_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def fake_launch(config: object, entrypoint: str) -> Callable[..., None]:
        return lambda *arguments: threads.append(os.environ["OMP_NUM_THREADS"])

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", fake_launch)
    monkeypatch.setattr("training.elastic.usable_cores", lambda: 6)
    for _ in range(2):
        monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the user's own stays
        launch([], Launch(nproc=2))
        monkeypatch.delenv("OMP_NUM_THREADS")
        launch([], Launch(nproc=2))

    assert threads == ["4", "3", "4", "3"]


def test_a_hang_up_is_told_where_sigterm_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_launch(config: object, entrypoint: str) -> Callable[..., None]:
        def hung_up(*arguments: str) -> None:
            raise SignalException("hung up", sigval=signal.SIGHUP)

        return hung_up

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", fake_launch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(MachineError) as caught:
            launch([], Launch(nproc=2))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert str(caught.value) == "stopped by SIGHUP: continue with --resume auto"


def test_a_job_has_a_name_by_which_its_run_is_found_again() -> None:
    meeting = {"nproc": 2, "nodes": (2, 4), "endpoint": "host:29400"}

    assert Launch(nproc=2).job != Launch(nproc=2).job
    assert Launch(**meeting).job == "host:29400"
    assert Launch(**meeting, id="mine").job == "mine"
