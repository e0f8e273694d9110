import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.evaluate import accuracy, evaluate, evaluation_batch, guesses, predict
from zoo.models import create_model
from zoo.preprocess import Preprocessing
from zoo.session import CompiledSession, EagerSession, require_compiler

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
PREPROCESSING = Preprocessing(32, MEAN, STD)


class Recorder:
    """Guesses the class that the first pixel's red value names; notes the batches it saw."""

    backend, precision, runtime, device = "recorder", "fp32", "none", "cpu"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        red = ((images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255).round().long()
        return nn.functional.one_hot(red, 10).float()

    def synchronize(self) -> None:
        pass


def pictures(reds: list[int]) -> np.ndarray:
    images = np.zeros((len(reds), 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = reds
    return images


def test_each_image_counts_once_and_the_shape_stays() -> None:
    session = Recorder()
    labels = [0, 1, 2, 3, 4, 5, 6]

    found = evaluate(
        session, pictures([0, 1, 2, 3, 4, 5, 0]), np.array(labels), PREPROCESSING, batch=3
    )

    assert session.batches == [3, 3, 3]
    assert (found.top1, found.images) == (6 / 7, 7)


def test_logits_keep_the_order_of_the_images() -> None:
    logits = predict(Recorder(), pictures([3, 1, 4, 1, 5]), PREPROCESSING, batch=2)

    assert logits.argmax(1).tolist() == [3, 1, 4, 1, 5]


def test_top5_by_hand() -> None:
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4], [0.0, 1, 2, 3, 4, 5]])

    found = accuracy(logits, np.array([4, 5, 5]))

    assert (found.top1, found.top5) == (1 / 3, 2 / 3)


def test_top5_of_three_classes_is_all() -> None:
    assert accuracy(torch.eye(3), np.array([1, 2, 0])).top5 == 1.0


def test_of_equal_logits_one_is_the_guess_everywhere() -> None:
    logits = torch.randint(0, 3, (500, 40), generator=torch.manual_seed(0)).float()
    truth = logits.topk(1).indices[:, 0].numpy()  # another rule than ours

    found = accuracy(logits, truth)

    assert found.top1 == (guesses(logits).numpy() == truth).mean()
    assert found.top5 >= found.top1
    assert accuracy(logits, guesses(logits).numpy()).top5 == 1.0


def test_what_is_no_number_is_no_right_answer() -> None:
    logits = torch.eye(6) + 1.0
    logits[0, 0], logits[1, 1], logits[2, 5] = torch.nan, torch.inf, -torch.inf

    found = accuracy(logits, np.arange(6))

    assert (found.top1, found.top5, found.nonfinite) == (0.5, 0.5, 3)


@pytest.mark.parametrize(("size", "batch"), [(16, 256), (32, 256), (64, 64), (224, 5), (1024, 1)])
def test_a_call_of_large_images_takes_fewer_of_them(size: int, batch: int) -> None:
    assert evaluation_batch("cpu", size) == batch
    assert 1 <= evaluation_batch("cuda", size) <= 1000


@pytest.mark.parametrize("channels_last", [True, False])
def test_weights_that_lie_right_stay_where_they_are(channels_last: bool) -> None:
    """A captured step knows their places; torch by itself moves those of one pixel and channel."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 1, groups=8), torch.nn.Conv2d(8, 3, 3)
    )
    there = EagerSession(model, channels_last=channels_last).model
    before = [parameter.data_ptr() for parameter in there.parameters()]

    EagerSession(there, channels_last=channels_last)
    after = [parameter.data_ptr() for parameter in there.parameters()]
    EagerSession(there, channels_last=not channels_last)

    assert after == before
    moved = there[0].weight
    assert moved.is_contiguous(memory_format=torch.channels_last) is not channels_last


@pytest.mark.parametrize("batch", [1, 5])
def test_eager_equals_the_module(batch: int) -> None:
    torch.manual_seed(0)
    model = create_model("ecanet20_adaptive").eval()
    images = torch.randn(batch, 3, 32, 32)
    expected = model(images)

    logits = EagerSession(model).run(images)

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad


def test_compiling_for_a_cpu_misses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler("cpu")
    from torch.utils import cpp_extension

    heard: list[logging.LogRecord] = []
    monkeypatch.setattr(cpp_extension.logger, "handlers", [Heard(heard)])
    monkeypatch.setenv("CUDA_HOME", "/")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert cpp_extension._find_cuda_home() == "/"
    cpp_extension.logger.warning("another")

    assert [record.getMessage() for record in heard] == ["another"]


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, kept: list[logging.LogRecord]) -> None:
        super().__init__()
        self.emit = kept.append


def test_compiled_equals_eager() -> None:
    torch.manual_seed(0)
    model = create_model("resnet_20").eval()
    images = torch.randn(2, 3, 32, 32)
    expected = EagerSession(model).run(images)

    session = CompiledSession(model)

    torch.testing.assert_close(session.run(images), expected, rtol=1e-3, atol=1e-4)
    assert session.backend == "compile"
