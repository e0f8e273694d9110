"""The command `zoo-export`."""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import check_precision, check_target, check_written, load_target, target_of
from export.flags import OF_RUNS, OF_WRITING, export_parser, given, refuse_idle
from zoo import command
from zoo.errors import ArtifactError, CheckpointError, MachineError, ZooError

if TYPE_CHECKING:
    from export.artifact import Artifact
    from export.parity import Parity
    from export.proof import Reference
    from export.target import ExportTarget
    from zoo.checkpoint import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `zoo-export`."""
    args = export_parser().parse_args(argv)
    return command.run("zoo-export", lambda: _export(args))


def _export(args: argparse.Namespace) -> int:
    for name in args.to or ():
        check_target(name)
    for name in args.precision or ():
        check_precision(name)
    files = [path for path in args.paths if target_of(path) is not None]
    if files and (args.to or args.precision):
        raise ZooError(
            f"--to and --precision are for runs, and {files[0]} is a file already: leave them out"
        )
    for option, folder in (("--bundle", args.bundle), ("--triton", args.triton)):
        if folder not in (None, True) and _is_source(Path(folder)):
            raise ZooError(
                f"{option} {folder}: expected a folder to write to, this is a run or a file to "
                f"hand over; put it first: zoo-export {folder} {option}"
            )
    if args.prove:
        _refuse(given(args, OF_WRITING), "--prove writes nothing")
        return _prove(args)
    wants = args.triton is not None or args.bundle is not None
    if wants and files and len(files) == len(args.paths):
        _refuse(given(args, (*OF_WRITING, *OF_RUNS)), f"{files[0]} is handed over as it is")
        return _hand_over_files(args)
    args.to, args.precision = args.to or ["onnx"], args.precision or ["fp32"]
    refuse_idle(args)
    return _write(args)


def _refuse(options: Sequence[str], why: str) -> None:
    if options:
        raise ZooError(f"{why}: leave out {', '.join(options)}")


def _is_source(path: Path) -> bool:
    """Whether this is what is exported or handed over, and no folder for it."""
    from zoo.checkpoint import META

    return target_of(path) is not None or (path / META).exists()


def _write(args: argparse.Namespace) -> int:
    """Write every file of every run; one that fails does not stop the others."""
    from export.calibrate import methods_of
    from export.onnx_session import check_provider
    from export.to_onnx import check_opset
    from zoo.doctor import require_kernels

    check_opset(args.opset)
    methods_of(args.int8_method)
    if args.provider is not None:
        check_provider(args.provider, args.device or "cpu")
    codes: list[int] = []
    jobs: list[tuple[ExportTarget, str]] = []
    for name, precision in itertools.product(args.to, args.precision):
        try:
            target = load_target(name, provider=args.provider if name == "onnx" else None)
            check_written(target, precision)
            jobs.append((target, precision))
        except ZooError as error:
            codes.append(_report(error))
    if not jobs:
        return codes[0]
    runs = _runs(args, codes)
    require_kernels(args.device or "cpu")
    opened = _opener(args)
    for run in runs:
        try:
            codes += _write_run(opened(run), jobs, args)
        except (ZooError, OSError) as error:
            codes.append(_report(error))
    return codes[0] if codes else 0


def _write_run(
    reference: "Reference", jobs: Sequence[tuple["ExportTarget", str]], args: argparse.Namespace
) -> list[int]:
    """Write every file of one run; return an exit code for each that failed."""
    codes: list[int] = []
    for target, precision in jobs:
        for raw in (False, True) if args.preprocess and target.name == "onnx" else (False,):
            try:
                codes += _write_one(reference, target, precision, args, raw=raw)
            except (ZooError, OSError) as error:
                codes.append(_report(error))
    return codes


def _write_one(
    reference: "Reference",
    target: "ExportTarget",
    precision: str,
    args: argparse.Namespace,
    *,
    raw: bool,
) -> list[int]:
    from export.target import ExportOptions
    from export.write import write_artifact

    label = f"{target.name}{'-raw' if raw else ''} {precision}"
    _say(f"exporting {reference.run.path} to {label}")
    artifact = write_artifact(
        reference,
        target,
        precision=precision,
        options=ExportOptions(
            device=_device(args, target.name),
            opset=args.opset,
            int8_method=args.int8_method,
            int8_images=args.int8_images,
            int8_max_drop=args.int8_max_drop,
            trt_opt_batch=args.trt_opt_batch,
            trt_flavor=args.trt_flavor,
            trt_workspace_mib=args.trt_workspace,
            trt_timing_cache=args.trt_timing_cache,
            trt_version_compatible=args.trt_version_compatible,
            trt_hardware_compatible=args.trt_hardware_compatible,
        ),
        raw=raw,
    )
    if "layers" in artifact.facts:
        _say(f"{label}: {artifact.facts['layers']}")
    if "int8" in artifact.facts:
        _say(f"{label}: {_quantised(artifact.facts['int8'])}")
    _say(_summary(artifact))
    print(artifact.path, flush=True)
    return _hand_over(artifact, args)


def _hand_over_files(args: argparse.Namespace) -> int:
    """Hand over files that are there already."""
    from export.artifact import find_artifact

    codes: list[int] = []
    for path in args.paths:
        try:
            codes += _hand_over(find_artifact(path), args)
        except (ZooError, OSError) as error:
            codes.append(_report(error))
    return codes[0] if codes else 0


def _hand_over(artifact: "Artifact", args: argparse.Namespace) -> list[int]:
    """Make what --bundle and --triton ask for; return an exit code for each that failed."""
    from export.bundle import write_bundle
    from export.triton import add_to_repository

    wanted: list[Callable[[], Path]] = []
    if args.bundle is not None:
        folder = None if args.bundle is True else Path(args.bundle)
        wanted.append(lambda: write_bundle(artifact, folder))
    if args.triton is not None:
        wanted.append(lambda: add_to_repository(artifact, args.triton))
    codes = []
    for make in wanted:
        try:
            print(make(), flush=True)
        except (ZooError, OSError) as error:
            codes.append(_report(error))
    return codes


def _prove(args: argparse.Namespace) -> int:
    """Prove files that are named, and those of runs whose proof is pending."""
    from export.onnx_session import check_provider
    from export.opening import run_of
    from export.write import prove_artifact
    from zoo.doctor import require_kernels

    if args.provider is not None:
        check_provider(args.provider, args.device or "cpu")
    artifacts, codes = _to_prove(args)
    if not artifacts and not codes:
        _say("no proof is pending")
    require_kernels(args.device or "cpu")
    opened = _opener(args)
    for artifact in artifacts:
        try:
            source = run_of(artifact.path)
            if source is None:
                raise ArtifactError(f"{artifact.path} can only be proven inside its run: move it")
            proven = prove_artifact(
                artifact,
                opened(source),
                load_target(
                    artifact.target, provider=args.provider if artifact.target == "onnx" else None
                ),
                device=_device(args, artifact.target),
            )
            _say(_summary(proven))
            print(proven.path, flush=True)
            codes += _hand_over(proven, args)
        except (ZooError, OSError) as error:
            codes.append(_report(error))
    return codes[0] if codes else 0


def _opener(args: argparse.Namespace) -> Callable[["Checkpoint"], "Reference"]:
    """How to open a run beside its data; of many runs one is open at a time."""
    from export.proof import Reference
    from zoo.display import load_shown

    data = functools.lru_cache(maxsize=1)(lambda name: load_shown(name, args.data_dir))
    last: dict[Path, Reference] = {}

    def opened(run: "Checkpoint") -> Reference:
        if run.path not in last:
            last.clear()
            shown = data(run.meta.dataset.name)
            last[run.path] = Reference(run, shown, allow=_consent(run, args))
        return last[run.path]

    return opened


def _to_prove(args: argparse.Namespace) -> tuple[list["Artifact"], list[int]]:
    """What is to be proven, and an exit code for each file or manifest that is of no use."""
    from export.artifact import find_artifact, manifests, read_manifest

    files = [path for path in args.paths if target_of(path) is not None]
    found: list[Artifact] = []
    codes: list[int] = []
    runs = _runs(args, codes, left_out=files)
    for read, path in (
        *((find_artifact, path) for path in files),
        *((read_manifest, path) for run in runs for path in manifests(run.path)),
    ):
        try:
            artifact = read(path)
        except (ZooError, OSError) as error:
            codes.append(_report(error))
            continue
        is_meant = (not args.to or artifact.target in args.to) and (
            not args.precision or artifact.precision in args.precision
        )
        if path in files or (artifact.pending is not None and is_meant):
            found.append(artifact)
    return found, codes


def _runs(
    args: argparse.Namespace, codes: list[int], left_out: Sequence[Path] = ()
) -> list["Checkpoint"]:
    """The runs that were named; without any, all of a folder or the newest.

    A damaged one adds its exit code and stops no other.
    """
    from zoo.checkpoint import Checkpoint, complete_runs, newest_run

    runs: list[Checkpoint] = []
    for path in args.paths:
        if path in left_out:
            continue
        try:
            run = Checkpoint.open(path)
            run.require_consent(args.model)
        except (ZooError, OSError) as error:
            codes.append(_report(error))
        else:
            runs.append(run)
    if args.all is not None:
        named = {run.path.resolve() for run in runs}
        folder = args.runs if args.all is True else Path(args.all)
        try:
            found = complete_runs(folder, on_damage=lambda error: codes.append(_report(error)))
        except CheckpointError as error:
            codes.append(_report(error))
        else:
            runs += [run for run in found if run.path.resolve() not in named]
    elif not args.paths:
        runs = [Checkpoint.open(newest_run(args.runs))]
        runs[0].require_consent(args.model)
    return runs


def _device(args: argparse.Namespace, target: str) -> str:
    """What a file is written for and proven on: without --device the CPU, an engine the GPU."""
    from zoo.doctor import require_kernels

    if args.device is not None or target != "trt":
        return args.device or "cpu"
    try:
        require_kernels("cuda")
    except MachineError:
        return "cpu"
    return "cuda"


def _consent(run: "Checkpoint", args: argparse.Namespace) -> str | None:
    """What --model allows; with --all it is for the runs that hold that model."""
    allow: str | None = args.model
    return None if args.all is not None and allow != run.meta.model else allow


def _summary(artifact: "Artifact") -> str:
    label = f"{artifact.backend} {artifact.precision}"
    what = "probability" if artifact.is_raw else "logit"
    parity, accuracy = artifact.parity or artifact.proxy_parity, artifact.accuracy
    agreement = parity and (
        f"agrees with eager: largest error of a {what} {parity.max_abs_error:.1e} "
        + (f"(allowed {parity.limit:.1e})" if parity.limit else _noise(parity))
        + f", same class for {parity.top1_agreement:.1%} of {parity.images} images"
    )
    if artifact.pending is not None:
        proxy = f"; the graph that it was built from {agreement}" if agreement else ""
        return f"{label}: proof pending: {artifact.pending}{proxy}"
    assert accuracy is not None
    text = (
        f"{label} {agreement}; top-1 {accuracy.top1:.2%}, top-5 {accuracy.top5:.2%} "
        f"on {accuracy.images} test images"
    )
    beside = artifact.comparison
    if beside is None:
        return text
    weight = "" if beside.is_gate else ", too few images to decide"
    return f"{text} (eager top-1 {beside.eager_top1:.2%}, McNemar p = {beside.p_value:.2g}{weight})"


def _noise(parity: "Parity") -> str:
    if parity.noise is None or parity.noise_limit is None:
        return "(not held against it)"
    return f"({parity.noise:.1%} noise, allowed {parity.noise_limit:.0%})"


def _quantised(facts: Mapping[str, Any]) -> str:
    kept = facts["kept_float"]
    rest = f"; in float: {', '.join(kept)}" if kept else ""
    seen = "" if facts["validation_is_held_out"] else ", which training has seen"
    return (
        f"{facts['layers'] - len(kept)} of {facts['layers']} layers in int8 ({facts['method']}, "
        f"{facts['calibration_images']} images); top-1 {facts['validation_top1']:.2%} where eager "
        f"has {facts['validation_top1_eager']:.2%} on {facts['validation_images']} validation "
        f"images{seen}{rest}"
    )


def _report(error: ZooError | OSError) -> int:
    """Print one failure of several; return the exit code that it alone would give."""
    if isinstance(error, ZooError):
        _say(str(error))
        return error.exit_code
    _say(command.describe(error))
    return 1


def _say(text: str) -> None:
    print(f"zoo-export: {text}", file=sys.stderr)
