"""Mixup and CutMix on a batch: each image is mixed with its neighbour, by its own random numbers.

Neighbours are images 2i and 2i + 1 of the batch. Every process holds whole pairs, so the number of
processes does not change what is mixed with what; the order of the images is random already.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

UNIFORMS = 5  # random numbers for an image, used or not
CELLS = 4096  # of a quantile table: it is right to this part of the probability


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mixing:
    """What mixes images, with its tables on their device.

    Source:
        Mixup: Zhang et al. 2017, arXiv:1710.09412. CutMix: Yun et al. 2019, arXiv:1905.04899.
        With both, either comes with the chance of a half, as in timm.
    """

    mixup: Tensor | None  # quantiles of an image's share; None: no Mixup
    cutmix: Tensor | None
    p: float  # chance that an image is mixed at all

    @classmethod
    def of(
        cls, *, mixup_alpha: float, cutmix_alpha: float, p: float, device: torch.device
    ) -> "Mixing | None":
        """The tables of two alphas, where 0 switches off; None where nothing is mixed."""
        if p == 0 or mixup_alpha == cutmix_alpha == 0:
            return None
        return cls(
            mixup=beta_quantiles(mixup_alpha).to(device) if mixup_alpha else None,
            cutmix=beta_quantiles(cutmix_alpha).to(device) if cutmix_alpha else None,
            p=p,
        )


def mix(mixing: Mixing, images: Tensor, labels: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mix neighbours; return the images, the neighbours' labels and the share of the own ones.

    `u` holds UNIFORMS random numbers in [0, 1) for each image, on the images' device. A rectangle
    of CutMix is that of `torchvision.transforms.v2.CutMix`, and the share is what it leaves.

    Shapes:
        (B, C, S, S) normalised, (B,), (B, UNIFORMS) -> (B, C, S, S), (B,), (B,); B is even. The
        memory format stays.
    """
    if len(images) % 2:
        raise ValueError(f"images are mixed in pairs: expected an even batch, got {len(images)}")
    is_mixed, is_cut, place, *centre = u.unbind(1)
    keep = torch.ones_like(images[:, :1])  # (B, 1, S, S), the share of the own image in a pixel
    if mixing.mixup is not None:
        keep = keep * quantile(mixing.mixup, place)[:, None, None, None]
    if mixing.cutmix is not None:
        outside = _outside(quantile(mixing.cutmix, place), centre, images.shape[-1])
        chosen = is_cut[:, None, None, None] < (0.5 if mixing.mixup is not None else 1.0)
        keep = torch.where(chosen, outside.to(keep.dtype), keep)
    keep = torch.where(is_mixed[:, None, None, None] < mixing.p, keep, 1.0)
    mixed = images * keep + neighbours(images) * (1 - keep)
    return mixed, neighbours(labels), keep.mean(dim=(1, 2, 3))


def neighbours(values: Tensor) -> Tensor:
    """Swap the two of each pair: (B, ...) -> (B, ...), memory format included."""
    return values.view(-1, 2, *values.shape[1:]).flip(1).flatten(0, 1)


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, others: Tensor, share: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean of share * CE(labels) + (1 - share) * CE(others), both smoothed.

    Shapes:
        (B, K), (B,), (B,), (B,) -> ().
    """
    log_p = F.log_softmax(logits, dim=1)
    own, other = (log_p.gather(1, y[:, None]).squeeze(1) for y in (labels, others))
    hard = share * own + (1 - share) * other
    return -((1 - label_smoothing) * hard + label_smoothing * log_p.mean(dim=1)).mean()


def quantile(table: Tensor, u: Tensor) -> Tensor:
    """Look up quantiles of random numbers in [0, 1), straight between the points of the table."""
    place = u * CELLS
    cell = place.long().clamp_(max=CELLS - 1)
    low, high = table[cell], table[cell + 1]
    return low + (high - low) * (place - cell).to(table.dtype)


def beta_quantiles(alpha: float) -> Tensor:
    """The quantiles of Beta(alpha, alpha) at 0, 1/CELLS, 2/CELLS... 1, on the CPU.

    Shapes:
        -> (CELLS + 1,) float32.
    """
    # The density has poles at 0 and 1 for alpha < 1. Up to 1/2 it has none in t = x ** alpha, and
    # the other half is the mirror image.
    power = min(alpha, 1.0)
    t = np.linspace(0.0, 0.5**power, 2**17 + 1)
    density = t ** (alpha / power - 1) * (1 - t ** (1 / power)) ** (alpha - 1)
    mass = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    half = np.arange(CELLS // 2 + 1) / CELLS
    lower = np.interp(half, 0.5 * mass / mass[-1], t) ** (1 / power)
    return torch.from_numpy(np.concatenate((lower, 1 - lower[-2::-1]))).float()


def _outside(share: Tensor, centre: list[Tensor], size: int) -> Tensor:
    """Which pixels a rectangle leaves to the image: (B,) -> (B, 1, S, S) bool."""
    half = (0.5 * (1 - share).sqrt() * size).floor()[:, None]  # (B, 1)
    line = torch.arange(size, device=share.device)
    middle = [(u * size).floor()[:, None] for u in centre]
    rows, columns = ((line >= m - half) & (line < m + half) for m in middle)  # (B, S) each
    return ~(rows[:, None, :, None] & columns[:, None, None, :])
