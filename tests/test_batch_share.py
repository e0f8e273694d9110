"""Which images of a batch each process takes."""

import re
from dataclasses import replace

import pytest
from small_runs import SHORT

from training import Recipe, Runtime
from training.batch_share import BatchShare
from zoo.errors import ZooError


def shares(recipe: Recipe, *, world: int, accumulate: int = 1) -> list[BatchShare]:
    runtime = Runtime(device="cpu", accumulate=accumulate)
    return [BatchShare.of(recipe, runtime, rank=rank, world=world) for rank in range(world)]


@pytest.mark.parametrize(
    ("size", "alpha", "world", "parts", "counts"),
    [
        (1024, 0.0, 1, 1, [1024]),
        (1024, 0.0, 4, 2, [256] * 4),
        (1024, 0.0, 3, 1, [341, 341, 342]),
        (1024, 0.2, 3, 1, [340, 342, 342]),  # pairs
        (10, 0.2, 1, 2, [10]),  # 5 images at a time, mixed before
        (60, 0.2, 3, 3, [18, 18, 24]),
        (7, 0.0, 3, 1, [2, 2, 3]),
    ],
)
def test_each_image_is_taken_once_and_counts_alike(
    size: int, alpha: float, world: int, parts: int, counts: list[int]
) -> None:
    recipe = replace(SHORT, batch_size=size, mixup_alpha=alpha)

    found = shares(recipe, world=world, accumulate=parts)

    assert [share.count for share in found] == counts
    taken = [row for share in found for row in range(share.first, share.first + share.count)]
    assert taken == list(range(size))
    for share in found:  # of an image, in the mean over processes of the means over images
        assert share.weight / share.count / world == pytest.approx(1 / size)


@pytest.mark.parametrize(
    ("size", "alpha", "world", "parts", "message"),
    [
        (
            *(5, 0.0, 3, 1),
            "batch size 5 leaves less than 2 images for each of 3 processes: "
            "pass --batch-size 6 or more",
        ),
        (
            *(8, 0.2, 2, 3),
            "batch size 8 leaves less than 2 images for each of 2 processes in 3 parts: "
            "pass --batch-size 12 or more",
        ),
        (
            *(100, 0.0, 1, 150),
            "batch size 100 leaves less than 2 images for each of 150 parts: "
            "pass --batch-size 300 or more",
        ),
        (
            *(50, 0.0, 1, 3),
            "batch size 50 does not divide into 3 equal parts: "
            "pass --batch-size with a multiple of 3",
        ),
        (
            *(25, 0.2, 1, 1),
            "batch size 25 does not divide into pairs to mix: "
            "pass --batch-size with a multiple of 2",
        ),
        (
            *(51, 0.2, 1, 3),
            "batch size 51 does not divide into pairs to mix and 3 equal parts: "
            "pass --batch-size with a multiple of 6",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_is_one_line(
    size: int, alpha: float, world: int, parts: int, message: str
) -> None:
    recipe = replace(SHORT, batch_size=size, mixup_alpha=alpha)

    with pytest.raises(ZooError, match=f"^{re.escape(message)}$"):
        shares(recipe, world=world, accumulate=parts)
