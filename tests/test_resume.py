"""Which run a resume continues, what it refuses, and what it does with damaged states."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest
import torch
from small_runs import (
    CPU,
    EAGER_TO_SAVE,
    FOLDER,
    SHORT,
    TINY,
    Signal,
    few_of_each,
    outcome,
    trained_elsewhere,
)

from training import Recipe, Runtime, lock, train
from training.options import build_parser, make_job
from training.processes import Job
from training.resume import run_to_continue
from training.start import Wanted
from training.state import MARK, read_state, stored_recipe, write_state
from zoo.checkpoint import Checkpoint, save_run
from zoo.errors import CheckpointError

FEW = few_of_each()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A complete run."""
    return train(TINY, SHORT, CPU, FEW, runs=tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first epoch; tests work on copies."""
    runs = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, CPU, FEW, runs=runs, on_progress=Signal(1))
    return runs / FOLDER


@pytest.fixture
def cut(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the run that was stopped."""
    return Path(shutil.copytree(stopped, tmp_path / FOLDER))


def test_a_resumed_run_equals_an_uninterrupted_one(whole: Checkpoint, cut: Path) -> None:
    resumed = train(TINY, SHORT, CPU, FEW, resume=cut)

    assert resumed.path == cut
    assert outcome(resumed) == outcome(whole)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], tensor), key


def test_a_run_goes_on_on_another_kind_of_device(whole: Checkpoint, cut: Path) -> None:
    """What a GPU's generator remembers is 16 bytes, a CPU's 5,056."""
    state = read_state(cut / "state" / "last.pt")
    trainer = state.trainer | {"rng": torch.zeros(1, 16, dtype=torch.uint8)}
    write_state(cut / "state" / "last.pt", replace(state, trainer=trainer))
    meta = Checkpoint.open(cut).meta
    save_run(cut, replace(meta, environment={**meta.environment, "device": "NVIDIA V100"}))
    notes: list[str] = []

    resumed = train(TINY, SHORT, CPU, FEW, resume=cut, on_note=notes.append)

    assert outcome(resumed) == outcome(whole)  # this network draws nothing
    begin = "it has run with device NVIDIA V100 and goes on with cpu: "
    assert any(line.startswith(begin) for line in notes)


def test_the_best_weights_before_the_stop_are_kept(cut: Path) -> None:
    state = read_state(cut / "state" / "last.pt")
    unbeaten = [replace(line, val_top1=0.99) for line in state.metrics]
    write_state(cut / "state" / "last.pt", replace(state, metrics=unbeaten))
    (cut / "weights.safetensors").unlink()  # as if the save had ended before it

    resumed = train(TINY, SHORT, CPU, FEW, resume=cut)

    assert (resumed.meta.epoch, resumed.meta.val_top1) == (1, 0.99)
    assert state.selected is not None
    for key, tensor in resumed.state_dict().items():
        assert torch.equal(state.selected[key], tensor), key


def test_a_resume_must_match(cut: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    other = replace(FEW, digest="other")
    (tmp_path / "empty").mkdir()

    with pytest.raises(CheckpointError, match=r"another recipe \(peak_lr was 0.05, is 0.1\)"):
        train(TINY, replace(SHORT, peak_lr=0.1), CPU, FEW, resume=cut)
    with pytest.raises(CheckpointError, match=r"another recipe \(precision was fp32, is bf16\)"):
        train(TINY, replace(SHORT, precision="bf16"), CPU, FEW, resume=cut)
    with pytest.raises(CheckpointError, match="began with seed 0, got 1"):
        train(TINY, SHORT, CPU, FEW, seed=1, resume=cut)
    with pytest.raises(CheckpointError, match="began with model tiny_network:tiny, got resnet_20"):
        train("resnet_20", SHORT, CPU, FEW, resume=cut)
    with pytest.raises(CheckpointError, match="began with data set digest few, got other"):
        train(TINY, SHORT, CPU, other, resume=cut)
    with pytest.raises(CheckpointError, match="it holds no recipe.json"):
        train(TINY, SHORT, CPU, FEW, resume=tmp_path / "empty")
    assert {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()} == before


def test_a_complete_run_is_not_resumed(whole: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.run.Trainer", None)  # which nothing is built for

    with pytest.raises(CheckpointError, match=r"is complete \(2 epochs"):
        train(TINY, SHORT, CPU, FEW, resume=whole.path)

    assert Checkpoint.open(whole.path) == whole


@pytest.mark.parametrize("damage", ["truncated", "one bit", "text", "empty"])
def test_a_damaged_state_gives_way_to_the_one_before(
    damage: str, whole: Checkpoint, cut: Path
) -> None:
    last = cut / "state" / "last.pt"
    data = last.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    changed = {"truncated": data[:1000], "one bit": flipped, "text": b"hello", "empty": b""}
    last.write_bytes(changed[damage])
    notes: list[str] = []

    resumed = train(TINY, SHORT, CPU, FEW, resume=cut, on_note=notes.append)

    assert notes == [
        f"{last} is damaged (its digest does not fit): "
        "continuing from the one before it, previous.pt",
        f"continuing {cut} in epoch 1, after 0 of its 6 steps",
    ]
    assert outcome(resumed) == outcome(whole)


def unreadable(file: Path) -> None:
    file.unlink()
    file.symlink_to("/proc/self/mem")  # to read from its start is an input/output error


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/mem of Linux")
def test_a_state_that_cannot_be_read_gives_way_to_the_one_before(
    whole: Checkpoint, cut: Path
) -> None:
    last, previous = cut / "state" / "last.pt", cut / "state" / "previous.pt"
    fault = "cannot be read (Input/output error)"
    unreadable(last)
    notes: list[str] = []

    resumed = train(TINY, SHORT, CPU, FEW, resume=cut, on_note=notes.append)

    assert notes[0] == f"{last} {fault}: continuing from the one before it, previous.pt"
    assert outcome(resumed) == outcome(whole)
    begun(cut, "2026-01-02", finished_at=None)
    previous.touch()
    unreadable(previous)
    unreadable(last)
    with pytest.raises(CheckpointError) as caught:
        train(TINY, SHORT, CPU, FEW, resume=cut)
    assert (
        str(caught.value)
        == f"{last} {fault}, and {previous} {fault}: make it readable, or train again"
    )


def test_a_save_that_is_cut_short_after_a_damaged_one_leaves_the_whole_one(
    whole: Checkpoint, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zoo.files

    (cut / "state" / "last.pt").write_bytes(b"damaged")
    sync = zoo.files._sync

    def fake_kill(path: Path) -> None:
        if path.parent.name == "state":
            raise SystemExit(137)  # between the two renames
        sync(path)

    monkeypatch.setattr(zoo.files, "_sync", fake_kill)
    with pytest.raises(SystemExit):
        train(TINY, SHORT, EAGER_TO_SAVE, FEW, resume=cut)
    monkeypatch.undo()

    resumed = train(TINY, SHORT, CPU, FEW, resume=cut)

    assert outcome(resumed) == outcome(whole)


def test_what_changes_the_weights_beside_the_recipe_is_told(cut: Path) -> None:
    notes: list[str] = []

    train(TINY, SHORT, replace(CPU, accumulate=5), FEW, resume=cut, on_note=notes.append)

    assert notes == [
        f"continuing {cut} in epoch 2, after 0 of its 6 steps",
        "it has run with accumulate 1 and goes on with 5: its weights may not be those of a run "
        "that was never stopped",
    ]
    assert Checkpoint.open(cut).meta.runtime == CPU.shapes_result
    assert CPU.shapes_result["accumulate"] == 1


def test_a_stop_between_two_renames_is_no_damage(whole: Checkpoint, cut: Path) -> None:
    (cut / "state" / "last.pt").replace(cut / "state" / "previous.pt")
    notes: list[str] = []

    resumed = train(TINY, SHORT, CPU, FEW, resume=cut, on_note=notes.append)

    assert notes == [f"continuing {cut} in epoch 2, after 0 of its 6 steps"]
    assert outcome(resumed) == outcome(whole)


def test_a_run_whose_states_are_all_damaged_is_refused_and_left(cut: Path, tmp_path: Path) -> None:
    for file in (cut / "state").iterdir():
        file.write_text("hello")

    last, previous = cut / "state" / "last.pt", cut / "state" / "previous.pt"
    fault = "is damaged (its digest does not fit)"
    refusal = f"{last} {fault}, and {previous} {fault}: train again"
    with pytest.raises(CheckpointError) as caught:
        train(TINY, SHORT, CPU, FEW, resume=cut)

    assert str(caught.value) == refusal
    assert Checkpoint.open(cut).model(allow=TINY)
    notes: list[str] = []
    done = train(TINY, SHORT, CPU, FEW, runs=tmp_path, resume="auto", on_note=notes.append)
    assert done.path == tmp_path / f"{FOLDER}-2"
    assert notes == [f"{cut} is passed over: {refusal}"]


def test_a_run_without_a_state_is_refused(cut: Path) -> None:
    shutil.rmtree(cut / "state")

    with pytest.raises(CheckpointError, match=r"cannot be resumed: .*last.pt does not exist"):
        train(TINY, SHORT, CPU, FEW, resume=cut)


@pytest.mark.parametrize("damage", ["no trainer", "other shapes", "no weights"])
def test_a_foreign_state_is_refused_and_left(damage: str, cut: Path) -> None:
    file = cut / "state" / "last.pt"
    state = read_state(file)
    changed = {
        "no trainer": {},
        "other shapes": state.trainer | {"model.0.weight": torch.zeros(3)},
        "no weights": {k: v for k, v in state.trainer.items() if not k.startswith("model.")},
    }
    write_state(file, replace(state, trainer=changed[damage]))

    with pytest.raises(CheckpointError, match=r"state is of another network \(.*\): train again"):
        train(TINY, SHORT, CPU, FEW, resume=cut)

    assert Checkpoint.open(cut).model(allow=TINY)


def test_a_state_is_loaded_without_running_code(tmp_path: Path) -> None:
    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save({"schema": 2, "trainer": Path("x"), "metrics": [], "selected": None}, buffer)
    data = buffer.getvalue()
    file = tmp_path / "last.pt"
    file.write_bytes(data + MARK + hashlib.sha256(data).digest())

    with pytest.raises(CheckpointError, match=r"last.pt is damaged \(Weights only load failed"):
        read_state(file)


NO_JOB = Job(None, 0)


def found(
    runs: Path,
    asked: str | None = "auto",
    *,
    seed: int = 0,
    recipe: Recipe = SHORT,
    size: int | None = None,
    job: Job = NO_JOB,
    note: Callable[[str], None] = print,
    **weights: object,
) -> Path | None:
    wanted = Wanted(image_size=size, **weights)
    asked_for = {"model": TINY, "seed": seed, "recipe": recipe, "data": FEW, "wanted": wanted}
    return run_to_continue(runs, asked, **asked_for, job=job, note=note)


class Answers:
    """A function that gives these answers in turn."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)

    def __call__(self, run: Path) -> bool:
        return self.answers.pop(0)


def begun(path: Path, when: str, **changes: object) -> None:
    meta = replace(Checkpoint.open(path).meta, started_at=when, **changes)
    save_run(path, meta)


def test_auto_continues_the_newest_run_like_this(cut: Path, tmp_path: Path) -> None:
    older, damaged = tmp_path / "older", tmp_path / "damaged"
    shutil.copytree(cut, older)
    begun(older, "2026-01-01")
    shutil.copytree(cut, damaged)
    (damaged / "meta.json").write_text("{")

    assert found(tmp_path) == cut
    assert found(tmp_path, size=32) == cut
    assert found(tmp_path, str(older)) == older
    assert found(tmp_path, None) is None
    assert found(tmp_path, seed=1) is None
    assert found(tmp_path, recipe=replace(SHORT, epochs=3)) is None
    assert found(tmp_path, size=64) is None
    assert found(tmp_path / "none") is None
    begun(cut, "2026-01-02", finished_at="2026-01-03")
    assert found(tmp_path) == older


@pytest.mark.parametrize("name", ["meta.json", "recipe.json"])
def test_auto_tells_which_run_it_passes_over(name: str, cut: Path, tmp_path: Path) -> None:
    (cut / name).write_text("{")
    notes: list[str] = []

    assert found(tmp_path, note=notes.append) is None

    (line,) = notes
    assert line.startswith(f"{cut} is passed over: {cut / name} is not valid JSON (")
    assert found(tmp_path, None, job=Job("mine", 0), note=notes.append) is None
    assert notes == [line]


def test_auto_is_silent_about_runs_that_it_does_not_mean(
    cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, changes in (
        ("net", {"model": "other"}),
        ("seed", {"seed": 1}),
        ("ssl", {"pretraining": "byol"}),
    ):
        begun(Path(shutil.copytree(cut, tmp_path / folder)), "2099-01-01", **changes)
        (tmp_path / folder / "recipe.json").unlink()

    assert found(tmp_path) == cut
    assert capsys.readouterr().out == ""


def test_auto_continues_a_run_of_the_same_first_weights_only(
    whole: Checkpoint, cut: Path, tmp_path: Path
) -> None:
    begun_from = f"run sha256:{whole.meta.weights_sha256}"

    assert found(tmp_path, run=whole.path) is None
    begun(cut, "2026-01-02", initial_weights=begun_from)
    assert found(tmp_path) is None
    assert found(tmp_path, pretrained=True) is None
    assert found(tmp_path, run=whole.path) == cut
    begun(cut, "2026-01-02", initial_weights=f"sha256:{'0' * 64}")
    assert found(tmp_path, run=whole.path) is None
    assert found(tmp_path, file=whole.path / "weights.safetensors") is None
    digest = hashlib.sha256((whole.path / "weights.safetensors").read_bytes()).hexdigest()
    begun(cut, "2026-01-02", initial_weights=f"sha256:{digest}")
    assert found(tmp_path, file=whole.path / "weights.safetensors") == cut


def test_a_run_of_other_pixels_is_not_continued_by_auto(cut: Path, tmp_path: Path) -> None:
    prepared = replace(Checkpoint.open(cut).meta.input_preprocessing, image_size=48)
    begun(cut, "2026-01-02", preprocessing=prepared)

    assert found(tmp_path) is None
    assert found(tmp_path, size=48) == cut


def test_a_lock_that_was_given_back_after_it_was_opened_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a third process would make a file of its own, and lock that."""
    real, opened = lock._locked, []

    def slow(file: TextIO) -> bool:
        if not opened:
            (tmp_path / lock.LOCK).unlink()  # the other process ends
        opened.append(file)
        return real(file)

    monkeypatch.setattr(lock, "_locked", slow)
    mine = lock.Lock(tmp_path)
    mine.take()

    assert len(opened) == 2
    assert lock.is_under_way(tmp_path)
    mine.release()
    assert not lock.is_under_way(tmp_path)


def test_a_folder_without_a_step_goes_before_others_may_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    real = lock.Lock.release

    def look(self: lock.Lock) -> None:
        left.extend(tmp_path.iterdir())
        real(self)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lock.Lock, "release", look)
    monkeypatch.setattr("training.loop.Trainer.run_steps", stop)

    with pytest.raises(KeyboardInterrupt):
        train(TINY, SHORT, CPU, FEW, runs=tmp_path)

    assert left == []


def test_a_run_under_way_is_left_alone(cut: Path, tmp_path: Path) -> None:
    with trained_elsewhere(cut):
        assert found(tmp_path) is None
        with pytest.raises(CheckpointError) as refusal:
            train(TINY, SHORT, CPU, FEW, runs=tmp_path, resume=cut)
        assert str(refusal.value) == f"{cut} is under way in another process: wait for its end"

    assert found(tmp_path) == cut
    train(TINY, SHORT, CPU, FEW, runs=tmp_path, resume=cut)
    assert not (cut / ".lock").exists()


def test_auto_begins_a_run_where_another_process_was_faster(
    cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.resume.is_under_way", Answers(False, True))
    with trained_elsewhere(cut):
        done = train(TINY, SHORT, CPU, FEW, runs=tmp_path, resume="auto")

    assert done.path != cut
    assert done.meta.finished_at is not None


def test_how_it_began_is_what_a_run_goes_on_with(cut: Path) -> None:
    def resumed(*options: str) -> Runtime:
        return make_job(build_parser().parse_args(["--model", TINY, "--resume", *options])).runtime

    assert not resumed(str(cut)).compile
    runtime = {"compile": True, "compile_mode": "max-autotune-no-cudagraphs", "accumulate": 5}
    runtime |= {"channels_last": False, "deterministic": True}
    begun(cut, "2026-01-02", runtime=runtime, compiled=True)

    same, other = resumed(str(cut)), resumed(str(cut), "--no-compile", "--accumulate", "1")

    assert {name: same.shapes_result[name] for name in runtime} == runtime
    assert (other.compile, other.accumulate, other.deterministic) == (False, 1, True)
    assert resumed(str(cut), "--memory-format", "channels-last").channels_last
    begun(cut, "2026-01-02", runtime=None, compiled=True)  # of an older version
    assert resumed(str(cut)).compile
    assert not resumed("auto").compile


def test_what_it_goes_on_with_otherwise_is_told(cut: Path, tmp_path: Path) -> None:
    began = {**CPU.shapes_result, "compile": True}
    begun(cut, "2026-01-02", runtime=began, compiled=True, processes=2)
    notes: list[str] = []

    train(TINY, SHORT, CPU, FEW, runs=tmp_path, resume=cut, on_note=notes.append)

    end = "its weights may not be those of a run that was never stopped"
    assert f"it has run with compile True and goes on with False: {end}" in notes
    assert f"it has run with processes 2 and goes on with 1: {end}" in notes
    assert Checkpoint.open(cut).meta.processes == 2


def test_auto_begins_a_run_or_continues_it(
    whole: Checkpoint, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr("training.state.read_state", lambda at: read.append(at) or read_state(at))

    resumed = train(TINY, SHORT, CPU, FEW, runs=tmp_path, resume="auto")
    fresh = train(TINY, SHORT, CPU, FEW, runs=tmp_path, resume="auto")

    assert resumed.path == cut
    assert fresh.path == tmp_path / f"{FOLDER}-2"
    assert outcome(fresh) == outcome(resumed) == outcome(whole)
    assert read == [cut / "state" / "last.pt"]  # once


def test_a_restarted_job_goes_on_with_its_own_run(cut: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(cut, other)
    begun(other, "2099-01-01", job="other")
    begun(cut, "2026-01-01", job="mine")

    assert found(tmp_path, None, job=Job("mine", 0)) == cut
    assert found(tmp_path, "auto", job=Job("mine", 1)) == cut
    assert found(tmp_path, None, job=Job("new", 0)) is None
    assert found(tmp_path, "auto", job=Job("new", 0)) == other
    begun(cut, "2026-01-01", job="mine", finished_at="2026-01-02")
    assert found(tmp_path, None, job=Job("mine", 0)) is None
    assert found(tmp_path, None, job=Job("mine", 1)) == cut


def test_a_job_without_a_name_looks_for_its_run_after_a_restart_only(
    cut: Path, tmp_path: Path
) -> None:
    begun(cut, "2026-01-01", job="none")

    assert found(tmp_path, None, job=Job("none", 0)) is None
    assert found(tmp_path, None, job=Job("none", 1)) == cut


def test_a_recipe_is_read_back(cut: Path) -> None:
    assert stored_recipe(cut) == SHORT
