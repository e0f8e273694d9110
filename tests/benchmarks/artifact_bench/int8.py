"""What int8 costs one network in accuracy, as it is stored, and the page of all networks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.artifact import Artifact
from export.mcnemar import Comparison
from profiling.tables import markdown_table, percent, place
from zoo.checkpoint import RunMeta
from zoo.environment import Environment
from zoo.models import MODELS

from .page import KEEPS
from .sheet import ALL_BITS, Entry, by_machine, read_stored
from .training import trained_images

INTRO = f"""\
# What int8 costs in accuracy

Written by `make int8` from the records beside it; do not edit it.

One trained network of each family with convolutions. Most were trained briefly, for this alone:
"images" is how many passed through the training, with repetition. Ranges are of 512 training
images. Where top-1 on validation images falls by more than {100 * KEEPS:.1f} points, layers stay
in float, the most sensitive first; training held these images out, but for runs on all of them.
Top-1 is of the whole test split, which chose nothing. p is McNemar's, exact and two-sided: large
where the loss may be chance. Weights have 7 bits, since with 8 an x86 CPU without VNNI clips sums.
Logits are left in float since commit 3e9602e; records of earlier ones rounded them too. Of three
ways to find ranges the one that changed the logits least was taken, but by min-max alone before
there was a choice.
"""
LEFT_COLUMNS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8:
    """One target."""

    target: str
    reason: str | None = None  # why there is no artifact; then the rest is None
    comparison: Comparison | None = None  # with eager, on the test split
    layers: int | None = None
    kept_float: tuple[str, ...] = ()
    weight_bits: int = ALL_BITS
    method: str = "minmax"  # of the ranges

    @classmethod
    def of(cls, artifact: Artifact) -> "Int8":
        """From a proven artifact."""
        facts = artifact.facts["int8"]
        return cls(
            target=artifact.target,
            comparison=artifact.comparison,
            layers=facts["layers"],
            kept_float=tuple(facts["kept_float"]),
            weight_bits=facts["weight_bits"],
            method=facts["method"],
        )

    @classmethod
    def failed(cls, entry: Entry) -> "Int8":
        """From what could not be written."""
        return cls(target=entry.backend, reason=entry.reason)

    @property
    def drop(self) -> float | None:
        """Of top-1, in [0, 1]; negative where the file is better."""
        compared = self.comparison
        return None if compared is None else compared.eager_top1 - compared.top1


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One network."""

    model: str
    trained_images: int
    dataset: str
    dataset_digest: str  # of all of it
    val_images: int  # held out of training
    weights_sha256: str
    environment: Mapping[str, Any]  # of the training
    quantised_in: Mapping[str, Any]
    commit: str | None
    targets: tuple[Int8, ...]

    @classmethod
    def of(
        cls,
        meta: RunMeta,
        targets: Sequence[Int8],
        *,
        quantised_in: Mapping[str, Any],
        commit: str | None,
    ) -> "Cost":
        """Of a run."""
        return cls(
            model=meta.model,
            trained_images=trained_images(meta),
            dataset=meta.dataset.name,
            dataset_digest=meta.dataset.digest,
            val_images=meta.dataset.val_images,
            weights_sha256=meta.weights_sha256,
            environment=meta.environment,
            quantised_in=quantised_in,
            commit=commit,
            targets=tuple(targets),
        )

    @property
    def keeps(self) -> bool:
        """Whether any artifact keeps the accuracy."""
        return any(one.drop is not None and one.drop < KEEPS for one in self.targets)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self)


def read_cost(path: Path) -> Cost:
    """Read what an earlier call wrote.

    Raises:
        RecordError: it is damaged.
    """
    return read_stored(Cost, path, "int8")


def page(costs: Sequence[Cost], missing: Sequence[str] = ()) -> str:
    """The whole text; `missing` names networks that are still to be measured."""
    lacking = f"\nNot measured yet: {', '.join(missing)}.\n" if missing else ""
    return "".join(
        [INTRO, lacking, *map(_section, by_machine(costs, lambda cost: cost.quantised_in))]
    )


def _section(costs: Sequence[Cost]) -> str:
    first = costs[0]
    targets = list(dict.fromkeys(one.target for cost in costs for one in cost.targets))
    commits = dict.fromkeys(cost.commit or "no commit" for cost in costs)
    lines = [["Network", "Family", "Images", "Eager top-1 %"]]
    for name in targets:
        lines[0] += [f"{name} top-1 %", "lost, points", "p", "layers in int8", "bits", "ranges"]
    for cost in costs:
        by_target = {one.target: one for one in cost.targets}
        eager = next((one.comparison.eager_top1 for one in cost.targets if one.comparison), None)
        cells = [cost.model, MODELS[cost.model].family, f"{cost.trained_images:,}", percent(eager)]
        for name in targets:
            cells += _cells(by_target.get(name))
        lines.append(cells)
    kept = sum(cost.keeps for cost in costs)
    return (
        f"\n## {place(Environment.from_json(dict(first.quantised_in)))}, {first.dataset}\n\n"
        f"Commit {', '.join(commits)}.\n\n"
        f"- {kept} of {len(costs)} networks have an int8 artifact that loses less than "
        f"{100 * KEEPS:.1f} points on the test split.\n"
        + "".join(f"- {line}\n" for line in _beyond(costs))
        + f"\n{markdown_table(lines, left=LEFT_COLUMNS)}"
    )


def _cells(one: Int8 | None) -> list[str]:
    if one is None or one.comparison is None or one.drop is None:
        return [""] * 6
    compared, layers = one.comparison, f"{(one.layers or 0) - len(one.kept_float)} of {one.layers}"
    lost, bits = f"{100 * one.drop:.2f}", str(one.weight_bits)
    return [percent(compared.top1), lost, f"{compared.p_value:.2g}", layers, bits, one.method]


def _beyond(costs: Sequence[Cost]) -> Iterator[str]:
    """What falls short, by name."""
    for cost in costs:
        for one in cost.targets:
            if one.reason is not None:
                yield f"{cost.model}, {one.target}: {one.reason}"
            elif one.drop is not None and one.drop >= KEEPS:
                yield f"{cost.model}, {one.target}: loses {100 * one.drop:.2f} points"
