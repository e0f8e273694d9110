"""What decides a training result, and apart from it what decides its speed."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar, get_args, get_type_hints

from zoo.errors import ZooError, nearest
from zoo.plain import from_plain

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "linear", "step", "halving", "constant")
AUGMENTS = ("none", "trivial", "rand", "auto")
NORMALISATIONS = ("data", "imagenet")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
OWN_GRAPHS = ("reduce-overhead", "max-autotune")  # those that capture CUDA graphs themselves
CUDA_GRAPHS = ("auto", "on", "off")
MEMORY_FORMATS = ("channels-last", "contiguous")
COMM_HOOKS = ("none", "fp16", "bf16")
MOST_RATE = 3.4e38  # what a float32 holds
MOST_ALPHA = 100  # of Mixup and CutMix, which mix halves by then

Settings = TypeVar("Settings", bound=Any)  # a Recipe, or settings that are as much like one


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a training result, apart from the model, the data and the seed.

    Raises:
        ValueError: a field lies outside what its comment allows.
    """

    name: str
    epochs: int
    batch_size: int  # images per optimiser step, over all processes
    epoch_steps: int | None = None  # an epoch's at most; None: as many as the images give
    optimizer: str = "sgd"
    peak_lr: float = 0.1  # reached at the end of warm-up
    momentum: float = 0.9  # SGD only
    nesterov: bool = False
    schedule: str = "cosine"  # how the rate falls from its peak: see training/schedule.py
    warmup_epochs: float = 0.0  # linear from zero
    weight_decay: float = 5e-4
    decay_norms_and_biases: bool = True
    clip_norm: float = 0.0  # largest norm of all gradients together; 0 clips none
    label_smoothing: float = 0.0  # in [0, 1)
    distillation: float = 0.0  # share of a teacher's answers in the loss, in [0, 1]; 0: no teacher
    temperature: float = 4.0  # that softens both sides' answers
    ema_decay: float = 0.0  # of an average of the weights, a step; 0 keeps none
    drop_path: float | None = None  # of the last block; None: the model's own
    dropout: float | None = None  # None: the model's own
    crop_padding: int = 4  # pixels; 0 never crops
    flip_p: float = 0.5
    vertical_flip_p: float = 0.0
    augment: str = "trivial"  # TrivialAugmentWide, RandAugment or AutoAugment (CIFAR-10 policy)
    rand_ops: int = 2  # RandAugment only: operations for each image
    rand_magnitude: int = 9  # RandAugment only: their strength, 0 to 30
    jitter: float = 0.0  # brightness, contrast, saturation (factors) and hue (turns), each within
    erase_p: float = 0.5
    mixup_alpha: float = 0.0  # of Beta(alpha, alpha), the share of an image; 0: no Mixup
    cutmix_alpha: float = 0.0  # the same of CutMix; with both, half of the images take either
    mix_p: float = 1.0  # chance that an image is mixed with another
    alternates_plain: bool = False  # epochs 1, 3, 5... see the images as they are stored
    normalisation: str = "data"  # mean and deviation of the data set, or those of ImageNet
    freeze_backbone: bool = False  # only the classifier trains
    full_train: bool = False  # all training images and the last epoch, instead of a held-out part
    precision: str = "auto"  # of the matrix products; training resolves "auto" by the device

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 2, "2 or more (batch norm needs two images)"),
            "epoch_steps": (self.epoch_steps is None or self.epoch_steps >= 1, "none or 1 or more"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "peak_lr": (0 < self.peak_lr <= MOST_RATE, "above 0 and finite in float32"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "schedule": (self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            "warmup_epochs": (0 <= self.warmup_epochs < self.epochs, "in [0, epochs)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more and finite"),
            "clip_norm": (0 <= self.clip_norm < math.inf, "0 or more and finite"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "distillation": (0 <= self.distillation <= 1, "in [0, 1]"),
            "temperature": (0 < self.temperature < math.inf, "above 0 and finite"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "drop_path": (self.drop_path is None or 0 <= self.drop_path < 1, "none or in [0, 1)"),
            "dropout": (self.dropout is None or 0 <= self.dropout < 1, "none or in [0, 1)"),
            "crop_padding": (0 <= self.crop_padding < 32, "0 to 31 pixels"),
            "flip_p": (0 <= self.flip_p <= 1, "in [0, 1]"),
            "vertical_flip_p": (0 <= self.vertical_flip_p <= 1, "in [0, 1]"),
            "augment": (self.augment in AUGMENTS, f"one of {', '.join(AUGMENTS)}"),
            "rand_ops": (1 <= self.rand_ops <= 4, "1 to 4"),
            "rand_magnitude": (0 <= self.rand_magnitude <= 30, "0 to 30"),
            "jitter": (0 <= self.jitter <= 0.5, "in [0, 0.5]"),
            "erase_p": (0 <= self.erase_p <= 1, "in [0, 1]"),
            "mixup_alpha": (0 <= self.mixup_alpha <= MOST_ALPHA, f"in [0, {MOST_ALPHA}]"),
            "cutmix_alpha": (0 <= self.cutmix_alpha <= MOST_ALPHA, f"in [0, {MOST_ALPHA}]"),
            "mix_p": (0 <= self.mix_p <= 1, "in [0, 1]"),
            "normalisation": (
                self.normalisation in NORMALISATIONS,
                f"one of {', '.join(NORMALISATIONS)}",
            ),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        }
        require(self, checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values for recipe.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Recipe":
        """Read what `to_json` wrote, today or when `augment` could only be switched on and off.

        Raises:
            ZooError: a field is missing, unknown or out of range.
        """
        if isinstance(older := value.get("trivial_augment"), bool) and "augment" not in value:
            rest = {key: given for key, given in value.items() if key != "trivial_augment"}
            value = {**rest, "augment": "trivial" if older else "none"}
        try:
            return from_plain(cls, value, known_only=True)
        except (TypeError, ValueError) as reason:
            raise ZooError(f"this recipe cannot be read: {reason}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """What decides the speed of a run.

    Of its result, `accumulate` and `sync_batchnorm` decide which images a batch norm sees together,
    and others how numbers are rounded: see `shapes_result`.
    """

    device: str = "auto"  # "auto" takes the GPU of this process where there is one
    compile: bool = False  # torch.compile of model and loss
    compile_mode: str = "default"  # of torch.compile
    cuda_graphs: str = "auto"  # the whole step as one CUDA graph: "auto" on a GPU, "on", "off"
    channels_last: bool = True  # memory format of network and images
    accumulate: int = 1  # parts of a process's share of a batch that pass one after another
    deterministic: bool = False  # only algorithms that give the same bits every time
    save_seconds: float = 30.0  # at least, between two saves of what a resume needs
    # Between processes: batch norms over all of them, number format in which gradients travel
    # ("none": their own).
    sync_batchnorm: bool = False
    comm_hook: str = "none"

    def __post_init__(self) -> None:
        checks = {
            "device": (self.device in DEVICES, f"one of {', '.join(DEVICES)}"),
            "compile_mode": (
                self.compile_mode in COMPILE_MODES,
                f"one of {', '.join(COMPILE_MODES)}",
            ),
            "cuda_graphs": (self.cuda_graphs in CUDA_GRAPHS, f"one of {', '.join(CUDA_GRAPHS)}"),
            "accumulate": (self.accumulate >= 1, "1 or more"),
            "save_seconds": (0 <= self.save_seconds < math.inf, "0 or more and finite"),
            "comm_hook": (self.comm_hook in COMM_HOOKS, f"one of {', '.join(COMM_HOOKS)}"),
        }
        require(self, checks)
        if self.compile and self.compile_mode in OWN_GRAPHS and self.accumulate > 1:
            raise ZooError(
                f"--compile-mode {self.compile_mode} gives each part of a batch the memory of the "
                f"one before: with --accumulate {self.accumulate} pass --compile-mode default"
            )

    @property
    def shapes_result(self) -> dict[str, Any]:
        """The fields on which the weights of a run depend too, by name."""
        names = ("compile", "compile_mode", "channels_last", "accumulate", "deterministic")
        return {name: getattr(self, name) for name in (*names, "sync_batchnorm", "comm_hook")}


def require(value: Any, checks: dict[str, tuple[bool, str]]) -> None:
    """Check the fields of a dataclass, each of which holds or is told what was expected.

    Raises:
        ValueError: one does not hold; the message names the first.
    """
    for field, (holds, expected) in checks.items():
        if not holds:
            raise ValueError(f"{field} must be {expected}, got {getattr(value, field)!r}")


def with_epochs(recipe: Settings, epochs: int) -> Settings:
    """The same recipe stretched to `epochs`; the warm-up keeps its share of them."""
    if epochs == recipe.epochs:  # again: a quotient would round once more
        return recipe
    return replace(
        recipe, epochs=epochs, warmup_epochs=recipe.warmup_epochs * epochs / recipe.epochs
    )


def scaled(recipe: Recipe, batch_size: int) -> Recipe:
    """The same recipe with `batch_size` images a step, its rate in proportion.

    Source:
        Goyal et al. 2017, arXiv:1706.02677, section 2.1. Warm-up stays what the recipe says.
    """
    if batch_size == recipe.batch_size:
        return recipe
    rate = recipe.peak_lr * batch_size / recipe.batch_size
    return replace(recipe, batch_size=batch_size, peak_lr=rate)


def read_settings(texts: Iterable[str], **options: object) -> dict[str, str]:
    """Fields and their text of options such as `--set field=value`.

    `options` holds what the options named after a field give, falsy where they do not.

    Raises:
        ZooError: one has no value, or two give the same field.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ZooError(f"--set expects FIELD=VALUE, such as --set peak_lr=0.05; got {text!r}")
        if name in settings or options.get(name):
            option = "--" + name.replace("_", "-")
            other = option if options.get(name) else f"--set {name}={settings[name]}"
            raise ZooError(f"{other} and --set {text} give the same field: leave one out")
        settings[name] = value
    return settings


def with_settings(recipe: Settings, settings: dict[str, str]) -> Settings:
    """Change fields by their text, as `--set field=value` gives them.

    Raises:
        ZooError: there is no such field, or the text is no value of its type.
    """
    hints = get_type_hints(type(recipe))
    changes: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in hints or name == "name":
            known = [field.name for field in fields(recipe) if field.name != "name"]
            raise ZooError(f"a recipe has no field {name!r}: {nearest(name, known)}")
        changes[name] = _parse(name, text, hints[name])
    try:
        return replace(recipe, **changes)
    except ValueError as reason:
        raise ZooError(f"recipe {recipe.name!r}: {reason}") from None


def _parse(name: str, text: str, kind: Any) -> Any:
    kind, *others = get_args(kind) or (kind,)  # `float | None` has two
    is_optional = type(None) in others
    if is_optional and text.lower() == "none":
        return None
    if kind is bool:
        values = {"true": True, "false": False}
        if text.lower() in values:
            return values[text.lower()]
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    or_none = " or none" if is_optional else ""
    raise ZooError(f"--set {name}={text}: expected a value of type {kind.__name__}{or_none}")
