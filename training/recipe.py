"""What decides a training result, and apart from it what decides only its speed."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

from zoo.errors import ZooError, nearest
from zoo.plain import from_plain

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "linear")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a training result, apart from the model, the data and the seed.

    Raises:
        ValueError: a field lies outside what its comment allows.
    """

    name: str
    epochs: int
    batch_size: int  # images per optimiser step, over all processes
    optimizer: str = "sgd"
    peak_lr: float = 0.1  # reached at the end of warm-up
    momentum: float = 0.9  # SGD only
    nesterov: bool = False
    schedule: str = "cosine"  # how the rate falls from its peak to zero over the remaining steps
    warmup_epochs: float = 0.0  # linear from zero
    weight_decay: float = 5e-4
    decay_norms_and_biases: bool = True
    label_smoothing: float = 0.0  # in [0, 1)
    ema_decay: float = 0.0  # of an average of the weights, a step; 0 keeps none
    crop_padding: int = 4  # pixels; 0 never crops
    flip_p: float = 0.5
    trivial_augment: bool = True  # TrivialAugmentWide
    erase_p: float = 0.5
    freeze_backbone: bool = False  # only the classifier trains
    full_train: bool = False  # all training images and the last epoch, instead of a held-out part
    precision: str = "auto"  # of the matrix products; training resolves "auto" by the device

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 2, "2 or more (batch norm needs two images)"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "peak_lr": (0 < self.peak_lr < math.inf, "above 0 and finite"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "schedule": (self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            "warmup_epochs": (0 <= self.warmup_epochs < self.epochs, "in [0, epochs)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more and finite"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "crop_padding": (0 <= self.crop_padding < 32, "0 to 31 pixels"),
            "flip_p": (0 <= self.flip_p <= 1, "in [0, 1]"),
            "erase_p": (0 <= self.erase_p <= 1, "in [0, 1]"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        }
        for field, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{field} must be {expected}, got {getattr(self, field)!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for recipe.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Recipe":
        """Read what `to_json` wrote.

        Raises:
            ZooError: a field is missing, unknown or out of range.
        """
        try:
            return from_plain(cls, value, known_only=True)
        except (TypeError, ValueError) as reason:
            raise ZooError(f"this recipe cannot be read: {reason}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """What decides only the speed of a run."""

    device: str = "auto"  # "auto" takes the GPU of this process where there is one
    compile: bool = False  # torch.compile of model and loss


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The same recipe stretched to `epochs`; the warm-up keeps its share of them."""
    return replace(
        recipe, epochs=epochs, warmup_epochs=recipe.warmup_epochs * epochs / recipe.epochs
    )


def with_settings(recipe: Recipe, settings: dict[str, str]) -> Recipe:
    """Change fields by their text, as `--set field=value` gives them.

    Raises:
        ZooError: there is no such field, or the text is no value of its type.
    """
    hints = get_type_hints(Recipe)
    changes: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in hints or name == "name":
            known = [field.name for field in fields(Recipe) if field.name != "name"]
            raise ZooError(f"a recipe has no field {name!r}: {nearest(name, known)}")
        changes[name] = _parse(name, text, hints[name])
    try:
        return replace(recipe, **changes)
    except ValueError as reason:
        raise ZooError(f"recipe {recipe.name!r}: {reason}") from None


def _parse(name: str, text: str, kind: type[Any]) -> Any:
    if kind is bool:
        values = {"true": True, "false": False}
        if text.lower() in values:
            return values[text.lower()]
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise ZooError(f"--set {name}={text}: expected a value of type {kind.__name__}")
