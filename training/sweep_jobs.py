"""One job of a sweep: what it trains, how much work that is, and the list of all jobs."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from math import ceil, sqrt
from typing import Any

from training.ablations import STUDIES, Ablation, Arm, ablations_of
from training.pretraining import Pretraining, pretraining_for
from training.recipe import Recipe, with_epochs, with_settings
from training.recipes import recipe_for
from zoo.errors import ZooError
from zoo.preprocess import STORED_SIZE

PASSES = 3  # forward passes that a training step costs: one, and a backward one of two
LEAST_STEPS = 20  # of a bounded training
USUAL_STEPS = 150  # of a bounded training, where its batch can be chosen
LEAST_BATCH, MOST_BATCH = 8, 128  # images of a step of a bounded training
MOST_EPOCHS = 10  # of a bounded training: the rate falls as the recipe says, in fewer of them
IMAGES = {"cifar100": (50_000, 10_000), "cifar10": (50_000, 10_000), "cifar100-mini": (4000, 1000)}
HELD_OUT = 10  # one of so many images is not pre-trained on, as zoo.data.validation_split has it
VIEWS = 2  # of each image, in pre-training


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A network, a recipe, a seed and the images: everything that decides the weights."""

    model: str
    recipe: str
    seed: int
    dataset: str
    settings: Mapping[str, str] = field(default_factory=dict)  # as for --set
    epochs: int | None = None  # None: the recipe's
    image_size: int | None = None  # None: as stored
    pretrained: bool = False
    pretraining: str | None = None  # the method of zoo-pretrain that comes first
    max_macs: float | None = None  # of the training; None: all that the recipe asks for

    @property
    def id(self) -> str:
        """A name that is safe in a path; it differs where any field does."""
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        model = re.sub("[^A-Za-z0-9._-]+", "-", self.model)
        return f"{model}-{self.recipe}-s{self.seed}-{digest}"

    def __str__(self) -> str:
        changes = [f"{name}={value}" for name, value in self.settings.items()]
        more = [
            *([f"{self.epochs} epochs"] if self.epochs else []),
            *(["pretrained"] if self.pretrained else []),
            *([f"after {self.pretraining}"] if self.pretraining else []),
        ]
        return ", ".join(
            [self.model, f"recipe {self.recipe}", *changes, *more, f"seed {self.seed}"]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What the training of a job takes; None where the number of images is not known."""

    is_bounded: bool
    max_macs: float | None
    macs: int  # of one image
    batch_size: int
    peak_lr: float
    warmup_epochs: float
    epochs: int
    epoch_steps: int | None
    steps: int | None
    training_macs: int | None  # of all steps, PASSES for each image
    pretraining_macs: int = 0  # of all steps, PASSES for each of VIEWS
    test_macs: int | None = None  # of one pass over the test images


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Jobs that are compared with each other, by the labels of what they try."""

    name: str
    question: str | None = None
    baseline: str | None = None  # a label
    jobs: tuple[tuple[str, Job], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Labels with the ids of their jobs, in order."""
        arms: dict[str, list[str]] = {}
        for label, job in self.jobs:
            arms.setdefault(label, []).append(job.id)
        return {
            "name": self.name,
            "question": self.question,
            "baseline": self.baseline,
            "arms": [{"label": label, "jobs": ids} for label, ids in arms.items()],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What the command line says about every job; None: what the list itself says."""

    seeds: tuple[int, ...] | None = None
    epochs: int | None = None
    dataset: str | None = None
    recipe: str | None = None
    max_macs: float | None = None

    def job(self, arm: Arm, seed: int, *, epochs: int | None = None) -> Job:
        """An arm with one seed."""
        return Job(
            model=arm.model,
            recipe=self.recipe or arm.recipe,
            seed=seed,
            dataset=self.dataset or "cifar100",
            settings=dict(arm.settings),
            epochs=self.epochs or epochs,
            image_size=arm.image_size,
            pretrained=arm.pretrained,
            pretraining=arm.pretraining,
            max_macs=self.max_macs,
        )

    def group(
        self,
        name: str,
        arms: Iterable[tuple[Arm, int | None]],
        *,
        question: str | None = None,
        baseline: str | None = None,
    ) -> Group:
        """Every arm, each with the epochs that it asks for, with every seed."""
        listed = list(arms)
        jobs = tuple(
            (arm.label, self.job(arm, seed, epochs=epochs))
            for seed in self.seeds or SEEDS
            for arm, epochs in listed
        )
        return Group(name=name, question=question, baseline=baseline, jobs=jobs)


SEEDS = (0, 1, 2)


def comparison(scale: Scale) -> list[Group]:
    """The networks of the first study, in the order of its table."""
    from zoo.reported import read_table

    models = [row["model"] for row in read_table("table1_models.csv")]
    return [scale.group("comparison", [(Arm(label=name, model=name), None) for name in models])]


def second_study(scale: Scale) -> list[Group]:
    """The networks of the second study, with the epochs that it gave each of them."""
    from zoo.reported import read_table

    arms = [
        (
            Arm(
                label=f"{row['label']}, {row['epochs']} epochs",
                model=row["registry_name"],
                recipe="second_study",
            ),
            int(row["epochs"]),
        )
        for row in read_table("second_report_models.csv")
    ]
    return [scale.group("second-study", arms)]


def ablation(studies: Sequence[str], scale: Scale) -> list[Group]:
    """The questions of these studies; "all" means every study.

    Raises:
        ZooError: there is no such study.
    """
    names = STUDIES if tuple(studies) == ("all",) else studies
    return [_ablation_group(one, scale) for name in names for one in ablations_of(name)]


def _ablation_group(one: Ablation, scale: Scale) -> Group:
    name = one.name if one.name == one.study else f"{one.study}.{one.name}"
    return scale.group(
        name,
        [(arm, None) for arm in (one.baseline, *one.arms)],
        question=one.question,
        baseline=one.baseline.label,
    )


def all_jobs(groups: Iterable[Group]) -> list[Job]:
    """Every job once, whatever the number of groups that it is in; all of one seed, then the next.

    So whoever stops early has whole comparisons.
    """
    jobs = {job.id: job for group in groups for _, job in group.jobs}
    seeds = list(dict.fromkeys(job.seed for job in jobs.values()))
    return sorted(jobs.values(), key=lambda job: seeds.index(job.seed))


def recipe_of(job: Job) -> Recipe:
    """The recipe that a job asks for, before it is bounded.

    It takes all training images and the last epoch unless the job's settings say otherwise: nothing
    is chosen by an accuracy.

    Raises:
        ZooError: the recipe, one of its fields or the network is unknown or out of range.
    """
    recipe = recipe_for(job.recipe, job.model)
    if job.epochs is not None and "epochs" not in job.settings:  # which count for more
        recipe = with_epochs(recipe, job.epochs)
    return with_settings(recipe, {"full_train": "true", **job.settings})


def work_of(job: Job) -> Work:
    """What the training of a job takes.

    With `max_macs` it is bounded: small batches, the rate with the root of their size, as the noise
    of gradients asks for, and at least LEAST_STEPS steps whatever they cost. A pre-training has a
    bound of its own, as large, and is one epoch then.

    Source:
        Krizhevsky 2014, arXiv:1404.5997, section 5, for the rate.

    Raises:
        ZooError: as `recipe_of`, or the network takes no images of this size.
    """
    recipe = recipe_of(job)
    macs = macs_of(job.model, job.image_size or STORED_SIZE)
    train_images, test_images = IMAGES.get(job.dataset, (None, None))
    bounded = _bounded(recipe, macs, job.max_macs, train_images, most_epochs=MOST_EPOCHS)
    taken = bounded or recipe
    pretraining = pretraining_of(job)
    steps = None
    if train_images is not None:
        epoch = train_images // taken.batch_size
        steps = taken.epochs * min(epoch, taken.epoch_steps or epoch)
    elif bounded is not None and taken.epoch_steps is not None:
        steps = taken.epochs * taken.epoch_steps
    return Work(
        is_bounded=bounded is not None or (pretraining or recipe).epoch_steps is not None,
        max_macs=job.max_macs,
        macs=macs,
        batch_size=taken.batch_size,
        peak_lr=taken.peak_lr,
        warmup_epochs=taken.warmup_epochs,
        epochs=taken.epochs,
        epoch_steps=taken.epoch_steps,
        steps=steps,
        training_macs=None if steps is None else PASSES * macs * taken.batch_size * steps,
        pretraining_macs=_pretraining_macs(job),
        test_macs=None if test_images is None else macs * test_images,
    )


def _bounded(
    recipe: Recipe,
    macs: int,
    max_macs: float | None,
    train_images: int | None,
    *,
    most_epochs: int,
) -> Recipe | None:
    """The recipe within `max_macs`; None where it is already."""
    if max_macs is None:
        return None
    affordable = max_macs / (PASSES * macs)  # images
    if train_images is not None and affordable >= recipe.epochs * train_images:
        return None
    batch = max(LEAST_BATCH, min(affordable / USUAL_STEPS, MOST_BATCH))
    batch = int(min(batch, recipe.batch_size)) // 2 * 2  # images are mixed in pairs
    steps = max(LEAST_STEPS, int(affordable / batch))
    epochs = min(recipe.epochs, most_epochs)
    return replace(
        with_epochs(recipe, epochs),
        batch_size=batch,
        epoch_steps=ceil(steps / epochs),
        peak_lr=float(f"{recipe.peak_lr * sqrt(batch / recipe.batch_size):.4g}"),
    )


def pretraining_of(job: Job) -> Pretraining | None:
    """What comes before the training of a job, within its bound; None where nothing does.

    Raises:
        ZooError: there is no such method or network.
    """
    if job.pretraining is None:
        return None
    settings = pretraining_for(job.pretraining)
    macs = VIEWS * macs_of(job.model, STORED_SIZE)
    images = _pretraining_images(job)
    # One epoch, since after each all images are looked at for their nearest neighbours.
    bounded = _bounded(settings.optimisation, macs, job.max_macs, images, most_epochs=1)
    if bounded is None:
        return settings
    return replace(
        settings,
        epochs=bounded.epochs,
        warmup_epochs=bounded.warmup_epochs,
        batch_size=bounded.batch_size,
        epoch_steps=bounded.epoch_steps,
        peak_lr=bounded.peak_lr,
    )


def _pretraining_images(job: Job) -> int | None:
    images, _ = IMAGES.get(job.dataset, (None, None))
    return None if images is None else images - images // HELD_OUT


def _pretraining_macs(job: Job) -> int:
    settings, images = pretraining_of(job), _pretraining_images(job)
    if settings is None:
        return 0
    steps = settings.epoch_steps
    if images is not None:
        epoch = images // settings.batch_size
        steps = min(epoch, steps or epoch)
    macs = macs_of(job.model, STORED_SIZE)
    return PASSES * VIEWS * macs * settings.batch_size * (steps or 0) * settings.epochs


@cache
def macs_of(model: str, image_size: int) -> int:
    """Multiply-accumulates of one image.

    Raises:
        ZooError: there is no such network, or it takes no images of this size.
    """
    from zoo.models import MODELS

    if model in MODELS and image_size == STORED_SIZE:
        return MODELS[model].macs
    from zoo.cost import cost_of_model
    from zoo.models import create_model

    network = create_model(model, image_size=image_size)
    macs = cost_of_model(network, (3, image_size, image_size)).macs
    if not macs:
        raise ZooError(f"the multiply-accumulates of {model} cannot be counted: leave it out")
    return macs
