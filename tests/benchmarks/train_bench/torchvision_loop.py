"""What torchvision's reference script for classification does, for stored 32x32 images.

PIL pictures through transforms v2 in the processes of a DataLoader, a copy to the device that
blocks, autocast and GradScaler on a GPU, and loss and accuracy read back after every step. Other
than the script: a padded crop for the random resized one, loader processes that live on from
epoch to epoch, and the last partial batch left out, all of which spare it time.
"""

import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms import v2

from zoo.data import Channels, load_dataset
from zoo.models import create_model

from . import contenders
from .contenders import Contender, Task
from .peer_data import Pictures, autocast_of, precision_of, start_data_worker


class TorchvisionLoop:
    """One model, its loader and its optimiser."""

    layout = "contiguous"
    uses_data_workers = True

    def __init__(self, contender: Contender, task: Task) -> None:
        data = load_dataset(task.dataset)
        self.data_s = 0.0
        self.precision = precision_of(contender, task)
        self.device = torch.device(task.device)
        torch.backends.cudnn.benchmark = True
        dataset = Pictures(data.train, transform(data.mean, data.std))
        self.loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            dataset,
            batch_size=task.batch,
            sampler=RandomSampler(dataset),
            num_workers=task.data_workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=True,
            prefetch_factor=contenders.PREFETCH,
            worker_init_fn=start_data_worker,
            drop_last=True,
        )
        torch.manual_seed(contenders.SEED)
        self.network: nn.Module = create_model(task.model, num_classes=data.num_classes)
        self.network.to(self.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=contenders.RATE,
            momentum=contenders.MOMENTUM,
            weight_decay=contenders.DECAY,
        )
        self.criterion = nn.CrossEntropyLoss()
        self.scaler = torch.amp.GradScaler(task.device) if self.precision == "fp16" else None
        self.autocast = partial(autocast_of, self.precision, task.device)
        self.forward = torch.compile(self.network) if contender.compile else self.network

    def __iter__(self) -> Iterator[float]:
        self.network.train()
        waiting = time.perf_counter()
        while True:
            for images, labels in self.loader:
                self.data_s += time.perf_counter() - waiting
                yield self.step(images.to(self.device), labels.to(self.device))
                waiting = time.perf_counter()

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Train on one batch and read the metrics."""
        with self.autocast():
            logits = self.forward(images)
            loss = self.criterion(logits, labels)
        self.optimizer.zero_grad()
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        best = logits.detach().topk(5, dim=1).indices  # (B, 5)
        hits = best == labels[:, None]
        shown = loss.item()
        for places in (1, 5):  # the script reads both accuracies back, one by one
            hits[:, :places].any(dim=1).float().mean().item()
        return shown

    def augment(self, batches: int) -> bool:
        """Its data workers prepare batches beside the steps."""
        return False


def transform(mean: Channels, std: Channels) -> v2.Compose:
    """The script's chain with backend PIL and `--auto-augment ta_wide --random-erase 0.5`."""
    return v2.Compose(
        [
            v2.RandomCrop(32, padding=contenders.CROP_PADDING),
            v2.RandomHorizontalFlip(contenders.FLIP_P),
            v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=mean, std=std),
            v2.RandomErasing(p=contenders.ERASE_P),
            v2.ToPureTensor(),
        ]
    )


def build(contender: Contender, task: Task) -> TorchvisionLoop:
    """The loop of this contender."""
    return TorchvisionLoop(contender, task)
