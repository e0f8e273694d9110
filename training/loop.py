"""The training loop; nothing else drives an optimiser."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from training import augment
from training.freeze import Frozen
from training.optim import learning_rate, make_average, make_optimizer, set_rate
from training.precision import autocast
from training.recipe import Recipe, Runtime
from zoo.data import Dataset, Split, validation_split
from zoo.errors import MachineError, ZooError
from zoo.evaluate import Accuracy, accuracy, predict
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession, require_compiler

REPORT_SECONDS = 0.5  # between two progress reports within an epoch: each waits for the device
PROBE_STEPS = 3
EVALUATION_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run is: before its first step, within an epoch, or at the end of one."""

    epoch: int  # counted from 1; 0 before the first step
    epochs: int
    step: int  # within the epoch, done
    steps: int
    seconds_left: float  # of the whole run, evaluation included
    images_per_s: float  # training images, of this epoch so far
    loss: float | None = None  # mean over the epoch so far
    top1: float | None = None  # of the augmented images, over the epoch so far
    metrics: "EpochMetrics | None" = None  # at the end of an epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """One line of metrics.jsonl."""

    epoch: int
    train_loss: float  # mean over the augmented images, label smoothing included
    train_top1: float  # of the augmented images, while training
    val_top1: float | None  # None where no images are held out
    learning_rate: float  # of the last step
    train_seconds: float  # steps of this epoch
    evaluation_seconds: float
    images_per_s: float


OnProgress = Callable[[Progress], None]


class Trainer:
    """One model on one process's device, with what its optimiser has to remember.

    Random numbers follow from (seed, epoch, place in the epoch) alone. Each process draws those of
    the whole batch and uses its own rows, so the number of processes does not change the data.

    Augmentation works on the stored images; their batch is then brought to the size that
    `preprocessing` names, on the device. Without one they are used as they are stored.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        runtime: Runtime,
        data: Dataset,
        accelerator: Accelerator,
        *,
        seed: int,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.recipe, self.runtime, self.data, self.seed = recipe, runtime, data, seed
        self.preprocessing = preprocessing or Preprocessing.of(data)
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.held_out, self.images, self.labels = self._place(data.train)
        self.steps = len(self.images) // recipe.batch_size  # the last partial batch is left out
        self._require_batches()
        self.plain = model.to(self.device).to(memory_format=torch.channels_last)
        self.frozen = Frozen(self.plain) if recipe.freeze_backbone else None
        self.optimizer = make_optimizer(self.plain, recipe)
        self.network = accelerator.prepare_model(self.plain)
        self.average = make_average(self.plain, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.rate = learning_rate(recipe, self.steps)
        self.policy = augment.Policy(
            crop_padding=recipe.crop_padding,
            flip_p=recipe.flip_p,
            trivial=recipe.trivial_augment,
            erase_p=recipe.erase_p,
        )
        self.forward_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = self._forward_loss
        if runtime.compile:
            require_compiler(self.device.type)
            self.forward_loss = torch.compile(self._forward_loss, dynamic=False)

    @property
    def selected(self) -> nn.Module:
        """The module whose accuracy counts: the average where the recipe keeps one."""
        return self.plain if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def predicted_seconds(self, epochs: int) -> float:
        """Time that `epochs` more epochs and the evaluations will take, by a few real steps.

        Weights, buffers and random numbers are afterwards as they were. With `compile` this is
        where compilation happens; it is not part of the answer.
        """
        before = {key: value.clone() for key, value in self.plain.state_dict().items()}
        steps = sorted([self._timed(self._probe) for _ in range(1 + PROBE_STEPS)][1:])
        self.plain.load_state_dict(before)
        self.optimizer.zero_grad(set_to_none=True)
        session = EagerSession(self.selected, device=str(self.device))
        part = self.data.test.images[:EVALUATION_BATCH]
        evaluation = min(self._timed(lambda: self._predict(session, part)) for _ in range(2))
        held_out = 0 if self.held_out is None else len(self.held_out.fine)
        batches = (epochs * held_out + len(self.data.test.fine)) / EVALUATION_BATCH / self.world
        return float(steps[PROBE_STEPS // 2] * epochs * self.steps + evaluation * batches)

    def epoch(self, epoch: int, on_progress: OnProgress, seconds_per_epoch: float) -> EpochMetrics:
        """Train one epoch, counted from 1, and evaluate on the held-out images.

        Raises:
            MachineError: the loss is no longer finite.
        """
        start = reported = time.perf_counter()
        loss_sum = torch.zeros((), device=self.device)
        hits = torch.zeros((), device=self.device)
        for step, (loss, right) in enumerate(self.run_steps(epoch)):
            loss_sum += loss
            hits += right
            now = time.perf_counter()
            if now - reported >= REPORT_SECONDS:
                reported = now
                speed = (step + 1) * self.recipe.batch_size / (now - start)
                left = (self.steps - step - 1) * self.recipe.batch_size / speed
                on_progress(
                    Progress(
                        epoch=epoch,
                        epochs=self.recipe.epochs,
                        step=step + 1,
                        steps=self.steps,
                        seconds_left=left + (self.recipe.epochs - epoch) * seconds_per_epoch,
                        images_per_s=speed,
                        loss=loss_sum.item() / (step + 1),
                        top1=hits.item() / (step + 1),
                    )
                )
        self._synchronize()
        trained = time.perf_counter() - start
        mean_loss, top1 = self._mean(loss_sum / self.steps), self._mean(hits / self.steps)
        if not math.isfinite(mean_loss):
            raise MachineError(
                f"the loss became {mean_loss} in epoch {epoch}, learning rate "
                f"{self.optimizer.param_groups[0]['lr']:.3g}: "
                f"lower it with --set peak_lr={self.recipe.peak_lr / 4:.3g}"
            )
        start = time.perf_counter()
        held_out = None if self.held_out is None else self.evaluate(self.held_out).top1
        return EpochMetrics(
            epoch=epoch,
            train_loss=mean_loss,
            train_top1=top1,
            val_top1=held_out,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            train_seconds=trained,
            evaluation_seconds=time.perf_counter() - start,
            images_per_s=self.steps * self.recipe.batch_size / trained,
        )

    def evaluate(self, split: Split) -> Accuracy:
        """Accuracy over `split` in fp32; each image counts once, over all processes."""
        session = EagerSession(self.selected, device=str(self.device))
        mine = slice(self.rank, None, self.world)
        found = accuracy(self._predict(session, split.images[mine]), split.fine[mine])
        counts = torch.tensor(
            [found.top1 * found.images, found.top5 * found.images, found.images],
            device=self.device,
            dtype=torch.float64,
        )
        top1, top5, images = (round(v) for v in self.accelerator.reduce(counts, "sum").tolist())
        return Accuracy(top1 / images, top5 / images, images)

    def run_steps(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Take the steps of an epoch; yield loss and accuracy of each, still on the device."""
        forward = augment.step_generator(
            self.seed, epoch, -1 - self.rank
        )  # no step has this number
        torch.manual_seed(forward.initial_seed())
        self._set_training()
        for step, (images, labels) in enumerate(self._batches(epoch)):
            set_rate(self.optimizer, self.rate((epoch - 1) * self.steps + step))
            loss, right = self.forward_loss(images, labels)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update_parameters(self.plain)
            yield loss.detach(), right

    def _place(self, train: Split) -> tuple[Split | None, Tensor, Tensor]:
        """Hold out the validation part and put the rest on the device: (N, 3, H, W) uint8."""
        rows, held_out = np.arange(len(train.fine)), None
        if not self.recipe.full_train:
            rows, held = validation_split(train)
            held_out = Split(images=train.images[held], fine=train.fine[held], coarse=None)
        images = torch.from_numpy(np.ascontiguousarray(train.images[rows].transpose(0, 3, 1, 2)))
        labels = torch.from_numpy(np.array(train.fine[rows]))
        return held_out, images.to(self.device), labels.to(self.device)

    def _require_batches(self) -> None:
        size = self.recipe.batch_size
        if size % self.world or size // self.world < 2:
            raise ZooError(
                f"batch size {size} does not divide into 2 or more images for each of "
                f"{self.world} processes: pass --batch-size with a multiple of {self.world}"
            )
        if self.steps == 0:
            raise ZooError(
                f"batch size {size} exceeds the {len(self.images)} training images of "
                f"{self.data.name}: pass a smaller --batch-size"
            )

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each batch of an epoch, augmented."""
        size = self.recipe.batch_size
        share = size // self.world
        order = augment.shuffled(len(self.images), self.seed, epoch)
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for step in range(self.steps):
            generator = augment.step_generator(self.seed, epoch, step)
            drawn = augment.draw(
                self.policy, size, generator, image_size=self.images.shape[-1]
            ).rows(mine)
            rows = order[step * size : (step + 1) * size][mine].to(self.device, non_blocking=True)
            images = augment.apply(
                self.policy,
                self.images.index_select(0, rows),  # on a CPU 15x faster than self.images[rows]
                drawn,
                self.preprocessing,
                channels_last=True,
            )
            yield images, self.labels.index_select(0, rows)

    def _forward_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self.recipe, self.device):
            logits = self.network(images)  # (B, K)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        return loss, (logits.detach().argmax(1) == labels).float().mean()

    def _set_training(self) -> None:
        self.network.train()
        if self.frozen is not None:
            self.frozen.keep_still()

    def _probe(self) -> None:
        """Forward and backward of one batch of epoch 1."""
        self._set_training()
        loss, _ = self.forward_loss(*next(self._batches(1)))
        loss.backward()  # type: ignore[no-untyped-call]

    def _timed(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        self._synchronize()
        return time.perf_counter() - start

    def _predict(self, session: EagerSession, images: np.ndarray) -> Tensor:
        return predict(session, images, self.preprocessing, batch=EVALUATION_BATCH)

    def _mean(self, value: Tensor) -> float:
        return float(self.accelerator.reduce(value, "mean").item())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
