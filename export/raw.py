"""A model from the bytes of images to probabilities: normalisation inside, softmax at the end."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.preprocess import Preprocessing, levels
from zoo.session import InferenceSession

RAW, LAYOUT, OUTPUT = "raw", "NHWC uint8", "probabilities"

Channels = tuple[float, float, float]  # red, green, blue


class RawModel(nn.Module):
    """Normalise, run the model, softmax. Resizing stays outside.

    Shapes:
        (B, S, S, 3) uint8 -> (B, K) float32 probabilities, S the image size of the model.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", levels(preprocessing.mean))
        self.register_buffer("scale", levels(preprocessing.std))

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities of a batch of bytes."""
        x = images.permute(0, 3, 1, 2).float()  # (B, 3, S, S)
        logits: Tensor = self.model((x - self.shift) / self.scale)
        return logits.softmax(1)


@dataclass(frozen=True, slots=True)
class Bytes:
    """How normalised images become the bytes that they came from."""

    mean: Channels  # per channel, of pixels in [0, 1]
    std: Channels

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> "Bytes":
        """From what is written in a file of ours.

        Raises:
            KeyError, TypeError, ValueError: it is not there, or no three numbers.
        """
        (r, g, b), (x, y, z) = (map(float, json.loads(metadata[key])) for key in ("mean", "std"))
        return cls((r, g, b), (x, y, z))

    def restore(self, images: Tensor) -> Tensor:
        """Undo the normalisation; exact where nothing was resized, else to the nearest byte.

        Shapes:
            (B, 3, S, S) float32 -> (B, S, S, 3) uint8, contiguous, on the same device.
        """
        shift, scale = (levels(x, images.device) for x in (self.mean, self.std))
        values = images.mul(scale).add(shift).round().clamp(0, 255)
        return values.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class RawReference:
    """What a raw artifact has to answer: eager on the same bytes, with probabilities for logits."""

    backend, precision = "eager", "fp32"

    def __init__(self, eager: InferenceSession, preprocessing: Preprocessing) -> None:
        self.device, self.runtime = eager.device, eager.runtime
        self._eager = eager
        self._bytes = Bytes(preprocessing.mean, preprocessing.std)

    def run(self, images: Tensor) -> Tensor:
        """Probabilities of normalised images, which are rounded to bytes before."""
        shift, scale = (levels(x, images.device) for x in (self._bytes.mean, self._bytes.std))
        x = self._bytes.restore(images).permute(0, 3, 1, 2).float()
        return self._eager.run((x - shift) / scale).softmax(1)

    def synchronize(self) -> None:
        """Wait for eager."""
        self._eager.synchronize()
