"""Evidence as one page of tables: what was done, how fast, how well, and what is missing."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiling.evidence import Evidence, Step, TrainedRun
from profiling.record import OK, Measurement
from profiling.tables import markdown_table, number, percent, place
from zoo.checkpoint import RunMeta

GOAL_DEVICE = "H200"  # one of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What trainings of one network by one recipe, on all training images, are to reach."""

    model: str
    recipe: str
    epochs: int
    top1: float | None = None
    train_s: float | None = None  # on GOAL_DEVICE
    reported_s: float | None = None  # by the first study, on eight V100
    seeds: int = 1  # at least, over which `top1` is a mean


STUDY: dict[str, Any] = {"recipe": "study", "epochs": 300}
STRONG: dict[str, Any] = {"recipe": "strong", "epochs": 600, "seeds": 3}
GOALS = (
    Goal(model="resnet_20", **STUDY, top1=0.690, train_s=60, reported_s=540),
    Goal(model="improved_resnet20_convnext", **STUDY, top1=0.723, train_s=200, reported_s=835),
    Goal(model="resnet_56", **STUDY, top1=0.730),
    Goal(model="improved_resnet20_convnext", **STRONG, top1=0.745),
    Goal(model="resnet_20", **STRONG, top1=0.710),
    Goal(model="resnet_56", **STRONG, top1=0.755),
)


def summary(evidence: Evidence) -> str:
    """The page, as Markdown."""
    parts = (
        ("Machines", _machines(evidence)),
        ("Goals", _goals(evidence.runs)),
        ("Trainings", _trainings(evidence)),
        ("Training beside others", _loops(evidence.training)),
        ("Exported files", _artifacts(evidence.artifacts)),
        ("Inference", _inference(evidence.measurements)),
        ("Steps", _steps(evidence.steps)),
    )
    text = "# Evidence\n\nWritten from the records beside this file; do not edit it.\n"
    return text + "".join(f"\n## {title}\n\n{body}" for title, body in parts if body)


def _machines(evidence: Evidence) -> str:
    lines = []
    for machine in {one.environment.key: one for one in evidence.machines}.values():
        missing = ", ".join(machine.missing) or "nothing"
        commit = _commit(machine.commit)
        lines.append(
            f"- {place(machine.environment)}; {commit}, sources {machine.sources_sha256[:12]}; "
            f"not installed: {missing}\n"
        )
    for step in evidence.steps:
        if "copy_gb_per_s" in step.facts:
            lines.append(_ceilings(step))
    return "".join(lines)


def _commit(name: str | None) -> str:
    if name is None:
        return "no commit known"
    known, dirty, _ = name.partition("-dirty")
    return f"commit {known[:12]}{dirty}"


def _ceilings(step: Step) -> str:
    copies = statistics.median(step.facts["copy_gb_per_s"])
    rates = ", ".join(f"{kind} {rate:g}" for kind, rate in step.facts["product_tflops"].items())
    return (
        f"- {step.environment}: copies move {number(copies)} GB/s, read and written; square "
        f"matrix products of {step.facts['product_side']} reach {rates} TFLOP/s\n"
    )


def _goals(runs: Iterable[TrainedRun]) -> str:
    rows = [["model", "recipe", "what", "goal", "found", "reached"]]
    found = list(runs)
    for goal in GOALS:
        mine = [run.meta for run in found if _is_of(run.meta, goal)]
        if not mine:
            continue
        if goal.top1 is not None:
            by_seed = {meta.seed: meta.test_top1 for meta in mine}  # of one seed the latest
            values = [top1 for top1 in by_seed.values() if top1 is not None]
            spread = f" +- {percent(statistics.stdev(values))}" if len(values) > 1 else ""
            mean = statistics.mean(values)
            enough = len(values) >= goal.seeds
            short = "" if enough else f", {goal.seeds} wanted"
            count = f"{len(values)} seed{'s' * (len(values) > 1)}{short}"
            rows.append(
                [
                    *(goal.model, goal.recipe, "test top-1 %", percent(goal.top1)),
                    f"{percent(mean)}{spread} ({count})",
                    _verdict(mean >= goal.top1, enough),
                ]
            )
        times = [meta.train_seconds for meta in mine if _is_on_goal_device(meta)]
        if goal.train_s is not None and times:
            seconds = statistics.median(times)
            reported = f" (reported on 8 V100: {number(goal.reported_s)})"
            what = f"seconds of training, one {GOAL_DEVICE}"
            rows.append(
                [
                    *(goal.model, goal.recipe, what, number(goal.train_s)),
                    number(seconds) + reported,
                    _verdict(seconds <= goal.train_s, True),
                ]
            )
    return markdown_table(rows, left=3) if len(rows) > 1 else ""


def _is_of(meta: RunMeta, goal: Goal) -> bool:
    """A complete training of the goal's network on all of CIFAR-100, as long as its recipe says."""
    return (
        (meta.model, meta.recipe_name) == (goal.model, goal.recipe)
        and meta.dataset.name == "cifar100"
        and meta.selection == "last"
        and meta.recipe["epochs"] == meta.epochs_done == goal.epochs
    )


def _is_on_goal_device(meta: RunMeta) -> bool:
    return GOAL_DEVICE in str(meta.environment["device"]) and meta.processes == 1


def _verdict(is_reached: bool, is_enough: bool) -> str:
    return ("yes" if is_reached else "no") if is_enough else "open"


def _trainings(evidence: Evidence) -> str:
    speeds = {step.step: step.facts.get("images_per_s") for step in evidence.steps}
    header = ["model", "recipe", "seed", "epochs", "kept", "test top-1 %", "test top-5 %"]
    rows = [[*header, "val top-1 %", "train s", "command s", "images/s", "device", "data"]]
    for run in evidence.runs:
        meta, speed = run.meta, speeds.get(run.step)
        rows.append(
            [
                *(meta.model, meta.recipe_name, str(meta.seed), str(meta.epochs_done)),
                f"{meta.selection}, {meta.epoch}",
                *(percent(one) for one in (meta.test_top1, meta.test_top5, meta.val_top1)),
                number(meta.train_seconds),
                number(run.wall_s),
                "" if speed is None else f"{speed:,.0f}",
                str(meta.environment["device"]),
                meta.dataset.name.partition(":")[0],
            ]
        )
    if len(rows) == 1:
        return ""
    return (
        markdown_table(rows, left=2)
        + "\nTrain s: steps and evaluations of all epochs. Command s: all of zoo-train, or its "
        "last part where it was interrupted: start, compilation and test images too. images/s: "
        "median over the epochs.\n"
    )


def _loops(lines: Iterable[Mapping[str, Any]]) -> str:
    starts: dict[str, Mapping[str, Any]] = {}
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    reasons: dict[tuple[str, str], str] = {}
    for line in lines:
        if line["kind"] == "start":
            starts[line["run"]] = line
        elif line["kind"] == "round" and line["run"] in starts:
            images = starts[line["run"]]["batch"] * line["steps"]
            speeds[line["run"], line["contender"]].append(images / line["seconds"])
        elif line["kind"] == "failed":
            reasons[line["run"], line["contender"]] = line["reason"]
    rows = [["model", "contender", "batch", "images/s", "rounds", "remark"]]
    for run, contender in dict.fromkeys([*speeds, *reasons]):
        start, found = starts[run], speeds[run, contender]
        speed = f"{statistics.median(found):,.0f}" if found else ""
        why = reasons.get((run, contender), "")
        rows.append([start["model"], contender, str(start["batch"]), speed, str(len(found)), why])
    return markdown_table(rows, left=2) if len(rows) > 1 else ""


def _artifacts(manifests: Iterable[Mapping[str, Any]]) -> str:
    rows = [["model", "target", "precision", "proof", "MiB", "top-1 %", "logit error"]]
    for one in manifests:
        accuracy, parity = one.get("accuracy") or {}, one.get("parity") or {}
        rows.append(
            [
                *(one["model"], one["target"], one["precision"], str(one.get("proof", ""))),
                f"{one['size_bytes'] / 2**20:.2f}",
                percent(accuracy.get("top1")),
                _small(parity.get("max_abs_error")),
            ]
        )
    return markdown_table(rows, left=4) if len(rows) > 1 else ""


def _inference(records: Sequence[Measurement]) -> str:
    rows = [["model", "backend", "precision", "batch", "p50 ms", "images/s", "top-1 %", "remark"]]
    for one in sorted(records, key=lambda r: (r.model, r.backend, r.precision, r.batch)):
        speed = "" if one.images_per_s is None else f"{one.images_per_s:,.0f}"
        time = "" if one.p50_ms is None else number(one.p50_ms)
        why = "" if one.status == OK else f"{one.status}: {one.reason}"
        rows.append(
            [*(one.model, one.backend, one.precision, str(one.batch), time, speed)]
            + [percent(one.top1), why]
        )
    return markdown_table(rows, left=3) if len(rows) > 1 else ""


def _steps(steps: Iterable[Step]) -> str:
    rows = [["step", "outcome", "predicted s", "took s", "reason"]]
    for step in steps:
        rows.append(
            [step.step, step.status, number(step.predicted_s), number(step.seconds)]
            + [step.reason or ""]
        )
    return markdown_table(rows, left=2) if len(rows) > 1 else ""


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
