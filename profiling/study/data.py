"""What the tables and figures of the studies are made of: the jobs of sweeps with their records.

Frozen data and nothing else; `reading` fills it from a disk. Accuracies are fractions in [0, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from profiling.record import Measurement
from zoo.environment import Environment


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """One line of a run's metrics, for its curves."""

    epoch: int  # from 1
    train_loss: float
    train_top1: float  # over augmented images
    val_top1: float | None = None  # None: nothing was held out


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One job: a training with one seed, and what was measured of it."""

    id: str
    model: str  # a variant, "timm:NAME" or "MODULE:FUNCTION"
    recipe: str
    seed: int
    dataset: str
    dataset_digest: str | None = None  # None: nothing was trained yet
    settings: Mapping[str, str] = field(default_factory=dict)
    epochs: int  # that were trained, or would be
    steps: int | None = None  # None: the number of images is not known
    batch_size: int
    training_macs: int | None = None  # of all steps, forward and backward, pre-training's too
    is_bounded: bool  # stopped by an amount of work, long before the recipe's end
    max_macs: float | None = None  # that amount, for pre-training and training each
    is_done: bool
    failure: str | None = None  # why it has no figures, where it has been given up
    pretrained: bool = False
    pretraining: str | None = None
    image_size: int | None = None  # None: as stored
    params: int | None = None  # trainable
    macs: int | None = None  # of one image
    top1: float | None = None  # over all test images
    top5: float | None = None
    test_images: int | None = None
    train_seconds: float | None = None  # with those of a pre-training
    processes: int | None = None  # that trained it together
    environment: Environment | None = None  # in which it trained
    measurements: tuple[Measurement, ...] = ()
    curve: tuple[Epoch, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """What a comparison tries, under its label: one trial a seed."""

    label: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Arms that are held against each other; trained on one data set.

    `name` is "comparison" for the first study's table 1, "second-study" for the second's, the name
    of an ablation ("eca_kernel", "coatnet_opt.stem"), or that of a list of the user's own.
    """

    name: str
    plan: str  # of the sweep: "comparison", "ablation all", the name of a TOML file
    dataset: str
    question: str | None = None
    baseline: str | None = None  # the label of an arm; None: there is no baseline
    arms: tuple[Arm, ...] = ()
