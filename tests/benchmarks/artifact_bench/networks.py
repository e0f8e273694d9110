"""The networks whose artifacts are measured: trained ones from their runs, others as they begin."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from export.write import check_dataset
from zoo.checkpoint import META, NOT_BEGUN, Checkpoint, DatasetInfo, RunMeta, folder_name, save_run
from zoo.data import Dataset, Split
from zoo.environment import capture
from zoo.models import create_model
from zoo.preprocess import Preprocessing

SEED = 0
TEST_IMAGES = 1000  # of an untrained network, which are for parity alone
TRAIN_IMAGES = 5000  # of it, to find the ranges of int8
SETTLING = (2, 128)  # batches and their images, from which batch norms take their statistics
LEFT = shutil.ignore_patterns("artifacts", "records", "state")


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A run whose artifacts may be written into it, and the images for that."""

    run: Checkpoint
    data: Dataset
    trained: str | None  # the run that it is a copy of


def prepare(model: str, runs: Path, data: Dataset, folder: Path) -> Network:
    """A copy of the run of this model with seed 0 in `folder`; without one, a run of no training.

    Raises:
        ZooError: the run is damaged, or was trained on other images than `data`.
    """
    name = folder_name(model, SEED)
    if (runs / name / META).is_file():
        check_dataset(runs / name, Checkpoint.open(runs / name).meta.dataset, data)
        copy = shutil.copytree(runs / name, folder / name, ignore=LEFT)
        return Network(run=Checkpoint.open(copy), data=data, trained=name)
    few = replace(data, train=_first(data.train, TRAIN_IMAGES), test=_first(data.test, TEST_IMAGES))
    return Network(run=_untrained(folder / name, model, few), data=few, trained=None)


def _first(split: Split, count: int) -> Split:
    coarse = None if split.coarse is None else split.coarse[:count]
    return Split(images=split.images[:count], fine=split.fine[:count], coarse=coarse)


def _untrained(path: Path, model: str, data: Dataset) -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = create_model(model, num_classes=data.num_classes)
        _settle(network, data)
    meta = RunMeta(
        model=model,
        seed=SEED,
        recipe_name="none",
        recipe={},
        dataset=DatasetInfo.of(data, val_images=0),
        selection="last",
        compiled=False,
        processes=1,
        environment=capture().to_json(),
        commit=None,
        started_at="",
        **NOT_BEGUN,
    )
    return save_run(path, meta, network.state_dict())


def _settle(network: nn.Module, data: Dataset) -> None:
    """Give batch norms the statistics of images, so that logits have a natural size."""
    batches, size = SETTLING
    preprocessing = Preprocessing.of(data)
    network.train()
    with torch.no_grad():
        for start in range(0, batches * size, size):
            network(preprocessing.to_batch(data.train.images[start : start + size]))
