"""What exported networks are fed with; whoever uses it has a fixture `model` of its own."""

import pytest
import torch
from sample_run import stored
from torch import Tensor, nn

from zoo.data import Dataset, load_dataset


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def images(mini: Dataset) -> Tensor:
    """Real ones."""
    return stored(mini.test.images[:32], mini)


@pytest.fixture(scope="module")
def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(images)
    return found
