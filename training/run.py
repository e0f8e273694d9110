"""A training run from start to finish, and its folder."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from training.curves import draw_curves
from training.loop import EpochMetrics, OnProgress, Progress, Trainer
from training.precision import resolve_precision
from training.recipe import Recipe, Runtime
from training.start import Start, Wanted, again, begin
from training.state import load_state, require_same_recipe, save_state
from zoo.checkpoint import CURVES, META, METRICS, RECIPE, Checkpoint, DatasetInfo, RunMeta, save_run
from zoo.data import Dataset
from zoo.doctor import require_kernels
from zoo.environment import capture, git_commit
from zoo.errors import CheckpointError, MachineError, first_line
from zoo.files import write_atomic, write_json
from zoo.session import tf32
from zoo.signals import held_signals

COMPILER = ("torch._dynamo", "torch._inductor")  # modules of its errors; importing them takes long
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def train(
    model: str,
    recipe: Recipe,
    runtime: Runtime,
    data: Dataset,
    *,
    seed: int = 0,
    runs: Path | str = "runs",
    resume: Path | str | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
    pretrained_file: Path | str | None = None,
    on_progress: OnProgress | None = None,
) -> Checkpoint:
    """Train a model and return its run folder, complete with the accuracy on the test images.

    The test images are used once, after the last epoch; without `recipe.full_train` the weights
    kept are those of the epoch with the best accuracy on the held-out training images. An
    interruption keeps the folder as the last complete epoch left it, for `resume`; before the end
    of the first epoch it leaves none.

    `model` is a name that `create_model` takes. Images are brought to `image_size` after their
    augmentation; without it they stay as they are stored. With `pretrained` the network starts
    from the weights of the package, those of timm:NAME from the Hub; `pretrained_file` names a
    safetensors file in their place. What a run began with is stored: to resume it, none of these
    is needed again.

    Raises:
        ZooError: model, recipe, data and weights do not fit each other, or the device cannot do
            what the recipe asks for.
        CheckpointError: `resume` is no run, is complete, or began with another model, seed,
            recipe, image size or data set.
        MachineError: the loss became infinite or NaN, or weights cannot be fetched.
        OSError: the folder cannot be written.
    """
    report = on_progress or (lambda progress: None)
    wanted = Wanted(
        image_size=image_size,
        pretrained=pretrained,
        file=None if pretrained_file is None else Path(pretrained_file),
    )
    with _accelerator(runtime) as accelerator, _one_line_errors(recipe):
        recipe = replace(recipe, precision=resolve_precision(recipe.precision, accelerator.device))
        torch.manual_seed(seed)
        if resume is None:
            start = begin(model, data, wanted)
        else:
            require_same_recipe(Path(resume), recipe)
            start = again(Checkpoint.open(resume).meta, model, data, wanted)
        trainer = Trainer(
            start.network,
            recipe,
            runtime,
            data,
            accelerator,
            seed=seed,
            preprocessing=start.preprocessing,
        )
        meta = _first_meta(model, trainer, start)
        if resume is None:
            folder = _Folder.create(Path(runs), meta, trainer)
        else:
            folder = _Folder.reopen(Path(resume), meta, trainer)
        try:
            return _run(folder, trainer, report)
        finally:
            folder.close()


def _run(folder: "_Folder", trainer: Trainer, report: OnProgress) -> Checkpoint:
    epochs, steps = trainer.recipe.epochs, trainer.steps
    remaining = epochs - folder.done
    if not remaining:  # stopped between the last epoch and the test images
        return folder.finish()
    predicted = trainer.predicted_seconds(remaining)
    speed = remaining * steps * trainer.recipe.batch_size / predicted
    start = Progress(
        epoch=0, epochs=epochs, step=0, steps=steps, seconds_left=predicted, images_per_s=speed
    )
    report(start)
    spent = predicted / remaining  # an epoch; the last one tells better than the probe
    for epoch in range(folder.done + 1, epochs + 1):
        metrics = trainer.epoch(epoch, report, spent)
        folder.keep(metrics)
        spent = metrics.train_seconds + metrics.evaluation_seconds
        report(
            Progress(
                epoch=epoch,
                epochs=epochs,
                step=steps,
                steps=steps,
                seconds_left=spent * (epochs - epoch),
                images_per_s=metrics.images_per_s,
                loss=metrics.train_loss,
                metrics=metrics,
            )
        )
    return folder.finish()


@contextmanager
def _one_line_errors(recipe: Recipe) -> Iterator[None]:
    """Name what helps where memory ran out or the compiler failed."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
            raise MachineError(
                f"not enough memory for batches of {recipe.batch_size} images: "
                "pass a smaller --batch-size"
            ) from error
        if type(error).__module__.startswith(COMPILER):
            raise MachineError(
                f"torch.compile failed ({first_line(error)}): "
                "go on without --compile, or see zoo-doctor"
            ) from error
        raise


@contextmanager
def _accelerator(runtime: Runtime) -> Iterator[Accelerator]:
    """The processes of this run, under its own random numbers; both are put back at the end."""
    cpu = runtime.device == "cpu" or (runtime.device == "auto" and not torch.cuda.is_available())
    if not cpu:
        require_kernels("cuda")
    devices = [] if cpu else list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=cpu, mixed_precision="no")
        try:
            with nullcontext() if cpu else tf32(allowed=True):
                yield accelerator
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


@dataclass
class _Folder:
    """The folder of a run under way; only the first process writes."""

    path: Path
    trainer: Trainer
    meta: RunMeta
    lines: list[EpochMetrics]

    @classmethod
    def create(cls, runs: Path, meta: RunMeta, trainer: Trainer) -> "_Folder":
        path = [_claim(runs, folder_name(meta.model, meta.seed)) if trainer.rank == 0 else None]
        if trainer.world > 1:
            broadcast_object_list(path)
        assert path[0] is not None
        folder = cls(path[0], trainer, meta, [])
        if trainer.rank == 0:
            try:
                write_json(folder.path / RECIPE, trainer.recipe.to_json())
            except BaseException:
                folder.close()
                raise
        return folder

    @classmethod
    def reopen(cls, path: Path, given: RunMeta, trainer: Trainer) -> "_Folder":
        meta = Checkpoint.open(path).meta
        _require_same(path, meta, given)
        lines = load_state(path, trainer)
        folder = cls(path, trainer, meta, lines)
        if meta.epochs_done != len(lines):  # stopped between the state and what follows from it
            folder._store(lines)
        return folder

    @property
    def done(self) -> int:
        """Complete epochs."""
        return len(self.lines)

    def keep(self, line: EpochMetrics) -> None:
        """Store an epoch: first the state, from which a resume makes the rest again."""
        lines = [*self.lines, line]
        with held_signals():
            if self.trainer.rank == 0:
                save_state(self.path, self.trainer, lines)
            self._store(lines)

    def _store(self, lines: list[EpochMetrics]) -> None:
        """Weights, where the last epoch is the selected one, facts and metrics."""
        chosen = max(lines, key=_rank)
        meta = replace(
            self.meta,
            epoch=chosen.epoch,
            val_top1=chosen.val_top1,
            epochs_done=len(lines),
            train_seconds=sum(e.train_seconds + e.evaluation_seconds for e in lines),
        )
        if self.trainer.rank == 0:
            weights = self.trainer.selected.state_dict() if chosen is lines[-1] else None
            meta = save_run(self.path, meta, weights).meta
            text = "".join(json.dumps(asdict(e)) + "\n" for e in lines)
            write_atomic(self.path / METRICS, text)
        self.meta, self.lines = meta, lines

    def finish(self) -> Checkpoint:
        """Measure the selected weights on the test images, once, and complete the folder."""
        trainer = self.trainer
        trainer.accelerator.wait_for_everyone()
        stored = Checkpoint.open(self.path)  # by the first process, which alone writes
        trainer.selected.load_state_dict(stored.state_dict())
        found = trainer.evaluate(trainer.data.test)
        self.meta = replace(
            self.meta,
            weights_sha256=stored.meta.weights_sha256,
            test_top1=found.top1,
            test_top5=found.top5,
            finished_at=_now(),
        )
        if trainer.rank == 0:
            with held_signals():
                save_run(self.path, self.meta)
        trainer.accelerator.wait_for_everyone()
        return Checkpoint(self.path, self.meta)

    def close(self) -> None:
        """Leave the curves of what was done; a folder without a complete epoch goes."""
        if self.trainer.rank != 0:
            return
        if not self.lines:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            draw_curves([asdict(line) for line in self.lines], self.path / CURVES)


def _rank(line: EpochMetrics) -> tuple[float, int]:
    """Order of choice: the best on held-out images, of equals the first; else the last."""
    return (0.0, line.epoch) if line.val_top1 is None else (line.val_top1, -line.epoch)


def folder_name(model: str, seed: int) -> str:
    """The name of a run's folder: of a model's name, what is safe in a path everywhere."""
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', model)}-s{seed}"


def _claim(runs: Path, name: str) -> Path:
    """Make a folder that nobody had before: NAME, NAME-2, NAME-3..."""
    runs.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = runs / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _first_meta(model: str, trainer: Trainer, start: Start) -> RunMeta:
    recipe, data = trainer.recipe, trainer.data
    held_out = 0 if trainer.held_out is None else len(trainer.held_out.fine)
    return RunMeta(
        model=model,
        seed=trainer.seed,
        recipe_name=recipe.name,
        recipe=recipe.to_json(),
        dataset=DatasetInfo.of(data, val_images=held_out),
        selection="last" if recipe.full_train else "validation",
        epoch=0,
        epochs_done=0,
        val_top1=None,
        test_top1=None,
        test_top5=None,
        train_seconds=0.0,
        compiled=trainer.runtime.compile,
        processes=trainer.world,
        weights_sha256="",
        environment=capture(str(trainer.device)).to_json(),
        commit=git_commit(),
        started_at=_now(),
        finished_at=None,
        preprocessing=start.preprocessing,
        initial_weights=start.initial_weights,
    )


def _require_same(path: Path, stored: RunMeta, given: RunMeta) -> None:
    pairs: dict[str, tuple[Any, Any]] = {
        "model": (stored.model, given.model),
        "seed": (stored.seed, given.seed),
        "data set": (stored.dataset.name, given.dataset.name),
        "data set digest": (stored.dataset.digest[:12], given.dataset.digest[:12]),
        "image size": (
            stored.input_preprocessing.image_size,
            given.input_preprocessing.image_size,
        ),
    }
    for what, (was, now) in pairs.items():
        if was != now:
            raise CheckpointError(
                f"{path} began with {what} {was}, got {now}: resume without this option, "
                "or start a new run without --resume"
            )
    if stored.finished_at is not None:
        raise CheckpointError(
            f"{path} is complete ({stored.epochs_done} epochs, see its {META}): "
            "start a new run without --resume"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
