"""What decides the result of pre-training without labels."""

import math
from dataclasses import dataclass

from training.recipe import MOST_RATE, PRECISIONS, Recipe, require
from zoo.errors import ZooError, nearest

METHODS = ("simclr", "moco", "byol")
LEAST_BATCH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """Everything that decides how a backbone is pre-trained, apart from model, data and seed.

    Raises:
        ValueError: a field lies outside what its comment allows.
    """

    name: str  # the method
    epochs: int = 200
    batch_size: int = 512  # images a step, two views of each
    epoch_steps: int | None = None  # an epoch's at most; None: as many as the images give
    peak_lr: float = 0.24  # SGD, reached at the end of warm-up, then a cosine to zero
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 10.0  # linear from zero
    hidden: int = 512  # width of the layer within each head
    projection: int = 128  # numbers that stand for a view in the loss
    temperature: float = 0.5  # of the similarities; byol has none
    queue: int = 4096  # views of earlier batches that a view is told from; moco only
    target_momentum: float = 0.99  # of the average that makes the targets, a step; moco, byol
    crop_area: float = 0.08  # of an image, at least, that a view shows
    flip_p: float = 0.5
    jitter_p: float = 0.8
    jitter: float = 0.4  # brightness, contrast and saturation; the hue turns by a quarter of it
    grey_p: float = 0.2
    precision: str = "auto"  # of the matrix products; resolved by the device

    def __post_init__(self) -> None:
        checks = {
            "name": (self.name in METHODS, f"one of {', '.join(METHODS)}"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= LEAST_BATCH, f"{LEAST_BATCH} or more"),
            "epoch_steps": (self.epoch_steps is None or self.epoch_steps >= 1, "none or 1 or more"),
            "peak_lr": (0 < self.peak_lr <= MOST_RATE, "above 0 and finite in float32"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more and finite"),
            "warmup_epochs": (0 <= self.warmup_epochs < self.epochs, "in [0, epochs)"),
            "hidden": (self.hidden >= 1, "1 or more"),
            "projection": (self.projection >= 1, "1 or more"),
            "temperature": (1e-8 <= self.temperature < math.inf, "1e-8 or more and finite"),
            "queue": (self.queue >= 1, "1 or more"),
            "target_momentum": (0 <= self.target_momentum < 1, "in [0, 1)"),
            "crop_area": (0 < self.crop_area <= 1, "in (0, 1]"),
            "flip_p": (0 <= self.flip_p <= 1, "in [0, 1]"),
            "jitter_p": (0 <= self.jitter_p <= 1, "in [0, 1]"),
            "jitter": (0 <= self.jitter <= 1, "in [0, 1]"),
            "grey_p": (0 <= self.grey_p <= 1, "in [0, 1]"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        }
        require(self, checks)

    @property
    def optimisation(self) -> Recipe:
        """The part that training with labels shares: optimiser, rates, precision."""
        return Recipe(
            name=self.name,
            epochs=self.epochs,
            batch_size=self.batch_size,
            peak_lr=self.peak_lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
            precision=self.precision,
        )


# zoo-pretrain MODEL --method NAME
# What publications say, where it holds for small images, and what we chose; no run recorded yet.
# - simclr: Chen et al. 2020, arXiv:2002.05709, appendix B.9; optimised by SGD instead of LARS.
# - moco: Chen et al. 2020, arXiv:2003.04297 (MoCo v2), with a shorter queue and a quicker average
#   than for a million images.
# - byol: Grill et al. 2020, arXiv:2006.07733, with a quicker average, for fewer epochs.
_SIMCLR = Pretraining(name="simclr")
_MOCO = Pretraining(name="moco", temperature=0.2)
_BYOL = Pretraining(name="byol", hidden=1024, projection=256)


def pretraining_for(method: str) -> Pretraining:
    """The settings of a method.

    Raises:
        ZooError: there is no such method.
    """
    found = {known.name: known for known in (_SIMCLR, _MOCO, _BYOL)}
    if method not in found:
        raise ZooError(f"no method named {method!r}: {nearest(method, found)}")
    return found[method]
