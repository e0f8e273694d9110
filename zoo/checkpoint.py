"""A run folder: weights without pickles, and the facts that belong to them."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from zoo.errors import CheckpointError
from zoo.files import atomic_file, read_json, sha256_file, write_json
from zoo.own import is_own
from zoo.plain import from_plain
from zoo.preprocess import Preprocessing

if TYPE_CHECKING:
    from zoo.data import Dataset

SCHEMA = 1
META, WEIGHTS, RECIPE = "meta.json", "weights.safetensors", "recipe.json"
METRICS, CURVES, STATE = "metrics.jsonl", "curves.png", "state"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """Which images a run saw, and what one needs to feed its model."""

    name: str
    digest: str  # of all images and labels, SHA-256
    class_names: tuple[str, ...]
    coarse_names: tuple[str, ...] | None
    coarse_of_fine: tuple[int, ...] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_images: int
    val_images: int
    test_images: int

    @classmethod
    def of(cls, data: "Dataset", *, val_images: int) -> "DatasetInfo":
        """Describe `data` with `val_images` of its training images held out."""
        return cls(
            name=data.name,
            digest=data.digest,
            class_names=data.class_names,
            coarse_names=data.coarse_names,
            coarse_of_fine=data.coarse_of_fine,
            mean=data.mean,
            std=data.std,
            train_images=len(data.train.fine) - val_images,
            val_images=val_images,
            test_images=len(data.test.fine),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMeta:
    """What is known of a run; rewritten with every save."""

    model: str
    seed: int
    recipe_name: str
    recipe: Mapping[str, Any]  # resolved: no "auto" is left
    dataset: DatasetInfo
    selection: str  # "validation": the best epoch on held-out training images; "last": the last
    epoch: int  # whose weights are stored, counted from 1; 0: none are yet
    epochs_done: int
    val_top1: float | None  # of the stored weights, in [0, 1]
    test_top1: float | None  # measured once, at the end
    test_top5: float | None
    train_seconds: float
    compiled: bool
    processes: int  # the most that trained it at a time
    weights_sha256: str
    environment: Mapping[str, Any]
    commit: str | None
    started_at: str  # ISO 8601, UTC
    finished_at: str | None  # None: not complete
    preprocessing: Preprocessing | None = None  # None in older runs: see input_preprocessing
    initial_weights: str | None = None  # where they came from; None: initialised by chance
    teacher: str | None = (
        None  # "MODEL sha256:DIGEST" of the weights it learned from; None: of none
    )
    pretraining: str | None = None  # the method; then the weights are those before the classifier
    job: str | None = None  # of the launcher that started several processes
    runtime: Mapping[str, Any] | None = None  # what of it shapes the weights; None in older runs
    compilation: Mapping[str, Any] | None = None  # what torch.compile took and gave; None: eager
    schema: int = SCHEMA

    @property
    def input_preprocessing(self) -> Preprocessing:
        """What the model is fed with; older runs knew 32x32 pixels and their data set only."""
        return self.preprocessing or Preprocessing.of(self.dataset)


# Facts of a run that has not taken a step.
NOT_BEGUN: Mapping[str, Any] = {
    **{"epoch": 0, "epochs_done": 0, "train_seconds": 0.0, "weights_sha256": ""},
    **dict.fromkeys(("val_top1", "test_top1", "test_top5", "finished_at")),
}


@dataclass(frozen=True)
class Checkpoint:
    """A run folder that holds usable weights."""

    path: Path
    meta: RunMeta

    @classmethod
    def open(cls, path: Path | str) -> "Checkpoint":
        """Read the facts of a run.

        Raises:
            CheckpointError: the folder is no run, its meta.json cannot be read, or its name is not
                UTF-8, as safetensors and ONNX Runtime need it.
        """
        path = Path(path)
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise CheckpointError(f"the name {path} is not UTF-8: rename the folder") from None
        if not path.exists():
            raise CheckpointError(f"there is no run {path}: train one with zoo-train MODEL")
        if not (path / META).is_file():
            raise CheckpointError(
                f"{path} is not a run: it holds no {META}; train one with zoo-train MODEL"
            )
        return cls(path, _meta(path / META))

    def state_dict(self) -> dict[str, Tensor]:
        """The stored tensors.

        Raises:
            CheckpointError: the weights are missing, truncated, or not those of meta.json.
        """
        file = self.path / WEIGHTS
        if not file.is_file():
            raise CheckpointError(f"{file} does not exist: no epoch of this run was completed")
        try:
            tensors = safetensors.torch.load_file(file)
        except safetensors.SafetensorError as reason:
            raise CheckpointError(
                f"{file} is damaged ({reason}): train again, or copy the file again"
            ) from None
        found = sha256_file(file)
        if found != self.meta.weights_sha256:
            raise CheckpointError(
                f"{file} has SHA-256 {found[:12]}..., but {META} promises "
                f"{self.meta.weights_sha256[:12]}...: the file belongs to another run"
            )
        return tensors

    def model(self, *, allow: str | None = None) -> nn.Module:
        """The network with its weights, in eval mode, on the CPU.

        A network of somebody's own, named package.module:function, is opened only where `allow`
        repeats that name: it means importing that module, and meta.json may be a stranger's.

        Raises:
            CheckpointError: the weights are damaged, another model's or without a classifier, or
                `allow` is not the name of this model.
        """
        self.require_classifier()
        model = self.untrained_model(allow=allow)
        load_weights(model, self.state_dict(), source=self.path / WEIGHTS, name=self.meta.model)
        return model.eval()

    def untrained_model(self, *, allow: str | None = None) -> nn.Module:
        """The network as it is initialised, in training mode; `allow` as in `model`."""
        from zoo.models import create_model

        self.require_consent(allow)
        return create_model(
            self.meta.model,
            num_classes=len(self.meta.dataset.class_names),
            image_size=self.meta.input_preprocessing.image_size,
        )

    def require_classifier(self) -> None:
        """Refuse to go on where the weights end before the classifier.

        Raises:
            CheckpointError: they do, as `zoo-pretrain` left them.
        """
        if self.meta.pretraining is not None:
            raise CheckpointError(
                f"{self.path} holds a backbone without a classifier, pre-trained with "
                f"{self.meta.pretraining}: train one with zoo-train {self.meta.model} "
                f"--init-from {self.path}"
            )

    def require_consent(self, allow: str | None) -> None:
        """Refuse to go on where opening the network would run code that nobody named.

        Raises:
            CheckpointError: this is a network of somebody's own and `allow` is not its name, or
                `allow` names another model than the run holds.
        """
        name = self.meta.model
        if allow is None and is_own(name):
            raise CheckpointError(
                f"{self.path} holds a network of somebody's own, and opening it imports that "
                f"module: if you trust it, pass --model {name}"
            )
        if allow not in (None, name):
            raise CheckpointError(f"{self.path} holds {name}, not {allow}: pass --model {name}")


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path, name: str
) -> None:
    """Copy `tensors` into `model`.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    own = model.state_dict()
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    shapes = [key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape]
    if missing or extra or shapes:
        first = sorted([*missing, *extra, *shapes])[0]
        raise CheckpointError(
            f"{source} holds the weights of another model than {name}: {len(missing)} tensors are "
            f"missing, {len(extra)} left over, {len(shapes)} of another shape (first: {first})"
        )
    model.load_state_dict(dict(tensors))


def save_run(path: Path, meta: RunMeta, tensors: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """Write the weights, where given, and the facts that point to them.

    Both files are complete under temporary names before either replaces an older one. A reader
    between the two renames finds a digest that does not fit; it never takes new weights for old.
    """
    if tensors is None:
        write_json(path / META, asdict(meta))
        return Checkpoint(path, meta)
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    data = safetensors.torch.save(plain)
    meta = replace(meta, weights_sha256=hashlib.sha256(data).hexdigest())
    with atomic_file(path / META) as facts, atomic_file(path / WEIGHTS) as weights:
        weights.write_bytes(data)
        facts.write_text(json.dumps(asdict(meta), indent=1, allow_nan=False) + "\n")
    return Checkpoint(path, meta)


def folder_name(model: str, seed: int) -> str:
    """The name of a run's folder: of a model's name, what is safe in a path everywhere."""
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', model)}-s{seed}"


def numbered(runs: Path, name: str) -> Iterator[Path]:
    """The folders that a run of this name may get: NAME, NAME-2, NAME-3..."""
    yield runs / name
    yield from (runs / f"{name}-{number}" for number in itertools.count(2))


def all_runs(runs: Path) -> list[Path]:
    """Run folders below `runs`, by name."""
    return sorted(file.parent for file in runs.glob(f"*/{META}"))


def complete_runs(
    runs: Path, *, on_damage: Callable[[CheckpointError], None] | None = None
) -> list[Checkpoint]:
    """The complete runs below `runs`, the newest last.

    Folders that hold a backbone without a classifier are passed over, and so are those that are
    damaged, with a word to `on_damage`.

    Raises:
        CheckpointError: there is none; if one is damaged, this says how, unless `on_damage` did.
    """
    found: list[Checkpoint] = []
    damaged: list[CheckpointError] = []
    for path in all_runs(runs):
        try:
            found.append(Checkpoint.open(path))
        except CheckpointError as error:
            damaged.append(error)
            if on_damage is not None:
                on_damage(error)
    complete = [
        run for run in found if run.meta.finished_at is not None and run.meta.pretraining is None
    ]
    if not complete and damaged and on_damage is None:
        raise damaged[0]
    if not complete:
        raise CheckpointError(f"no complete run in {runs}: train one with zoo-train MODEL")
    return sorted(complete, key=lambda run: (run.meta.finished_at or "", run.path.name))


def newest_run(runs: Path) -> Path:
    """The complete run with the latest `finished_at`.

    Raises:
        CheckpointError: there is none.
    """
    return complete_runs(runs)[-1].path


def _meta(file: Path) -> RunMeta:
    value = read_json(file, CheckpointError)
    try:
        schema = value["schema"]
        if schema > SCHEMA:
            raise CheckpointError(
                f"{file} has schema {schema}, this version reads up to {SCHEMA}: update cifar-zoo"
            )
        return from_plain(RunMeta, value)
    except (KeyError, TypeError, ValueError) as reason:
        raise CheckpointError(f"{file} is not the meta.json of a run ({reason})") from None
