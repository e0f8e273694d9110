"""Sweeps on a disk as comparisons: plans, jobs, runs and records joined."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from profiling.record import STUDY, Measurement, read_records
from profiling.study.data import Arm, Comparison, Trial
from profiling.study.sweep_files import (
    DONE,
    FAILED,
    JOBS,
    PLANS,
    RUNS,
    Group,
    Plan,
    Planned,
    complete_run,
    read_curve,
    read_job,
    read_plan,
    read_scores,
)
from zoo.errors import RecordError

FIRST, SECOND = "comparison", "second-study"  # names of the groups of the two studies' tables
OnDamage = Callable[[RecordError], None]
T = TypeVar("T")


def read_comparisons(
    *folders: Path,
    records: Sequence[Measurement] | None = None,
    on_damage: OnDamage | None = None,
) -> list[Comparison]:
    """What was compared in every sweep at or below `folders`, the studies' own tables first.

    A sweep is a folder with `plans` and `jobs`. Of groups with one name, those whose jobs are all
    in another one are left out: a sweep that got more seeds is one comparison. `records` are joined
    to the runs by the digest of the weights; without, they are sought in the sweeps. A folder with
    a `study.json` is read only where it is named. With `on_damage`, what cannot be read is reported
    to it and left out.

    Raises:
        RecordError: a file is damaged or of a newer schema.
    """
    found: list[Comparison] = []
    for sweep in _sweeps(folders):
        reader = _Reader(sweep, on_damage)
        if records is None:
            found += reader.comparisons(reader.records())
        else:
            found += reader.comparisons(records)
    order = {FIRST: 0, SECOND: 1}
    return sorted(found, key=lambda one: order.get(one.name, 2))  # else as they were planned


def _sweeps(folders: Iterable[Path]) -> list[Path]:
    found = set()
    for folder in (folder.resolve() for folder in folders):
        studies = {path.parent for path in folder.rglob(STUDY)} - {folder}
        for plans in folder.rglob(PLANS):
            if (plans.parent / JOBS).is_dir() and studies.isdisjoint(plans.parents):
                found.add(plans.parent)
    return sorted(found)


@dataclass(frozen=True, slots=True)
class _Reader:
    """One sweep."""

    sweep: Path
    on_damage: OnDamage | None

    def records(self) -> list[Measurement]:
        """Those of its runs."""
        runs = self.sweep / RUNS
        return read_records(runs, on_damage=self.on_damage) if runs.is_dir() else []

    def comparisons(self, records: Iterable[Measurement]) -> Iterator[Comparison]:
        """Every group of every plan, one data set each."""
        paths = sorted((self.sweep / PLANS).glob("*.json"))
        plans = [plan for path in paths if (plan := self._guarded(read_plan, path)) is not None]
        measured: dict[str, list[Measurement]] = defaultdict(list)
        for record in records:
            if record.source is not None:
                measured[record.source.weights_sha256].append(record)
        jobs = {one.id: one for plan in plans for one in plan.jobs}
        trials = {name: self._trial(one, measured) for name, one in jobs.items()}
        for plan, group in _largest(plans):
            yield from _by_dataset(plan, group, trials)

    def _trial(self, planned: Planned, measured: Mapping[str, Sequence[Measurement]]) -> Trial:
        job, work = planned.job, planned.work
        trial = Trial(
            id=planned.id,
            model=job.model,
            recipe=job.recipe,
            seed=job.seed,
            dataset=job.dataset,
            settings=job.settings,
            epochs=work.epochs,
            steps=work.steps,
            batch_size=work.batch_size,
            training_macs=work.training_macs,
            is_bounded=work.is_bounded,
            is_done=False,
            pretrained=job.pretrained,
            pretraining=job.pretraining,
            image_size=job.image_size,
        )
        record = self._guarded(read_job, self.sweep / JOBS / f"{planned.id}.json")
        if record is None:
            return trial
        last = record.failures[-1].reason if record.failures else "no reason was kept"
        trial = replace(
            trial,
            is_done=record.state == DONE,
            failure=last if record.state == FAILED else None,
            top1=record.test_top1,
            top5=record.test_top5,
            train_seconds=record.train_seconds,
        )
        return self._with_run(trial, work.macs, measured)

    def _with_run(
        self, trial: Trial, macs: int, measured: Mapping[str, Sequence[Measurement]]
    ) -> Trial:
        folder = self.sweep / RUNS / trial.id
        found = self._guarded(complete_run, folder)
        if found is None:
            return trial
        run, meta = found
        records = sorted(measured.get(meta.weights_sha256, ()), key=_order)
        trial = replace(
            trial,
            dataset_digest=meta.dataset.digest,
            params=next((r.params for r in reversed(records) if r.params is not None), None),
            macs=next((r.macs for r in reversed(records) if r.macs is not None), macs),
            top1=meta.test_top1,
            top5=meta.test_top5,
            test_images=meta.dataset.test_images,
            train_seconds=meta.train_seconds,
            processes=meta.processes,
            environment=meta.environment,
            measurements=tuple(records),
            curve=self._guarded(read_curve, run) or (),
        )
        scores = self._guarded(read_scores, folder)
        if scores is None or scores.dataset != trial.dataset:
            return trial
        return replace(trial, top1=scores.top1, top5=scores.top5, test_images=scores.images)

    def _guarded(self, read: Callable[[Path], T], path: Path) -> T | None:
        try:
            return read(path)
        except RecordError as error:
            if self.on_damage is None:
                raise
            self.on_damage(error)
            return None


def _order(record: Measurement) -> tuple[str, str, str, int, str, str]:
    key, sha256 = record.environment.key, record.artifact_sha256
    return key, record.backend, record.precision, record.batch, record.created_at, sha256


def _largest(plans: Iterable[Plan]) -> list[tuple[Plan, Group]]:
    """The groups that are not part of another one of their name, in the order of the plans."""
    groups = [(plan, group) for plan in plans for group in plan.groups]
    kept: list[tuple[Plan, Group]] = []
    for plan, group in sorted(groups, key=lambda pair: -len(pair[1].members)):
        if not any(
            (one.name, one.baseline) == (group.name, group.baseline)
            and group.members <= one.members
            for _, one in kept
        ):
            kept.append((plan, group))
    chosen = {id(group) for _, group in kept}
    return [pair for pair in groups if id(pair[1]) in chosen]


def _by_dataset(plan: Plan, group: Group, trials: Mapping[str, Trial]) -> Iterator[Comparison]:
    """One comparison for each data set, and for each state of it that was trained on."""
    listed = [trials[job] for arm in group.arms for job in arm.jobs]
    for dataset in dict.fromkeys(trial.dataset for trial in listed):
        known = {one.dataset_digest for one in listed if one.dataset == dataset} - {None}
        for number, digest in enumerate(sorted(filter(None, known)) or [None]):
            # What is not trained yet is counted with the first.
            chosen = {digest} if number else {digest, None}
            arms = []
            for arm in group.arms:
                own = [trials[job] for job in arm.jobs]
                kept = [t for t in own if t.dataset == dataset and t.dataset_digest in chosen]
                arms.append(Arm(label=arm.label, trials=tuple(kept)))
            yield Comparison(
                name=group.name,
                plan=plan.name,
                dataset=dataset,
                question=group.question,
                baseline=group.baseline,
                arms=tuple(arm for arm in arms if arm.trials),
            )
