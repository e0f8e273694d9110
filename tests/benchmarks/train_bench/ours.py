"""Our loop: steps of real epochs, evaluation left out."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from accelerate import Accelerator
from torch import Tensor

from training.loop import Trainer
from training.precision import resolve_precision
from training.recipe import Runtime
from training.recipes import named_recipe
from zoo.allocator import keep_memory
from zoo.data import load_dataset
from zoo.models import create_model
from zoo.session import tf32

from . import contenders
from .contenders import Contender, Task

EPOCHS = 100_000  # so many that the rate stays at its peak


class Ours:
    """`Trainer.run_steps` over as many epochs as are asked for."""

    layout = "channels last"
    uses_data_workers = False
    data_s = 0.0  # images lie on the device: nothing is waited for

    def __init__(self, contender: Contender, task: Task) -> None:
        keep_memory()  # as zoo-train does
        data = load_dataset(task.dataset)
        recipe = replace(
            named_recipe("study"),
            epochs=EPOCHS,
            batch_size=task.batch,
            peak_lr=contenders.RATE,
            momentum=contenders.MOMENTUM,
            weight_decay=contenders.DECAY,
            crop_padding=contenders.CROP_PADDING,
            flip_p=contenders.FLIP_P,
            erase_p=contenders.ERASE_P,
            full_train=True,
        )
        precision = resolve_precision(contender.precision, torch.device(task.device))
        recipe = replace(recipe, precision=precision)
        runtime = Runtime(device=task.device, compile=contender.compile, **contender.runtime)
        accelerator = Accelerator(cpu=task.device == "cpu", mixed_precision="no")
        torch.manual_seed(contenders.SEED)
        network = create_model(task.model, num_classes=data.num_classes)
        self.precision = precision
        self.alone: torch.cuda.CUDAGraph | None = None  # of the augmentation
        self.trainer = Trainer(network, recipe, runtime, data, accelerator, seed=contenders.SEED)

    def __iter__(self) -> Iterator[Tensor]:
        trainer = self.trainer
        with tf32(allowed=True):
            trainer.predicted()  # compiles and captures, as at the start of every run
            for epoch in count(1):
                for loss, _ in trainer.run_steps(epoch):
                    yield loss

    def augment(self, batches: int) -> bool:
        """Prepare the next batches; where the step is a graph, the next one again and again."""
        stepper = self.trainer.stepper
        if stepper.step == self.trainer.steps:  # an epoch has no batch after its last
            stepper.begin(stepper.epoch + 1)
        if stepper.graph is None:
            stepper.augment(batches)
            return True
        if self.alone is None:
            self.alone = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.alone):
                stepper.batch()
        for _ in range(batches):
            self.alone.replay()
        return True


def build(contender: Contender, task: Task) -> Ours:
    """The loop of this contender."""
    return Ours(contender, task)
