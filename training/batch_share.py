"""Which images of a batch each process takes."""

from contextlib import suppress
from dataclasses import dataclass
from math import ceil, lcm

from training.recipe import Recipe, Runtime
from zoo.errors import ZooError


@dataclass(frozen=True, slots=True)
class BatchShare:
    """The rows of every batch that one process takes; of several, some may take more than others.

    A mean over its rows counts `weight` times in the mean over processes: then each image of the
    batch counts alike.
    """

    first: int
    count: int
    weight: float

    @classmethod
    def of(cls, recipe: Recipe, runtime: Runtime, *, rank: int, world: int) -> "BatchShare":
        """The share of process `rank`, in whole pairs where images are mixed.

        Raises:
            ZooError: the batch leaves a process, or one of the parts that it is taken in, less than
                two images, or does not divide into these parts or into pairs.
        """
        size, parts, unit = recipe.batch_size, runtime.accumulate, unit_of(recipe, runtime)
        least = world * ceil(2 * parts / unit) * unit
        if size < least:
            places = [f"{world} processes"] * (world > 1) + [f"{parts} parts"] * (parts > 1)
            raise ZooError(
                f"batch size {size} leaves less than 2 images for each of {' in '.join(places)}: "
                f"pass --batch-size {least} or more"
            )
        if size % unit:
            wanted = ["pairs to mix"] * (unit > parts) + [f"{parts} equal parts"] * (parts > 1)
            raise ZooError(
                f"batch size {size} does not divide into {' and '.join(wanted)}: "
                f"pass --batch-size with a multiple of {unit}"
            )
        first, end = (size // unit * number // world * unit for number in (rank, rank + 1))
        return cls(first, end - first, (end - first) * world / size)


def largest_share(recipe: Recipe, runtime: Runtime, *, world: int) -> int | None:
    """The most rows that one of the processes takes; None where the batch cannot be shared so."""
    with suppress(ZooError):
        return BatchShare.of(recipe, runtime, rank=world - 1, world=world).count
    return None


def unit_of(recipe: Recipe, runtime: Runtime) -> int:
    """Batch sizes, and shares of them, are multiples of this."""
    is_mixed = recipe.mixup_alpha or recipe.cutmix_alpha
    return lcm(2, runtime.accumulate) if is_mixed else runtime.accumulate
