"""A training run from start to finish."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from training.break_even import Compilation, compiled_graphs
from training.elastic import restarts_are_unsafe
from training.event_log import Log, event_log
from training.folder import RunFolder, first_meta
from training.lock import UnderWay
from training.loop import NonFinite, OnProgress, Progress, Trainer
from training.memory import out_of_memory
from training.options import AUTO
from training.precision import resolve_precision, slow_format
from training.processes import Alone, Job, by_first, processes, told
from training.recipe import Recipe, Runtime
from training.replay import keep_failure, replay_step, require_same_data
from training.resume import require_same_recipe, require_unfinished, run_to_continue
from training.saver import Saver, stop_note
from training.start import Start, Wanted, again, begin
from training.state import NoState, stored_recipe
from training.teacher import Teacher, open_teacher, require_same_images, require_teacher
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset
from zoo.errors import MachineError, first_line, is_out_of_memory
from zoo.signals import stop_request

COMPILER = ("torch._dynamo", "torch._inductor")  # modules of its errors; importing them takes long

Note = Callable[[str], None]


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
    init_from: Path | str | None = None,
    teacher: Path | str | None = None,
    tensorboard: bool = False,
    on_begin: Callable[[Path], None] | None = None,
    on_progress: OnProgress | None = None,
    on_note: Note | None = None,
) -> Checkpoint:
    """Train a model and return its run folder, complete with the accuracy on the test images.

    The test images are used once, after the last epoch; without `recipe.full_train` the weights
    kept are those of the epoch with the best accuracy on the held-out training images.

    What a resume needs is stored at the start, every `runtime.save_seconds` and at the end. Ctrl-C
    and SIGTERM store it after the step under way, a second one acts at once; before the first step
    they leave no folder. A resumed run takes the same steps as one that was never stopped.

    `resume` is a run folder, or "auto" for the run of this model, seed, recipe, data set and first
    weights that was begun last, is not complete and that no other process trains; without one a new
    run begins.

    `model` is a name that `create_model` takes. Images are brought to `image_size` after their
    augmentation; without it they stay as they are stored. With `pretrained` the network starts
    from the weights of the package, those of timm:NAME from the Hub; `pretrained_file` names a
    safetensors file in their place, `init_from` a run of the same model, such as `pretrain` leaves,
    of which everything but the classifier is taken, and how its images were prepared. What a run
    began with is stored: to resume it, none of these is needed again. `teacher` is a run whose
    answers take the share `recipe.distillation` of the loss; to resume, it is.

    `on_begin` is called with the folder once all that was asked for is known to fit.

    Raises:
        ZooError: model, recipe, data and weights do not fit each other, or the device cannot do
            what the recipe asks for.
        CheckpointError: `resume` is no run, is complete, or began with another model, seed,
            recipe, image size, data set or teacher; or `teacher` is fed other images.
        MachineError: the loss or its gradients became infinite or NaN, memory ran out, or weights
            cannot be fetched.
        OSError: the folder cannot be written.
    """
    report, note = on_progress or _silent, on_note or _silent
    if count := Job.current().restarts:
        note(f"a process of this run ended: all begin again from its last save (restart {count})")
    if restarts_are_unsafe():
        note(
            "after a restart by torchrun the processes may not find each other: "
            "let zoo-train --nproc or --nnodes start them"
        )
    wanted = Wanted(
        image_size=image_size,
        pretrained=pretrained,
        file=None if pretrained_file is None else Path(pretrained_file),
        run=None if init_from is None else Path(init_from),
    )
    with processes(runtime) as accelerator, _compiler_errors():
        if runtime.compile:
            torch.compiler.reset()  # else from the ninth training of a process on none is compiled
        recipe = replace(recipe, precision=resolve_precision(recipe.precision, accelerator.device))
        if warning := slow_format(recipe.precision, accelerator.device):
            note(warning)
        found = None if teacher is None else open_teacher(teacher, data, student=model)
        asked = _Asked(model, recipe, runtime, data, seed, wanted, accelerator, found)
        passed_over: set[Path] = set()
        while True:
            path = by_first(
                accelerator,
                lambda: run_to_continue(
                    Path(runs),
                    None if resume is None else str(resume),
                    model=model,
                    seed=seed,
                    recipe=recipe,
                    data=data,
                    wanted=wanted,
                    teacher=asked.teacher_name,
                    job=Job.current(),
                    note=note,
                    passed_over=passed_over,
                ),
            )
            try:
                return _train(
                    asked, path, Path(runs), tensorboard, on_begin or _silent, report, note
                )
            except UnderWay:  # another process has taken it since it was chosen
                if resume != AUTO:
                    raise
            except NoState as reason:
                if resume != AUTO or path is None:
                    raise
                note(f"{path} is passed over: {reason}")
                passed_over.add(path)
            except (MemoryError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
                if not is_out_of_memory(error):
                    raise
                break
        # Here the frames of the step that failed are gone, and with them its tensors.
        accelerator.free_memory()
        by_itself = asked.alone()
        raise out_of_memory(
            lambda size, parts: by_itself.trainer(
                by_itself.start(path), batch_size=size, parts=parts, compile=False
            ),
            recipe,
            runtime,
            world=accelerator.num_processes,
            run=path or next(iter(asked.left), None),
        )


def replay(
    run: Path | str,
    runtime: Runtime,
    data: Dataset,
    *,
    teacher: Path | str | None = None,
    on_note: Note | None = None,
) -> list[str]:
    """Take the step at which the loss of `run` stopped being finite once more.

    Returns a line about the step, then where values stop being finite, the first one first. Nothing
    is compiled, and the run stays as it is. A run with a teacher needs it again.

    Raises:
        CheckpointError: `run` is no run, had another teacher or data set, or the state that it left
            is damaged.
        MachineError: this time every step goes well.
    """
    path, meta = Path(run), Checkpoint.open(run).meta
    recipe = stored_recipe(path)
    eager = replace(runtime, compile=False, cuda_graphs="off")
    with processes(eager) as accelerator:
        found = None if teacher is None else open_teacher(teacher, data, student=meta.model)
        asked = _Asked(meta.model, recipe, eager, data, meta.seed, Wanted(), accelerator, found)
        require_teacher(recipe, found, meta)
        require_same_data(path, meta, data)
        trainer = asked.trainer(asked.start(path))
        return replay_step(path, trainer, on_note or _silent)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What a run is made of."""

    model: str
    recipe: Recipe  # resolved: no "auto" is left
    runtime: Runtime
    data: Dataset
    seed: int
    wanted: Wanted
    accelerator: Accelerator
    teacher: Teacher | None = None
    left: list[Path] = field(default_factory=list)  # runs that ended early and can be continued

    @property
    def teacher_name(self) -> str | None:
        """As in `RunMeta`."""
        return None if self.teacher is None else self.teacher.name

    def alone(self) -> "_Asked":
        """The same for one process that the others do not wait for."""
        if self.accelerator.num_processes == 1:
            return self
        accelerator = Alone(cpu=self.accelerator.device.type == "cpu", mixed_precision="no")
        runtime = replace(self.runtime, sync_batchnorm=False)
        return replace(self, accelerator=accelerator, runtime=runtime)

    def start(self, path: Path | None) -> Start:
        """The network of a new run, or that of the one in `path` without its state."""
        torch.manual_seed(self.seed)
        if path is None:
            return begin(self.model, self.data, self.wanted, self.recipe)
        meta = Checkpoint.open(path).meta
        return again(meta, self.model, self.data, self.wanted, self.recipe)

    def trainer(
        self,
        start: Start,
        *,
        batch_size: int | None = None,
        parts: int | None = None,
        compile: bool = True,
    ) -> Trainer:
        """What trains it, compiled where it was asked for and not ruled out; one at a time."""
        self.accelerator.free_memory()  # else it holds the network of the one before
        network = start.network
        if self.teacher is not None:
            require_same_images(self.teacher, start.preprocessing)
        if self.runtime.sync_batchnorm and self.accelerator.num_processes > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return Trainer(
            network,
            replace(self.recipe, batch_size=batch_size or self.recipe.batch_size),
            replace(
                self.runtime,
                compile=self.runtime.compile and compile,
                accumulate=parts or self.runtime.accumulate,
            ),
            self.data,
            self.accelerator,
            seed=self.seed,
            preprocessing=start.preprocessing,
            teacher=None if self.teacher is None else self.teacher.network,
        )


def _train(
    asked: _Asked,
    path: Path | None,
    runs: Path,
    tensorboard: bool,
    begun: Callable[[Path], None],
    report: OnProgress,
    note: Note,
) -> Checkpoint:
    if path is None:
        require_teacher(asked.recipe, asked.teacher, None)
    else:
        require_same_recipe(path, asked.recipe)
        done = Checkpoint.open(path)
        require_teacher(asked.recipe, asked.teacher, done.meta)
        if Job.current().restarts and done.meta.finished_at is not None:
            return done  # a process of the job ended badly after its run was complete
        require_unfinished(path, done.meta)
    eager = _eager_step(asked, path) if asked.runtime.compile else None
    start = asked.start(path)
    trainer = asked.trainer(start)
    meta = first_meta(asked.model, trainer, start, teacher=asked.teacher_name)
    if path is None:
        folder = RunFolder.create(runs, meta, trainer)
    else:
        folder = RunFolder.reopen(path, meta, trainer, note)
    try:
        begun(folder.path)
        with event_log(folder, wanted=tensorboard) as log:
            return _run(folder, report, note, log, eager)
    except NonFinite as failure:
        raise keep_failure(folder, failure, "zoo-train") from None
    finally:
        folder.close(note)
        if folder.is_worth_keeping:
            asked.left.append(folder.path)


def _eager_step(asked: _Asked, path: Path | None) -> float | None:
    """Time of a step without torch.compile; None where it cannot be measured."""
    try:
        return asked.trainer(asked.start(path), compile=False).step_seconds()
    except (MemoryError, RuntimeError) as error:
        # What others of several processes have begun to exchange would have no answer.
        if asked.accelerator.num_processes > 1 or not is_out_of_memory(error):
            raise
        return None


def _run(
    folder: RunFolder, report: OnProgress, note: Note, log: Log, eager_step: float | None
) -> Checkpoint:
    trainer = folder.trainer
    epochs, steps = trainer.recipe.epochs, trainer.steps
    first, done = trainer.position
    if first > epochs:  # stopped between the last epoch and the test images
        return folder.finish(note)
    predicted = told(trainer.accelerator, trainer.predicted())
    if failure := trainer.stepper.capture_failure:
        note(f"the step runs without a CUDA graph, for it cannot be captured: {failure}")
    graphs = compiled_graphs() if trainer.runtime.compile else 0

    def compilation() -> Compilation:
        recompiles = compiled_graphs() - graphs
        return Compilation.of(trainer, step=predicted.step, eager=eager_step, recompiles=recompiles)

    if trainer.runtime.compile:
        folder.meta = replace(folder.meta, compilation=asdict(compilation()))
    ahead = epochs - first + 1
    report(
        Progress(
            epoch=0,
            epochs=epochs,
            step=0,
            steps=steps,
            seconds_left=predicted.seconds(steps=ahead * steps - done, epochs=ahead),
            images_per_s=trainer.recipe.batch_size / predicted.step,
        )
    )
    with stop_request(lambda: note(stop_note(folder.path))) as request:
        saver = Saver(
            folder,
            request,
            trainer.accelerator,
            save_seconds=trainer.runtime.save_seconds,
            step_seconds=predicted.step,
        )
        pace = predicted
        for epoch in range(first, epochs + 1):
            ahead = epochs - epoch
            after = pace.seconds(steps=ahead * steps, epochs=ahead + 1)
            metrics = trainer.epoch(epoch, report, after, at_boundary=saver.at_boundary)
            folder.keep(metrics)
            if trainer.runtime.compile:
                folder.meta = replace(folder.meta, compilation=asdict(compilation()))
            # A whole epoch tells better than the probe, and what lay between its steps counts.
            pace = replace(
                pace,
                step=trainer.recipe.batch_size / metrics.images_per_s,
                held_out=metrics.evaluation_seconds,
            )
            with saver.saved_if_cut_short():
                log(metrics)
                report(
                    Progress(
                        epoch=epoch,
                        epochs=epochs,
                        step=steps,
                        steps=steps,
                        seconds_left=pace.seconds(steps=ahead * steps, epochs=ahead),
                        images_per_s=metrics.images_per_s,
                        loss=metrics.train_loss,
                        metrics=metrics,
                    )
                )
            saver.between_epochs()
        saver.save()
    if trainer.runtime.compile and (line := compilation().line):
        note(line)
    return folder.finish(note)


@contextmanager
def _compiler_errors() -> Iterator[None]:
    """Name what helps where the compiler failed."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__.startswith(COMPILER):
            raise MachineError(
                f"torch.compile failed ({first_line(error)}): "
                "go on with --no-compile, or see zoo-doctor"
            ) from error
        raise


def _silent(what: object) -> None:
    """Tell nobody."""
