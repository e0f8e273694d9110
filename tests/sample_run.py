"""A run folder as zoo-train leaves it, made in a second: real images, weights by chance."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.checkpoint import Checkpoint, DatasetInfo, RunMeta, save_run
from zoo.data import Dataset
from zoo.environment import capture
from zoo.models import create_model
from zoo.preprocess import Preprocessing


def sample_run(
    path: Path,
    data: Dataset,
    *,
    model: str = "resnet_20",
    seed: int = 0,
    change: Callable[[nn.Module], None] | None = None,
) -> Checkpoint:
    """Write a run of a network whose batch norms have seen real images, then were changed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = settled(create_model(model, num_classes=data.num_classes), data)
    if change is not None:
        change(network)
    meta = RunMeta(
        model=model,
        seed=seed,
        recipe_name="sample",
        recipe={"epochs": 0, "batch_size": 128},
        dataset=DatasetInfo.of(data, val_images=0),
        selection="last",
        epoch=1,
        epochs_done=1,
        val_top1=None,
        test_top1=None,
        test_top5=None,
        train_seconds=0.0,
        compiled=False,
        processes=1,
        weights_sha256="",
        environment=capture().to_json(),
        commit=None,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:00:01+00:00",
    )
    return save_run(path, meta, network.state_dict())


def settled(network: nn.Module, data: Dataset) -> nn.Module:
    """Give batch norms the statistics of real images, so that logits have a natural size."""
    network.train()
    with torch.no_grad():
        for start in range(0, 256, 128):
            network(stored(data.train.images[start : start + 128], data))
    return network.eval()


def stored(images: object, data: Dataset) -> Tensor:
    return Preprocessing.of(data).to_batch(images)
