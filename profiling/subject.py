"""What is measured, and how far it has come."""

from dataclasses import dataclass

from profiling.footprint import Footprint
from profiling.record import Source
from zoo.preprocess import Preprocessing


@dataclass(frozen=True, slots=True)
class Opening:
    """How a worker comes to a session: `opener` is the "module:function" to call with a path."""

    opener: str
    path: str
    allow: str | None = None  # the user's own network that the opener may import


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One thing to measure, and what is known of it before.

    `opener` is the "module:function" that a worker calls with (path, device) for a session.
    """

    model: str
    backend: str
    precision: str  # as far as it is known before opening; the session knows
    opener: str
    path: str
    artifact_sha256: str  # of the structure, where there is no file
    file_bytes: int | None
    build_s: float | None = None  # that writing the file took
    image_shape: tuple[int, int, int] = (3, 32, 32)  # (C, H, W)
    num_classes: int | None = None  # None: logits of any width are a right answer
    params: int | None = None
    macs: int | None = None
    footprint: Footprint | None = None
    top1: float | None = None
    top5: float | None = None
    accuracy_images: int | None = None
    parity_max_error: float | None = None  # as the proof of the file found it
    parity_agreement: float | None = None
    is_unevaluated: bool = False  # the bench measures the accuracy, if it is given the data set
    source: Source | None = None
    preprocessing: Preprocessing | None = None  # of stored images; None: that of their data set
    allow: str | None = None  # the user's own network that the opener may import
    eager: Opening | None = None  # the same network in torch: what its answers are held against
    unavailable: str | None = None  # why this machine cannot run it: skipped with this reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a benchmark stands."""

    subject: Subject
    batch: int | None  # None while a session is opened or evaluated
    stage: str  # what begins now, or the status of a measurement that ended
    share: float  # of the whole work that is done
    calls: int = 0  # timed so far
    p50_ms: float | None = None
    half_width: float | None = (
        None  # the wider one of the interval of the median so far, as a share of it
    )
    reason: str | None = None
