"""Whether a session computes what eager computes: its logits, held against those of a file.

They are written by a worker of its own before anything is measured, on the very images, in each
batch size, that the sessions are timed on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling.process import START_LIMIT_S, WorkerError, WorkerProcess
from profiling.subject import Opening, Subject

if TYPE_CHECKING:
    from torch import Tensor

# Largest error by precision, as a share of eager's largest logit, or of 1 where that is smaller.
# An export is held to more, on more images: this tells another network from the same one.
AGREEMENT = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.2, "int8": 0.5}
OTHERS_AGREE = 0.2
PROBABILITIES_SUM = 1e-3  # how far from 1 the sum of rounded probabilities may be


class Answers:
    """Files of eager's logits, or why there are none, by what was asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[tuple[Opening, int], Path] = {}
        self._reasons: dict[tuple[Opening, int], str] = {}

    def expected(self, subject: Subject, batch: int) -> str | None:
        """The file of what `subject` has to answer; None where it has nothing to be compared with.

        Raises:
            WorkerError: it has, and eager gave no answer.
        """
        if subject.eager is None:
            return None
        asked = subject.eager, batch
        if asked in self._reasons:
            raise WorkerError(f"its answer cannot be checked: eager: {self._reasons[asked]}")
        return str(self._files[asked])

    def compute(
        self,
        subjects: Sequence[Subject],
        batches: Sequence[int],
        start: Callable[[], WorkerProcess],
        *,
        greeting: Mapping[str, Any],
        limit_s: float,
        stored_for: Callable[[Subject], dict[str, Any] | None],
    ) -> None:
        """Ask a worker for eager's logits wherever some subject is compared with them."""
        wanted = {one.eager: one for one in subjects if one.eager and not one.unavailable}
        for eager, subject in wanted.items():
            with start() as worker:
                left = list(batches)
                try:
                    worker.ask("hello", limit_s=START_LIMIT_S, **greeting)
                    worker.ask(
                        "open",
                        limit_s=limit_s,
                        opener=eager.opener,
                        path=eager.path,
                        allow=eager.allow,
                    )
                    while left:
                        file = self._folder / f"answer-{len(self._files)}.npy"
                        worker.ask(
                            "answer",
                            limit_s=limit_s,
                            batch=left[0],
                            image_shape=subject.image_shape,
                            stored=stored_for(subject),
                            file=str(file),
                        )
                        self._files[eager, left.pop(0)] = file
                except WorkerError as error:
                    self._reasons |= {(eager, batch): str(error) for batch in left}


def write(logits: "Tensor", file: str) -> None:
    """Keep eager's logits."""
    import numpy as np

    np.save(file, logits.float().cpu().numpy())


def error(file: str, logits: "Tensor") -> float:
    """Largest difference from the logits in `file`, as a share of their largest, or of 1.

    Where the answer is probabilities and eager's is not, eager's is turned into them first.
    Infinity where they have another shape, or eager's are not finite.
    """
    import numpy as np
    import torch

    expected, found = torch.from_numpy(np.load(file)), logits.detach().float().cpu()
    if expected.shape != found.shape:
        return math.inf
    if _are_probabilities(found) and not _are_probabilities(expected):
        expected = expected.softmax(1)
    largest = (expected - found).abs().max().item() / max(1.0, expected.abs().max().item())
    return math.inf if math.isnan(largest) else largest


def _are_probabilities(answer: "Tensor") -> bool:
    sums = answer.sum(1)
    return bool((answer >= 0).all() and ((sums - 1).abs() <= PROBABILITIES_SUM).all())


def limit(precision: str, *, takes_bytes: bool) -> float:
    """How large an error may be; a file that takes bytes may have had to round its input."""
    return OTHERS_AGREE if takes_bytes else AGREEMENT.get(precision, OTHERS_AGREE)
