"""The folder of a pre-training under way, and how another process goes on with it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
    from training.pretrain import Pretrainer


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
    """What is known of a run, in memory and, since its last epoch, on the disk."""

    path: Path
    trainer: "Pretrainer"
    meta: RunMeta
    lines: list[PretrainingMetrics]
    lock: Lock

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
        """Put the trainer behind the last complete epoch of the run that `given` describes.

        Raises:
            CheckpointError: it is another run, complete, damaged beyond its last two states, or
                under way in another process.
        """
        require_begun(path)
        run = Checkpoint.open(path)
        _require_same(run, given)
        lock = Lock(path)
        lock.take()
        try:
            state = newest(path, lambda at: read_content(at, lambda found: found), note, mend=True)
            lines = metrics_of(PretrainingMetrics, state)
            trainer.load_state(state["trainer"])
        except ZooError:
            lock.release()
            raise
        except Exception as reason:  # whatever a state of another network makes torch raise
            lock.release()
            raise CheckpointError(
                f"{path / STATE} is of another network ({first_line(reason)}): train again"
            ) from None
        drop_parts(path)
        note(f"continuing {path} after {len(lines)} of its {run.meta.recipe['epochs']} epochs")
        return cls(path, trainer, run.meta, lines, lock)

    def keep(self, line: PretrainingMetrics) -> None:
        """Add a complete epoch and store it."""
        self.lines = [*self.lines, line]
        self.save()

    def save(self) -> None:
        """Store first the state, from which a resume makes the rest again, then the rest."""
        lines, done = [asdict(line) for line in self.lines], len(self.lines)
        is_complete = done == self.trainer.settings.epochs
        meta = replace(
            self.meta,
            epoch=done,
            epochs_done=done,
            train_seconds=sum(line.train_seconds + line.evaluation_seconds for line in self.lines),
            finished_at=now() if is_complete else None,
        )
        states = self.path / STATE
        with held_signals():
            if not is_complete:
                content = {"trainer": self.trainer.state(), "metrics": lines}
                write_content(states / LAST, content, replaces=states / PREVIOUS)
            write_atomic(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
            named = self.trainer.network.state_dict() if done else None
            weights = named and {key: tensor.clone() for key, tensor in named.items()}  # some tied
            self.meta = save_run(self.path, meta, weights).meta
            if is_complete:
                shutil.rmtree(states, ignore_errors=True)

    def close(self) -> None:
        """Let others train it; a folder without a complete epoch goes."""
        if not self.lines:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.release()


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


def incomplete(runs: Path, given: RunMeta) -> Path | None:
    """Of this very pre-training the folder begun last, among the incomplete ones not under way."""
    found: list[Checkpoint] = []
    for path in all_runs(runs):
        try:
            run = Checkpoint.open(path)
            _require_same(run, given)
        except ZooError:  # damaged, complete, or of another run
            continue
        if not is_under_way(path):
            found.append(run)
    return max(found, key=begun).path if found else None


def _require_same(run: Checkpoint, given: RunMeta) -> None:
    if run.meta.pretraining != given.pretraining:
        raise CheckpointError(
            f"{run.path} is no pre-training by {given.pretraining}: resume a folder of "
            f"zoo-pretrain --method {given.pretraining}, or start a new run without --resume"
        )
    require_same_run(run.path, run.meta, given)
    require_same_settings(run.path, run.meta.recipe, given.recipe)
