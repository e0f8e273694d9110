"""Random numbers that follow from where they are used: no state, the same on every device."""

from collections.abc import Mapping
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
    rounds = torch.arange(ROUNDS, device=key.device)
    keys = ((word + step * rounds & MASK).unbind(0) for word, step in zip(key, WEYL, strict=True))
    for low, high in zip(*keys, strict=True):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            (right >> 32 & MASK) ^ b ^ low,
            right & MASK,
            (left >> 32 & MASK) ^ d ^ high,
            left & MASK,
        )
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
        return self.uniforms_of({part: count})[part]

    def uniforms_of(self, counts: Mapping[int, int]) -> dict[int, Tensor]:
        """The uniforms of several parts at once, which takes a fraction of the kernels.

        Shapes:
            count by part -> (B, count) float32 by part.
        """
        device, blocks = self.place.device, [(count + 3) // 4 for count in counts.values()]
        block = torch.cat([torch.arange(many, device=device) for many in blocks])
        sizes = zip(counts, blocks, strict=True)
        part = torch.cat([torch.full((many,), one, device=device) for one, many in sizes])
        words = philox((self.place[:, None], block, self.epoch.view(1, 1), part), self.key)
        shape = (len(self.place), len(block))
        mixed = torch.stack([word.expand(shape) for word in words], dim=2)  # (B, blocks, 4)
        uniforms = (mixed >> 8).float() * 2.0**-24
        split = uniforms.split(blocks, dim=1)
        return {
            one: some.flatten(1)[:, :count]
            for (one, count), some in zip(counts.items(), split, strict=True)
        }
