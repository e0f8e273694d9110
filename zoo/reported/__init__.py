"""Figures that others published for our variants: shown as reported, never as ours.

`README.md` beside this file says what each table holds. Importing this loads neither torch nor
the tables.
"""

import csv
import functools
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib import resources

from zoo.errors import ZooError

REPORTED = "reported"  # stated, and nothing speaks against it
SIMULATED = "simulated"  # made up, by the authors' own word or by the look of the figure
DOUBTFUL = "doubtful"  # contradicted by the figure beside it
OTHER_NETWORK = "other network"  # earned by another network than the row names
STATES = (REPORTED, SIMULATED, DOUBTFUL, OTHER_NETWORK)

TABLE_1 = "first report table 1"
TABLES = ("table1_models.csv", "second_report_models.csv", "ablations.csv", "other_values.csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """One published accuracy, with what its source says beside it.

    Accuracies are fractions in [0, 1]. `top1` is that of the last epoch where a source tells the
    best apart.
    """

    model: str  # a variant
    source: str
    top1: float | None
    top1_state: str  # one of STATES; of `best_top1` too
    top5: float | None = None
    top5_state: str | None = None  # None: there is no figure
    best_top1: float | None = None
    params_m: float | None = None  # millions
    macs_m: float | None = None  # millions; the source calls them FLOPs
    epochs: int | None = None
    hours: float | None = None  # of training: 300 epochs on eight V100
    are_hours_approximate: bool = False
    arm: str | None = None  # of an ablation, as "study: variant"
    note: str | None = None
    earned_by: str | None = None  # the variant that earned the accuracy, where it is another one
    trained_params: int | None = None  # of that network, from its log

    @property
    def shown_top1(self) -> float | None:
        """`top1`, or the best where that is all that the source tells."""
        return self.best_top1 if self.top1 is None else self.top1


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedValue:
    """One published number of another kind."""

    what: str
    subject: str  # a variant, a group, or a network that is not ours
    value: float
    unit: str
    source: str
    state: str  # REPORTED or OTHER_NETWORK


def headline(model: str) -> Reported | None:
    """The accuracy to show for a variant where there is room for one."""
    return next(iter(accuracies(model)), None)


def accuracies(model: str) -> tuple[Reported, ...]:
    """Every published accuracy of a variant.

    The first report's table 1 comes first, then the second report's tables, ablations and logs;
    among ablations, the value that most of them share.
    """
    return _accuracies().get(model, ())


def values(subject: str) -> tuple[ReportedValue, ...]:
    """Other published numbers of a variant, of a group, or of a network that is not ours."""
    return tuple(value for value in _values() if value.subject == subject)


def variants() -> tuple[str, ...]:
    """Every variant that the tables name."""
    return tuple(_accuracies())


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of one of our tables, unchanged.

    Raises:
        ZooError: the installation lacks it.
    """
    try:
        text = (resources.files(__name__) / name).read_text()
    except OSError:
        raise ZooError(f"the package has no reported/{name}: install cifar-zoo again") from None
    return list(csv.DictReader(io.StringIO(text)))


@functools.cache
def _accuracies() -> dict[str, tuple[Reported, ...]]:
    found: dict[str, list[Reported]] = {}
    for row in (*_table_1(), *_second_report(), *_by_agreement(_ablations()), *_logs()):
        found.setdefault(row.model, []).append(row)
    return {model: tuple(rows) for model, rows in found.items()}


def _table_1() -> Iterable[Reported]:
    earned = []
    for row in read_table("table1_models.csv"):
        own = Reported(
            model=row["model"],
            source=TABLE_1,
            top1=_share(row["top1_percent"]),
            top1_state=row["top1_state"],
            top5=_share(row["top5_percent"]),
            top5_state=row["top5_state"],
            params_m=_number(row["params_m"]),
            macs_m=_number(row["macs_m"]),
            epochs=300,
            hours=_number(row["train_hours_8xv100_300ep"]),
            are_hours_approximate=row["train_hours_approximate"] == "yes",
        )
        other = _earners().get((own.model, TABLE_1))
        if other is None:
            yield own
            continue
        earner, trained_params = other
        state = OTHER_NETWORK if own.top1_state == REPORTED else own.top1_state
        yield replace(own, top1_state=state, earned_by=earner, trained_params=trained_params)
        if earner is not None:
            earned.append(_as_earned(own, earner, trained_params))
    yield from earned


def _as_earned(row: Reported, earner: str, trained_params: int) -> Reported:
    """The row under the name of the network that was trained: the counts beside it go."""
    return replace(
        row,
        model=earner,
        source=f"{TABLE_1}, beside {row.model}; its log names this network",
        params_m=trained_params / 1e6,
        macs_m=None,
        trained_params=trained_params,
    )


def _second_report() -> Iterable[Reported]:
    for row in read_table("second_report_models.csv"):
        top1, best = _share(row["top1_percent"]), _share(row["best_percent"])
        is_consistent = top1 is None or best is None or best >= top1
        top5 = _share(row["top5_percent"])
        yield Reported(
            model=row["registry_name"],
            source=f"second report, {row['label']}",
            top1=top1,
            top1_state=REPORTED if is_consistent else DOUBTFUL,
            top5=top5,
            top5_state=None if top5 is None else REPORTED,
            best_top1=best,
            epochs=int(row["epochs"]),
            note=row["note"] or None,
        )


def _ablations() -> Iterable[Reported]:
    for row in read_table("ablations.csv"):
        top5 = _share(row["top5_percent"])
        yield Reported(
            model=row["registry_name"],
            source=row["source"],
            top1=_share(row["top1_percent"]),
            top1_state=REPORTED,
            top5=top5,
            top5_state=None if top5 is None else REPORTED,
            params_m=_number(row["params_m"]),
            hours=_number(row["train_hours"]),
            arm=f"{row['study']}: {row['variant']}",
        )


def _by_agreement(rows: Iterable[Reported]) -> list[Reported]:
    """Values that several rows of a variant share come first, otherwise as in the table."""
    listed = list(rows)
    shared = Counter((row.model, row.top1) for row in listed)
    return sorted(listed, key=lambda row: -shared[row.model, row.top1])


def _logs() -> Iterable[Reported]:
    for value in _values():
        if value.what == "top1_logged":
            yield Reported(
                model=value.subject,
                source=value.source,
                top1=_share(str(value.value)),
                top1_state=value.state,
            )


@functools.cache
def _values() -> tuple[ReportedValue, ...]:
    return tuple(
        ReportedValue(
            what=row["what"],
            subject=row["model"],
            value=float(row["value"]),
            unit=row["unit"],
            source=row["source"],
            state=OTHER_NETWORK if (row["model"], row["source"]) in _earners() else REPORTED,
        )
        for row in read_table("other_values.csv")
    )


@functools.cache
def _earners() -> dict[tuple[str, str], tuple[str | None, int]]:
    """(variant, source) -> the variant that was trained instead, None where it is not ours."""
    return {
        (row["model"], row["source"]): (row["earned_by"] or None, int(row["trained_params"]))
        for row in read_table("earned_by.csv")
    }


def _number(text: str) -> float | None:
    return float(text) if text else None


def _share(percent: str) -> float | None:
    """Percent as a fraction, by decimal digits: 66.61 becomes 0.6661 and nothing else."""
    return float(Decimal(percent) / 100) if percent else None
