import pytest
import torch
from torch import Tensor

from training.pipeline import OnDevice, OnHost, Source, fits, make_source

CPU = torch.device("cpu")
BATCH = 8


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(50)


def batches(source: Source, order: Tensor) -> list[tuple[Tensor, Tensor]]:
    found = []
    for rows in order.split(BATCH):
        source.bring(rows)
        images, labels = source.batch(rows.to(source.labels.device))
        found.append((images.cpu().clone(), labels.cpu()))
    return found


def test_images_on_the_host_give_the_batches_of_images_on_the_device(
    images: Tensor, labels: Tensor
) -> None:
    order = torch.randperm(48)
    host = OnHost(images, labels, CPU, batch=BATCH)

    brought = batches(host, order)

    kept = batches(OnDevice(images, labels, CPU), order)
    for (some, their), (same, these) in zip(brought, kept, strict=True):
        assert torch.equal(some, same)
        assert torch.equal(their, these)


def test_one_batch_lies_at_one_place_and_two_wait_on_the_host(
    images: Tensor, labels: Tensor
) -> None:
    host = OnHost(images, labels, CPU, batch=BATCH)
    places = set()
    for rows in torch.arange(48).split(BATCH):
        host.bring(rows)
        places.add(host.batch(rows)[0].data_ptr())

    assert len(places) == 1
    assert [len(slot) for slot in host.slots] == [BATCH, BATCH]


def test_a_cpu_keeps_all_images_where_they_are(images: Tensor, labels: Tensor) -> None:
    source = make_source(images, labels, CPU, batch=BATCH)

    assert isinstance(source, OnDevice)
    assert source.images.data_ptr() == images.data_ptr()


def test_images_fit_into_a_quarter_of_the_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = 40_000
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 2 * free))  # fake GPU
    images = torch.zeros(10_000, dtype=torch.uint8)

    assert fits(images, torch.device("cuda"))
    assert not fits(torch.cat([images, images[:1]]), torch.device("cuda"))
    assert fits(torch.zeros(2 * free, dtype=torch.uint8), CPU)


@pytest.mark.gpu
def test_what_does_not_fit_the_gpu_stays_on_the_host(
    images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, order = torch.device("cuda"), torch.randperm(48)
    assert isinstance(make_source(images, labels, gpu, batch=BATCH), OnDevice)
    monkeypatch.setattr("training.pipeline.SHARE", 0.0)

    source = make_source(images, labels, gpu, batch=BATCH)

    assert isinstance(source, OnHost)
    kept = batches(OnDevice(images, labels, CPU), order)
    for (some, _), (same, _) in zip(batches(source, order), kept, strict=True):
        assert torch.equal(some, same)
