"""What an artifact has to show before it is kept: parity with eager, and accuracy."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from export.calibrate import Calibration, chosen, divided, methods_of, right
from export.mcnemar import Comparison, compare_answers
from export.parity import CLOSE, IMAGES, Parity, batched_logits, compare
from export.raw import RawReference
from export.target import ExportOptions, Tolerance
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, Split
from zoo.errors import MachineError, ZooError
from zoo.evaluate import Accuracy, accuracy, guesses, predict
from zoo.session import EagerSession, InferenceSession


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The measurements that an artifact passed."""

    parity: Parity
    accuracy: Accuracy
    comparison: Comparison | None  # None where the logits say it all


class Unproven(MachineError):
    """An artifact is not the model; `worst_image` is the row to look at."""

    def __init__(self, message: str, worst_image: int) -> None:
        super().__init__(message)
        self.worst_image = worst_image


class Reference:
    """A run's model in eager on the CPU, and what it answers to the test split.

    Answers are computed when they are first asked for, and once: a run may have many artifacts.

    Raises:
        CheckpointError: the run's weights are damaged, or it needs consent.
    """

    def __init__(self, run: Checkpoint, data: Dataset, *, allow: str | None = None) -> None:
        self.run, self.data = run, data
        self.preprocessing = run.meta.input_preprocessing
        self.model: nn.Module = run.model(allow=allow)
        self._raw: Reference | None = None

    @property
    def session(self) -> InferenceSession:
        """What gives the answers."""
        return EagerSession(self.model)

    @property
    def are_probabilities(self) -> bool:
        """Whether the answers are probabilities; else they are logits."""
        return False

    def raw(self) -> "Reference":
        """The same model from bytes to probabilities."""
        if self._raw is None:
            self._raw = _RawReference(self)
        return self._raw

    @cached_property
    def logits(self) -> Tensor:
        """For the first 1,000 test images, (N, K).

        Raises:
            MachineError: an answer is no finite number: the weights are of no use.
        """
        images = self.data.test.images[:IMAGES]
        logits = batched_logits(self.session, images, self.preprocessing)
        bad = ~logits.isfinite().all(1)
        if bad.any():
            raise MachineError(
                f"the weights of {self.run.path} are of no use: eager gives NaN or infinite logits "
                f"for test image {int(bad.int().argmax())}; nothing was written"
            )
        return logits

    @cached_property
    def guesses(self) -> Tensor:
        """The first guess for every test image, (N,)."""
        return guesses(predict(self.session, self.data.test.images, self.preprocessing))

    def calibration(self, options: ExportOptions) -> Calibration:
        """Training images for int8; the validation images are those that training held out.

        A run that was trained on all images has seen them; the calibration says so.

        Raises:
            DataError: a class has too few training images to hold any out.
            ZooError: an option is out of range.
        """
        methods = methods_of(options.int8_method)
        if options.int8_images < 1 or not 0 <= options.int8_max_drop <= 1:
            raise ZooError(
                f"int8 takes 1 or more images and a drop in [0, 1], got {options.int8_images} and "
                f"{options.int8_max_drop}"
            )
        rows, validation = self._divided
        return Calibration(
            images=self.data.train.images[chosen(rows, options.int8_images)],
            validation=validation,
            is_held_out=self.run.meta.dataset.val_images > 0,
            preprocessing=self.preprocessing,
            methods=methods,
            max_drop=options.int8_max_drop,
            eager_right=lambda: self._right_on_validation,
        )

    @cached_property
    def _divided(self) -> tuple[np.ndarray, Split]:
        return divided(self.data)

    @cached_property
    def _right_on_validation(self) -> Tensor:
        validation = self._divided[1]
        logits = predict(self.session, validation.images, self.preprocessing)
        return right(logits, validation.fine)


class _RawReference(Reference):
    def __init__(self, plain: Reference) -> None:
        self.run, self.data, self.model = plain.run, plain.data, plain.model
        self.preprocessing, self._raw = plain.preprocessing, self

    @property
    def session(self) -> InferenceSession:
        return RawReference(EagerSession(self.model), self.preprocessing)

    @property
    def are_probabilities(self) -> bool:
        return True


def prove(session: InferenceSession, reference: Reference, tolerance: Tolerance) -> Proof:
    """Measure parity and accuracy.

    Raises:
        Unproven: the session does not compute what the model computes.
    """
    parity, first = _prove_parity(session, reference, tolerance)
    test = reference.data.test
    logits = first
    if len(test.images) > IMAGES:
        rest = predict(session, test.images[IMAGES:], reference.preprocessing)
        logits = torch.cat([first, rest])
    bad = ~logits.isfinite().all(1)
    if bad.any():
        row = int(bad.int().argmax())
        raise Unproven(f"its answer to test image {row} is not finite", row)
    comparison = None
    if tolerance.max_drop is not None:
        truth = torch.from_numpy(test.fine.copy())
        comparison = compare_answers(
            reference.guesses,
            guesses(logits),
            truth,
            tolerance.max_drop,
            is_lossy=tolerance.is_lossy,
        )
        if comparison.is_gate and comparison.fault is not None:
            raise Unproven(f"its accuracy failed: {comparison.fault}", parity.worst_image)
    return Proof(parity=parity, accuracy=accuracy(logits, test.fine), comparison=comparison)


def prove_parity(session: InferenceSession, reference: Reference, tolerance: Tolerance) -> Parity:
    """Compare the answers to 1,000 test images.

    Raises:
        Unproven: the answers are further from eager's than the tolerance allows.
    """
    return _prove_parity(session, reference, tolerance)[0]


def _prove_parity(
    session: InferenceSession, reference: Reference, tolerance: Tolerance
) -> tuple[Parity, Tensor]:
    """The comparison, and the session's answers."""
    images = reference.data.test.images[:IMAGES]
    logits = batched_logits(session, images, reference.preprocessing)
    parity = compare(
        reference.logits,
        logits,
        tolerance=tolerance.logits,
        noise_limit=tolerance.noise,
        are_probabilities=reference.are_probabilities,
    )
    if not parity.passed:
        raise Unproven(
            f"parity with eager failed: {_fault(parity, reference)}, and "
            f"{parity.top1_agreement:.1%} of {parity.images} images keep their class",
            parity.worst_image,
        )
    return parity, logits


def _fault(parity: Parity, reference: Reference) -> str:
    """What keeps it from passing."""
    data, row = reference.data, parity.worst_image
    what = "probability" if reference.are_probabilities else "logit"
    is_near = parity.limit is None or parity.max_abs_error <= parity.limit
    if not (math.isfinite(parity.max_abs_error) and is_near):
        allowed = "a finite one" if parity.limit is None else f"{parity.limit:.2g}"
        return (
            f"a {what} of test image {row} ({data.class_names[data.test.fine[row]]}) is off by "
            f"{parity.max_abs_error:.2g} where {allowed} is allowed"
        )
    if parity.noise is None:
        return f"eager answers most test images alike, and a {what} is off by more than {CLOSE:.0%}"
    return (
        f"the error of a {what} is {parity.noise:.0%} of what tells one image from another, where "
        f"{parity.noise_limit:.0%} is allowed"
    )
