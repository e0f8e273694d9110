"""What inference holds and moves, as numbers of a network; imports no torch, so reports build."""

from collections.abc import Iterable
from dataclasses import dataclass

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}  # of a number of the maths
FP32_BYTES = BYTES["fp32"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Numbers of one network at one image size; counted by `profiling.activation.footprint_of`."""

    buffers: int  # numbers in buffers that are saved, such as running statistics
    state_bytes: int  # of all that is saved
    norm_flops: int  # of one image; no part of its multiply-accumulates
    weights: int  # numbers that convolutions and matrix products read once in a call
    moved: int  # numbers that convolutions and matrix products read and write for one image
    # Moments of a call at which the most may be live: (bytes whatever the batch, bytes an image).
    peaks: tuple[tuple[int, int], ...]

    def activation_bytes(self, batch: int) -> int:
        """The most that is live at once in a call of so many images, weights excluded; float32."""
        return max((fixed + batch * of_image for fixed, of_image in self.peaks), default=0)

    def moved_bytes(self, batch: int, precision: str = "fp32") -> int | None:
        """The least that a call of so many images moves; None for an unknown precision."""
        width = BYTES.get(precision)
        return None if width is None else width * (self.weights + batch * self.moved)

    def working_set_bytes(self, batch: int, precision: str = "fp32") -> int | None:
        """Weights and what is live beside them; None for an unknown precision."""
        width = BYTES.get(precision)
        if width is None:
            return None
        return width * (self.weights + self.activation_bytes(batch) // FP32_BYTES)


def front(moments: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Those of (bytes whatever the batch, bytes an image) that no other has more of both than."""
    kept: list[tuple[int, int]] = []
    for fixed, of_image in sorted(set(moments), reverse=True):
        if not kept or of_image > kept[-1][1]:
            kept.append((fixed, of_image))
    return tuple(kept)


def intensity(footprint: Footprint, macs: int, batch: int, precision: str = "fp32") -> float | None:
    """FLOPs of a call by the least bytes that it moves; None where that is not known."""
    moved = footprint.moved_bytes(batch, precision)
    return 2 * macs * batch / moved if moved else None
