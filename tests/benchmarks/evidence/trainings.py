"""Real trainings, one step each."""

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.recipes import named_recipe
from zoo.checkpoint import META, METRICS
from zoo.files import read_json

from .place import Place
from .speeds import Speeds
from .task import Harvest, Task

TRAIN, STRONG = "train", "strong"
IMAGES = 50_000  # of CIFAR-100
HELD_OUT = 0.1  # of the training images, unless all are trained on


@dataclass(frozen=True, kw_only=True)
class Training:
    """What decides one training."""

    model: str
    recipe: str
    seed: int
    epochs: int | None  # None: the recipe's
    dataset: str
    is_full: bool  # on all training images, keeping the last epoch
    compile: bool
    batch_size: int | None = None  # None: the recipe's

    @property
    def name(self) -> str:
        """Says all that tells it from the others."""
        parts = [self.recipe, self.model, f"s{self.seed}"]
        parts += [] if self.is_full else ["held-out"]
        parts += [] if self.epochs is None else [f"e{self.epochs}"]
        return " ".join(parts)

    @property
    def images(self) -> int:
        """Training images that it sees in all."""
        if self.batch_size is not None:  # of a rehearsal
            return self.batch_size * (self.epochs or 1)
        share = 1.0 if self.is_full else 1 - HELD_OUT
        return round(share * IMAGES * (self.epochs or named_recipe(self.recipe).epochs))

    def task(self, speeds: Speeds, part: str) -> Task:
        """The step that runs it."""
        return Task(
            name=self.name,
            part=part,
            predicted_s=speeds.training_s(self.model, self.images),
            command=self.command,
            harvest=self.harvest,
            can_resume=True,
        )

    def command(self, place: Place) -> list[str]:
        """Begin, or go on with what an earlier call began."""
        runs = place.runs_of(self.name)
        options = ["--dataset", self.dataset, "--device", place.device]
        options += ["--compile"] if self.compile else []
        begun = incomplete_run(runs)
        if begun is not None:
            return place.command("zoo-train", "--resume", str(begun), *options)
        options += ["--recipe", self.recipe, "--seed", str(self.seed), "--runs", str(runs)]
        options += ["--full-train"] if self.is_full else []
        options += [] if self.epochs is None else ["--epochs", str(self.epochs)]
        options += [] if self.batch_size is None else ["--batch-size", str(self.batch_size)]
        return place.command("zoo-train", self.model, *options)

    def harvest(self, place: Place, printed: list[str]) -> Harvest:
        """Speed and accuracy of what it has done so far, and its run if it is complete."""
        found = all_metas(place.runs_of(self.name))
        if not found:
            return Harvest(facts={"model": self.model, "recipe": self.recipe, "epochs_done": 0})
        run, meta = found[-1]
        speeds = [line["images_per_s"] for line in read_metrics(run)]
        facts = {
            "model": self.model,
            "recipe": self.recipe,
            "seed": self.seed,
            "epochs_done": meta["epochs_done"],
            "selection": meta["selection"],
            "val_top1": meta["val_top1"],
            "test_top1": meta["test_top1"],
            "test_top5": meta["test_top5"],
            "train_s": meta["train_seconds"],
            "images_per_s": statistics.median(speeds) if speeds else None,
        }
        return Harvest(facts=facts, runs=(run,) if meta["finished_at"] else ())


def trainings(
    models: Iterable[str], recipe: str, seeds: Iterable[int], **others: Any
) -> Iterator[Training]:
    """Of each network one seed after the other."""
    for model in models:
        for seed in seeds:
            yield Training(model=model, recipe=recipe, seed=seed, **others)


def all_metas(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Runs below a folder with their facts, the oldest first."""
    found = [(file.parent, read_json(file)) for file in runs.glob(f"*/{META}")]
    return sorted(found, key=lambda pair: pair[1]["started_at"])


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """A line for each epoch that was stored."""
    file = run / METRICS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def incomplete_run(runs: Path) -> Path | None:
    """The run that an earlier call had to leave."""
    found = all_metas(runs)
    return found[-1][0] if found and found[-1][1]["finished_at"] is None else None
