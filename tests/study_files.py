"""A small study: made-up numbers as comparisons, and as the files that sweeps leave of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sample_records import ENVIRONMENT, SOURCE, measurement

from profiling.record import Measurement
from profiling.study.data import Arm, Comparison, Epoch, Trial
from profiling.study.table import Median, Table
from training.sweep import Planned
from training.sweep_jobs import PASSES, Group, Job, Work
from training.sweep_plan import write_plan
from training.sweep_record import DONE, FAILED, OPEN, Failure, JobRecord, write_record
from zoo.checkpoint import DatasetInfo, RunMeta
from zoo.files import write_json

DIGEST = SOURCE.dataset_digest
IMAGES = {"cifar100": 10_000, "cifar100-mini": 1000}
FAST, SLOW = "onnx", "eager"
TIMES_MS = {(SLOW, 1): 4.0, (SLOW, 256): 320.0, (FAST, 1): 1.0, (FAST, 256): 200.0}


def trial(model: str = "resnet_20", seed: int = 0, **changes: Any) -> Trial:
    """A finished job with records of two runtimes; `times_ms` are those of (backend, batch)."""
    times_ms: Mapping[tuple[str, int], float] = changes.pop("times_ms", TIMES_MS)
    is_bounded = changes.get("is_bounded", True)
    made = Trial(
        **{
            "id": "",
            "model": model,
            "recipe": "study",
            "seed": seed,
            "dataset": "cifar100",
            "dataset_digest": DIGEST,
            "epochs": 2,
            "steps": 40,
            "batch_size": 8,
            "training_macs": 120_000_000_000,
            "is_bounded": True,
            "max_macs": 2e11 if is_bounded else None,
            "is_done": True,
            "params": 200_000,
            "macs": 40_000_000,
            "top1": 0.5 + 0.01 * seed,
            "top5": 0.8,
            "test_images": IMAGES.get(changes.get("dataset", "cifar100")),
            "train_seconds": 100.0 + seed,
            "processes": 1,
            "environment": ENVIRONMENT,
            "curve": (
                Epoch(epoch=1, train_loss=4.5, train_top1=0.01),
                Epoch(epoch=2, train_loss=4.0, train_top1=0.125),
            ),
        }
        | changes
    )
    made = replace(made, id=job_of(made).id)
    records = () if made.top1 is None else records_of(made, times_ms)
    return made if "measurements" in changes else replace(made, measurements=records)


def open_trial(model: str = "resnet_20", seed: int = 0, **changes: Any) -> Trial:
    """A job that was never begun, or given up where there is a `failure`."""
    nothing = {
        **dict.fromkeys(("dataset_digest", "params", "macs", "top1", "top5", "test_images")),
        **dict.fromkeys(("train_seconds", "processes", "environment")),
    }
    return trial(model, seed, **{**nothing, "is_done": False, "curve": (), **changes})


def records_of(
    one: Trial, times_ms: Mapping[tuple[str, int], float] = TIMES_MS
) -> tuple[Measurement, ...]:
    """One record for each time, all samples equal to it."""
    return tuple(
        measurement(
            p50_ms,
            model=one.model,
            backend=backend,
            batch=batch,
            params=one.params,
            macs=one.macs,
            top1=one.top1,
            top5=one.top5,
            accuracy_images=one.test_images,
            file_bytes=2**20,
            peak_memory_mib=20.0 + batch,
            artifact_sha256=(_digest(one) if backend == SLOW else _digest(one)[::-1]),
            source=replace(
                SOURCE,
                run=run_name(one),
                seed=one.seed,
                recipe=one.recipe,
                selection="last",
                weights_sha256=_digest(one),
                dataset=one.dataset,
                dataset_digest=one.dataset_digest or DIGEST,
            ),
        )
        for (backend, batch), p50_ms in sorted(times_ms.items())
    )


def arm(label: str, *trials: Trial) -> Arm:
    """Trials under a label."""
    return Arm(label=label, trials=trials)


def comparison(name: str = "eca_kernel", *arms: Arm, **changes: Any) -> Comparison:
    """Arms that are held against each other, the first of them the baseline of an ablation."""
    is_ablation = name not in ("comparison", "second-study")
    made = Comparison(
        name=name,
        plan=f"ablation-{name}" if is_ablation else name,
        dataset=arms[0].trials[0].dataset,
        question="Which is best?" if is_ablation else None,
        baseline=arms[0].label if is_ablation else None,
        arms=arms,
    )
    return replace(made, **changes)


def seeds(model: str, *top1: float, **changes: Any) -> tuple[Trial, ...]:
    """One trial for each accuracy, with seeds from 0."""
    return tuple(trial(model, seed, top1=share, **changes) for seed, share in enumerate(top1))


def ablation() -> Comparison:
    """Three arms of three seeds: the second is better by 0.02 of each seed's own accuracy."""
    return comparison(
        "eca_kernel",
        arm("baseline", *seeds("resnet_20", 0.50, 0.52, 0.54)),
        arm("adaptive", *seeds("ecanet20_adaptive", 0.52, 0.55, 0.55)),
        arm("k3", *seeds("ecanet20_fixed_k3", 0.47, 0.53, 0.50)),
    )


def table_1() -> Comparison:
    """Three models of two groups, one seed each, under the names of the first study."""
    return comparison(
        "comparison",
        arm("resnet_20", trial("resnet_20", top1=0.5)),
        arm("resnet_56", trial("resnet_56", top1=0.6, params=800_000, macs=120_000_000)),
        arm("coatnet_0", trial("coatnet_0", top1=0.4, params=20_000_000, macs=800_000_000)),
    )


def row_of(table: Table, key: str, value: str) -> Any:
    """The one row of a table with this value in a column."""
    (row,) = (row for row in table.rows if row[key] == value)
    return row


def p50_ms(values: Mapping[str, Any], what: str) -> float:
    """The median time in a row, such as that of "b1_best"."""
    median = values[f"{what}_p50_ms"]
    assert isinstance(median, Median)
    return median.value


# Files --------------------------------------------------------------------------------------


def write_sweep(folder: Path, *comparisons: Comparison) -> Path:
    """The plans, jobs and runs of these comparisons, as zoo-sweep leaves them."""
    plans: dict[str, list[Comparison]] = {}
    for one in comparisons:
        plans.setdefault(one.plan, []).append(one)
    for name, listed in plans.items():
        jobs = {t.id: t for one in listed for t in trials_of(one)}
        planned = [Planned(job=job_of(t), work=work_of(t), steps=()) for t in jobs.values()]
        write_plan(folder, name, [_group(one) for one in listed], planned)
        for one in jobs.values():
            _write_job(folder, one)
    return folder


def trials_of(one: Comparison) -> list[Trial]:
    """All trials, arm by arm."""
    return [t for side in one.arms for t in side.trials]


def run_folder(folder: Path, one: Trial) -> Path:
    """Where the run of a job lies in a sweep."""
    return folder / "runs" / one.id / run_name(one)


def run_name(one: Trial) -> str:
    """As zoo-train names it."""
    return f"{one.model}-s{one.seed}"


def job_of(one: Trial) -> Job:
    """What a plan says of a trial."""
    return Job(
        model=one.model,
        recipe=one.recipe,
        seed=one.seed,
        dataset=one.dataset,
        settings=dict(one.settings),
        image_size=one.image_size,
        pretrained=one.pretrained,
        pretraining=one.pretraining,
        max_macs=one.max_macs,
    )


def work_of(one: Trial) -> Work:
    """How a plan counts a trial."""
    macs = one.macs or 40_000_000
    return Work(
        is_bounded=one.is_bounded,
        max_macs=one.max_macs,
        macs=macs,
        batch_size=one.batch_size,
        peak_lr=0.1,
        warmup_epochs=0.0,
        epochs=one.epochs,
        epoch_steps=None if one.steps is None else one.steps // one.epochs,
        steps=one.steps,
        training_macs=one.training_macs or PASSES * macs,
    )


def _group(one: Comparison) -> Group:
    jobs = tuple((side.label, job_of(t)) for side in one.arms for t in side.trials)
    return Group(name=one.name, question=one.question, baseline=one.baseline, jobs=jobs)


def _write_job(folder: Path, one: Trial) -> None:
    if not one.is_done and one.failure is None and one.top1 is None:
        return
    run = None if one.top1 is None else _write_run(folder, one)
    failed = Failure(
        step="train", reason=one.failure or "", exit_code=1, finished_at="", host="host"
    )
    write_record(
        folder,
        JobRecord(
            id=one.id,
            state=DONE if one.is_done else FAILED if one.failure else OPEN,
            job=job_of(one),
            work=work_of(one),
            failures=(failed,) if one.failure else (),
            run=None if run is None else run.relative_to(folder).as_posix(),
            environment_key=None if one.environment is None else one.environment.key,
            test_top1=one.top1,
            test_top5=one.top5,
            train_seconds=one.train_seconds,
        ),
    )


def _write_run(folder: Path, one: Trial) -> Path:
    run = run_folder(folder, one)
    environment = one.environment or ENVIRONMENT
    meta = RunMeta(
        model=one.model,
        seed=one.seed,
        recipe_name=one.recipe,
        recipe={"epochs": one.epochs},
        dataset=DatasetInfo(
            name=one.dataset,
            digest=one.dataset_digest or DIGEST,
            class_names=("apple",),
            coarse_names=None,
            coarse_of_fine=None,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            train_images=4000,
            val_images=0,
            test_images=one.test_images or 0,
        ),
        selection="last",
        epoch=one.epochs,
        epochs_done=one.epochs,
        val_top1=None,
        test_top1=one.top1,
        test_top5=one.top5,
        train_seconds=one.train_seconds or 0.0,
        compiled=False,
        processes=one.processes or 1,
        weights_sha256=_digest(one),
        environment=environment.to_json(),
        commit=None,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:10:00+00:00",
    )
    write_json(run / "meta.json", asdict(meta))
    lines = (json.dumps(asdict(line) | {"images_per_s": 100.0}) for line in one.curve)
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for record in one.measurements:
        record.write(run)
    return run


def _digest(one: Trial) -> str:
    return one.id.rpartition("-")[2].ljust(64, "0")


def big_study(models: Sequence[str], arms: int, per_arm: int) -> list[Comparison]:
    """A study of the size of the real one: every model, and ablations of so many arms."""
    wide = [arm(name, *seeds(name, *(0.4 + 0.01 * s for s in range(per_arm)))) for name in models]
    ablations = [
        comparison(
            f"study_{number}",
            *(
                arm(f"arm {k}", *seeds(f"model_{number}_{k}", *([0.5] * per_arm)))
                for k in range(arms)
            ),
        )
        for number in range(20)
    ]
    return [comparison("comparison", *wide), *ablations]
