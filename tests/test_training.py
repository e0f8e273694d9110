import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from training import Recipe, Runtime, named_recipe, train
from training.loop import Progress, Trainer
from training.precision import resolve_precision
from zoo.checkpoint import Checkpoint, RunMeta, newest_run, save_run
from zoo.data import Dataset, Split, load_dataset
from zoo.errors import CheckpointError, MachineError, ZooError
from zoo.evaluate import evaluate
from zoo.models import create_model
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession

CPU = Runtime(device="cpu")
SHORT = replace(named_recipe("smoke"), batch_size=50)


def part(split: Split, per_class: int) -> Split:
    rows = np.concatenate([np.flatnonzero(split.fine == k)[:per_class] for k in range(100)])
    coarse = None if split.coarse is None else split.coarse[rows]
    return Split(images=split.images[rows], fine=split.fine[rows], coarse=coarse)


@pytest.fixture(scope="module")
def few() -> Dataset:
    """400 training and 100 test images of the shipped subset."""
    data = load_dataset("cifar100-mini")
    return replace(data, train=part(data.train, 4), test=part(data.test, 1), digest="few")


def trainer(recipe: Recipe, data: Dataset, *, seed: int = 0, **runtime: bool) -> Trainer:
    torch.manual_seed(seed)
    model = create_model("resnet_20", num_classes=data.num_classes)
    on_cpu = Runtime(device="cpu", **runtime)
    return Trainer(model, recipe, on_cpu, data, Accelerator(cpu=True), seed=seed)


def metrics(run: Checkpoint) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


class Interrupt:
    """Ctrl-C at the end of an epoch, or before the first step."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, progress: Progress) -> None:
        if progress.epoch == self.epoch and (progress.metrics or not self.epoch):
            raise KeyboardInterrupt


def test_a_run_folder_is_complete(few: Dataset, tmp_path: Path) -> None:
    reports: list[Progress] = []

    done = train("resnet_20", SHORT, CPU, few, runs=tmp_path, on_progress=reports.append)

    assert done.path == tmp_path / "resnet_20-s0"
    names = {file.relative_to(done.path).as_posix() for file in done.path.rglob("*")}
    assert names == {
        *("recipe.json", "meta.json", "metrics.jsonl", "weights.safetensors", "curves.png"),
        *("state", "state/last.pt"),
    }
    assert (done.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert reports[0].epoch == 0
    assert reports[0].seconds_left > 0
    assert [r.metrics.epoch for r in reports if r.metrics] == [1, 2]
    meta = Checkpoint.open(done.path).meta
    assert meta == done.meta
    assert (meta.model, meta.seed, meta.epochs_done, meta.selection) == (
        "resnet_20",
        0,
        2,
        "validation",
    )
    assert (meta.dataset.train_images, meta.dataset.val_images, meta.dataset.test_images) == (
        300,
        100,
        100,
    )
    assert Recipe.from_json(json.loads((done.path / "recipe.json").read_text())) == SHORT
    assert newest_run(tmp_path) == done.path


def test_the_stored_accuracy_is_that_of_the_stored_weights(few: Dataset, tmp_path: Path) -> None:
    done = train("resnet_20", SHORT, CPU, few, runs=tmp_path)

    session = EagerSession(done.model())
    found = evaluate(session, few.test.images, few.test.fine, Preprocessing.of(few))

    assert (found.top1, found.top5) == (done.meta.test_top1, done.meta.test_top5)
    best = max(metrics(done), key=lambda line: line["val_top1"])
    assert (done.meta.epoch, done.meta.val_top1) == (best["epoch"], best["val_top1"])


def test_a_second_run_never_overwrites_the_first(few: Dataset, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)

    paths = [train("resnet_20", recipe, CPU, few, runs=tmp_path).path.name for _ in range(2)]

    assert paths == ["resnet_20-s0", "resnet_20-s0-2"]


def test_one_seed_gives_one_result_and_another_another(few: Dataset, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)

    digests = [
        train("resnet_20", recipe, CPU, few, seed=seed, runs=tmp_path).meta.weights_sha256
        for seed in (0, 0, 1)
    ]

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_the_callers_random_numbers_are_left_alone(few: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)

    train("resnet_20", replace(SHORT, epochs=1), CPU, few, runs=tmp_path)

    assert torch.equal(torch.rand(1), expected)


def test_a_resumed_run_equals_an_uninterrupted_one(few: Dataset, tmp_path: Path) -> None:
    recipe = replace(SHORT, ema_decay=0.9)
    model = "improved_resnet20_convnext"  # its drop path draws random numbers in the forward pass
    whole = train(model, recipe, CPU, few, runs=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(model, recipe, CPU, few, runs=tmp_path / "cut", on_progress=Interrupt(1))
    cut = tmp_path / "cut" / f"{model}-s0"
    left = Checkpoint.open(cut)

    resumed = train(model, recipe, CPU, few, resume=cut)

    assert (left.meta.epochs_done, left.meta.finished_at) == (1, None)
    assert resumed.path == cut
    for key, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], tensor), key
    assert resumed.meta.test_top1 == whole.meta.test_top1
    lines = [metrics(run) for run in (whole, resumed)]
    assert [x["train_loss"] for x in lines[0]] == [x["train_loss"] for x in lines[1]]


def test_after_ctrl_c_the_last_complete_epoch_is_usable(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path, on_progress=Interrupt(1))

    left = Checkpoint.open(tmp_path / "resnet_20-s0")
    assert left.model()(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    assert (left.path / "curves.png").exists()
    with pytest.raises(CheckpointError, match=r"no complete run in .*: train one with zoo-train"):
        newest_run(tmp_path)


def test_ctrl_c_before_the_first_epoch_leaves_no_run(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path, on_progress=Interrupt(0))

    assert list(tmp_path.iterdir()) == []


def test_a_resume_must_match(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path, on_progress=Interrupt(1))
    path = tmp_path / "resnet_20-s0"
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    other = replace(few, digest="other")

    with pytest.raises(CheckpointError, match=r"another recipe \(peak_lr was 0.05, is 0.1\)"):
        train("resnet_20", replace(SHORT, peak_lr=0.1), CPU, few, resume=path)
    with pytest.raises(CheckpointError, match=r"another recipe \(precision was fp32, is bf16\)"):
        train("resnet_20", replace(SHORT, precision="bf16"), CPU, few, resume=path)
    with pytest.raises(CheckpointError, match="began with seed 0, got 1"):
        train("resnet_20", SHORT, CPU, few, seed=1, resume=path)
    with pytest.raises(CheckpointError, match="began with model resnet_20, got resnet_32"):
        train("resnet_32", SHORT, CPU, few, resume=path)
    with pytest.raises(CheckpointError, match="began with data set digest few, got other"):
        train("resnet_20", SHORT, CPU, other, resume=path)
    with pytest.raises(CheckpointError, match="it holds no recipe.json"):
        train("resnet_20", SHORT, CPU, few, resume=tmp_path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_complete_run_is_not_resumed(few: Dataset, tmp_path: Path) -> None:
    done = train("resnet_20", replace(SHORT, epochs=1), CPU, few, runs=tmp_path)

    with pytest.raises(CheckpointError, match=r"is complete \(1 epochs"):
        train("resnet_20", replace(SHORT, epochs=1), CPU, few, resume=done.path)

    assert Checkpoint.open(done.path).model()


def test_a_damaged_state_is_refused(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path, on_progress=Interrupt(1))
    path = tmp_path / "resnet_20-s0"
    state = path / "state" / "last.pt"
    state.write_bytes(state.read_bytes()[:1000])

    with pytest.raises(CheckpointError, match=r"last.pt is damaged \(.*\): train again"):
        train("resnet_20", SHORT, CPU, few, resume=path)


def test_the_test_images_choose_nothing(few: Dataset, tmp_path: Path) -> None:
    rolled = replace(few.test, fine=np.roll(few.test.fine, 1))

    digests = [
        train("resnet_20", SHORT, CPU, data, runs=tmp_path).meta.weights_sha256
        for data in (few, replace(few, test=rolled))
    ]

    assert digests[0] == digests[1]


def test_full_train_uses_all_images_and_the_last_epoch(few: Dataset, tmp_path: Path) -> None:
    done = train("resnet_20", replace(SHORT, full_train=True), CPU, few, runs=tmp_path)

    assert (done.meta.selection, done.meta.epoch, done.meta.val_top1) == ("last", 2, None)
    assert (done.meta.dataset.train_images, done.meta.dataset.val_images) == (400, 0)


def test_the_average_is_what_is_stored(few: Dataset) -> None:
    run = trainer(replace(SHORT, ema_decay=0.5), few)

    list(run.run_steps(1))

    assert run.average is not None
    assert run.selected is run.average.module
    assert not torch.equal(run.selected.head.weight, run.plain.head.weight)


def test_predicting_the_time_changes_nothing(few: Dataset) -> None:
    run, other = trainer(SHORT, few), trainer(SHORT, few)

    seconds = run.predicted_seconds(2)

    assert seconds > 0
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(other), strict=True))
    losses = [[loss.item() for loss, _ in t.run_steps(1)] for t in (run, other)]
    assert losses[0] == losses[1]


def flat(run: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.plain.parameters()])


def weights(run: Trainer) -> list[torch.Tensor]:
    return list(run.plain.state_dict().values())


def test_the_first_ten_losses_are_the_stored_ones() -> None:
    run = trainer(named_recipe("smoke"), load_dataset("cifar100-mini"))

    losses = [loss.item() for loss, _ in itertools.islice(run.run_steps(1), 10)]

    stored = [4.7743, 4.7292, 4.7722, 4.6803, 4.7052, 4.7400, 4.6768, 4.6573, 4.6346, 4.5772]
    assert losses[0] == pytest.approx(stored[0], abs=1e-3)  # weights, order and augmentation
    assert losses[1] == pytest.approx(stored[1], abs=3e-3)  # the optimiser's step
    assert losses == pytest.approx(stored, abs=0.05)  # rounding grows from step to step


def test_fifty_steps_overfit_64_images() -> None:
    data = load_dataset("cifar100-mini")
    rows = slice(0, 64)
    images = replace(data.train, images=data.train.images[rows], fine=data.train.fine[rows])
    recipe = Recipe(
        name="overfit",
        epochs=50,
        batch_size=64,
        peak_lr=0.1,
        weight_decay=0.0,
        crop_padding=0,
        flip_p=0.0,
        trivial_augment=False,
        erase_p=0.0,
        full_train=True,
        precision="fp32",
    )
    run = trainer(recipe, replace(data, train=images))

    outcome = [(loss.item(), hits.item()) for e in range(1, 51) for loss, hits in run.run_steps(e)]

    assert len(outcome) == 50
    assert outcome[-1][0] < 0.2
    assert outcome[-1][1] > 0.95


def test_a_loss_that_is_not_finite_stops_the_run(few: Dataset, tmp_path: Path) -> None:
    recipe = replace(SHORT, peak_lr=1e30, crop_padding=0)

    with pytest.raises(MachineError, match=r"the loss became (nan|inf) in epoch 1.*--set peak_lr="):
        train("resnet_20", recipe, CPU, few, runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_batch_must_fit_the_data(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"exceeds the 300 training images of .*--batch-size"):
        train("resnet_20", replace(SHORT, batch_size=301), CPU, few, runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fake_capability", "precision"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((9, 0), "bf16")]
)
def test_precision_of_gpus(
    fake_capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: fake_capability)

    assert resolve_precision("auto", torch.device("cuda")) == precision


@pytest.mark.parametrize(
    ("fake_flags", "precision"), [(("avx2",), "fp32"), (("avx512_bf16",), "bf16")]
)
def test_precision_of_cpus(
    fake_flags: tuple[str, ...], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.precision.cpu_flags", lambda: fake_flags)

    assert resolve_precision("auto", torch.device("cpu")) == precision


def test_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZooError, match="precision fp16 needs a GPU"):
        resolve_precision("fp16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(ZooError, match=r"bf16 needs compute capability 8.0.*precision=fp16"):
        resolve_precision("bf16", torch.device("cuda"))


def test_bf16_on_a_cpu_trains(few: Dataset, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1, precision="bf16")

    done = train("resnet_20", recipe, CPU, few, runs=tmp_path)

    assert done.meta.recipe["precision"] == "bf16"
    assert all(t.dtype != torch.bfloat16 for t in done.state_dict().values())


def test_a_gpu_is_never_replaced_silently(few: Dataset, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without an NVIDIA GPU")

    with pytest.raises(MachineError, match="cuda"):
        train("resnet_20", SHORT, Runtime(device="cuda"), few, runs=tmp_path)


def test_compiled_training_agrees_with_eager(few: Dataset) -> None:
    compiled, eager, start = (
        trainer(SHORT, few, compile=True),
        trainer(SHORT, few),
        trainer(SHORT, few),
    )

    losses = [next(run.run_steps(1))[0].item() for run in (compiled, eager)]

    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    # Rectifiers near zero turn rounding into 1% of the gradient in either; float64 says the same.
    updates = [flat(run) - flat(start) for run in (compiled, eager)]
    assert (updates[0] - updates[1]).norm() < 0.05 * updates[1].norm()


@pytest.mark.parametrize(
    ("name", "fake", "message"),
    [
        ("compiler", lambda: None, r"needs a C\+\+ compiler and none was found: install g\+\+"),
        ("has_python_headers", lambda: False, "needs Python.h and it was not found: install your"),
    ],
)
def test_without_a_compiler_the_message_says_so(
    name: str,
    fake: object,
    message: str,
    few: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"zoo.session.{name}", fake)

    with pytest.raises(MachineError, match=message):
        train("resnet_20", SHORT, Runtime(device="cpu", compile=True), few, runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_is_one_line(few: Dataset, tmp_path: Path) -> None:
    from torch._inductor import config

    torch._dynamo.reset()
    broken_compiler = config.patch({"cpp.cxx": ("/bin/false",), "force_disable_caches": True})
    with broken_compiler, pytest.raises(MachineError, match="torch.compile failed .*--compile"):
        train("resnet_20", SHORT, Runtime(device="cpu", compile=True), few, runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_no_memory_is_one_line(
    error: Exception, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_full_memory(*_: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "predicted_seconds", fake_full_memory)

    with pytest.raises(MachineError, match="memory for batches of 50 images: .*--batch-size"):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path)


def test_a_run_stopped_after_its_last_epoch_is_finished(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path, on_progress=Interrupt(2))
    path = tmp_path / "resnet_20-s0"
    assert Checkpoint.open(path).meta.finished_at is None

    done = train("resnet_20", SHORT, CPU, few, resume=path)

    assert done.meta.finished_at is not None
    assert done.meta.test_top1 is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_while_an_epoch_is_stored_waits(
    number: signal.Signals,
    epoch: int,
    few: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import training.run
    from zoo.command import run

    def save(path: Path, meta: RunMeta, tensors: object) -> Checkpoint:
        if meta.epochs_done == epoch:
            os.kill(os.getpid(), number)
        return save_run(path, meta, tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(training.run, "save_run", save)

    code = run("zoo-train", lambda: train("resnet_20", SHORT, CPU, few, runs=tmp_path) and None)

    left = Checkpoint.open(tmp_path / "resnet_20-s0")
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert left.meta.epochs_done == epoch
    assert left.model()
    assert len(metrics(left)) == epoch


def test_a_stop_between_the_state_and_the_weights_loses_nothing(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.run

    whole = train("resnet_20", SHORT, CPU, few, runs=tmp_path / "whole")

    def save(path: Path, meta: RunMeta, tensors: object) -> Checkpoint:
        if meta.epochs_done == 2:
            raise OSError("full disk")
        return save_run(path, meta, tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(training.run, "save_run", save)
    with pytest.raises(OSError, match="full disk"):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path / "cut")
    monkeypatch.undo()
    cut = tmp_path / "cut" / "resnet_20-s0"
    assert Checkpoint.open(cut).meta.epochs_done == 1

    resumed = train("resnet_20", SHORT, CPU, few, resume=cut)

    assert resumed.meta.weights_sha256 == whole.meta.weights_sha256
    assert (resumed.meta.epoch, resumed.meta.val_top1) == (whole.meta.epoch, whole.meta.val_top1)
    assert len(metrics(resumed)) == 2


@pytest.mark.parametrize("damage", ["text", "foreign", "other shapes", "no epochs"])
def test_a_foreign_state_is_refused_and_left(damage: str, few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path, on_progress=Interrupt(1))
    path = tmp_path / "resnet_20-s0"
    file = path / "state" / "last.pt"
    state = torch.load(file, weights_only=True)
    if damage == "text":
        file.write_text("hello")
    elif damage == "foreign":
        torch.save({"x": 1}, file)
    elif damage == "no epochs":
        torch.save(state | {"metrics": []}, file)
    else:
        state["trainer"]["model"]["head.bias"] = torch.zeros(3)
        torch.save(state, file)

    with pytest.raises(CheckpointError, match=r"last.pt is damaged \(.*\): train again"):
        train("resnet_20", SHORT, CPU, few, resume=path)

    assert Checkpoint.open(path).model()


def test_a_first_write_that_fails_leaves_no_folder(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_full_disk(*_: object) -> None:
        raise OSError("full disk")

    monkeypatch.setattr("training.run.write_json", fake_full_disk)

    with pytest.raises(OSError, match="full disk"):
        train("resnet_20", SHORT, CPU, few, runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_the_number_of_processes_does_not_change_the_data(few: Dataset) -> None:
    whole, first, second = (trainer(SHORT, few) for _ in range(3))
    first.world = second.world = 2
    second.rank = 1

    batches = zip(*(run._batches(1) for run in (whole, first, second)), strict=True)

    for (images, labels), *halves in batches:
        assert torch.equal(torch.cat([half[0] for half in halves]), images)
        assert torch.equal(torch.cat([half[1] for half in halves]), labels)


def test_two_processes_train_one_run(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "training.cli", "resnet_20", "--dataset", "cifar100-mini", "--recipe", "smoke"),
        *("--epochs", "1", "--device", "cpu", "--runs", str(tmp_path)),
    ]

    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == f"{tmp_path / 'resnet_20-s0'}\n"
    meta = Checkpoint.open(tmp_path / "resnet_20-s0").meta
    assert (meta.processes, meta.dataset.test_images) == (2, 1000)
    assert meta.test_top1 is not None
    assert round(meta.test_top1 * 1000, 6).is_integer()


def test_processes_must_share_a_batch_evenly(few: Dataset) -> None:
    run = trainer(SHORT, few)
    run.world = 3

    with pytest.raises(ZooError, match="batch size 50 does not divide .* each of 3 processes"):
        run._require_batches()
