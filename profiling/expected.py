"""Forward times of the zoo beside what the multiply-accumulates predict: pure functions.

A study is a folder with records of untrained networks, a study.json with what explains the slow
ones, and a README.md, which is written from both.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from profiling.record import OK, STUDY, Measurement
from profiling.tables import markdown_table, millions, number, percent, place, timing
from zoo.environment import Environment
from zoo.errors import RecordError, ZooError
from zoo.files import read_json
from zoo.plain import from_plain

SLOW = 2.0  # times the prediction; from here on an explanation is due
EXPLAINED = 2 / 3  # of the excess time, by the operators that an explanation names

# Kinds of operators by what their products cost; profiling.explain tells them apart.
KINDS: Mapping[str, str] = {
    "dilated": "dilated depthwise convolutions",
    "depthwise": "depthwise convolutions",
    "narrow": "convolutions to channels that are no multiple of 16",
    "few": "products over 16 positions or fewer",
    "dense": "other convolutions and products",
    "other": "operators without MACs",
}
REASONS = """\
- *Depthwise convolutions* have few products for the cost of a call, which rearranges the weights:
  on small maps they take as long whatever their size. A number that is loaded meets one filter, in
  another convolution as many as there are outputs.
- *Dilated depthwise convolutions* have no kernel of their own in oneDNN, which computes them as one
  matrix product for each channel (`ONEDNN_VERBOSE=1` shows gemm in place of brdgmm_dw).
- *Convolutions to channels that are no multiple of 16*: with AVX-512 outputs are computed 16 at a
  time, so 4 of them take as long as 16.
- *Products over 16 positions or fewer*, for small maps or one image: reading the weights takes
  longer than multiplying by them. One row of a linear layer takes about half the time of 16.
- *Operators without MACs*: normalisation, activation, sums, concatenation, copies. They move
  numbers and multiply few; where maps are small each costs the time of its call.
"""


@dataclass(frozen=True, slots=True)
class Line:
    """Milliseconds per image as scale * (MACs in millions) ** slope."""

    scale: float
    slope: float
    models: int  # that it was fitted to

    def predict(self, macs: int) -> float:
        """Milliseconds for one image."""
        return self.scale * math.pow(macs / 1e6, self.slope)


def fit(points: Sequence[tuple[int, float]]) -> Line:
    """The line of Theil and Sen through (MACs, milliseconds per image), on logarithmic axes.

    Its slope is the median of the slopes of all pairs, and half of the points lie above it. A few
    networks that are far too slow, which is what it is to show, do not move it.

    Source:
        Sen 1968, Journal of the American Statistical Association 63, pages 1379-1389.

    Raises:
        ValueError: fewer than two different numbers of MACs, or a number that is not above zero.
    """
    logs = [(math.log(macs / 1e6), math.log(ms)) for macs, ms in points]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(logs, 2) if x1 != x2]
    if not slopes:
        raise ValueError("no line: give two networks with different MACs")
    slope = statistics.median(slopes)
    scale = math.exp(statistics.median(y - slope * x for x, y in logs))
    return Line(scale, slope, len(points))


@dataclass(frozen=True, slots=True)
class Timing:
    """One model at one batch size."""

    record: Measurement
    ms_per_image: float
    expected_ms: float

    @property
    def ratio(self) -> float:
        """Measured time over predicted time."""
        return self.ms_per_image / self.expected_ms


@dataclass(frozen=True, slots=True)
class Row:
    """One model at every batch size."""

    model: str
    params: int | None
    macs: int
    by_batch: dict[int, Timing]

    @property
    def slowest(self) -> int:
        """The batch size at which it is furthest above the prediction."""
        return max(self.by_batch, key=lambda batch: self.by_batch[batch].ratio)

    @property
    def is_slow(self) -> bool:
        """Whether it takes more than SLOW times its prediction at any batch size."""
        return self.by_batch[self.slowest].ratio > SLOW


@dataclass(frozen=True, slots=True)
class Study:
    """Everything that was measured in one environment."""

    environment: Environment
    lines: dict[int, Line]  # by batch size
    rows: tuple[Row, ...]  # by MACs
    missing: tuple[Measurement, ...]  # without numbers

    @property
    def slow(self) -> tuple[Row, ...]:
        """What is due an explanation, the slowest first."""
        slow = (row for row in self.rows if row.is_slow)
        return tuple(sorted(slow, key=lambda row: -row.by_batch[row.slowest].ratio))


@dataclass(frozen=True, slots=True)
class Part:
    """The operators of one kind in a forward pass."""

    calls: int
    time: float  # share of the time of all operators
    macs: float  # share of all multiply-accumulates


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a forward pass spends its time, by the names of KINDS."""

    batch: int
    parts: dict[str, Part]


def study(records: Iterable[Measurement]) -> Study:
    """Order the newest records of eager, untrained networks, and fit a line for each batch size.

    Raises:
        ZooError: the records are of several environments, or too few for a line.
    """
    newest: dict[tuple[str, int], Measurement] = {}
    for record in sorted(records, key=lambda record: record.created_at):
        if record.is_untrained and record.backend == "eager" and record.macs is not None:
            newest[record.model, record.batch] = record
    environments = {record.environment.key: record.environment for record in newest.values()}
    if len(environments) > 1:
        keys = " and ".join(sorted(environments))
        raise ZooError(f"the records are of several environments, {keys}: remove all but one")
    known = [record for record in newest.values() if record.status == OK]
    try:
        lines = {
            batch: fit([(_macs(r), _ms_per_image(r)) for r in known if r.batch == batch])
            for batch in sorted({record.batch for record in known})
        }
    except ValueError as reason:
        raise ZooError(f"too few records of untrained networks: {reason}") from None
    if not lines:
        raise ZooError("no records of untrained networks: measure them with zoo-bench --zoo")
    models = {record.model: record for record in known}
    rows = [
        Row(
            model=model,
            params=facts.params,
            macs=_macs(facts),
            by_batch={
                batch: Timing(record, _ms_per_image(record), line.predict(_macs(record)))
                for batch, line in lines.items()
                for record in known
                if (record.model, record.batch) == (model, batch)
            },
        )
        for model, facts in models.items()
    ]
    missing = [record for record in newest.values() if record.status != OK]
    return Study(
        environment=next(iter(environments.values())),
        lines=lines,
        rows=tuple(sorted(rows, key=lambda row: (row.macs, row.model))),
        missing=tuple(sorted(missing, key=lambda r: (r.model, r.batch))),
    )


def _macs(record: Measurement) -> int:
    assert record.macs is not None  # `study` chose those that have them
    return record.macs


def _ms_per_image(record: Measurement) -> float:
    assert record.p50_ms is not None  # status OK
    return record.p50_ms / record.batch


# study.json ---------------------------------------------------------------------------------


def to_json(explained: Mapping[str, Explanation]) -> str:
    """The text of study.json, one line for each network."""
    lines = [
        f'\n  "{model}": {json.dumps(asdict(one))}' for model, one in sorted(explained.items())
    ]
    return '{\n "explained": {' + ",".join(lines) + "\n }\n}\n"


def from_json(value: Any, source: str) -> dict[str, Explanation]:
    """Read what `to_json` wrote.

    Raises:
        RecordError: a value is missing, of another type, or of an unknown kind.
    """
    try:
        found = {}
        for model, one in value["explained"].items():
            parts = {kind: from_plain(Part, part) for kind, part in one["parts"].items()}
            if not parts.keys() <= KINDS.keys():
                raise TypeError(f"{model} has a kind that is none of {', '.join(KINDS)}")
            found[model] = Explanation(batch=int(one["batch"]), parts=parts)
    except (AttributeError, KeyError, TypeError, ValueError) as reason:
        raise RecordError(f"{source} is damaged ({reason}): make zoo-speed writes it") from None
    return found


def read_explanations(folder: Path) -> dict[str, Explanation]:
    """What study.json of a folder holds.

    Raises:
        RecordError: it is missing or damaged.
    """
    path = folder / STUDY
    return from_json(read_json(path, RecordError), str(path))


# Text ---------------------------------------------------------------------------------------


def explain(row: Row, explanation: Explanation) -> str:
    """What the time beyond the prediction goes to, in words.

    The excess of a kind is its time less what its multiply-accumulates would take at the rate of
    the prediction; the largest are named until they make up most of the whole excess.
    """
    ratio = row.by_batch[explanation.batch].ratio
    excess = {kind: part.time - part.macs / ratio for kind, part in explanation.parts.items()}
    named: list[str] = []
    covered = 0.0
    for kind in sorted(excess, key=lambda kind: -excess[kind]):
        if covered >= EXPLAINED * (1 - 1 / ratio):
            break
        covered += excess[kind]
        part = explanation.parts[kind]
        share = f" for {percent(part.macs, 0)}% of the MACs" if part.macs else ""
        named.append(f"{part.calls} {KINDS[kind]} take {percent(part.time, 0)}% of the time{share}")
    return "; ".join(named)


def markdown(study: Study, explained: Mapping[str, Explanation]) -> str:
    """README.md of a study."""
    batches = list(study.lines)
    text = [
        "# Forward times of the zoo\n\n",
        "Written by `make zoo-speed` from the records beside this file; do not edit it.\n\n",
        f"{place(study.environment)}. Eager torch, fp32, untrained networks, random 32x32 "
        "images. A time is the median of single calls, divided by the images in one; beside it "
        "stand the wider half of its 95% confidence interval and, in brackets, the number of "
        "calls.\n\n",
        "The prediction is a line on logarithmic axes by the method of Theil and Sen: its slope is "
        "the median of the slopes of all pairs of networks, and half of the networks lie above "
        "it.\n\n",
    ]
    for batch, line in study.lines.items():
        text.append(
            f"- Batch {batch}: ms per image = {number(line.scale)} x (MACs in millions)"
            f"^{number(line.slope)}, over {line.models} networks.\n"
        )
    text.append(f"\n{_table(study, batches)}")
    text.append(f"\n## Slower than {SLOW:g} times the prediction\n\n")
    if study.slow:
        text.append(
            "Each operator of a forward pass was timed by itself, at the batch size that is "
            f"furthest from its prediction.\n\n{REASONS}\n"
        )
    for row in study.slow:
        batch, explanation = row.slowest, explained.get(row.model)
        reason = "not explained" if explanation is None else explain(row, explanation)
        at = f"{row.by_batch[batch].ratio:.1f} times at batch {batch}"
        text.append(f"- `{row.model}`, {at}: {reason}.\n")
    text += [] if study.slow else ["None.\n"]
    if study.missing:
        text.append("\n## Not measured\n\n")
        text += [f"- `{r.model}` at batch {r.batch}: {r.reason}\n" for r in study.missing]
    return "".join(text)


def _table(study: Study, batches: Sequence[int]) -> str:
    header = ["Model", "Params", "MACs M"]
    for batch in batches:
        header += [f"b{batch} ms/image (calls)", f"b{batch} predicted", f"b{batch} ratio"]
    lines = [header]
    for row in study.rows:
        cells = [row.model, "" if row.params is None else f"{row.params:,}", millions(row.macs)]
        for batch in batches:
            one = row.by_batch.get(batch)
            cells += ["", "", ""] if one is None else _cells(one)
        lines.append(cells)
    return markdown_table(lines, left=1)


def _cells(one: Timing) -> list[str]:
    _, _, known = timing(one.record).partition(" ")  # its interval and its calls
    return [f"{number(one.ms_per_image)} {known}", number(one.expected_ms), f"{one.ratio:.2f}"]
