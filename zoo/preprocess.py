"""How stored images become what a model is fed with; imports torch only when it does so."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

STORED_SIZE = 32  # height and width of the images of every data set
MAX_SIZE = 4096  # height and width that images are brought to at most
INTERPOLATIONS = ("bicubic", "bilinear")  # those of torch that know antialiasing


class HasStatistics(Protocol):
    """Something that knows its pixels, such as a data set."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per channel, of pixels in [0, 1]."""
        ...

    @property
    def std(self) -> tuple[float, float, float]:
        """Per channel, of pixels in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize to round(image_size / crop_pct), cut the middle out, normalise.

    Images that have that size already are not touched by the resize.

    Raises:
        ValueError: a field lies outside what its comment allows.
    """

    image_size: int  # height and width of the result, 1 to MAX_SIZE
    mean: tuple[float, float, float]  # per channel, of pixels in [0, 1]
    std: tuple[float, float, float]  # above 0
    interpolation: str = "bicubic"  # one of INTERPOLATIONS
    crop_pct: float = 1.0  # share of the resized height (MAX_SIZE at most) and width that is kept

    def __post_init__(self) -> None:
        checks = {
            "image_size": (1 <= self.image_size <= MAX_SIZE, f"1 to {MAX_SIZE}"),
            "mean": (all(map(math.isfinite, self.mean)), "finite"),
            "std": (all(0 < value < math.inf for value in self.std), "above 0 and finite"),
            "interpolation": (
                self.interpolation in INTERPOLATIONS,
                f"one of {', '.join(INTERPOLATIONS)}",
            ),
            "crop_pct": (
                0 < self.crop_pct <= 1 and self.image_size <= self.crop_pct * MAX_SIZE,
                f"in (0, 1], and image_size / crop_pct no more than {MAX_SIZE}",
            ),
        }
        for field, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{field} must be {expected}, got {getattr(self, field)!r}")

    @classmethod
    def of(cls, data: HasStatistics, *, image_size: int = STORED_SIZE) -> "Preprocessing":
        """The whole image at `image_size`, normalised with the statistics of `data`."""
        return cls(image_size=image_size, mean=data.mean, std=data.std)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image as the model sees it."""
        return 3, self.image_size, self.image_size

    def to_batch(self, images: "np.ndarray | Tensor", device: str = "cpu") -> "Tensor":
        """Make stored images what the model is fed with.

        Shapes:
            (B, H, W, 3) uint8 -> (B, 3, S, S) float32 in channels-last memory format, on `device`.
        """
        import numpy as np
        import torch

        stored = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
        x = stored.to(device).permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        shift, scale = levels(self.mean, x.device), levels(self.std, x.device)
        return self.fit((x - shift) / scale, shift, scale)

    def fit(self, images: "Tensor", shift: "Tensor", scale: "Tensor") -> "Tensor":
        """Resize and cut a batch that is normalised already, on its device.

        What bicubic interpolation puts beyond black and white is cut off, as in an image of bytes.
        `shift` and `scale` are the levels of mean and deviation, on that device.

        Shapes:
            (B, 3, H, W) -> (B, 3, S, S); channels-last unless the batch is passed on as it is.
        """
        import torch
        import torch.nn.functional as F

        size, kept = round(self.image_size / self.crop_pct), self.image_size
        if images.shape[-2:] == (size, size) and size == kept:
            return images
        if images.shape[-2:] != (size, size):
            images = F.interpolate(
                images, size=(size, size), mode=self.interpolation, antialias=True
            ).clamp(-shift / scale, (255 - shift) / scale)
        edge = (size - kept) // 2
        images = images[..., edge : edge + kept, edge : edge + kept]  # (B, 3, S, S)
        return images.contiguous(memory_format=torch.channels_last)


def levels(figures: tuple[float, float, float], device: "torch.device | str" = "cpu") -> "Tensor":
    """Means or deviations of pixels in [0, 1] in the levels of a byte: -> (1, 3, 1, 1)."""
    import torch

    return torch.tensor(figures).mul(255).view(1, 3, 1, 1).to(device, non_blocking=True)
