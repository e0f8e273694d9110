"""What timm's training script does, for stored 32x32 images.

Its own loader with the prefetcher, which normalises and erases whole batches on the device, its
optimiser with its split of what decays, channels last, autocast on a GPU, and the loss read back
after every step. timm has no TrivialAugmentWide: nearest is its RandAugment with one operation,
always applied, of a strength drawn evenly. Other than the script: a padded crop for the random
resized one, which spares it time, and no Nesterov step, so that all train alike.
"""

import time
from collections.abc import Iterator
from functools import partial

import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler
from torch import Tensor, nn
from torchvision.transforms import RandomCrop

from zoo.data import load_dataset
from zoo.models import create_model

from . import contenders
from .contenders import Contender, Task
from .peer_data import Pictures, autocast_of, precision_of, start_data_worker

ONE_OPERATION = "rand-m10-n1-p1.0-mstd101-inc1"  # a deviation above 100 draws evenly up to m


class TimmLoop:
    """One model, its loader and its optimiser."""

    layout = "channels last"
    uses_data_workers = True

    def __init__(self, contender: Contender, task: Task) -> None:
        data = load_dataset(task.dataset)
        self.data_s = 0.0
        self.precision = precision_of(contender, task)
        self.device = torch.device(task.device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        self.loader = create_loader(
            Pictures(data.train),
            input_size=(3, 32, 32),
            batch_size=task.batch,
            is_training=True,
            re_prob=contenders.ERASE_P,
            re_mode="const",
            hflip=contenders.FLIP_P,
            color_jitter=0.0,
            auto_augment=ONE_OPERATION,
            mean=data.mean,
            std=data.std,
            num_workers=task.data_workers,
            pin_memory=False,  # the script's default
            device=self.device,
            use_prefetcher=True,
        )
        crop = RandomCrop(32, padding=contenders.CROP_PADDING)
        self.loader.dataset.transform.transforms[0] = crop  # of the random resized crop
        seed_worker = self.loader.loader.worker_init_fn
        self.loader.loader.worker_init_fn = partial(_start, seed_worker)
        torch.manual_seed(contenders.SEED)
        self.network: nn.Module = create_model(task.model, num_classes=data.num_classes)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(
            self.network,
            opt="momentum",
            lr=contenders.RATE,
            momentum=contenders.MOMENTUM,
            weight_decay=contenders.DECAY,
        )
        self.criterion = nn.CrossEntropyLoss().to(self.device)
        self.scaler = NativeScaler(device=task.device) if self.precision == "fp16" else None
        self.autocast = partial(autocast_of, self.precision, task.device)
        self.forward = torch.compile(self.network) if contender.compile else self.network

    def __iter__(self) -> Iterator[float]:
        self.network.train()
        waiting = time.perf_counter()
        while True:
            for images, labels in self.loader:
                self.data_s += time.perf_counter() - waiting
                yield self.step(images, labels)
                waiting = time.perf_counter()

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Train on one batch and read the loss."""
        images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            loss = self.criterion(self.forward(images), labels)
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler(loss, self.optimizer, parameters=self.network.parameters())
        shown: float = loss.item()
        self.optimizer.zero_grad()
        return shown

    def augment(self, batches: int) -> bool:
        """Its data workers prepare batches beside the steps."""
        return False


def _start(seed_worker: "partial[None]", number: int) -> None:
    start_data_worker(number)
    seed_worker(number)


def build(contender: Contender, task: Task) -> TimmLoop:
    """The loop of this contender."""
    return TimmLoop(contender, task)
