"""The training loop of zoo-train."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from training.augment import Augmentation, Policy
from training.batch_share import BatchShare
from training.kernels import Choice, restore, use_fast_kernels
from training.pace import paced
from training.pipeline import is_copied, make_source
from training.precision import DTYPES, keep_depthwise_in_fp32
from training.prediction import Prediction
from training.recipe import Recipe, Runtime
from training.step import Step
from zoo.data import Dataset, Split, validation_split
from zoo.errors import MachineError, ZooError, first_line
from zoo.evaluate import Accuracy, accuracy, evaluation_batch, predict
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession, cudnn_benchmark

PROBE_STEPS = 3  # at most, to predict the time
PROBE_S = 2.0  # of either: of what takes longer, one more call says little
PROBE_IMAGES = {"cpu": 64, "cuda": 1000}  # of the test split at most, to predict its time


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
    train_seconds: float  # steps of this epoch, since the run began or was resumed
    evaluation_seconds: float
    images_per_s: float


OnProgress = Callable[[Progress], None]


class NonFinite(MachineError):
    """The loss or its gradients became infinite or NaN."""

    def __init__(self, *, epoch: int, step: int, learning_rate: float, peak_lr: float) -> None:
        self.epoch, self.step, self.learning_rate = epoch, step, learning_rate
        super().__init__(
            f"the loss or its gradients became infinite or NaN in epoch {epoch}, step {step + 1}, "
            f"learning rate {learning_rate:.3g}: begin again with a lower one, "
            f"--set peak_lr={peak_lr / 4:.3g}"
        )


class Trainer:
    """One model on one process's device, with what its optimiser has to remember.

    Random numbers follow from (seed, epoch, place in the epoch) alone; each process draws those of
    its own rows of a batch, so the number of processes does not change the data.

    Augmentation works on the stored images; their batch is then brought to the size that
    `preprocessing` names, on the device. Without one they are used as they are stored. With a
    `teacher` the loss is in part the divergence from what that network says of the same images.

    Raises:
        ZooError: the batch is too small for the processes, or exceeds the training images.
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
        teacher: nn.Module | None = None,
    ) -> None:
        self.recipe, self.runtime, self.data, self.seed = recipe, runtime, data, seed
        self.preprocessing = preprocessing or Preprocessing.of(data)
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.mine = BatchShare.of(recipe, runtime, rank=self.rank, world=self.world)
        self.kernels: list[Choice] = []  # convolutions that could train faster than with cuDNN
        self.compile_seconds = 0.0  # of choosing kernels, compiling and capturing
        rows = self._hold_out(data.train)
        self.steps = len(rows) // recipe.batch_size  # the last partial batch is left out
        if recipe.epoch_steps is not None:
            self.steps = min(self.steps, recipe.epoch_steps)
        if self.steps == 0:
            raise ZooError(
                f"batch size {recipe.batch_size} exceeds the {len(rows)} training images of "
                f"{data.name}: pass a smaller --batch-size"
            )
        self.plain = model.to(self.device)
        if runtime.channels_last:
            self.plain = self.plain.to(memory_format=torch.channels_last)
        keep_depthwise_in_fp32(self.plain, recipe.precision, self.device)
        self.stepper = Step(
            self.plain,
            recipe,
            runtime,
            make_source(data.train, rows, self.device, batch=self.mine.count),
            self.mine,
            Augmentation(
                Policy.of(recipe),
                self.preprocessing,
                size=data.train.images.shape[1],
                device=self.device,
                channels_last=runtime.channels_last,
            ),
            accelerator,
            seed=seed,
            steps=self.steps,
            teacher=None if teacher is None else self._still(teacher),
        )
        self.masks, self.schedule = self.stepper.masks, self.stepper.schedule
        self.loss = self.stepper.loss  # of the last step

    @property
    def watched(self) -> nn.Module:
        """The module that learns."""
        return self.plain

    @property
    def selected(self) -> nn.Module:
        """The module whose accuracy counts: the average where the recipe keeps one."""
        average = self.stepper.average
        return self.plain if average is None else average.module

    @property
    def position(self) -> tuple[int, int]:
        """Epoch, counted from 1, and step of it, counted from 0, that come next."""
        epoch, step = self.stepper.epoch, self.stepper.step
        return (epoch + 1, 0) if step == self.steps or epoch == 0 else (epoch, step)

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, on the CPU; every process must ask for it.

        Raises:
            NonFinite: the loss was not finite in this epoch.
        """
        self.check()
        return self.stepper.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self.stepper.load_state(state)

    def check(self) -> None:
        """Wait for the device, and see whether every loss of this epoch was finite.

        Raises:
            NonFinite: one was not.
        """
        everywhere: Tensor = self.accelerator.gather(self.stepper.bad[None])
        steps = everywhere[everywhere >= 0].tolist()
        if steps:  # what one process finds spoils the weights of all: the next step of the others
            epoch, step = self.stepper.epoch, int(min(steps))
            rate = self.schedule((epoch - 1) * self.steps + step)
            raise NonFinite(epoch=epoch, step=step, learning_rate=rate, peak_lr=self.recipe.peak_lr)

    def predicted(self) -> Prediction:
        """How long steps and evaluations take, by a few of them.

        Weights, buffers and random numbers are afterwards as they were. This is where compilation
        and capture happen, which take `compile_seconds`; they are not part of the answer.
        """
        before = self.stepper.state()
        step = self.step_seconds()
        self.stepper.load_state(before)
        session = self._session()
        batch = min(PROBE_IMAGES[self.device.type], self._images_a_call)
        part = self.data.test.images[:batch]
        evaluation = min(
            self._few_timed(lambda: predict(session, part, self.preprocessing, batch=batch), 2)
        )
        an_image = evaluation / batch / self.world
        held_out = 0 if self.held_out is None else len(self.held_out)
        return Prediction(
            step=step, held_out=an_image * held_out, test=an_image * len(self.data.test.fine)
        )

    def step_seconds(self) -> float:
        """Time of a step: the median of a few, which change weights as any step does."""
        stepper, start = self.stepper, time.perf_counter()
        self.kernels = self.kernels or self._fast_kernels()
        stepper.train_mode()
        if stepper.epoch == 0 or stepper.step + PROBE_STEPS >= self.steps:
            stepper.begin(max(1, stepper.epoch))
        with cudnn_benchmark(not self.runtime.deterministic):
            self._first_step()
            if stepper.wants_graph:
                self._stay_within()
                self._timed(stepper.capture)
        first = time.perf_counter() - start
        steps = self._few_timed(self._probe, PROBE_STEPS)
        self.compile_seconds = max(0.0, first - median(steps))
        return median(steps)

    def epoch(
        self,
        epoch: int,
        on_progress: OnProgress,
        seconds_after: float,
        *,
        at_boundary: Callable[[], None] | None = None,
    ) -> EpochMetrics:
        """Train one epoch, counted from 1, and evaluate on the held-out images.

        An epoch that was begun already is finished. `at_boundary` is called between two steps;
        `seconds_after` is what the run takes after those of this epoch.

        Raises:
            NonFinite: the loss or its gradients became infinite or NaN.
        """
        start = time.perf_counter()
        first = self.stepper.step if self._is_under_way(epoch) else 0
        for step, speed in paced(self.run_steps(epoch), first, self.recipe.batch_size):
            if speed is not None:
                loss, top1 = (self.stepper.sums / (step * self.mine.weight)).tolist()
                left = (self.steps - step) * self.recipe.batch_size / speed
                on_progress(
                    Progress(
                        epoch=epoch,
                        epochs=self.recipe.epochs,
                        step=step,
                        steps=self.steps,
                        seconds_left=left + seconds_after,
                        images_per_s=speed,
                        loss=loss,
                        top1=top1,
                    )
                )
            if at_boundary is not None and step < self.steps:
                at_boundary()
        self.check()
        trained = time.perf_counter() - start
        sums = self.accelerator.reduce(self.stepper.sums / self.steps, "mean")
        mean_loss, top1 = sums.tolist()
        start = time.perf_counter()
        held_out = None if self.held_out is None else self._top1_held_out()
        return EpochMetrics(
            epoch=epoch,
            train_loss=mean_loss,
            train_top1=top1,
            val_top1=held_out,
            learning_rate=self.schedule(epoch * self.steps - 1),
            train_seconds=trained,
            evaluation_seconds=time.perf_counter() - start,
            images_per_s=(self.steps - first) * self.recipe.batch_size / trained,
        )

    def evaluate(self, split: Split) -> Accuracy:
        """Accuracy over `split` in fp32; each image counts once, over all processes."""
        mine = slice(self.rank, None, self.world)
        return self._evaluate(split.images[mine], split.fine[mine])

    def run_steps(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Take the steps of an epoch that are left; yield loss and share of hits of each.

        Both lie on the device, where the next step overwrites them.
        """
        if not self._is_under_way(epoch):
            self.stepper.begin(epoch)
        self.stepper.train_mode()  # an evaluation may lie between two steps of a resumed epoch
        for _ in range(self.stepper.step, self.steps):
            yield self.stepper.take()

    def _still(self, teacher: nn.Module) -> nn.Module:
        """A teacher on the device that learns nothing more."""
        still = teacher.eval().requires_grad_(False).to(self.device)
        return still.to(memory_format=torch.channels_last) if self.runtime.channels_last else still

    def _fast_kernels(self) -> list[Choice]:
        """Take our own convolutions where they are faster; no choice where bits must repeat."""
        dtype = DTYPES.get(self.recipe.precision)
        if not self.runtime.compile or self.runtime.deterministic or dtype is None:
            return []
        size = self.preprocessing.image_size
        batch = self.mine.count // self.runtime.accumulate
        return use_fast_kernels(self.plain, (batch, 3, size, size), dtype)

    def _is_under_way(self, epoch: int) -> bool:
        return self.stepper.epoch == epoch and self.stepper.step < self.steps

    def _hold_out(self, train: Split) -> np.ndarray:
        """Set the validation part aside; the rows of the rest."""
        self.held_out: np.ndarray | None = None  # the rows
        if self.recipe.full_train:
            return np.arange(len(train.fine))
        rows, self.held_out = validation_split(train)
        mine = self.held_out[self.rank :: self.world]
        self._looked_at: tuple[np.ndarray | Tensor, np.ndarray | None] = train.images, mine
        if is_copied(train.images, self.device):
            self._looked_at = torch.from_numpy(train.images[mine]).to(self.device), None
        return rows

    def _top1_held_out(self) -> float:
        assert self.held_out is not None
        labels = self.data.train.fine[self.held_out[self.rank :: self.world]]
        images, rows = self._looked_at
        return self._evaluate(images, labels, rows).top1

    def _evaluate(
        self, images: np.ndarray | Tensor, labels: np.ndarray, rows: np.ndarray | None = None
    ) -> Accuracy:
        if self.world > 1:  # the statistics of batch norms that are stored are the first process's
            for buffer in self.selected.buffers():
                buffer.copy_(broadcast(buffer))
        session = self._session()
        found = Accuracy(0.0, 0.0, 0)  # of a process for which there are no images
        if len(labels):
            batch = self._images_a_call
            logits = predict(session, images, self.preprocessing, batch=batch, rows=rows)
            found = accuracy(logits, labels)
        right = (found.top1 * found.images, found.top5 * found.images)
        counts = torch.tensor(
            [*right, found.images, found.nonfinite], device=self.device, dtype=torch.float64
        )
        top1, top5, *rest = (round(v) for v in self.accelerator.reduce(counts, "sum").tolist())
        return Accuracy(top1 / rest[0], top5 / rest[0], *rest)

    def _first_step(self) -> None:
        """Compile; without our own convolutions where the compiler fails on them."""
        try:
            self._timed(self._probe)
            return
        except (AssertionError, RuntimeError) as reason:
            if not any(choice.swapped for choice in self.kernels):
                raise
            failure = f"torch.compile: {first_line(reason)}"
        restore(self.plain)
        self.kernels = [replace(one, swapped=False, failure=failure) for one in self.kernels]
        torch.compiler.reset()
        self.stepper.optimizer.zero_grad(set_to_none=True)
        self._timed(self._probe)

    def _probe(self) -> None:
        """One step more, of those that are undone afterwards."""
        self._stay_within()
        self.stepper.take()

    def _stay_within(self) -> None:
        """Go back to the first step where the epoch has no more."""
        if self.stepper.step == self.steps:
            self.stepper.begin(self.stepper.epoch)

    def _few_timed(self, call: Callable[[], object], most: int) -> list[float]:
        """Seconds of some calls, as many in each process: they work together."""
        seconds: list[float] = []
        while len(seconds) < most and (self.world > 1 or sum(seconds) < PROBE_S):
            seconds.append(self._timed(call))
        return seconds

    def _timed(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _session(self) -> EagerSession:
        """What evaluates; weights stay where they are, for a CUDA graph knows their place."""
        channels_last = self.runtime.channels_last
        return EagerSession(self.selected, device=str(self.device), channels_last=channels_last)

    @property
    def _images_a_call(self) -> int:
        return evaluation_batch(self.device.type, self.preprocessing.image_size)
