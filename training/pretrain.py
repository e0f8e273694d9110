"""Pre-training of a backbone without labels, from start to finish."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import Accelerator

from training.folder import now
from training.lock import UnderWay
from training.loop import NonFinite, OnProgress
from training.memory import out_of_memory
from training.methods import require_lightly
from training.options import AUTO
from training.precision import resolve_precision, slow_format
from training.pretrain_folder import (
    PretrainingFolder,
    PretrainingMetrics,
    begun_alike,
    incomplete,
    require_begun,
)
from training.pretrainer import Pretrainer
from training.pretraining import LEAST_BATCH, Pretraining
from training.processes import processes
from training.recipe import Runtime
from training.replay import bad_step, keep_failure, replay_step
from training.saver import Saver, stop_note
from training.state import NoState
from zoo.checkpoint import NOT_BEGUN, Checkpoint, DatasetInfo, RunMeta
from zoo.data import Dataset
from zoo.environment import capture, git_commit
from zoo.errors import ZooError, is_out_of_memory
from zoo.session import cudnn_benchmark
from zoo.signals import stop_request

OnEpoch = Callable[[PretrainingMetrics, float], None]  # and the seconds that are left
Note = Callable[[str], None]


def pretrain(
    model: str,
    settings: Pretraining,
    data: Dataset,
    *,
    device: str = "auto",
    save_seconds: float = 30.0,
    seed: int = 0,
    runs: Path | str = "runs",
    resume: Path | str | None = None,
    on_begin: Callable[[Path], None] | None = None,
    on_progress: OnProgress | None = None,
    on_epoch: OnEpoch | None = None,
    on_note: Note | None = None,
) -> Checkpoint:
    """Pre-train the backbone of a model and return its run folder; `train` takes it as `init_from`.

    Labels decide which training images are held out, as in `train`, and the accuracy of nearest
    neighbours after each epoch; the loss sees none. The test images are not used. The weights kept
    are those of the last complete epoch.

    What a resume needs is stored at the start, every `save_seconds` and at the end. Ctrl-C and
    SIGTERM store it after the step under way, a second one acts at once; before the first step they
    leave no folder. A resumed run takes the same steps as one that was never stopped.

    `resume` is a run folder, or "auto" for the run of this model, method, settings, seed and data
    set that was begun last, is not complete and that no other process trains; without one a new run
    begins. `on_note` is told where it goes on.

    `on_begin` is called with the folder once all that was asked for is known to fit.

    Raises:
        ZooError: model, settings and data do not fit each other, or lightly is not installed.
        CheckpointError: `resume` is no such run, is complete, damaged or under way elsewhere.
        MachineError: the loss or its gradients became infinite or NaN, which leaves the last save,
            or memory ran out.
        OSError: the folder cannot be written.
    """
    note = on_note or (lambda line: None)
    runtime = Runtime(device=device, save_seconds=save_seconds)
    require_lightly()
    with processes(runtime) as accelerator:
        if accelerator.num_processes > 1:
            raise ZooError("zoo-pretrain runs in one process: start it without a launcher")
        precision = resolve_precision(settings.precision, accelerator.device)
        if warning := slow_format(precision, accelerator.device):
            note(warning)
        settings = replace(settings, precision=precision)

        def trainer(batch_size: int) -> Pretrainer:
            sized = replace(settings, batch_size=batch_size)
            return Pretrainer(model, sized, data, accelerator, seed=seed)

        folder: PretrainingFolder | None = None
        while True:
            try:
                folder = _folder(trainer(settings.batch_size), Path(runs), resume, note)
                return _pretrain(
                    folder,
                    accelerator,
                    save_seconds,
                    on_begin or (lambda path: None),
                    on_progress or (lambda progress: None),
                    on_epoch or (lambda metrics, seconds: None),
                    note,
                )
            except UnderWay:  # another process has taken it since it was chosen
                if resume != AUTO:
                    raise
            except (MemoryError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
                if not is_out_of_memory(error):
                    raise
                begun = folder.path if folder is not None and folder.is_worth_keeping else None
                break
        # Here the frames of the step that failed are gone, and with the folder its tensors.
        folder = None
        raise out_of_memory(
            lambda size, parts: trainer(size),
            settings.optimisation,
            runtime,
            run=begun,
            least=LEAST_BATCH,
            in_parts=False,
        )


def _folder(
    trainer: Pretrainer, runs: Path, resume: Path | str | None, note: Note
) -> PretrainingFolder:
    given = _first_meta(trainer)
    if resume is not None and resume != AUTO:
        return PretrainingFolder.reopen(Path(resume), given, trainer, note)
    passed_over: set[Path] = set()
    while resume == AUTO and (path := incomplete(runs, given, passed_over)) is not None:
        try:
            return PretrainingFolder.reopen(path, given, trainer, note)
        except NoState as reason:
            note(f"{path} is passed over: {reason}")
            passed_over.add(path)
    return PretrainingFolder.create(runs, given, trainer)


def _pretrain(
    folder: PretrainingFolder,
    accelerator: Accelerator,
    save_seconds: float,
    on_begin: Callable[[Path], None],
    on_progress: OnProgress,
    on_epoch: OnEpoch,
    note: Note,
) -> Checkpoint:
    trainer = folder.trainer
    epochs, spent = trainer.settings.epochs, 0.0
    first, _ = trainer.position
    try:
        on_begin(folder.path)
        with (
            cudnn_benchmark(True),
            stop_request(lambda: note(stop_note(folder.path))) as request,
        ):
            saver = Saver(folder, request, accelerator, save_seconds=save_seconds)
            for epoch in range(first, epochs + 1):
                after = spent * (epochs - epoch)
                line = trainer.epoch(epoch, on_progress, after, at_boundary=saver.at_boundary)
                spent = line.train_seconds + line.evaluation_seconds
                folder.keep(line)
                with saver.saved_if_cut_short():
                    on_epoch(line, spent * (epochs - epoch))
                saver.between_epochs()
            saver.save()
        return folder.finish()
    except NonFinite as failure:
        command = f"zoo-pretrain {trainer.model} --method {trainer.settings.name}"
        raise keep_failure(folder, failure, command) from None
    finally:
        folder.close()


def replay(
    run: Path | str,
    model: str,
    settings: Pretraining,
    data: Dataset,
    *,
    device: str = "auto",
    seed: int = 0,
    on_note: Note | None = None,
) -> list[str]:
    """Take the step at which the loss of `run` stopped being finite once more; as `run.replay`.

    Raises:
        ZooError: model, settings and data do not fit each other, or lightly is not installed.
        CheckpointError: `run` is no such run, or the state that it left is damaged.
        MachineError: this time every step goes well.
    """
    path = Path(run)
    require_begun(path)
    bad_step(path)
    require_lightly()
    with processes(Runtime(device=device)) as accelerator:
        precision = resolve_precision(settings.precision, accelerator.device)
        settings = replace(settings, precision=precision)
        trainer = Pretrainer(model, settings, data, accelerator, seed=seed)
        begun_alike(path, _first_meta(trainer))
        return replay_step(path, trainer, on_note or (lambda line: None))


def _first_meta(trainer: Pretrainer) -> RunMeta:
    """The facts before the first epoch."""
    settings = trainer.settings
    return RunMeta(
        model=trainer.model,
        seed=trainer.seed,
        recipe_name=settings.name,
        recipe=asdict(settings),
        dataset=DatasetInfo.of(trainer.data, val_images=len(trainer.held_out)),
        selection="last",
        compiled=False,
        processes=1,
        environment=capture(str(trainer.device)).to_json(),
        commit=git_commit(),
        started_at=now(),
        preprocessing=trainer.preprocessing,
        pretraining=settings.name,
        **NOT_BEGUN,
    )
