import numpy as np
import pytest
import torch
from torch import Tensor

from training.pipeline import AsStored, OnDevice, OnHost, Source, is_copied, make_source
from zoo.data import Split

CPU = torch.device("cpu")
BATCH = 8
ROWS = np.arange(2, 60, 2)  # every second image trains


@pytest.fixture(scope="module")
def train() -> Split:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    return Split(images=images, fine=np.arange(60))


def batches(source: Source, order: Tensor) -> list[tuple[Tensor, Tensor]]:
    found = []
    for numbers in order.split(BATCH):
        source.bring(numbers)
        images, labels = source.batch(numbers.to(source.labels.device))
        found.append((images.cpu().clone(), labels.cpu()))
    return found


def of_every_kind(train: Split, device: torch.device) -> list[Source]:
    return [
        AsStored(train, ROWS),
        OnDevice(train, ROWS, device),
        OnHost(train, ROWS, device, batch=BATCH),
    ]


def test_wherever_images_lie_the_batches_are_those_of_the_data_set(train: Split) -> None:
    order = torch.randperm(len(ROWS))[: 3 * BATCH]

    for source in of_every_kind(train, CPU):
        images, labels = (torch.cat(part) for part in zip(*batches(source, order), strict=True))

        rows = ROWS[order.numpy()]
        assert labels.tolist() == train.fine[rows].tolist()
        assert images.is_contiguous()
        np.testing.assert_array_equal(images, train.images[rows].transpose(0, 3, 1, 2))


def test_one_batch_lies_at_one_place_and_two_wait_on_the_host(train: Split) -> None:
    host = OnHost(train, ROWS, CPU, batch=BATCH)
    places = set()
    for numbers in torch.arange(24).split(BATCH):
        host.bring(numbers)
        places.add(host.batch(numbers)[0].data_ptr())

    assert len(places) == 1
    assert [len(slot) for slot in host.slots] == [BATCH, BATCH]


def test_a_cpu_takes_images_where_the_data_set_has_them(train: Split) -> None:
    source = make_source(train, ROWS, CPU, batch=BATCH)

    assert isinstance(source, AsStored)
    assert source.images is train.images


def test_images_fit_into_a_quarter_of_the_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = 40_000
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 2 * free))  # fake GPU
    images = np.zeros(10_001, dtype=np.uint8)

    assert is_copied(images[:-1], torch.device("cuda"))
    assert not is_copied(images, torch.device("cuda"))
    assert not is_copied(images[:1], CPU)


@pytest.mark.gpu
def test_what_does_not_fit_the_gpu_stays_on_the_host(
    train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, order = torch.device("cuda"), torch.randperm(24)
    assert isinstance(make_source(train, ROWS, gpu, batch=BATCH), OnDevice)
    monkeypatch.setattr("training.pipeline.SHARE", 0.0)

    source = make_source(train, ROWS, gpu, batch=BATCH)

    assert isinstance(source, OnHost)
    kept = batches(AsStored(train, ROWS), order)
    for (some, _), (same, _) in zip(batches(source, order), kept, strict=True):
        assert torch.equal(some, same)
