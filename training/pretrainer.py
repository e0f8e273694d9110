"""The training loop of zoo-pretrain."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.augment import epoch_seed, shuffled
from training.backbone import Backbone
from training.knn import knn_top1
from training.loop import NonFinite, OnProgress, Progress
from training.methods import make_method
from training.optim import make_optimizer
from training.pace import paced
from training.philox import Numbers, make_key
from training.pipeline import make_source
from training.precision import autocast, is_sound, keep_depthwise_in_fp32
from training.pretrain_folder import PretrainingMetrics
from training.pretraining import Pretraining
from training.schedule import learning_rate
from training.snapshot import (
    copied,
    generator_state,
    put_back,
    put_scale_back,
    remembered,
    scale_of,
    set_generator_state,
)
from training.state import is_finite
from training.step import infinite_buffers
from training.views import Views
from zoo.data import Dataset, validation_split
from zoo.errors import MachineError, ZooError
from zoo.evaluate import evaluation_batch, predict
from zoo.models import create_model
from zoo.own import check_training, is_own
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession

PARTS = (5, 6)  # the random numbers that the two views draw


class Pretrainer:
    """A backbone, its method and the images, on one device.

    Raises:
        ZooError: the batch exceeds the training images, or the model has no known classifier or
            cannot be trained.
    """

    def __init__(
        self,
        model: str,
        settings: Pretraining,
        data: Dataset,
        accelerator: Accelerator,
        *,
        seed: int,
    ) -> None:
        self.model, self.settings, self.data, self.seed = model, settings, data, seed
        self.device, recipe = accelerator.device, settings.optimisation
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.preprocessing = Preprocessing.of(data)
        rows, self.held_out = validation_split(data.train)
        self.steps = len(rows) // settings.batch_size  # the last partial batch is left out
        if self.steps == 0:
            raise ZooError(
                f"batch size {settings.batch_size} exceeds the {len(rows)} training images of "
                f"{data.name}: pass a smaller --batch-size"
            )
        if settings.epoch_steps is not None:
            self.steps = min(self.steps, settings.epoch_steps)
        torch.manual_seed(seed)
        network = create_model(model, num_classes=data.num_classes)
        size = self.preprocessing.image_size
        if is_own(model):
            check_training(model, network, num_classes=data.num_classes, image_size=size)
        self.backbone = Backbone(network, name=model, image_size=size)
        self.method = make_method(settings, self.backbone)
        for part in (self.method.learns, self.method.rest):
            part.to(self.device).to(memory_format=torch.channels_last)
            keep_depthwise_in_fp32(part, recipe.precision, self.device)
        self.masks = infinite_buffers(self.method.learns, "0") | infinite_buffers(
            self.method.rest, "1"
        )
        self.rows = rows
        self.source = make_source(data.train, rows, self.device, batch=settings.batch_size)
        size = data.train.images.shape[1]
        self.views = Views(settings, self.preprocessing, size=size, device=self.device)
        self.rate = torch.tensor(recipe.peak_lr, device=self.device)
        self.optimizer = make_optimizer(self.method.learns, recipe, self.rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.schedule = learning_rate(recipe, self.steps)
        self.recipe, self.key = recipe, make_key(seed, self.device)
        self.begun, self.step = 0, 0  # the epoch under way, and how many of its steps are done
        self.losses = torch.zeros(self.steps, device=self.device)  # of these steps
        self.loss = torch.zeros((), device=self.device)  # of the last one

    @property
    def network(self) -> nn.Module:
        """What is pre-trained, under the names that its tensors have with a classifier."""
        return self.backbone.body

    @property
    def watched(self) -> nn.Module:
        """What learns: the backbone under its heads."""
        return self.method.learns

    @property
    def position(self) -> tuple[int, int]:
        """Epoch, counted from 1, and step of it, counted from 0, that come next."""
        is_between = self.step == self.steps or self.begun == 0
        return (self.begun + 1, 0) if is_between else (self.begun, self.step)

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, on the CPU.

        Raises:
            NonFinite: a loss of this epoch was not finite, or the last step left weights that are
                not.
        """
        self.check()
        return copied(self._tensors()) | {
            "scaler": scale_of(self.scaler),
            "place": torch.tensor([self.begun, self.step]),
            "rng": generator_state(self.device),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            KeyError, ValueError, RuntimeError: the state is of another network.
        """
        put_back(state, self.optimizer, self._tensors)
        put_scale_back(self.scaler, state["scaler"])
        self.begun, self.step = state["place"].tolist()
        if self.begun:
            self._shuffle()
        otherwise = epoch_seed(self.seed, self.begun, 0)
        set_generator_state(self.device, state["rng"], otherwise=otherwise)

    def check(self) -> None:
        """Wait for the device, and see whether losses and weights are finite.

        Raises:
            NonFinite: one is not.
            MachineError: the weights to begin with are not.
        """
        bad = ~self.losses[: self.step].isfinite().cpu()
        if not bad.any() and is_finite(self._tensors(), but=self.masks):
            return
        if self.begun == 0:
            raise MachineError("the weights to begin with hold NaN or infinity: begin with others")
        step = int(bad.byte().argmax()) if bad.any() else self.step - 1
        rate = self.schedule((self.begun - 1) * self.steps + step)
        peak_lr = self.settings.peak_lr
        raise NonFinite(epoch=self.begun, step=step, learning_rate=rate, peak_lr=peak_lr)

    def epoch(
        self,
        epoch: int,
        on_progress: OnProgress,
        seconds_after: float,
        *,
        at_boundary: Callable[[], None] | None = None,
    ) -> PretrainingMetrics:
        """Train one epoch, counted from 1, and look at the nearest neighbours.

        An epoch that was begun already is finished. `at_boundary` is called between two steps;
        `seconds_after` is what the run takes after this epoch.

        Raises:
            NonFinite: the loss became infinite or NaN, or the last step left weights that are.
        """
        start = time.perf_counter()
        size = self.settings.batch_size
        first = self.step if self._is_under_way(epoch) else 0
        for step, speed in paced(self.run_steps(epoch), first, size):
            if speed is not None:
                on_progress(
                    Progress(
                        epoch=epoch,
                        epochs=self.settings.epochs,
                        step=step,
                        steps=self.steps,
                        seconds_left=(self.steps - step) * size / speed + seconds_after,
                        images_per_s=speed,
                        loss=self.losses[:step].mean().item(),
                    )
                )
            if at_boundary is not None and step < self.steps:
                at_boundary()
        self.check()
        trained = time.perf_counter() - start
        start = time.perf_counter()
        found = self.knn_top1()
        return PretrainingMetrics(
            epoch=epoch,
            loss=self.losses.cpu().mean().item(),
            knn_top1=found,
            learning_rate=self.schedule(epoch * self.steps - 1),
            train_seconds=trained,
            evaluation_seconds=time.perf_counter() - start,
            images_per_s=(self.steps - first) * size / trained,
        )

    def run_steps(self, epoch: int) -> Iterator[Tensor]:
        """Take the steps of an epoch that are left; yield the loss of each.

        It lies on the device, where the next step overwrites it.
        """
        if not self._is_under_way(epoch):
            self.begun, self.step = epoch, 0
            self._shuffle()
            torch.manual_seed(epoch_seed(self.seed, epoch, 0))
        self.method.learns.train()
        self.method.rest.train()
        for _ in range(self.step, self.steps):
            yield self._take()

    def knn_top1(self) -> float:
        """Accuracy of nearest neighbours on the held-out images, by features in fp32."""
        fine = self.data.train.fine
        labels, wanted = (
            torch.from_numpy(fine[rows]).to(self.device) for rows in (self.rows, self.held_out)
        )
        queries, bank = self._features(self.held_out), self._features(self.rows)
        return knn_top1(bank, labels, queries, wanted)

    def _is_under_way(self, epoch: int) -> bool:
        return self.begun == epoch and self.step < self.steps

    def _shuffle(self) -> None:
        """Put the images in the order of the epoch."""
        self.host_order = shuffled(len(self.source.labels), self.seed, self.begun)
        self.order = self.host_order.to(self.device)
        self.here = torch.tensor(self.begun, device=self.device)  # a step that made it would wait

    def _take(self) -> Tensor:
        """Take the next step."""
        size = self.settings.batch_size
        rows = slice(self.step * size, (self.step + 1) * size)
        self.source.bring(self.host_order[rows])
        stored, _ = self.source.batch(self.order[rows])
        numbers = Numbers(
            key=self.key,
            epoch=self.here,
            place=torch.arange(rows.start, rows.stop, device=self.device),
        )
        first, second = (self.views(stored, numbers, part=part) for part in PARTS)
        done = (self.begun - 1) * self.steps + self.step
        self.rate.fill_(self.schedule(done))
        with autocast(self.recipe, self.device):
            loss = self.method.loss(first, second, numbers)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.follow((done + 1) / (self.settings.epochs * self.steps))
        self.loss.copy_(loss.detach())
        self.losses[self.step] = self.loss.where(is_sound(self.loss, self.scaler), torch.nan)
        self.step += 1
        return self.loss

    def _tensors(self) -> dict[str, Tensor]:
        """All that a step changes, where it is; a state dict would leave MoCo's queue out."""
        found = {
            f"{number}.{name}": tensor
            for number, part in enumerate((self.method.learns, self.method.rest))
            for name, tensor in (*part.named_parameters(), *part.named_buffers())
        }
        found |= remembered(self.optimizer)
        return found | {"losses": self.losses}

    def _features(self, rows: np.ndarray) -> Tensor:
        session = EagerSession(self.backbone, device=str(self.device))
        batch = evaluation_batch(self.device.type, self.preprocessing.image_size)
        images = self.data.train.images
        found = predict(session, images, self.preprocessing, batch=batch, rows=rows)
        return found.to(self.device)
