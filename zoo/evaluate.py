"""The one way accuracy is measured, for every backend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.session import InferenceSession


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of images whose class is the first guess, and among the first five."""

    top1: float  # in [0, 1]
    top5: float
    images: int


def to_batch(
    images: np.ndarray | Tensor, mean: Sequence[float], std: Sequence[float], device: str = "cpu"
) -> Tensor:
    """Normalise stored images for a model.

    Shapes:
        (B, H, W, 3) uint8 -> (B, 3, H, W) float32 in channels-last memory format, on `device`.
    """
    stored = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    x = stored.to(device).permute(0, 3, 1, 2).float()  # (B, 3, H, W)
    shift = torch.tensor(mean, device=device).mul(255).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=device).mul(255).view(1, 3, 1, 1)
    return (x - shift) / scale


def predict(
    session: InferenceSession,
    images: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int = 256,
) -> Tensor:
    """Logits of all images, on the CPU.

    The last batch is filled up with copies of its first image, so that the session sees one shape
    and each image counts once.

    Shapes:
        (N, H, W, 3) uint8 -> (N, K) float32.
    """
    logits = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        filler = np.repeat(part[:1], batch - len(part), axis=0)
        x = to_batch(np.concatenate((part, filler)), mean, std, session.device)
        logits.append(session.run(x)[: len(part)].float().cpu())
    return torch.cat(logits)


def accuracy(logits: Tensor, labels: np.ndarray | Tensor) -> Accuracy:
    """Count right answers.

    Shapes:
        (N, K), (N,) -> scalars. With fewer than five classes top5 counts all of them.
    """
    truth = torch.as_tensor(np.array(labels)).long()
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hits = best == truth[:, None]
    count = len(truth)
    return Accuracy(hits[:, 0].sum().item() / count, hits.any(1).sum().item() / count, count)


def evaluate(
    session: InferenceSession,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int = 256,
) -> Accuracy:
    """Top-1 and top-5 of a session over stored images (N, H, W, 3) uint8 and labels (N,)."""
    return accuracy(predict(session, images, mean=mean, std=std, batch=batch), labels)
