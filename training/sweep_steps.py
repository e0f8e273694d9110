"""What is done for one job, step by step: the commands that a user would type."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.sweep_jobs import Job, Work, pretraining_of
from zoo.errors import MachineError, ZooError
from zoo.files import read_json

CHILD = (sys.executable, "-P", "-m", "training.sweep_child")
TRAIN, PRETRAIN, BENCH = "train", "pretrain", "bench"
META, RECORDS, ARTIFACTS = "meta.json", "records", "artifacts"  # in a run


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """How jobs are run and what follows a training: none of it decides the weights."""

    device: str | None = None  # None: training takes the GPU where there is one, the rest the CPU
    compile: bool = False
    data_dir: Path | None = None
    to: tuple[str, ...] = ("onnx",)
    backend: tuple[str, ...] = ()  # of zoo-bench; empty: all
    batch: tuple[int, ...] = (1, 256)
    budget_s: float | None = None  # of zoo-bench


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command of a job."""

    name: str
    options: tuple[str, ...]  # a step that was done with other ones is done again
    argv: Callable[[], Sequence[str]]  # of the child; known when the steps before it are done
    shown: str  # the command
    macs: int | None = None  # of its work, nearly
    is_done: Callable[[], bool] = lambda: False  # by what lies on the disk


def steps_of(job: Job, work: Work, folder: Path, means: Means) -> list[Step]:
    """The steps of a job whose runs lie in `folder`."""
    steps = [_pretrain(job, work, folder, means)] if job.pretraining else []
    run = (*steps, _train(job, work, folder, means))
    exports = [_export(job, work, folder, means, target) for target in means.to]
    return [*run, *exports, _bench(job, work, folder, means)]


def run_of(folder: Path) -> Path | None:
    """The complete run in a job's folder; None where there is none yet."""
    return next(_complete(folder), None)


def _complete(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.glob(f"*/{META}")):
        if read_json(file, MachineError).get("finished_at") is not None:
            yield file.parent


def _step(
    function: str,
    command: str,
    name: str,
    arguments: Callable[[], Sequence[str]],
    *,
    options: Sequence[str] = (),
    macs: int | None = None,
    is_done: Callable[[], bool],
    shown: Sequence[str],
) -> Step:
    return Step(
        name=name,
        options=tuple(options),
        argv=lambda: (*CHILD, f"cifar_zoo:{function}", *arguments()),
        shown=" ".join((command, *shown)),
        macs=macs,
        is_done=is_done,
    )


def _pretrain(job: Job, work: Work, folder: Path, means: Means) -> Step:
    settings = pretraining_of(job)
    assert settings is not None
    place = folder / "pretraining"
    bounds = []
    if settings.epoch_steps is not None:
        bounds = ["--epochs", str(settings.epochs), "--batch-size", str(settings.batch_size)]
        bounds += ["--set", f"epoch_steps={settings.epoch_steps}"]
        bounds += ["--set", f"peak_lr={settings.peak_lr}"]
    arguments = [
        *(job.model, "--method", settings.name, "--seed", str(job.seed)),
        *("--dataset", job.dataset, "--runs", str(place), "--resume", "auto"),
        *bounds,
        *_machine(means, compile=False),
    ]
    return _step(
        *("pretrain", "zoo-pretrain", PRETRAIN, lambda: arguments),
        macs=work.pretraining_macs,
        is_done=lambda: run_of(place) is not None,
        shown=arguments,
    )


def train_arguments(job: Job, work: Work, folder: Path) -> list[str]:
    """The arguments of zoo-train that decide the weights; runs go to `folder`, or go on in it."""
    settings = {"full_train": "true", **job.settings}
    epochs = None if "epochs" in settings else job.epochs
    if work.is_bounded:
        epochs = work.epochs
        settings.pop("epochs", None)  # which would count for more
        settings |= {
            "batch_size": str(work.batch_size),
            "epoch_steps": str(work.epoch_steps),
            "peak_lr": str(work.peak_lr),
            "warmup_epochs": str(work.warmup_epochs),
        }
    return [
        *(job.model, "--recipe", job.recipe, "--dataset", job.dataset, "--seed", str(job.seed)),
        *([] if epochs is None else ["--epochs", str(epochs)]),
        *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")),
        *([] if job.image_size is None else ["--image-size", str(job.image_size)]),
        *(["--pretrained"] if job.pretrained else []),
        *("--runs", str(folder), "--resume", "auto"),
    ]


def _train(job: Job, work: Work, folder: Path, means: Means) -> Step:
    arguments = [*train_arguments(job, work, folder), *_machine(means, compile=means.compile)]

    def origin() -> list[str]:
        if job.pretraining is None:
            return []
        return ["--init-from", str(_required(folder / "pretraining"))]

    test = work.test_macs
    macs = None if work.training_macs is None or test is None else work.training_macs + test
    return _step(
        *("train", "zoo-train", TRAIN, lambda: [*arguments, *origin()]),
        macs=macs,
        is_done=lambda: run_of(folder) is not None,
        shown=[*arguments, *(["--init-from", "RUN"] if job.pretraining else [])],
    )


def _export(job: Job, work: Work, folder: Path, means: Means, target: str) -> Step:
    options = ["--to", target, *_measuring(job, means)]

    def is_done() -> bool:
        run = run_of(folder)
        manifests = [] if run is None else (run / ARTIFACTS).glob("*.json")
        return any(read_json(file, MachineError).get("target") == target for file in manifests)

    return _step(
        *("export", "zoo-export", f"export {target}"),
        lambda: [str(_required(folder)), *options, *_data(means)],
        options=[target],
        macs=work.test_macs,
        is_done=is_done,
        shown=["RUN", *options],
    )


def _bench(job: Job, work: Work, folder: Path, means: Means) -> Step:
    bench = [
        *("--batch", ",".join(map(str, means.batch))),
        *([] if means.budget_s is None else ["--budget", f"{means.budget_s:g}"]),
        *(["--backend", ",".join(means.backend)] if means.backend else []),
        *_measuring(job, means),
    ]
    return _step(
        *("bench", "zoo-bench", BENCH),
        lambda: [str(_required(folder)), *bench, *_data(means)],
        options=[*bench, *means.to],
        macs=work.test_macs,
        is_done=lambda: False,  # records lie there from the first backend on
        shown=["RUN", *bench],
    )


def _required(folder: Path) -> Path:
    run = run_of(folder)
    if run is None:
        raise ZooError(f"there is no complete run in {folder}: start zoo-sweep again")
    return run


def _machine(means: Means, *, compile: bool) -> list[str]:
    device = [] if means.device is None else ["--device", means.device]
    return [*device, *(["--compile"] if compile else []), *_data(means)]


def _measuring(job: Job, means: Means) -> list[str]:
    """Options of a command that opens the run; its name is the consent to import a module."""
    is_own = ":" in job.model and not job.model.startswith("timm:")
    device = [] if means.device is None else ["--device", means.device]
    return [*(["--model", job.model] if is_own else []), *device]


def _data(means: Means) -> list[str]:
    return [] if means.data_dir is None else ["--data-dir", str(means.data_dir)]
