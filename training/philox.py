"""Random numbers that follow from where they are used: no state, the same on every device."""

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key from round to round
MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor) -> tuple[Tensor, ...]:
    """Encrypt counters of four 32-bit words: four words that look random for each.

    Words are the lower halves of int64 values, whose products wrap around as unsigned ones do.

    Shapes:
        four int64 that broadcast, and (2,) int64 -> four of the common shape.
    Source:
        Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3:
        Philox-4x32-10.
    """
    a, b, c, d = counter
    low, high = key.unbind(0)
    for _ in range(ROUNDS):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            (right >> 32 & MASK) ^ b ^ low,
            right & MASK,
            (left >> 32 & MASK) ^ d ^ high,
            left & MASK,
        )
        low, high = low + WEYL[0] & MASK, high + WEYL[1] & MASK
    return a, b, c, d


def make_key(seed: int, device: torch.device) -> Tensor:
    """The two words of a seed: -> (2,) int64."""
    return torch.tensor([seed & MASK, seed >> 32 & MASK], device=device)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Numbers:
    """The random numbers of some images of an epoch, a function of seed, epoch and place alone.

    Neither the batch, nor the number of processes, nor what else is drawn moves them.
    """

    key: Tensor  # (2,) int64
    epoch: Tensor  # () int64
    place: Tensor  # (B,) int64, of each image in the order of the whole epoch

    def uniforms(self, part: int, count: int) -> Tensor:
        """Multiples of 2^-24 in [0, 1), of which every part of the work has its own.

        Shapes:
            -> (B, count) float32. An integer below 2^24 times one is below the integer.
        """
        block = torch.arange((count + 3) // 4, device=self.place.device)
        words = philox(
            (self.place[:, None], block, self.epoch.view(1, 1), torch.full_like(block, part)),
            self.key,
        )
        shape = (len(self.place), len(block))
        mixed = torch.stack([word.expand(shape) for word in words], dim=2).flatten(1)
        return (mixed[:, :count] >> 8).float() * 2.0**-24
