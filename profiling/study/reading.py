"""Sweeps on a disk as comparisons: plans, jobs, runs and records joined."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from profiling.record import STUDY, Measurement, read_records
from profiling.study.data import Arm, Comparison, Trial
from profiling.study.sweep_files import (
    DONE,
    FAILED,
    JOBS,
    PLANS,
    PRETRAINING,
    RUNS,
    Group,
    Job,
    Plan,
    Planned,
    complete_run,
    read_curve,
    read_job,
    read_plan,
)
from zoo.errors import RecordError

FIRST, SECOND = "comparison", "second-study"  # names of the groups of the two studies' tables
_Measured = dict[tuple[str, str], list[Measurement]]  # by network and digest of the weights
OnDamage = Callable[[RecordError], None]
T = TypeVar("T")


def read_comparisons(
    *folders: Path,
    records: Sequence[Measurement] | None = None,
    on_damage: OnDamage | None = None,
) -> list[Comparison]:
    """What was compared in every sweep at or below `folders`, the studies' own tables first.

    A sweep is a folder with `plans` and `jobs`. Groups with one name whose jobs are alike but for
    their seeds are one comparison, and those whose jobs are all in another one are left out: a
    sweep that got more seeds has one table. `records` are joined to the runs by the network's name
    and the digest of the weights; without, they are sought in the sweeps. A folder with a
    `study.json` is read only where it is named. With `on_damage`, what cannot be read is reported
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
        measured: _Measured = defaultdict(list)
        for record in records:
            if record.source is not None:
                measured[record.model, record.source.weights_sha256].append(record)
        jobs = {one.id: one for plan in plans for one in plan.jobs}
        trials = {name: self._trial(one, measured) for name, one in jobs.items()}
        for plan, group in _largest(_joined(plans)):
            yield from _by_dataset(plan, group, trials)

    def _trial(self, planned: Planned, measured: _Measured) -> Trial:
        job, work = planned.job, planned.work
        training_macs = work.training_macs
        if training_macs is not None:
            training_macs += work.pretraining_macs
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
            training_macs=training_macs,
            is_bounded=work.is_bounded,
            max_macs=work.max_macs,
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
            train_seconds=None if job.pretraining else record.train_seconds,
        )
        return self._with_run(trial, work.macs, measured)

    def _with_run(self, trial: Trial, macs: int, measured: _Measured) -> Trial:
        folder = self.sweep / RUNS / trial.id
        found = self._guarded(complete_run, folder)
        if found is None:
            return trial
        run, meta = found
        seconds: float | None = meta.train_seconds
        if trial.pretraining is not None:
            before = self._guarded(complete_run, folder / PRETRAINING)
            seconds = None if before is None else meta.train_seconds + before[1].train_seconds
        records = sorted(measured.get((trial.model, meta.weights_sha256), ()), key=_order)
        return replace(
            trial,
            dataset_digest=meta.dataset.digest,
            params=next((r.params for r in reversed(records) if r.params is not None), None),
            macs=next((r.macs for r in reversed(records) if r.macs is not None), macs),
            top1=meta.test_top1,
            top5=meta.test_top5,
            test_images=meta.dataset.test_images,
            train_seconds=seconds,
            processes=meta.processes,
            environment=meta.environment,
            measurements=tuple(records),
            curve=self._guarded(read_curve, run) or (),
        )

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


def _joined(plans: Sequence[Plan]) -> list[tuple[Plan, Group]]:
    """All groups; those that differ in nothing but seeds as one, in the place of the first."""
    jobs = {one.id: one.job for plan in plans for one in plan.jobs}
    found: dict[tuple[object, ...], tuple[Plan, Group]] = {}
    for plan in plans:
        for group in plan.groups:
            kind = _kind(group, jobs)
            if kind in found:
                first, other = found[kind]
                found[kind] = first, _union(other, group, jobs)
            else:
                found[kind] = plan, group
    return list(found.values())


def _kind(group: Group, jobs: Mapping[str, Job]) -> tuple[object, ...]:
    """What groups share that differ in seeds alone."""
    members = {
        (label, json.dumps(asdict(replace(jobs[job], seed=0)), sort_keys=True))
        for label, job in group.members
    }
    return group.name, group.baseline, frozenset(members)


def _union(group: Group, other: Group, jobs: Mapping[str, Job]) -> Group:
    """The arms of the first with the jobs of both, by seed."""
    more = {arm.label: arm.jobs for arm in other.arms}
    arms = []
    for arm in group.arms:
        ids = dict.fromkeys((*arm.jobs, *more[arm.label]))
        arms.append(replace(arm, jobs=tuple(sorted(ids, key=lambda name: jobs[name].seed))))
    return replace(group, arms=tuple(arms))


def _largest(groups: Sequence[tuple[Plan, Group]]) -> list[tuple[Plan, Group]]:
    """The groups that are not part of another one of their name."""
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
