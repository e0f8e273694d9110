"""Compare what an artifact computes with what the model computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.errors import MachineError
from zoo.evaluate import guesses
from zoo.preprocess import Preprocessing
from zoo.session import InferenceSession

IMAGES = 1000  # of the test split, or all where there are fewer
FIRST_BATCHES = (1, 5)  # that no exporter picks by accident; the rest runs in batches of BATCH
BATCH = 256
MOST = 0.9  # of the images, whose errors are held against how they differ
CLOSE = 0.05  # of an image's largest logit: nearer than that, noise is not asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """Agreement of two sets of logits, or of probabilities, on the same images."""

    images: int
    max_abs_error: float  # of a logit; NaN where either side has a NaN or an infinity
    mean_abs_error: float
    mean_kl: float | None = None  # divergence from the reference in nats; None in older ones
    noise: float | None = None  # error by how far images differ; None in older ones, or not finite
    top1_agreement: float  # share of images with the same first guess, in [0, 1]
    worst_image: int  # row with the largest error, or the first without finite logits
    tolerance: float | None  # the target's: a share of the largest reference logit
    limit: float | None  # what max_abs_error was held against; None: it was only measured
    noise_limit: float | None = None  # what noise was held against
    passed: bool


def compare(
    reference: Tensor,
    candidate: Tensor,
    *,
    tolerance: float | None,
    noise_limit: float | None = None,
    are_probabilities: bool = False,
) -> Parity:
    """Hold `candidate` against `reference`.

    The error passes up to `tolerance * max(1, largest absolute reference logit)`: float rounding
    grows with the numbers it rounds, and an untrained network may have logits of any size; of
    probabilities, which may all be small, up to `tolerance * largest`. Where it passes, every image
    whose two best reference logits lie further apart than twice that limit keeps its class. Without
    a tolerance every finite error passes. NaN and infinity never do, on either side.

    Noise is the length of the error of an image's logits, as a share of the length by which the
    reference's answer differs from its mean answer: 1 for a candidate that answers every image
    alike, the square root of 2 for one that answers others. It means the same for any number of
    classes and any accuracy. An untrained network may answer all images nearly alike: a candidate
    whose every error is below CLOSE of an image's largest logit passes whatever its noise. Each
    length is one that MOST of the images stay below, the largest logit a median: a few images that
    are answered with far larger logits than the others would be all that counts in a mean square.

    Shapes:
        (N, K), (N, K) -> scalars.

    Raises:
        MachineError: the shapes differ, or there is no image.
    """
    if reference.shape != candidate.shape or not reference.numel():
        raise MachineError(
            f"the artifact gave logits of shape {tuple(candidate.shape)} "
            f"where the model gives {tuple(reference.shape)}"
        )
    expected, found = reference.double().cpu(), candidate.double().cpu()
    errors = (expected - found).abs()  # (N, K)
    same = guesses(expected) == guesses(found)
    bad = ~errors.isfinite().all(1)  # (N,)
    scale = max(0.0 if are_probabilities else 1.0, expected.abs().max().item())
    limit = None if tolerance is None else tolerance * scale
    largest = float("nan") if bad.any() else errors.max().item()
    worst = bad.int() if bad.any() else errors.amax(1)
    noise = None if bad.any() else _noise(expected, errors)
    is_close = largest <= CLOSE * expected.abs().amax(1).median().item()
    is_quiet = noise_limit is None or is_close or (noise is not None and noise <= noise_limit)
    return Parity(
        images=len(expected),
        max_abs_error=largest,
        mean_abs_error=errors.mean().item(),
        mean_kl=_mean_kl(expected, found, are_probabilities=are_probabilities),
        top1_agreement=(same & ~bad).sum().item() / len(expected),
        worst_image=int(worst.argmax()),
        tolerance=tolerance,
        limit=limit,
        noise=noise,
        noise_limit=noise_limit,
        # The comparison is False for NaN.
        passed=is_quiet and (not bad.any().item() if limit is None else largest <= limit),
    )


def batched_logits(
    session: InferenceSession, images: np.ndarray, preprocessing: Preprocessing
) -> Tensor:
    """Logits of a session, in batches of 1, of 5 and of 256, the last one as it comes.

    Batches are prepared one by one and on the CPU, so that every session sees the same numbers:
    1,000 images of 224 pixels would take 600 MB at once.

    Shapes:
        (N, H, W, 3) uint8 -> (N, K) float32, on the CPU.
    """
    parts, start = [], 0
    for size in _sizes(len(images)):
        batch = preprocessing.to_batch(images[start : start + size])
        answer = session.run(batch.to(session.device))
        parts.append(answer.float().cpu().clone())  # the session may use its memory again
        start += size
    return torch.cat(parts)


def _noise(expected: Tensor, errors: Tensor) -> float | None:
    """See `compare`; None where the reference answers most images alike and is not met."""
    error: float = errors.norm(dim=1).quantile(MOST).item()
    signal: float = (expected - expected.mean(0)).norm(dim=1).quantile(MOST).item()
    if signal > 0:
        return error / signal
    return None if error else 0.0


def _mean_kl(expected: Tensor, found: Tensor, *, are_probabilities: bool) -> float:
    """Mean over the images of sum p log(p / q), in nats; (N, K), (N, K) in float64 -> scalar."""
    if are_probabilities:  # rounded to 0 and 1 by a sure network, they still have a logarithm
        tiny = torch.finfo(torch.float32).tiny
        p, q = expected.clamp_min(tiny).log(), found.clamp_min(tiny).log()
    else:
        p, q = expected.log_softmax(1), found.log_softmax(1)
    return (p.exp() * (p - q)).sum(1).mean().item()


def _sizes(count: int) -> list[int]:
    sizes: list[int] = []
    wanted: Sequence[int] = (*FIRST_BATCHES, *[BATCH] * (count // BATCH + 1))
    for size in wanted:
        sizes.append(min(size, count - sum(sizes)))
    return [size for size in sizes if size]
