"""What a run starts from: a network, how its images are prepared, whose weights it holds."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from zoo import adopt, pretrained
from zoo.checkpoint import RunMeta
from zoo.data import Dataset
from zoo.errors import CheckpointError, ZooError
from zoo.models import create_model
from zoo.neighbours import is_adapted, is_neighbour, neighbour
from zoo.own import is_own
from zoo.plain import from_plain
from zoo.preprocess import STORED_SIZE, Preprocessing


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the caller asks for."""

    image_size: int | None = None  # None: that of the stored images or of the zoo's own weights
    pretrained: bool = False  # weights of the package, of the Hub for timm's networks
    file: Path | None = None  # weights from here instead

    @property
    def has_weights(self) -> bool:
        """Whether the network starts from weights that were trained before."""
        return self.pretrained or self.file is not None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """What a run starts from."""

    network: nn.Module
    preprocessing: Preprocessing
    initial_weights: str | None  # as in `RunMeta`


def begin(model: str, data: Dataset, wanted: Wanted) -> Start:
    """Build the network of a new run, with the weights that are wanted.

    Raises:
        ZooError: there is no such model, it takes no images of this size, or the weights are
            missing, of another network or for another image size.
        MachineError: the Hub cannot be reached.
    """
    size = wanted.image_size or STORED_SIZE
    preprocessing = Preprocessing.of(data, image_size=size)
    if wanted.file is not None:
        return _from(model, data, preprocessing, adopt.from_file(wanted.file))
    if not wanted.pretrained:
        return Start(
            network=create_model(model, num_classes=data.num_classes, image_size=size),
            preprocessing=preprocessing,
            initial_weights=None,
        )
    if is_own(model):
        raise ZooError(
            f"nobody offers weights of {model}, a network of your own: pass {adopt.FILE_OPTION}"
        )
    if is_neighbour(model):
        weights = adopt.from_hub(neighbour(model), image_size=size)
        return _from(model, data, preprocessing, weights)
    card = pretrained.card(model)
    known = _preprocessing_of(card)
    known = replace(known, image_size=wanted.image_size or known.image_size)
    network = create_model(
        model, num_classes=data.num_classes, image_size=known.image_size, pretrained=True
    )
    return Start(network=network, preprocessing=known, initial_weights=f"zoo:{card.sha256}")


def again(meta: RunMeta, model: str, data: Dataset, wanted: Wanted) -> Start:
    """Build the network of a run that is resumed; its state is loaded by others.

    Raises:
        CheckpointError: the run began with random weights, and now others are named.
    """
    if wanted.has_weights and meta.initial_weights is None:
        raise CheckpointError(
            "this run began with random weights: resume without --pretrained and "
            "--pretrained-file, or start a new run without --resume"
        )
    stored = meta.input_preprocessing
    preprocessing = replace(stored, image_size=wanted.image_size or stored.image_size)
    network = create_model(model, num_classes=data.num_classes, image_size=preprocessing.image_size)
    return Start(network=network, preprocessing=preprocessing, initial_weights=meta.initial_weights)


def _from(model: str, data: Dataset, preprocessing: Preprocessing, weights: adopt.Weights) -> Start:
    size = preprocessing.image_size
    network = create_model(model, num_classes=data.num_classes, image_size=size)
    adopt.adopt(network, weights, name=model)
    if is_neighbour(model) and not is_adapted(size):
        preprocessing = neighbour(model).pretrained_preprocessing(size)
    return Start(network=network, preprocessing=preprocessing, initial_weights=weights.source)


def _preprocessing_of(card: pretrained.Card) -> Preprocessing:
    if card.preprocessing is None:
        return Preprocessing.of(card)
    try:
        return from_plain(Preprocessing, card.preprocessing)
    except (TypeError, ValueError) as reason:
        raise CheckpointError(
            f"the card of the weights of {card.model} is damaged (preprocessing: {reason})"
        ) from None
