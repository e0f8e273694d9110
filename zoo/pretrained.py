"""Trained weights: inside the package, in a folder, or in a repository of the Hub.

A place holds two files for each model: NAME.safetensors, and NAME.json, its card, which says where
the weights come from and what they are to hash to. A run folder is a place for its own model.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import command
from zoo.errors import CheckpointError, ZooError, first_line
from zoo.files import atomic_file, read_json
from zoo.plain import from_plain
from zoo.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.checkpoint import Checkpoint

SCHEMA = 1
PLACE = "ZOO_WEIGHTS"  # the variable that names a folder or a repository
SHIPPED = Path(__file__).parent / "weights"
SHIPPED_BYTES = 4_000_000  # of one file inside the package, at most
MOST_BYTES, MOST_CARD_BYTES = 1_000_000_000, 1_000_000  # of any file that is read
CARD, WEIGHTS = ".json", ".safetensors"
HUB, HUB_FORM = "hub:", "hub:OWNER/REPO@COMMIT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What is known of weights: the facts of their run, and how to recognise them."""

    model: str
    sha256: str  # of the weights file, and its length
    size_bytes: int
    params: int
    class_names: tuple[str, ...]  # in the order of the logits
    coarse_names: tuple[str, ...] | None
    coarse_of_fine: tuple[int, ...] | None
    mean: tuple[float, float, float]  # of the data set, per channel, of pixels in [0, 1]
    std: tuple[float, float, float]
    preprocessing: Preprocessing | None = None  # None in older runs: see input_preprocessing
    initial_weights: str | None = None  # where training began; None: initialised by chance
    teacher: str | None = None  # as in `RunMeta`
    pretraining: str | None = None  # as in `RunMeta`
    recipe_name: str
    recipe: Mapping[str, Any]
    seed: int
    selection: str  # "validation" or "last": which epoch was kept
    epoch: int  # whose weights these are, counted from 1
    epochs_done: int
    dataset: str
    dataset_digest: str
    train_images: int
    val_images: int
    test_images: int
    val_top1: float | None  # in [0, 1]
    test_top1: float | None
    test_top5: float | None
    train_seconds: float
    compiled: bool
    processes: int
    runtime: Mapping[str, Any] | None = None  # as in `RunMeta`
    compilation: Mapping[str, Any] | None = None  # as in `RunMeta`
    environment: Mapping[str, Any]
    commit: str | None
    started_at: str  # ISO 8601, UTC
    finished_at: str | None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse what no weights can have.

        Raises:
            ValueError: the digest is none, the size out of bounds or the classes without a name.
        """
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 is not 64 hexadecimal digits")
        if not 0 < self.size_bytes <= MOST_BYTES:
            raise ValueError(f"size_bytes is not between 1 and {MOST_BYTES:,}")
        if not self.class_names:
            raise ValueError("class_names is empty")

    @property
    def num_classes(self) -> int:
        """How many logits there are."""
        return len(self.class_names)

    @property
    def input_preprocessing(self) -> Preprocessing:
        """What the model is fed with."""
        return self.preprocessing or Preprocessing.of(self)


def available() -> tuple[str, ...]:
    """Names of the models whose weights come with the package, sorted."""
    return _names_in(SHIPPED)


def card(name: str, *, weights: Path | str | None = None) -> Card:
    """Read the card of the weights that `create_model` with the same arguments would load.

    Raises:
        ZooError: there are no such weights, or the card is damaged.
    """
    return _find(name, weights).card


def load_pretrained(
    name: str,
    build: Callable[..., "nn.Module"],
    *,
    num_classes: int,
    weights: Path | str | None = None,
) -> "nn.Module":
    """Build a model and fill it with trained weights; `build` takes `num_classes` by keyword.

    With another number of classes than that of the weights, the tensors that depend on it, which
    are those of the classifier, stay as `build` made them. `create_model` says which places are
    searched.

    Raises:
        ZooError: no place has weights of this model, or they do not fit what `build` makes.
        CheckpointError: card or weights are damaged or another model's.
    """
    import torch

    from zoo.checkpoint import load_weights

    model = fitting = build(num_classes=num_classes)  # first: it knows which names there are
    found = _find(name, weights)
    tensors = found.tensors()
    if num_classes != found.card.num_classes:
        with torch.random.fork_rng(devices=[]):  # this one is thrown away
            fitting = build(num_classes=found.card.num_classes)
    expected = fitting.state_dict()
    if expected.keys() == tensors.keys():
        others = [key for key, tensor in tensors.items() if tensor.shape != expected[key].shape]
        if others:
            size = found.card.input_preprocessing.image_size
            raise ZooError(
                f"the weights of {name!r} are for images of {size} pixels and for the options of "
                f"their run: {len(others)} tensors differ in shape (first: {min(others)}); pass "
                f"image_size={size}, or train the model for yours"
            )
    load_weights(fitting, tensors, source=found.fetch(), name=name)
    if fitting is not model:
        loaded = fitting.state_dict()
        for key, tensor in model.state_dict().items():
            if key not in loaded or loaded[key].shape != tensor.shape:
                loaded[key] = tensor
        model.load_state_dict(loaded)
    return model


def card_of(run: "Checkpoint", name: str) -> Card:
    """The card of the weights of a run of model `name`, which is built to count its parameters.

    Raises:
        ZooError: the run is another model's, or this version has no such model.
    """
    import torch

    from zoo import checkpoint

    if run.meta.model != name:  # nothing is built because a file says so
        raise ZooError(f"{run.path} is a run of {run.meta.model!r}, not of {name!r}")
    facts = asdict(run.meta)
    dataset = facts.pop("dataset")
    with torch.random.fork_rng(devices=[]):
        model = run.untrained_model(allow=name)
    own = {
        "sha256": run.meta.weights_sha256,
        "size_bytes": (run.path / checkpoint.WEIGHTS).stat().st_size,
        "params": sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad),
        "dataset": dataset["name"],
        "dataset_digest": dataset["digest"],
        "schema": SCHEMA,
    }
    return from_plain(Card, facts | dataset | own)


def store_weights(
    run: Path | str,
    folder: Path | str = SHIPPED,
    *,
    force: bool = False,
    most_bytes: int = SHIPPED_BYTES,
) -> Path:
    """Write the weights of a complete run and their card to `folder`; return the weights file.

    Weights that are there already are replaced by better ones only: accuracies on the held-out
    images of one data set are compared, and `force` overrules the outcome. Both files are whole
    before either replaces an older one.

    Raises:
        CheckpointError: the run is not complete, or damaged.
        ZooError: the model is none of the zoo's, the file is larger than `most_bytes`, or the
            weights there are better or cannot be compared.
        OSError: the folder cannot be written.
    """
    from zoo import checkpoint
    from zoo.models import model_spec

    opened = checkpoint.Checkpoint.open(run)
    name, folder = model_spec(opened.meta.model).name, Path(folder)
    if opened.meta.finished_at is None:
        raise CheckpointError(f"{run} is not complete: go on with zoo-train --resume {run}")
    opened.model()  # the tensors are whole, and this model's
    data = (opened.path / checkpoint.WEIGHTS).read_bytes()
    if len(data) > most_bytes:
        raise ZooError(
            f"the weights of {run} have {len(data):,} bytes, more than the {most_bytes:,} allowed: "
            f"keep them in a folder of your own, with --out, or on the Hub"
        )
    new = card_of(opened, name)
    paths = folder / f"{name}{CARD}", folder / f"{name}{WEIGHTS}"
    if paths[0].exists() and not force:
        _require_better(new, _read_card(paths[0], name), run)
    with atomic_file(paths[0]) as facts, atomic_file(paths[1]) as weights:
        weights.write_bytes(data)
        facts.write_text(json.dumps(asdict(new), indent=1, allow_nan=False) + "\n")
    return paths[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Put the weights of a run among those that come with the package, or into --out."""
    parser = command.Parser("python -m zoo.pretrained", main.__doc__ or "")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a complete run")
    parser.add_argument("--out", type=Path, help="another folder, for ZOO_WEIGHTS or the Hub")
    parser.add_argument("--force", action="store_true", help="replace better weights too")
    args = parser.parse_args(argv)
    folder, most_bytes = (SHIPPED, SHIPPED_BYTES) if args.out is None else (args.out, MOST_BYTES)

    def store() -> None:
        print(store_weights(args.run, folder, force=args.force, most_bytes=most_bytes))

    return command.run(parser.prog, store)


@dataclass(frozen=True, slots=True)
class _Found:
    """Weights that a place says it has."""

    card: Card
    fetch: Callable[[], Path]  # gives their file, downloaded now if need be
    remedy: str  # what helps where the file is not what the card says

    def tensors(self) -> dict[str, "Tensor"]:
        """What the file holds; the bytes that are checked are those that are used."""
        import safetensors
        import safetensors.torch

        file = self.fetch()
        if file.stat().st_size != self.card.size_bytes:
            raise CheckpointError(
                f"{file} has {file.stat().st_size:,} bytes, its card promises "
                f"{self.card.size_bytes:,}: {self.remedy}"
            )
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.card.sha256:
            raise CheckpointError(
                f"{file} has SHA-256 {digest[:12]}..., its card promises "
                f"{self.card.sha256[:12]}...: {self.remedy}"
            )
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as reason:
            raise CheckpointError(
                f"{file} is no safetensors file ({first_line(reason)}): nothing of it was loaded"
            ) from None


def _find(name: str, weights: Path | str | None) -> _Found:
    """Weights from the place given, else from the package, else from where ZOO_WEIGHTS says."""
    if weights is None and name in available():
        return _in_folder(SHIPPED, name, "install cifar-zoo again")
    place = weights if weights is not None else os.environ.get(PLACE)
    if not place:
        raise ZooError(
            f"there are no weights of {name!r} in the package, which has {_listed(available())}: "
            f"train the model with zoo-train, or name a folder or {HUB_FORM} with weights= or "
            f"{PLACE}"
        )
    if str(place).startswith(HUB):
        return _on_hub(str(place), name)
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ZooError(
            f"the weights {str(place)!r} are no folder: name one, or a Hub repository as {HUB_FORM}"
        )
    if (folder / "meta.json").is_file():
        return _in_run(folder, name)
    return _in_folder(folder, name, "copy the file again")


def _in_folder(folder: Path, name: str, remedy: str) -> _Found:
    card_file, file = folder / f"{name}{CARD}", folder / f"{name}{WEIGHTS}"
    there = card_file.is_file(), file.is_file()
    if not any(there):
        raise ZooError(
            f"there are no weights of {name!r} in {folder}, which has "
            f"{_listed(_names_in(folder))}; the package has {_listed(available())}"
        )
    if not all(there):
        one, other = (card_file, file) if there[0] else (file, card_file)
        raise CheckpointError(f"{folder} has {one.name} without {other.name}: {remedy}")
    return _Found(_read_card(card_file, name), lambda: file, remedy)


def _in_run(folder: Path, name: str) -> _Found:
    from zoo import checkpoint

    run = checkpoint.Checkpoint.open(folder)
    file = folder / checkpoint.WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: no epoch of this run was completed")
    return _Found(card_of(run, name), lambda: file, "train again, or copy the file again")


def _on_hub(place: str, name: str) -> _Found:
    from zoo import hub

    where = hub.parse(place)
    card_file = hub.fetch(where, f"{name}{CARD}", most_bytes=MOST_CARD_BYTES)
    found = _read_card(card_file, name)

    def fetch() -> Path:
        return hub.fetch(where, f"{name}{WEIGHTS}", most_bytes=found.size_bytes)

    cache = card_file.parents[2]  # <cache>/<repository>/snapshots/<commit>/<card>
    return _Found(found, fetch, f"choose another commit, or remove {cache} to download it again")


def _read_card(file: Path, name: str) -> Card:
    if file.stat().st_size > MOST_CARD_BYTES:
        raise CheckpointError(f"{file} is no card: it has more than {MOST_CARD_BYTES:,} bytes")
    value = read_json(file, CheckpointError)
    try:
        if value["schema"] > SCHEMA:
            raise CheckpointError(
                f"{file} has schema {value['schema']}, this version reads up to {SCHEMA}: "
                "update cifar-zoo"
            )
        found = from_plain(Card, value)
    except (KeyError, TypeError, ValueError) as reason:
        raise CheckpointError(f"{file} is not the card of weights ({reason})") from None
    if found.model != name:
        raise CheckpointError(f"{file} is the card of {found.model!r}, not of {name!r}")
    return found


def _require_better(new: Card, old: Card, run: Path | str) -> None:
    if old.dataset_digest != new.dataset_digest or old.val_top1 is None or new.val_top1 is None:
        raise ZooError(
            f"the weights of {new.model!r} that are there cannot be compared with those of {run}: "
            "both need an accuracy on held-out images of one data set; --force replaces them"
        )
    if new.val_top1 < old.val_top1:
        raise ZooError(
            f"the weights of {new.model!r} that are there are better: {100 * old.val_top1:.2f}% on "
            f"the held-out images, {run} has {100 * new.val_top1:.2f}%; --force replaces them"
        )


def _names_in(folder: Path) -> tuple[str, ...]:
    """Models with both files in a folder."""
    cards = folder.glob(f"*{CARD}")
    return tuple(sorted(card.stem for card in cards if card.with_suffix(WEIGHTS).is_file()))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


if __name__ == "__main__":
    sys.exit(main())
