"""The commands zoo-train and zoo-sweep."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.elastic import Launch, is_launched, is_worker, launch, quiet_torch, speaks, work
from training.options import Job, build_parser, make_job, make_runtime, require_replay
from training.recipes import describe_recipes
from zoo.command import run
from zoo.errors import ZooError
from zoo.preprocess import STORED_SIZE

if TYPE_CHECKING:
    from zoo.data import Dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-train`."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(arguments)
    if is_launched():
        return work(lambda: _call(args, arguments))
    return run("zoo-train", lambda: _call(args, arguments))


def main_sweep(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-sweep`."""
    from export import TARGETS
    from training.sweep_cli import sweep

    return sweep(argv, targets=tuple(TARGETS))


def _call(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    if args.recipes:
        print(describe_recipes())
        return
    if args.replay is not None:
        _replay(args)
        return
    if args.nproc is not None or args.nnodes is not None:
        quiet_torch()
    job = make_job(args)
    _check_model(job)  # before any data is fetched
    if job.tensorboard:
        from training.event_log import require_tensorboard

        require_tensorboard()
    if job.launch is None or is_launched():
        _train(job)
        return
    _check_launch(job, job.launch)
    _load(job.dataset, job.data_dir)  # once, and with its errors, before there are processes
    launch(arguments, job.launch)


def _train(job: Job) -> None:
    from training.display import TrainingDisplay
    from training.run import train

    data = _load(job.dataset, job.data_dir)
    wanted = (
        f"{job.model} on {data.name}, recipe {job.recipe.name}, {job.recipe.epochs} epochs, "
        f"batch {job.recipe.batch_size}, seed {job.seed}{_size(job)}"
    )
    with TrainingDisplay() as bar:
        done = train(
            job.model,
            job.recipe,
            job.runtime,
            data,
            seed=job.seed,
            runs=job.runs,
            resume=job.resume,
            image_size=job.image_size,
            pretrained=job.pretrained,
            pretrained_file=job.pretrained_file,
            init_from=job.init_from,
            teacher=job.teacher,
            tensorboard=job.tensorboard,
            on_begin=(lambda run: bar.note(wanted)) if speaks() else None,
            on_progress=bar if speaks() else None,
            on_note=bar.note if speaks() else None,
        )
    if speaks():
        meta = done.meta
        chosen = f"epoch {meta.epoch}, the {_selection(meta.selection)}"
        print(
            f"test top-1 {meta.test_top1:.2%}, top-5 {meta.test_top5:.2%} ({chosen})",
            file=sys.stderr,
        )
        print(done.path)


def _replay(args: argparse.Namespace) -> None:
    from training.run import replay
    from zoo.checkpoint import Checkpoint

    stored = Checkpoint.open(args.replay)
    require_replay(args, stored.meta)
    stored.require_consent(args.model or args.named)
    data = _load(args.dataset or stored.meta.dataset.name, args.data_dir)
    runtime = make_runtime(args, stored.meta)
    for line in replay(args.replay, runtime, data, teacher=args.teacher, on_note=_say):
        print(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _load(dataset: str, data_dir: Path | None) -> "Dataset":
    from zoo.data import load_dataset
    from zoo.display import load_shown

    return load_shown(dataset, data_dir) if speaks() else load_dataset(dataset, data_dir=data_dir)


def _check_launch(job: Job, wanted: Launch) -> None:
    """Refuse more processes than this machine has GPUs for, and a launcher in a launcher.

    Raises:
        ZooError: one or the other.
    """
    import torch

    if is_worker():
        raise ZooError("another launcher started this process: leave out --nproc and --nnodes")
    gpus = torch.cuda.device_count() if job.runtime.device != "cpu" else 0
    if gpus and wanted.nproc > gpus:
        raise ZooError(
            f"--nproc {wanted.nproc} exceeds the GPUs of this machine: pass at most {gpus}"
        )


def _check_model(job: Job) -> None:
    """Refuse what can be refused without the data; of a network of the user's, import the module.

    Raises:
        ZooError: the model, its image size or the weights that it is to start from do not exist.
    """
    from zoo.adopt import check_file, check_hub
    from zoo.models import model_spec
    from zoo.neighbours import Neighbour
    from zoo.own import is_own, load_function

    if job.pretrained_file is not None and job.resume is None:
        check_file(job.pretrained_file)
    if job.init_from is not None and job.resume is None:
        from training.start import check_run

        check_run(job.init_from, job.model)
    if job.teacher is not None:
        from training.teacher import check_teacher

        check_teacher(job.teacher, student=job.model)
    if is_own(job.model):
        load_function(job.model)
        return
    spec = model_spec(job.model)
    size = job.image_size or STORED_SIZE
    if job.image_size is not None and size not in spec.sizes:
        raise ZooError(f"model {job.model!r} takes images of {spec.sizes}, got {size}")
    is_from_hub = job.pretrained and job.pretrained_file is None and job.resume is None
    if is_from_hub and isinstance(spec, Neighbour):
        check_hub(spec, image_size=size)


def _size(job: Job) -> str:
    return "" if job.image_size is None else f", {job.image_size}x{job.image_size} pixels"


def _selection(selection: str) -> str:
    return "last of all training images" if selection == "last" else "best on held-out images"


if __name__ == "__main__":
    raise SystemExit(main())
