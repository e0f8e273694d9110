"""Time of a forward pass on each CPU backend that needs no export: make bench."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from zoo.models import create_model
from zoo.session import EagerSession

NAMES = (
    "resnet_20",
    "resnet_32",
    "resnet_56",
    "ecanet20_adaptive",
    "improved_resnet20_convnext",
    "ghost_resnet_20",
)


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("name", NAMES)
def test_forward(benchmark: BenchmarkFixture, name: str, batch: int) -> None:
    benchmark.group = f"forward-cpu-b{batch}"
    session = EagerSession(create_model(name), device="cpu")
    images = torch.zeros(batch, 3, 32, 32)

    logits = benchmark.pedantic(session.run, (images,), warmup_rounds=5, rounds=30)

    assert logits.shape == (batch, 100)  # a fast wrong answer is not a result
