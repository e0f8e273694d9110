"""Colour jitter of the second study: brightness, contrast, saturation and hue in random order."""

import torch
from torch import Tensor

from training import trivial

UNIFORMS = 8  # random numbers for an image


def draw(amount: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the order of the four changes and how far each goes, from -amount to amount.

    Shapes:
        () or (4,), an amount for each, and (B, UNIFORMS) in [0, 1) -> (B, 4) int64 and (B, 4)
        float32: of brightness, contrast, saturation, hue.
    """
    return u[:, :4].argsort(dim=1), (amount * (2 * u[:, 4:] - 1)).float()


def color_jitter(images: Tensor, amount: float | Tensor, u: Tensor) -> Tensor:
    """Jitter each image in its own order, factors within 1 - amount to 1 + amount.

    The hue turns by -amount to amount of a full turn. `u` holds random numbers in [0, 1).
    Brightness, contrast and saturation give the bytes of `torchvision.transforms.v2.functional`,
    the hue those or one level more or less.

    Shapes:
        (B, 3, S, S) uint8, (B, UNIFORMS) -> (B, 3, S, S) uint8, on the same device.

    Note:
        Static shapes, no look at a value: everything is done to all images at each of four places.
    """
    order, magnitudes = draw(amount, u)
    magnitudes = magnitudes[:, :, None, None, None]  # (B, 4, 1, 1, 1)
    factors = (1 + magnitudes[:, :3]) - 1  # what is left once 1 + magnitude is rounded
    operations = (trivial.brightness, trivial.contrast, trivial.color)
    for place in order.unbind(1):
        changed = hue(images, magnitudes[:, 3])
        for row, operation in enumerate(operations):
            is_chosen = (place == row).view(-1, 1, 1, 1)
            changed = torch.where(is_chosen, operation(images, factors[:, row]), changed)
        images = changed
    return images


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of each image, saturation and value (HSV) unchanged.

    Shapes:
        (B, 3, H, W) uint8, (B, 1, 1, 1) in turns -> (B, 3, H, W) uint8.
    """
    x = images.float() / 255
    red, green, blue = x.unbind(1)  # (B, H, W) each
    value, least = x.amax(1), x.amin(1)
    spread = value - least
    unit = torch.where(spread == 0, 1.0, spread)
    sixth = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, 2 + (blue - red) / unit, 4 + (red - green) / unit),
    )
    sixth = sixth + 6 * turn.squeeze(1)
    channels = []
    for offset in (5, 3, 1):  # red, green, blue
        place = (sixth + offset).remainder(6)
        channels.append(value - spread * torch.minimum(place, 4 - place).clamp(0, 1))
    # torchvision scales by a hair less than 256, so that each level has the same share of [0, 1].
    return (torch.stack(channels, dim=1) * (256 - 1e-3)).to(torch.uint8)
