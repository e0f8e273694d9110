"""Pre-training of a backbone without labels, from start to finish."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.augment import epoch_seed, shuffled
from training.backbone import Backbone
from training.folder import now
from training.knn import knn_top1
from training.loop import (
    REPORT_SECONDS,
    NonFinite,
    OnProgress,
    Progress,
)
from training.methods import make_method, require_lightly
from training.optim import make_optimizer
from training.options import AUTO
from training.philox import Numbers, make_key
from training.pipeline import make_source, to_tensors
from training.precision import autocast, resolve_precision
from training.pretrain_folder import PretrainingFolder, PretrainingMetrics, incomplete
from training.pretraining import Pretraining
from training.processes import processes
from training.recipe import Runtime
from training.schedule import learning_rate
from training.state import is_finite
from training.step import infinite_buffers
from training.views import Views
from zoo.checkpoint import NOT_BEGUN, Checkpoint, DatasetInfo, RunMeta
from zoo.data import Dataset, validation_split
from zoo.environment import capture, git_commit
from zoo.errors import MachineError, ZooError, is_out_of_memory
from zoo.evaluate import evaluation_batch, predict
from zoo.models import create_model
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession, cudnn_benchmark

PARTS = (5, 6)  # the random numbers that the two views draw

OnEpoch = Callable[["PretrainingMetrics", float], None]  # and the seconds that are left


def pretrain(
    model: str,
    settings: Pretraining,
    data: Dataset,
    *,
    device: str = "auto",
    seed: int = 0,
    runs: Path | str = "runs",
    resume: Path | str | None = None,
    on_progress: OnProgress | None = None,
    on_epoch: OnEpoch | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Pre-train the backbone of a model and return its run folder; `train` takes it as `init_from`.

    Labels decide which training images are held out, as in `train`, and the accuracy of nearest
    neighbours after each epoch; the loss sees none. The test images are not used. The folder holds
    the weights of the last complete epoch, and what a resume needs, at any time; it goes where the
    run ends in an error or by a signal before there is one.

    `resume` is a run folder, or "auto" for the run of this model, method, settings, seed and data
    set that was begun last among those that are incomplete and not under way elsewhere; without
    one, a new run begins. It goes on after the last complete epoch and takes the same steps as one
    that was never stopped. `on_note` is told where it goes on.

    Raises:
        ZooError: model, settings and data do not fit each other, or lightly is not installed.
        CheckpointError: `resume` is no such run, is complete, damaged or under way elsewhere.
        MachineError: the loss became infinite or NaN, or memory ran out.
        OSError: the folder cannot be written.
    """
    require_lightly()
    with processes(Runtime(device=device)) as accelerator:
        if accelerator.num_processes > 1:
            raise ZooError("zoo-pretrain runs in one process: start it without a launcher")
        precision = resolve_precision(settings.precision, accelerator.device)
        settings = replace(settings, precision=precision)
        try:
            trainer = Pretrainer(model, settings, data, accelerator, seed=seed)
            return _pretrain(
                _folder(trainer, Path(runs), resume, on_note or (lambda line: None)),
                on_progress or (lambda progress: None),
                on_epoch or (lambda metrics, seconds: None),
            )
        except (MemoryError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
            if not is_out_of_memory(error):
                raise
            raise MachineError(
                f"not enough memory for two views of {settings.batch_size} images: "
                "pass a smaller --batch-size"
            ) from None


class Pretrainer:
    """A backbone, its method and the images, on one device.

    Raises:
        ZooError: the batch exceeds the training images, or the model has no known classifier.
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
        self.backbone = Backbone(network, name=model, image_size=size)
        self.method = make_method(settings, self.backbone)
        for part in (self.method.learns, self.method.rest):
            part.to(self.device).to(memory_format=torch.channels_last)
        self.masks = infinite_buffers(self.method.learns, "0") | infinite_buffers(
            self.method.rest, "1"
        )
        images, labels = to_tensors(data.train, rows)
        self.source = make_source(images, labels, self.device, batch=settings.batch_size)
        self.bank = images.permute(0, 2, 3, 1), labels  # (N, 32, 32, 3) on the host
        self.views = Views(settings, self.preprocessing, size=images.shape[-1], device=self.device)
        self.rate = torch.tensor(recipe.peak_lr, device=self.device)
        self.optimizer = make_optimizer(self.method.learns, recipe, self.rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.schedule = learning_rate(recipe, self.steps)
        self.recipe, self.key = recipe, make_key(seed, self.device)
        self.losses = torch.zeros(self.steps, device=self.device)

    @property
    def network(self) -> nn.Module:
        """What is pre-trained, under the names that its tensors have with a classifier."""
        return self.backbone.body

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on; the tensors are those that it changes."""
        return {
            "tensors": self._tensors(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        tensors, stored = self._tensors(), state["tensors"]
        if {key: t.shape for key, t in tensors.items()} != {k: t.shape for k, t in stored.items()}:
            raise ValueError("its tensors differ")
        with torch.no_grad():
            for key, tensor in tensors.items():
                tensor.copy_(stored[key])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # the one that the schedule fills
        self.scaler.load_state_dict(state["scaler"])

    def _tensors(self) -> dict[str, Tensor]:
        """Those of the method; a state dict leaves MoCo's queue out."""
        return {
            f"{number}.{name}": tensor
            for number, part in enumerate((self.method.learns, self.method.rest))
            for name, tensor in (*part.named_parameters(), *part.named_buffers())
        }

    def epoch(
        self, epoch: int, on_progress: OnProgress, seconds_per_epoch: float
    ) -> PretrainingMetrics:
        """Train one epoch, counted from 1, and look at the nearest neighbours.

        Raises:
            NonFinite: the loss became infinite or NaN, or the last step left weights that are.
        """
        start = reported = time.perf_counter()
        size, epochs = self.settings.batch_size, self.settings.epochs
        self.method.learns.train()
        self.method.rest.train()
        torch.manual_seed(epoch_seed(self.seed, epoch, 0))
        order = shuffled(len(self.source.labels), self.seed, epoch)
        on_device = order.to(self.device)
        for step in range(self.steps):
            rows = slice(step * size, (step + 1) * size)
            self.source.bring(order[rows])
            self._step(epoch, step, on_device[rows])
            now_ = time.perf_counter()
            if now_ - reported >= REPORT_SECONDS:
                reported, done = now_, step + 1
                speed = done * size / (now_ - start)
                left = (self.steps - done) * size / speed
                on_progress(
                    Progress(
                        epoch=epoch,
                        epochs=epochs,
                        step=done,
                        steps=self.steps,
                        seconds_left=left + (epochs - epoch) * seconds_per_epoch,
                        images_per_s=speed,
                        loss=self.losses[:done].mean().item(),
                    )
                )
        losses = self.losses.cpu()
        trained = time.perf_counter() - start
        bad = ~losses.isfinite()
        if bad.any() or not is_finite(self._tensors(), but=self.masks):
            first = int(bad.byte().argmax()) if bad.any() else self.steps - 1
            rate = self.schedule((epoch - 1) * self.steps + first)
            raise NonFinite(
                epoch=epoch, step=first, learning_rate=rate, peak_lr=self.settings.peak_lr
            )
        start = time.perf_counter()
        found = self.knn_top1()
        return PretrainingMetrics(
            epoch=epoch,
            loss=losses.mean().item(),
            knn_top1=found,
            learning_rate=self.schedule(epoch * self.steps - 1),
            train_seconds=trained,
            evaluation_seconds=time.perf_counter() - start,
            images_per_s=self.steps * size / trained,
        )

    def knn_top1(self) -> float:
        """Accuracy of nearest neighbours on the held-out images, by features in fp32."""
        train, held_out = self.data.train, self.held_out
        images, labels = self.bank
        wanted = torch.from_numpy(train.fine[held_out]).long()
        queries = self._features(torch.from_numpy(train.images[held_out]))
        bank = self._features(images)
        return knn_top1(bank, labels.to(self.device), queries, wanted.to(self.device))

    def _step(self, epoch: int, step: int, rows: Tensor) -> None:
        size = self.settings.batch_size
        done = (epoch - 1) * self.steps + step
        stored, _ = self.source.batch(rows)
        numbers = Numbers(
            key=self.key,
            epoch=torch.tensor(epoch, device=self.device),
            place=torch.arange(step * size, (step + 1) * size, device=self.device),
        )
        first, second = (self.views(stored, numbers, part=part) for part in PARTS)
        self.rate.fill_(self.schedule(done))
        with autocast(self.recipe, self.device):
            loss = self.method.loss(first, second, numbers)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.follow((done + 1) / (self.settings.epochs * self.steps))
        self.losses[step] = loss.detach()

    def _features(self, images: Tensor) -> Tensor:
        session = EagerSession(self.backbone, device=str(self.device))
        batch = evaluation_batch(self.device.type, self.preprocessing.image_size)
        return predict(session, images, self.preprocessing, batch=batch).to(self.device)


def _folder(
    trainer: Pretrainer, runs: Path, resume: Path | str | None, note: Callable[[str], None]
) -> PretrainingFolder:
    given = _first_meta(trainer)
    path = incomplete(runs, given) if resume == AUTO else resume
    if path is None:
        return PretrainingFolder.create(runs, given, trainer)
    return PretrainingFolder.reopen(Path(path), given, trainer, note)


def _pretrain(folder: PretrainingFolder, on_progress: OnProgress, on_epoch: OnEpoch) -> Checkpoint:
    trainer = folder.trainer
    epochs, spent = trainer.settings.epochs, 0.0
    try:
        with cudnn_benchmark(True):
            for epoch in range(len(folder.lines) + 1, epochs + 1):
                line = trainer.epoch(epoch, on_progress, spent)
                spent = line.train_seconds + line.evaluation_seconds
                folder.keep(line)
                on_epoch(line, spent * (epochs - epoch))
    finally:
        folder.close()
    return Checkpoint(folder.path, folder.meta)


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
