"""The folder of a pre-training under way, and how another process goes on with it."""

import json
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from training.folder import claim, now
from training.lock import Lock, is_under_way
from training.resume import begun, require_same_run, require_same_settings
from training.state import (
    LAST,
    PREVIOUS,
    drop_parts,
    metrics_of,
    newest,
    read_content,
    write_content,
)
from zoo.checkpoint import (
    META,
    METRICS,
    STATE,
    Checkpoint,
    RunMeta,
    all_runs,
    folder_name,
    save_run,
)
from zoo.errors import CheckpointError, ZooError, first_line
from zoo.files import write_atomic
from zoo.signals import held_signals

if TYPE_CHECKING:
    from training.pretrainer import Pretrainer


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingMetrics:
    """One line of metrics.jsonl."""

    epoch: int
    loss: float  # of the method, mean over the steps
    knn_top1: float  # of held-out images, by the labels of their nearest training images
    learning_rate: float  # of the last step
    train_seconds: float
    evaluation_seconds: float
    images_per_s: float  # of which two views each are made


@dataclass
class PretrainingFolder:
    """What is known of a run, in memory and, since the last save, on the disk."""

    path: Path
    trainer: "Pretrainer"
    meta: RunMeta
    lines: list[PretrainingMetrics]
    lock: Lock
    weights: dict[str, Tensor] | None = None  # of the last complete epoch
    is_worth_keeping: bool = False  # a step was stored, or the batch that ended it

    @classmethod
    def create(cls, runs: Path, meta: RunMeta, trainer: "Pretrainer") -> "PretrainingFolder":
        """Claim a folder and store the start in it, so that it can be resumed from here on."""
        name = folder_name(meta.model, meta.seed)
        path = claim(runs, f"pretrain-{meta.pretraining}-{name}")
        folder = cls(path, trainer, meta, [], Lock(path))
        try:
            folder.lock.take()
            folder.save()
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def reopen(
        cls, path: Path, given: RunMeta, trainer: "Pretrainer", note: Callable[[str], None]
    ) -> "PretrainingFolder":
        """Put the trainer where the last save left the run that `given` describes.

        Raises:
            CheckpointError: it is another run, complete, damaged beyond its last two saves, or
                under way in another process.
        """
        require_begun(path)
        meta = begun_alike(path, given).meta
        lock = Lock(path)
        lock.take()
        try:
            state = newest(path, _read, note, mend=True)
            trainer.load_state(state["trainer"])
        except ZooError:
            lock.release()
            raise
        except Exception as reason:  # whatever a state of another network makes torch raise
            lock.release()
            raise CheckpointError(
                f"{path / STATE} is of another network ({first_line(reason)}): train again"
            ) from None
        folder = cls(path, trainer, meta, state["metrics"], lock, state["weights"])
        folder.is_worth_keeping = True
        drop_parts(path)
        folder._store(anew=True)  # what is there may be older than the state
        epoch, step = trainer.position
        note(f"continuing {path} in epoch {epoch}, after {step} of its {trainer.steps} steps")
        return folder

    def keep(self, line: PretrainingMetrics) -> None:
        """Add a complete epoch and its weights. In memory only."""
        self.lines = [*self.lines, line]
        named = self.trainer.network.state_dict()
        self.weights = {key: tensor.detach().clone() for key, tensor in named.items()}  # some tied

    def save(self) -> None:
        """Store first the state, from which a resume makes the rest again, then the rest.

        Raises:
            NonFinite: there is NaN or infinity in it; the last save stays.
        """
        states, state = self.path / STATE, self.trainer.state()
        lines = [asdict(line) for line in self.lines]
        content = {"trainer": state, "metrics": lines, "weights": self.weights}
        with held_signals():
            write_content(states / LAST, content, replaces=states / PREVIOUS)
            self.is_worth_keeping |= self.trainer.position > (1, 0)
            self._store()

    def finish(self) -> Checkpoint:
        """Complete the folder, which no resume needs any more."""
        self.meta = replace(self.meta, finished_at=now())
        with held_signals():
            save_run(self.path, self.meta)
            shutil.rmtree(self.path / STATE, ignore_errors=True)
        return Checkpoint(self.path, self.meta)

    def close(self) -> None:
        """Let others train it; a new folder without a step goes."""
        if not self.is_worth_keeping:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.release()

    def _store(self, *, anew: bool = False) -> None:
        """Weights, where they changed or `anew`, facts and metrics."""
        lines, done = self.lines, len(self.lines)
        weights = self.weights if anew or self.meta.epoch != done else None
        meta = replace(
            self.meta,
            epoch=done,
            epochs_done=done,
            train_seconds=sum(line.train_seconds + line.evaluation_seconds for line in lines),
        )
        self.meta = save_run(self.path, meta, weights).meta
        text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
        write_atomic(self.path / METRICS, text)


def require_begun(path: Path) -> None:
    """Refuse a folder that is no run.

    Raises:
        CheckpointError: it is none.
    """
    if not (path / META).is_file():
        raise CheckpointError(
            f"there is no run {path}: resume a folder that zoo-pretrain began, or start a new run "
            "without --resume"
        )


def incomplete(runs: Path, given: RunMeta, passed_over: Collection[Path]) -> Path | None:
    """Of this very pre-training the folder begun last, among the incomplete ones not under way.

    None of `passed_over` is looked at.
    """
    found: list[Checkpoint] = []
    for path in all_runs(runs):
        with suppress(ZooError):  # damaged, complete, or of another run
            if path not in passed_over and not is_under_way(path):
                found.append(begun_alike(path, given))
    return max(found, key=begun).path if found else None


def begun_alike(path: Path, given: RunMeta) -> Checkpoint:
    """The run in a folder, which is this very one and not complete.

    Raises:
        CheckpointError: it is complete, damaged or another one.
    """
    run = Checkpoint.open(path)
    if run.meta.pretraining != given.pretraining:
        raise CheckpointError(
            f"{path} is no pre-training by {given.pretraining}: resume a folder of "
            f"zoo-pretrain --method {given.pretraining}, or start a new run without --resume"
        )
    require_same_run(path, run.meta, given)
    require_same_settings(path, run.meta.recipe, given.recipe)
    return run


def _read(file: Path) -> dict[str, Any]:
    """What `save` stored, the metrics as lines.

    Raises:
        CheckpointError: the file is damaged or of another version.
    """
    return read_content(
        file, lambda found: found | {"metrics": metrics_of(PretrainingMetrics, found)}
    )
