"""The folder of a run under way."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from accelerate.utils import broadcast
from torch import Tensor

from training.lock import Lock
from training.loop import EpochMetrics, NonFinite, Trainer
from training.processes import Job, by_first, summed, told
from training.resume import require_same_run
from training.start import Start
from training.state import (
    RunState,
    drop_parts,
    drop_previous,
    is_finite,
    newest_state,
    save_state,
)
from zoo.checkpoint import (
    CURVES,
    METRICS,
    NOT_BEGUN,
    RECIPE,
    STATE,
    Checkpoint,
    DatasetInfo,
    RunMeta,
    folder_name,
    numbered,
    save_run,
)
from zoo.environment import capture, git_commit
from zoo.errors import CheckpointError, MachineError, ZooError, first_line
from zoo.files import write_atomic, write_json
from zoo.signals import held_signals


@dataclass
class RunFolder:
    """What is known of a run, in memory and, since the last save, on the disk.

    Every process holds one and calls the same methods at the same step; the first one writes.
    """

    path: Path
    trainer: Trainer
    meta: RunMeta
    lines: list[EpochMetrics]
    lock: Lock  # of the first process
    selected: dict[str, Tensor] | None = None  # weights of the best epoch
    is_worth_keeping: bool = False  # a step was stored, or the batch that ended it

    @classmethod
    def create(cls, runs: Path, meta: RunMeta, trainer: Trainer) -> "RunFolder":
        """Claim a folder and store the start in it, so that it can be resumed from here on."""
        name = folder_name(meta.model, meta.seed)
        path = by_first(trainer.accelerator, lambda: claim(runs, name))
        lock = Lock(path)
        folder = cls(path, trainer, meta, [], lock)
        try:
            by_first(trainer.accelerator, lock.take)
            if trainer.rank == 0:
                write_json(path / RECIPE, trainer.recipe.to_json())
            folder.save()
        except BaseException:
            folder.close(lambda line: None)
            raise
        return folder

    @classmethod
    def reopen(
        cls, path: Path, given: RunMeta, trainer: Trainer, note: Callable[[str], None]
    ) -> "RunFolder":
        """Put the trainer where the last save left the run, of which `given` says what it is.

        Raises:
            CheckpointError: it is another run, complete, or damaged beyond its last two saves.
        """
        meta = Checkpoint.open(path).meta
        require_same_run(path, meta, given)
        lock = Lock(path)
        by_first(trainer.accelerator, lock.take)
        try:
            state = by_first(trainer.accelerator, lambda: newest_state(path, note, mend=True))
            trainer.load_state(state.trainer)
        except ZooError:
            lock.release()
            raise
        except Exception as reason:  # whatever a state of another network makes torch raise
            lock.release()
            raise CheckpointError(
                f"{path / STATE} is of another network ({first_line(reason)}): train again"
            ) from None
        folder = cls(path, trainer, meta, state.metrics, lock, state.selected)
        folder.meta = replace(meta, processes=max(meta.processes, trainer.world))
        folder.is_worth_keeping = True
        if trainer.rank == 0:
            drop_parts(path)
            folder._store(anew=True)  # what is there may be older than the state
        epoch, step = trainer.position
        note(f"continuing {path} in epoch {epoch}, after {step} of its {trainer.steps} steps")
        present = trainer.runtime.shapes_result | {
            "processes": trainer.world,
            "device": given.environment["device"],
        }
        before = {"compile": meta.compiled, **(meta.runtime or {}), "processes": meta.processes}
        before["device"] = meta.environment["device"]
        for name, value in present.items():
            was = before.get(name, value)
            if was != value:
                note(
                    f"it has run with {name} {was} and goes on with {value}: "
                    "its weights may not be those of a run that was never stopped"
                )
        return folder

    def keep(self, line: EpochMetrics) -> None:
        """Add a complete epoch; its weights where it is the best so far. In memory only."""
        self.lines = [*self.lines, line]
        if self.chosen is line:
            weights = self.trainer.selected.state_dict()
            self.selected = {key: tensor.detach().clone() for key, tensor in weights.items()}

    def save(self) -> None:
        """Store first the state, from which a resume makes the rest again, then the rest.

        Raises:
            NonFinite: there is NaN or infinity in it; the last save stays.
        """
        trainer = self.trainer
        state = trainer.state()
        is_good = is_finite(state, but=trainer.stepper.masks)
        if sum(summed(trainer.accelerator, [0.0 if is_good else 1.0])):
            raise self._failure()
        if trainer.rank == 0:
            with held_signals():
                save_state(
                    self.path,
                    RunState(trainer=state, metrics=self.lines, selected=self.selected),
                )
                self.is_worth_keeping |= trainer.position > (1, 0)
                self._store()

    @property
    def chosen(self) -> EpochMetrics | None:
        """The epoch whose weights count: the best on held-out images, of equals the first."""
        return max(self.lines, key=_rank, default=None)

    def _failure(self) -> NonFinite:
        """The last step left NaN or infinity, though its loss was finite."""
        trainer, stepper = self.trainer, self.trainer.stepper
        if stepper.epoch == 0:
            raise MachineError("the weights to begin with hold NaN or infinity: begin with others")
        epoch, step = stepper.epoch, stepper.step - 1
        rate = stepper.schedule((epoch - 1) * trainer.steps + step)
        return NonFinite(epoch=epoch, step=step, learning_rate=rate, peak_lr=trainer.recipe.peak_lr)

    def _store(self, *, anew: bool = False) -> None:
        """Weights, where they changed or `anew`, facts and metrics."""
        chosen, lines = self.chosen, self.lines
        meta = replace(
            self.meta,
            epoch=0 if chosen is None else chosen.epoch,
            val_top1=None if chosen is None else chosen.val_top1,
            epochs_done=len(lines),
            train_seconds=sum(line.train_seconds + line.evaluation_seconds for line in lines),
        )
        weights = self.selected if anew or self.meta.epoch != meta.epoch else None
        self.meta = save_run(self.path, meta, weights).meta
        text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
        write_atomic(self.path / METRICS, text)

    def finish(self, note: Callable[[str], None]) -> Checkpoint:
        """Measure the selected weights on the test images, once, and complete the folder.

        `note` is told where the weights are of no use.
        """
        trainer = self.trainer
        assert self.selected is not None
        weights = self.selected
        if trainer.world > 1:  # statistics of batch norms are those of the first process
            weights = broadcast({key: t.to(trainer.device) for key, t in weights.items()})
        trainer.selected.load_state_dict(weights)
        found = trainer.evaluate(trainer.data.test)
        self.meta = replace(
            self.meta,
            test_top1=found.top1,
            test_top5=found.top5,
            finished_at=now(),
        )
        if trainer.rank == 0:
            with held_signals():
                save_run(self.path, self.meta)
                drop_previous(self.path)
            if found.nonfinite:
                note(
                    f"{found.nonfinite} of {found.images} test images get logits that are not "
                    "finite: they count as wrong, and the run cannot be exported; train for longer "
                    "or at a lower rate"
                )
        trainer.accelerator.wait_for_everyone()
        return Checkpoint(self.path, told(trainer.accelerator, self.meta))

    def close(self, note: Callable[[str], None]) -> None:
        """Leave the curves of what was done; a new folder without a step goes.

        `note` is told where what draws them is not installed, or they cannot be written: how the
        run ended counts for more.
        """
        if self.trainer.rank != 0:
            return
        if not self.is_worth_keeping:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.release()
        if not (self.is_worth_keeping and self.lines):
            return
        if find_spec("matplotlib") is None:
            note(f"{CURVES} is left out: matplotlib is not installed")
        else:
            from training.curves import draw_curves
            from zoo.command import describe

            try:
                draw_curves([asdict(line) for line in self.lines], self.path / CURVES)
            except OSError as reason:
                note(f"{CURVES} is left out: {describe(reason)}")


def first_meta(
    model: str, trainer: Trainer, start: Start, *, teacher: str | None = None
) -> RunMeta:
    """The facts of a run that has not taken a step."""
    recipe, data = trainer.recipe, trainer.data
    held_out = 0 if trainer.held_out is None else len(trainer.held_out)
    return RunMeta(
        model=model,
        seed=trainer.seed,
        recipe_name=recipe.name,
        recipe=recipe.to_json(),
        dataset=DatasetInfo.of(data, val_images=held_out),
        selection="last" if recipe.full_train else "validation",
        compiled=trainer.runtime.compile,
        processes=trainer.world,
        environment=capture(str(trainer.device)).to_json(),
        commit=git_commit(),
        started_at=now(),
        preprocessing=start.preprocessing,
        initial_weights=start.initial_weights,
        teacher=teacher,
        job=Job.current().id,
        runtime=trainer.runtime.shapes_result,
        **NOT_BEGUN,
    )


def now() -> str:
    """The time as runs store it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _rank(line: EpochMetrics) -> tuple[float, int]:
    return (0.0, line.epoch) if line.val_top1 is None else (line.val_top1, -line.epoch)


def claim(runs: Path, name: str) -> Path:
    """Make a folder that nobody had before."""
    runs.mkdir(parents=True, exist_ok=True)
    for path in numbered(runs, name):
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("the numbers do not end")
