"""Whole runs: their folder, their accuracy, what they depend on and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CPU, FOLDER, SHORT, TINY, few_of_each, lines

from training import Recipe, Runtime, train
from training.loop import Progress
from training.precision import slow_format
from training.step import Step
from zoo.checkpoint import Checkpoint, newest_run
from zoo.data import Dataset
from zoo.errors import MachineError, ZooError
from zoo.evaluate import evaluate
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession


@pytest.fixture(scope="module")
def few() -> Dataset:
    return few_of_each()


def test_a_run_folder_is_complete(few: Dataset, tmp_path: Path) -> None:
    reports: list[Progress] = []

    done = train(TINY, SHORT, CPU, few, runs=tmp_path, on_progress=reports.append)

    assert done.path == tmp_path / FOLDER
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
        TINY,
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
    done = train(TINY, SHORT, CPU, few, runs=tmp_path)

    session = EagerSession(done.model(allow=TINY))
    found = evaluate(session, few.test.images, few.test.fine, Preprocessing.of(few))

    assert (found.top1, found.top5) == (done.meta.test_top1, done.meta.test_top5)
    best = max(lines(done), key=lambda line: line["val_top1"])
    assert (done.meta.epoch, done.meta.val_top1) == (best["epoch"], best["val_top1"])


def test_a_second_run_never_overwrites_the_first(few: Dataset, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)

    paths = [train(TINY, recipe, CPU, few, runs=tmp_path).path.name for _ in range(2)]

    assert paths == [FOLDER, f"{FOLDER}-2"]


def test_one_seed_gives_one_result_and_another_another(few: Dataset, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1)

    digests = [
        train(TINY, recipe, CPU, few, seed=seed, runs=tmp_path).meta.weights_sha256
        for seed in (0, 0, 1)
    ]

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_a_deterministic_run_has_the_same_bits_and_leaves_no_trace(
    few: Dataset, tmp_path: Path
) -> None:
    fixed = replace(CPU, deterministic=True)
    found: list[bool] = []

    def look(progress: Progress) -> None:
        found.append(torch.are_deterministic_algorithms_enabled())

    first, second = (
        train(TINY, SHORT, fixed, few, runs=tmp_path / name, on_progress=look) for name in "ab"
    )

    assert first.meta.weights_sha256 == second.meta.weights_sha256
    assert all(found)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_the_callers_random_numbers_are_left_alone(few: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)

    train(TINY, replace(SHORT, epochs=1), CPU, few, runs=tmp_path)

    assert torch.equal(torch.rand(1), expected)


def test_the_test_images_choose_nothing(few: Dataset, tmp_path: Path) -> None:
    rolled = replace(few.test, fine=np.roll(few.test.fine, 1))

    digests = [
        train(TINY, SHORT, CPU, data, runs=tmp_path).meta.weights_sha256
        for data in (few, replace(few, test=rolled))
    ]

    assert digests[0] == digests[1]


def test_full_train_uses_all_images_and_the_last_epoch(few: Dataset, tmp_path: Path) -> None:
    done = train(TINY, replace(SHORT, full_train=True), CPU, few, runs=tmp_path)

    assert (done.meta.selection, done.meta.epoch, done.meta.val_top1) == ("last", 2, None)
    assert (done.meta.dataset.train_images, done.meta.dataset.val_images) == (400, 0)


def test_a_batch_must_fit_the_data(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"exceeds the 300 training images of .*--batch-size"):
        train(TINY, replace(SHORT, batch_size=301), CPU, few, runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_the_evaluation_at_the_end_is_ahead_of_the_last_epoch(few: Dataset, tmp_path: Path) -> None:
    told: list[Progress] = []

    train(TINY, SHORT, CPU, few, runs=tmp_path, on_progress=told.append)

    left = [progress.seconds_left for progress in told if progress.metrics or not progress.epoch]
    assert 0 < left[-1] < left[0]


def test_a_step_that_cannot_be_captured_is_told(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_capture(stepper: Step) -> None:
        stepper.capture_failure = "it looks at a value"

    monkeypatch.setattr(Step, "wants_graph", True)
    monkeypatch.setattr(Step, "capture", fake_capture)
    notes: list[str] = []

    train(TINY, SHORT, CPU, few, runs=tmp_path, on_note=notes.append)

    assert notes == [
        "the step runs without a CUDA graph, for it cannot be captured: it looks at a value"
    ]


def test_bf16_on_a_cpu_trains(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.precision.cpu_flags", lambda: ("avx2",))
    recipe = replace(SHORT, epochs=1, precision="bf16")
    notes: list[str] = []

    done = train(TINY, recipe, CPU, few, runs=tmp_path, on_note=notes.append)

    assert notes == [slow_format("bf16", torch.device("cpu"))]
    assert done.meta.recipe["precision"] == "bf16"
    assert all(t.dtype != torch.bfloat16 for t in done.state_dict().values())


def test_a_gpu_is_never_replaced_silently(few: Dataset, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without an NVIDIA GPU")

    with pytest.raises(MachineError, match="cuda"):
        train(TINY, SHORT, Runtime(device="cuda"), few, runs=tmp_path)


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
        train(TINY, SHORT, Runtime(device="cpu", compile=True), few, runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_is_one_line(few: Dataset, tmp_path: Path) -> None:
    from torch._inductor import config

    torch._dynamo.reset()
    broken_compiler = config.patch({"cpp.cxx": ("/bin/false",), "force_disable_caches": True})
    helped = r"torch.compile failed .*: go on with --no-compile"
    with broken_compiler, pytest.raises(MachineError, match=helped):
        train(TINY, SHORT, Runtime(device="cpu", compile=True), few, runs=tmp_path)

    assert list(tmp_path.iterdir()) == []
