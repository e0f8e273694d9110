"""The one way accuracy is measured, for every backend."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.preprocess import Preprocessing
from zoo.session import InferenceSession

BATCH = {"cpu": 256, "cuda": 1000}  # images of PIXELS, or fewer, in one call
PIXELS = 32 * 32


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of images whose class is the first guess, and among the first five."""

    top1: float  # in [0, 1]
    top5: float
    images: int
    nonfinite: int = 0  # of the images: their logits are no numbers, and they count as wrong


def evaluation_batch(device: str, image_size: int) -> int:
    """How many images to pass in one call on "cpu" or "cuda": fewer where they are large."""
    return max(1, BATCH[device] * PIXELS // max(PIXELS, image_size**2))


def predict(
    session: InferenceSession,
    images: np.ndarray | Tensor,
    preprocessing: Preprocessing,
    *,
    batch: int = 256,
    rows: np.ndarray | None = None,
) -> Tensor:
    """Logits of all images, or of some rows, on the CPU.

    The images may lie on the session's device already. The last batch is filled up with copies
    of its first image, so that the session sees one shape and each image counts once.

    Shapes:
        (N, H, W, 3) uint8 -> (N, K) float32.
    """
    rows = np.arange(len(images)) if rows is None else rows
    logits = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        filled = np.concatenate((some, some[:1].repeat(batch - len(some))))
        x = preprocessing.to_batch(images[filled], session.device)
        answer = session.run(x)[: len(some)].float()
        logits.append(answer.clone())  # the session may use its memory again
    return torch.cat(logits).cpu()


def guesses(logits: Tensor) -> Tensor:
    """The class of each row of (N, K): that of the largest logit, of equal ones always the same."""
    return logits.argmax(1)


def accuracy(logits: Tensor, labels: np.ndarray | Tensor) -> Accuracy:
    """Count right answers.

    Shapes:
        (N, K), (N,) -> scalars. With fewer than five classes top5 counts all of them.
    """
    truth = torch.as_tensor(np.array(labels)).long()
    is_finite = logits.isfinite().all(1)
    is_first = (guesses(logits) == truth) & is_finite
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    is_among_five = is_first | ((best == truth[:, None]).any(1) & is_finite)
    count = len(truth)
    top1, top5 = (found.sum().item() / count for found in (is_first, is_among_five))
    return Accuracy(top1, top5, count, int((~is_finite).sum()))


def evaluate(
    session: InferenceSession,
    images: np.ndarray,
    labels: np.ndarray,
    preprocessing: Preprocessing,
    *,
    batch: int = 256,
) -> Accuracy:
    """Top-1 and top-5 of a session over stored images (N, H, W, 3) uint8 and labels (N,)."""
    return accuracy(predict(session, images, preprocessing, batch=batch), labels)
