"""The step at which a loss stopped being finite: kept, and taken again to see where it began."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from training.augment import shuffled
from training.loop import NonFinite
from training.recipe import Recipe
from training.state import is_finite, newest, read_content, write_content
from zoo.checkpoint import STATE, RunMeta
from zoo.data import Dataset, validation_split
from zoo.errors import CheckpointError, MachineError
from zoo.files import read_json, write_json
from zoo.plain import from_plain

FACTS, BEFORE = "nonfinite.json", "nonfinite.pt"
SHOWN = 8  # images of a batch in a message


class Replayed(Protocol):
    """A trainer, with labels or without, whose steps repeat."""

    recipe: Recipe
    data: Dataset
    seed: int
    steps: int
    rank: int
    world: int
    schedule: Callable[[int], float]
    masks: frozenset[str]  # tensors of its state that hold infinity by design
    loss: Tensor  # of the last step

    @property
    def watched(self) -> nn.Module:
        """What computes the answers and learns."""
        ...

    @property
    def position(self) -> tuple[int, int]:
        """Epoch, counted from 1, and step of it, counted from 0, that come next."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        ...

    def run_steps(self, epoch: int) -> Iterator[object]:
        """Take the steps of an epoch that are left, one whenever it is asked."""
        ...


class Kept(Protocol):
    """The folder of a run."""

    path: Path
    is_worth_keeping: bool

    @property
    def trainer(self) -> Replayed:
        """What trains it."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BadStep:
    """The first step that left NaN or infinity."""

    epoch: int  # counted from 1
    step: int  # within the epoch, counted from 0
    seed: int
    learning_rate: float
    images: tuple[int, ...]  # of its batch, counted from 0 in the training images


def keep_failure(folder: Kept, failure: NonFinite, command: str) -> MachineError:
    """Store the step that failed and the state before it; the last save stays as it is.

    One process takes the steps since that save once more to get there. Of several processes only
    the step is stored. `command` is what --replay is an option of.
    """
    trainer, path = folder.trainer, folder.path
    folder.is_worth_keeping = True
    epoch, step = failure.epoch, failure.step
    if trainer.world == 1:
        last = newest(path, read_trainer, lambda line: None)
        found = state_before(trainer, last, epoch, step)
        if found is not None:
            before, (epoch, step) = found
            write_content(path / STATE / BEFORE, {"trainer": before})
    rate = trainer.schedule((epoch - 1) * trainer.steps + step)
    if trainer.rank == 0:
        bad = BadStep(
            epoch=epoch,
            step=step,
            seed=trainer.seed,
            learning_rate=rate,
            images=images_of(trainer, epoch, step),
        )
        write_json(path / STATE / FACTS, asdict(bad))
    told = NonFinite(epoch=epoch, step=step, learning_rate=rate, peak_lr=trainer.recipe.peak_lr)
    return MachineError(f"{told}, or see where it began with {command} --replay {path}")


def read_trainer(file: Path) -> dict[str, Tensor]:
    """The state of the trainer in a file.

    Raises:
        CheckpointError: the file is damaged or of another version.
    """

    def made(found: dict[str, Any]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = found["trainer"]
        return tensors

    return read_content(file, made)


def state_before(
    trainer: Replayed, last: dict[str, Tensor], epoch: int, step: int
) -> tuple[dict[str, Tensor], tuple[int, int]] | None:
    """The state before this step, or before an earlier one that left the NaN; which.

    None where the steps that lead there do not repeat.
    """
    earlier = (epoch, step - 1) if step else (epoch - 1, trainer.steps - 1)
    for target in ((epoch, step), earlier):
        trainer.load_state(last)
        if target < trainer.position:
            return None
        try:
            _go_to(trainer, target)
            state = trainer.state()
        except NonFinite as before:
            place = before.epoch, before.step
            return state_before(trainer, last, *place) if place < (epoch, step) else None
        if is_finite(state, but=trainer.masks):
            return state, target
    return None


def _go_to(trainer: Replayed, target: tuple[int, int]) -> None:
    while trainer.position < target:
        for _ in trainer.run_steps(trainer.position[0]):
            if trainer.position == target:
                break


def images_of(trainer: Replayed, epoch: int, step: int) -> tuple[int, ...]:
    """The training images in a batch, counted from 0 as the data set stores them."""
    train, size = trainer.data.train, trainer.recipe.batch_size
    kept = np.arange(len(train.fine))
    if not trainer.recipe.full_train:
        kept, _ = validation_split(train)
    order = shuffled(len(kept), trainer.seed, epoch)
    return tuple(int(row) for row in kept[order[step * size : (step + 1) * size].numpy()])


def bad_step(path: Path) -> BadStep:
    """What is stored of the step of run `path` that failed.

    Raises:
        CheckpointError: none of it failed.
    """
    facts = path / STATE / FACTS
    if not facts.is_file():
        raise CheckpointError(f"{path} cannot be replayed: nothing in it became infinite or NaN")
    return from_plain(BadStep, read_json(facts, CheckpointError))


def require_same_data(path: Path, stored: RunMeta, data: Dataset) -> None:
    """Check that run `path`, of which `stored` tells, learned from these images.

    Raises:
        CheckpointError: it learned from others.
    """
    was = stored.dataset
    if (was.name, was.digest) != (data.name, data.digest):
        raise CheckpointError(
            f"{path} learned from {was.name} (digest {was.digest[:12]}), got {data.name} "
            f"({data.digest[:12]}): replay it with the former"
        )


def replay_step(path: Path, trainer: Replayed, note: Callable[[str], None]) -> list[str]:
    """Take the step of run `path` that failed once more; a line about it, then the places.

    It starts from the state before that step, where one is stored, else from the last save, of
    which `note` is told where it is damaged.

    Raises:
        CheckpointError: no step of this run failed, or its state is damaged.
        MachineError: every step goes well this time.
    """
    bad, stored = bad_step(path), path / STATE / BEFORE
    if stored.is_file():
        places = places_of(trainer, read_trainer(stored))
    else:
        last = newest(path, read_trainer, note)
        found = state_before(trainer, last, bad.epoch, bad.step)
        places = [] if found is None else places_of(trainer, found[0])
    if not places:
        raise MachineError(f"all values of {path} are finite this time: go on with --resume {path}")
    shown = ", ".join(map(str, bad.images[:SHOWN])) + (", ..." if len(bad.images) > SHOWN else "")
    return [
        f"epoch {bad.epoch}, step {bad.step + 1} of {trainer.steps}, learning rate "
        f"{bad.learning_rate:.3g}, seed {bad.seed}, images {shown}",
        f"first value that is not finite: {places[0]}",
        *(f"then: {place}" for place in places[1:]),
    ]


def places_of(trainer: Replayed, before: dict[str, Tensor]) -> list[str]:
    """Where values are not finite in the step after `before`, in the order of the computation."""
    trainer.load_state(before)
    epoch, _ = trainer.position
    with _watch(trainer.watched) as (forward, backward):
        next(trainer.run_steps(epoch))
    loss = _place("the loss", trainer.loss)
    weights = [_place(name, value) for name, value in trainer.watched.named_parameters()]
    return [
        *_first(forward, "output of"),
        *([loss] if loss else []),
        *_first(backward, "gradient of"),
        *_first([place for place in weights if place], "new value of"),
    ]


@contextmanager
def _watch(network: nn.Module) -> Iterator[tuple[list[str], list[str]]]:
    """Collect the places of one step: images and outputs of modules, then gradients."""
    forward: list[str] = []
    backward: list[str] = []

    def images(module: nn.Module, given: Any) -> None:
        forward.extend(filter(None, [_place("the images", given[0])]))

    def output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, given: Any, returned: Any) -> None:
            if isinstance(returned, Tensor):
                forward.extend(filter(None, [_place(name, returned)]))

        return look

    def gradient(name: str) -> Callable[[Tensor], None]:
        def look(parameter: Tensor) -> None:
            assert parameter.grad is not None
            place = _place(name, parameter.grad)
            backward.extend([place] if place else [])

        return look

    hooks = [network.register_forward_pre_hook(images)]
    for name, module in network.named_modules():
        label = f"{name} ({type(module).__name__})" if name else "the network"
        hooks.append(module.register_forward_hook(output(label)))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            hook = parameter.register_post_accumulate_grad_hook(gradient(name))
            hooks.append(hook)
    try:
        yield forward, backward
    finally:
        for hook in hooks:
            hook.remove()


def _place(name: str, tensor: Tensor) -> str | None:
    if not tensor.is_floating_point():
        return None
    bad = int((~tensor.detach().isfinite()).sum())
    return f"{name} ({bad} of {tensor.numel()} values)" if bad else None


def _first(places: list[str], what: str) -> list[str]:
    """The first place, with the number of those that follow."""
    if not places:
        return []
    others = f", and {len(places) - 1} more" if len(places) > 1 else ""
    return [f"{what} {places[0]}{others}"]
