"""What a run starts from: a network, how its images are prepared, whose weights it holds."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from training.recipe import Recipe
from zoo import adopt, pretrained
from zoo.checkpoint import Checkpoint, RunMeta
from zoo.data import Dataset
from zoo.errors import CheckpointError, ZooError
from zoo.models import create_model
from zoo.neighbours import is_adapted, is_neighbour, neighbour
from zoo.own import check_training, is_own
from zoo.plain import from_plain
from zoo.preprocess import STORED_SIZE, Preprocessing

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the caller asks for."""

    image_size: int | None = None  # None: that of the stored images or of the zoo's own weights
    pretrained: bool = False  # weights of the package, of the Hub for timm's networks
    file: Path | None = None  # weights from here instead
    run: Path | None = None  # the backbone of this run instead

    @property
    def has_weights(self) -> bool:
        """Whether the network starts from weights that were trained before."""
        return self.pretrained or self.file is not None or self.run is not None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """What a run starts from."""

    network: nn.Module
    preprocessing: Preprocessing
    initial_weights: str | None  # as in `RunMeta`


def begin(model: str, data: Dataset, wanted: Wanted, recipe: Recipe) -> Start:
    """Build the network of a new run, with the weights that are wanted.

    Weights that name their own preprocessing keep it; else that of the recipe counts.

    Raises:
        ZooError: there is no such model, it takes no images of this size or not the drop path or
            dropout of the recipe, or the weights are missing, of another network or for another
            image size.
        CheckpointError: the run to start from is none, damaged or of another network.
        MachineError: the Hub cannot be reached.
    """
    size = wanted.image_size or STORED_SIZE
    preprocessing = Preprocessing.of(data, image_size=size)
    if recipe.normalisation == "imagenet":
        preprocessing = replace(preprocessing, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if wanted.run is not None:
        return _from_run(model, data, wanted.image_size, wanted.run, recipe)
    if wanted.file is not None:
        return _from(model, data, preprocessing, adopt.from_file(wanted.file), recipe)
    if not wanted.pretrained:
        return Start(
            network=_build(model, data, recipe, image_size=size),
            preprocessing=preprocessing,
            initial_weights=None,
        )
    if is_own(model):
        raise ZooError(
            f"nobody offers weights of {model}, a network of your own: pass {adopt.FILE_OPTION}"
        )
    if is_neighbour(model):
        weights = adopt.from_hub(neighbour(model), image_size=size)
        return _from(model, data, preprocessing, weights, recipe)
    card = pretrained.card(model)
    known = _preprocessing_of(card)
    known = replace(known, image_size=wanted.image_size or known.image_size)
    network = _build(model, data, recipe, image_size=known.image_size, pretrained=True)
    return Start(network=network, preprocessing=known, initial_weights=f"zoo:{card.sha256}")


def again(meta: RunMeta, model: str, data: Dataset, wanted: Wanted, recipe: Recipe) -> Start:
    """Build the network of a run that is resumed; its state is loaded by others.

    Raises:
        CheckpointError: weights are named, and the run began with others.
    """
    if wanted.has_weights and not began_alike(meta, wanted):
        raise CheckpointError(
            f"this run began with {meta.initial_weights or 'random weights'}: resume without "
            "--pretrained, --pretrained-file and --init-from, or start a new run without --resume"
        )
    stored = meta.input_preprocessing
    preprocessing = replace(stored, image_size=wanted.image_size or stored.image_size)
    network = _build(model, data, recipe, image_size=preprocessing.image_size)
    return Start(network=network, preprocessing=preprocessing, initial_weights=meta.initial_weights)


def began_alike(meta: RunMeta, wanted: Wanted) -> bool:
    """Whether a run began with the weights that are wanted, random ones where none are.

    Raises:
        ZooError: the weights are not there any more.
    """
    known = meta.initial_weights
    if wanted.run is not None:
        return known == _origin(Checkpoint.open(wanted.run).meta)
    if wanted.file is not None:
        return known == adopt.from_file(wanted.file).source
    if wanted.pretrained:
        return known is not None and known.startswith(("hub:", "zoo:"))
    return known is None


def _build(
    model: str, data: Dataset, recipe: Recipe, *, image_size: int, pretrained: bool = False
) -> nn.Module:
    """A network with the drop path and dropout of the recipe, where it names any."""
    wanted: dict[str, Any] = {"drop_path": recipe.drop_path, "dropout": recipe.dropout}
    network = create_model(
        model,
        num_classes=data.num_classes,
        image_size=image_size,
        pretrained=pretrained,
        **{key: rate for key, rate in wanted.items() if rate is not None},
    )
    if is_own(model):
        check_training(model, network, num_classes=data.num_classes, image_size=image_size)
    return network


def _from(
    model: str, data: Dataset, preprocessing: Preprocessing, weights: adopt.Weights, recipe: Recipe
) -> Start:
    size = preprocessing.image_size
    network = _build(model, data, recipe, image_size=size)
    adopt.adopt(network, weights, name=model)
    if is_neighbour(model) and not is_adapted(size):
        preprocessing = neighbour(model).pretrained_preprocessing(size)
    return Start(network=network, preprocessing=preprocessing, initial_weights=weights.source)


def check_run(run: Path, model: str) -> Checkpoint:
    """What can be said of a run to start from without building its network.

    Raises:
        CheckpointError: it is none, or of another network than `model`.
    """
    stored = Checkpoint.open(run)
    if stored.meta.model != model:
        raise CheckpointError(
            f"{run} holds {stored.meta.model}, not {model}: pass --init-from with a run of {model}"
        )
    return stored


def _from_run(
    model: str, data: Dataset, image_size: int | None, run: Path, recipe: Recipe
) -> Start:
    """The backbone of a run, pre-trained or not, under a new classifier."""
    stored = check_run(run, model)
    known = stored.meta.input_preprocessing
    known = replace(known, image_size=image_size or known.image_size)
    network = _build(model, data, recipe, image_size=known.image_size)
    heads = tuple(f"{head}." for head in adopt.classifiers(network))
    if not heads:
        raise ZooError(
            f"--init-from needs to know the classifier of {model}, and it has neither a module "
            f"`head` with parameters nor a method get_classifier(): pass {adopt.FILE_OPTION}"
        )
    tensors = {key: t for key, t in stored.state_dict().items() if not key.startswith(heads)}
    source = _origin(stored.meta)
    adopt.adopt(network, adopt.Weights(tensors, source, str(run)), name=model)
    return Start(network=network, preprocessing=known, initial_weights=source)


def _origin(meta: RunMeta) -> str:
    """What a run that starts from this one notes."""
    return f"{meta.pretraining or 'run'} sha256:{meta.weights_sha256}"


def _preprocessing_of(card: pretrained.Card) -> Preprocessing:
    if card.preprocessing is None:
        return Preprocessing.of(card)
    try:
        return from_plain(Preprocessing, card.preprocessing)
    except (TypeError, ValueError) as reason:
        raise CheckpointError(
            f"the card of the weights of {card.model} is damaged (preprocessing: {reason})"
        ) from None
