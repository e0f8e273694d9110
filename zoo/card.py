"""The card of one model: what it is, what it costs, what others reported, what we measured."""

import inspect
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import nn

from zoo.anatomy import Part, ReceptiveField, Shape, parts, receptive_field
from zoo.catalogue import percent
from zoo.reported import Reported, ReportedValue, accuracies, values
from zoo.text import columns

if TYPE_CHECKING:
    from zoo.checkpoint import Checkpoint
    from zoo.neighbours import Neighbour
    from zoo.registry import ModelSpec

IMAGE_SIZE = 32  # what maps and MACs are told for
SHARED = ("num_classes", "image_size")  # options of every model
PACKAGE = "the package"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """An accuracy of ours on test images, and where it comes from."""

    top1: float | None  # in [0, 1]
    top5: float | None
    dataset: str
    recipe: str
    seed: int
    epoch: int  # whose weights were measured
    epochs_done: int
    selection: str  # what chose that epoch
    commit: str | None
    place: str  # folder of the run, or `PACKAGE`


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """All that is known of one model; parameters and MACs are counted, at 100 classes."""

    name: str
    summary: str
    group: str
    family: str
    own_design: bool
    paper: str
    params: int
    macs: int  # of one 32x32 image
    flops: int
    receptive_field: ReceptiveField
    image_sizes: str
    options: Mapping[str, object]  # of create_model, with their defaults
    parts: tuple[Part, ...]
    reported: tuple[Reported, ...]  # by others
    reported_values: tuple[ReportedValue, ...]
    measured: tuple[Measured, ...]  # by us


def make_card(spec: "ModelSpec | Neighbour", *, runs: Iterable["Checkpoint"] = ()) -> ModelCard:
    """Build the network without storage and look at it, then collect the figures.

    What was measured comes from the package and from those of `runs` that are of this model.

    Raises:
        CheckpointError: the weights of the package are damaged.
    """
    sized = {"image_size": IMAGE_SIZE} if "image_size" in _defaults(spec.build) else {}
    with torch.device("meta"):
        model = spec.build(num_classes=100, **sized)
    made = parts(model, IMAGE_SIZE)
    macs = sum(part.macs for part in made)
    return ModelCard(
        name=spec.name,
        summary=summary(spec.build),
        group=spec.group,
        family=spec.family,
        own_design=spec.own_design,
        paper=spec.paper,
        params=sum(part.params for part in made),
        macs=macs,
        flops=2 * macs,
        receptive_field=receptive_field(model, IMAGE_SIZE),
        image_sizes=str(spec.sizes),
        options=options(spec.build),
        parts=made,
        reported=accuracies(spec.name),
        reported_values=values(spec.name),
        measured=(*_of_package(spec.name), *_of_runs(spec.name, runs)),
    )


def summary(build: Callable[..., nn.Module]) -> str:
    """The first sentence of a builder's docstring."""
    paragraph = (inspect.getdoc(build) or "").partition("\n\n")[0]
    return re.split(r"(?<=\.) ", " ".join(paragraph.split()))[0]


def options(build: Callable[..., nn.Module]) -> dict[str, object]:
    """The options of `create_model` that a builder takes, with their defaults."""
    from zoo.models import create_model

    shared, own = _defaults(create_model), _defaults(build)
    return {key: shared[key] for key in SHARED} | {
        key: default for key, default in own.items() if key not in SHARED
    }


def to_json(card: ModelCard) -> str:
    """The card for programs."""
    return json.dumps(asdict(card), indent=1)


def to_text(card: ModelCard) -> str:
    """The card for people."""
    title = card.name if not card.summary else f"{card.name}: {card.summary}"
    sections = [[title], _facts(card), _diagram(card), _reported(card), _measured(card)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _facts(card: ModelCard) -> list[str]:
    macs = f"{card.macs:,} for one {IMAGE_SIZE}x{IMAGE_SIZE} image, FLOPs {card.flops:,}"
    facts = {
        "group": f"{card.group}, own design of a study" if card.own_design else card.group,
        "family": card.family,
        "paper": card.paper,
        "parameters": f"{card.params:,} with 100 classes",
        "MACs": macs,
        "receptive field": str(card.receptive_field),
        "image sizes": card.image_sizes,
        "options": ", ".join(f"{key}={value}" for key, value in card.options.items()),
    }
    return _table([[key, value] for key, value in facts.items()])


def _diagram(card: ModelCard) -> list[str]:
    rows = [["stage", "blocks", "map in", "", "map out", "parameters", "MACs"]]
    for alike in _alike(card.parts):
        first, last = alike[0], alike[-1]
        rows.append(
            [
                first.name if first is last else f"{first.name} to {last.name}",
                first.blocks if first is last else f"{len(alike)} x {first.blocks}",
                _shape(first.inputs),
                "->" if first.inputs else "",
                _shape(last.outputs),
                f"{sum(part.params for part in alike):,}",
                f"{sum(part.macs for part in alike):,}",
            ]
        )
    rows.append(["total", "", "", "", "", f"{card.params:,}", f"{card.macs:,}"])
    return _table(rows, right=(5, 6))


def _reported(card: ModelCard) -> list[str]:
    if not card.reported and not card.reported_values:
        return ["reported by others: nothing"]
    title = ("top-1 %", "state", "top-5 %", "state", "params M", "MACs M", "hours", "epochs")
    rows = [[*title, "source"]]
    for row in card.reported:
        hours = "" if row.hours is None else f"{'~' * row.are_hours_approximate}{row.hours:.3f}"
        rows.append(
            [
                percent(row.shown_top1),
                row.top1_state if row.top1 is not None else f"{row.top1_state}, best epoch",
                percent(row.top5),
                row.top5_state or "",
                _number(row.params_m),
                _number(row.macs_m),
                hours,
                "" if row.epochs is None else str(row.epochs),
                "; ".join(_remarks(row)),
            ]
        )
    lines = ["reported by others, not measured here:"]
    if card.reported:
        lines += _table(rows, right=(0, 2, 4, 5, 6, 7))
    for value in card.reported_values:
        if value.what != "top1_logged":  # a row above
            what = value.what.replace("_", " ")
            lines.append(f"  {what} {value.value:g} {value.unit} ({value.state}), {value.source}")
    return lines


def _remarks(row: Reported) -> Iterator[str]:
    yield row.source if row.arm is None else f"{row.source}, {row.arm}"
    if row.earned_by is not None:
        yield f"earned by {row.earned_by}, {row.trained_params:,} parameters"
    if row.best_top1 is not None and row.top1 is not None:
        yield f"best epoch {percent(row.best_top1)}"
    if row.note is not None:
        yield row.note


def _measured(card: ModelCard) -> list[str]:
    if not card.measured:
        return ["measured here: nothing yet"]
    rows = [
        ["top-1 %", "top-5 %", "data set", "recipe", "seed", "epoch", "chosen by", "commit", "of"]
    ]
    for one in card.measured:
        rows.append(
            [
                percent(one.top1),
                percent(one.top5),
                one.dataset,
                one.recipe,
                str(one.seed),
                f"{one.epoch} of {one.epochs_done}",
                one.selection,
                "" if one.commit is None else one.commit[:12],
                one.place,
            ]
        )
    return ["measured here, on test images:", *_table(rows, right=(0, 1, 4))]


def _alike(listed: Sequence[Part]) -> Iterator[list[Part]]:
    """Neighbours of one kind that keep the shape, together: the blocks of a transformer."""
    for key, group in groupby(listed, key=lambda part: (part.blocks, part.inputs, part.outputs)):
        run = list(group)
        keeps = key[1] is not None and key[1] == key[2]
        yield from [run] if keeps else ([part] for part in run)


def _shape(shape: Shape | None) -> str:
    match shape:
        case None:
            return ""
        case (tokens, width):
            return f"{tokens} tokens x {width}"
    return "x".join(str(size) for size in shape)


def _table(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    return [f"  {line}" for line in columns(rows, right=right)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"


def _of_package(name: str) -> Iterator[Measured]:
    from zoo import pretrained

    if name in pretrained.available():
        card = pretrained.card(name)
        yield Measured(
            top1=card.test_top1,
            top5=card.test_top5,
            dataset=card.dataset,
            recipe=card.recipe_name,
            seed=card.seed,
            epoch=card.epoch,
            epochs_done=card.epochs_done,
            selection=card.selection,
            commit=card.commit,
            place=PACKAGE,
        )


def _of_runs(name: str, runs: Iterable["Checkpoint"]) -> Iterator[Measured]:
    for run in runs:
        meta = run.meta
        if meta.model == name:
            yield Measured(
                top1=meta.test_top1,
                top5=meta.test_top5,
                dataset=meta.dataset.name,
                recipe=meta.recipe_name,
                seed=meta.seed,
                epoch=meta.epoch,
                epochs_done=meta.epochs_done,
                selection=meta.selection,
                commit=meta.commit,
                place=str(run.path),
            )


def _defaults(function: Callable[..., object]) -> dict[str, object]:
    return {key: value.default for key, value in inspect.signature(function).parameters.items()}
