"""Images on which an operation can go wrong in as many ways as possible."""

import torch
from torch import Tensor

from zoo.data import load_dataset


def varied_images() -> Tensor:
    """Noise, ramps, grey, two values, one value, a narrow range; real ones: (16, 3, 32, 32)."""
    noise = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(0, 256, 8).expand(3, 32, 32)
    ramps = torch.stack((ramp[0], ramp[1].T, (ramp[2] + ramp[2].T) // 2))
    grey = noise[1:2, :1].expand(1, 3, 32, 32)
    two = noise[2:] // 128 * 255
    one = torch.tensor((0, 77, 255)).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    narrow = 100 + noise[:1] // 16
    made = torch.cat((noise, ramps[None], grey, two, one, narrow)).to(torch.uint8)
    real = torch.tensor(load_dataset("cifar100-mini").train.images[:8]).permute(0, 3, 1, 2)
    return torch.cat((made, real))
