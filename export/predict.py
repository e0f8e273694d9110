"""Name what is on images of any size, with any session."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from export.raw import RAW
from zoo.errors import DataError, MachineError
from zoo.image_folder import Pixels, read_image
from zoo.preprocess import Preprocessing
from zoo.session import InferenceSession
from zoo.text import columns, printable

BATCH = 64  # images in one call


@dataclass(frozen=True, slots=True)
class Guess:
    """A class and how likely it is."""

    name: str
    probability: float  # in [0, 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What is on one image, likeliest first; or why that cannot be said."""

    image: str  # as the user named it
    guesses: tuple[Guess, ...] = ()
    error: str | None = None


def predict_files(
    session: InferenceSession,
    paths: Sequence[Path],
    *,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    top: int = 5,
) -> Iterator[Prediction]:
    """Classify image files, in their order.

    Each becomes 32x32 pixels as an image of a folder: data set does, and then what the model is fed
    with; so an image of a test split is answered as in its evaluation. One that cannot be read has
    an error and no guesses.

    Raises:
        MachineError: the session does not give one finite number for each class.
    """
    for start in range(0, len(paths), BATCH):
        part = paths[start : start + BATCH]
        read = [_read(path) for path in part]
        images = [image for image in read if not isinstance(image, str)]
        answers: Iterator[np.ndarray] = iter(())
        if images:
            batch = preprocessing.to_batch(np.stack(images), session.device)
            answers = iter(_probabilities(session, batch, len(class_names)))
        for path, image in zip(part, read, strict=True):
            if isinstance(image, str):
                yield Prediction(image=str(path), error=image)
                continue
            p = next(answers)
            best = np.argsort(-p, kind="stable")[:top]
            guesses = tuple(Guess(class_names[k], float(p[k])) for k in best)
            yield Prediction(image=str(path), guesses=guesses)


def table(prediction: Prediction) -> str:
    """An image and its guesses as lines of text."""
    rows = [[f"{guess.probability:.1%}", printable(guess.name)] for guess in prediction.guesses]
    lines = [f"  {line}" for line in columns(rows, right={0})]
    return "\n".join([printable(prediction.image), *lines])


def _read(path: Path) -> Pixels | str:
    """The pixels, or what is wrong with the file."""
    if not path.is_file():
        return f"there is no image file {path}: name files such as photo.jpg"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of notes beside the pixels, and of large images
            return read_image(path)
    except DataError as error:
        return str(error)


def _probabilities(session: InferenceSession, images: Tensor, classes: int) -> np.ndarray:
    """Of each class: (B, 3, S, S) -> (B, K)."""
    answer = session.run(images).float().cpu()
    if answer.shape != (len(images), classes) or not answer.isfinite().all():
        raise MachineError(
            f"the model should give {classes} finite numbers for each of {len(images)} images, as "
            f"many as there are class names; it gave {tuple(answer.shape)}, or NaN or infinity"
        )
    is_raw = session.backend.endswith(f"-{RAW}")
    return (answer if is_raw else answer.softmax(1)).numpy()
