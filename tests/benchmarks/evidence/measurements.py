"""The steps that measure: tests, ceilings, loops of training, exported files, inference."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiling.evidence import ARTIFACT, MEASUREMENT, ROOF, TRAINING
from profiling.record import OK
from profiling.roofline import read_roofs
from zoo.files import read_json

from .place import ROOT, Place
from .runs import find_run
from .task import Harvest, Task

TESTS, CEILINGS, LOOPS, EXPORT, INFER = "tests", "ceilings", "bench-train", "export", "infer"
PYTEST_COUNT = re.compile(r"(\d+) (passed|failed|error|errors|skipped|deselected)\b")
TENSORRT = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx_bindings")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much the measuring steps do."""

    tests: tuple[str, ...]  # arguments of pytest
    dataset: str  # of the loops of training
    loops: tuple[str, ...]  # arguments of bench_train.py
    loops_s: float  # that it takes
    batches: str
    budget_s: float  # of each measurement of inference
    backends: str | None  # None: all that are found
    formats: tuple[tuple[str, str, tuple[str, ...]], ...]  # target, precisions, modules: any of


FULL = Size(
    tests=("-m", "gpu", "tests"),
    dataset="cifar100",
    loops=("--seconds", "6"),
    loops_s=300,
    batches="1,8,32,128,256,1024",
    budget_s=2.0,
    backends=None,
    formats=(
        ("trt", "fp32,fp16", TENSORRT),
        ("aoti", "fp32,fp16", ()),
        ("onnx", "fp32,fp16", ("onnxruntime",)),
    ),
)
TOY = Size(
    tests=("tests/test_environment.py",),
    dataset="cifar100-mini",
    loops=("--seconds", "10", "--rounds", "2", "--batch", "32", "--contenders", "ours-eager"),
    loops_s=30,
    batches="1,8",
    budget_s=0.2,
    backends="eager,onnx",
    formats=(("onnx", "fp32", ("onnxruntime",)),),
)


def tests(size: Size) -> Task:
    """The tests that need a GPU."""

    def command(place: Place) -> list[str]:
        options = ("-q", "-p", "no:benchmark", "-p", "no:cacheprovider", "--rootdir", str(ROOT))
        # A file that cannot be imported, for want of a package, fails; the others are run.
        options += ("--continue-on-collection-errors",)
        files = [str(ROOT / one) if one.startswith("tests") else one for one in size.tests]
        return place.module("pytest", *options, *files)

    def harvest(place: Place, printed: list[str]) -> Harvest:
        counts = {what: int(count) for count, what in PYTEST_COUNT.findall(printed[-1])}
        failed = [line.split(" - ")[0] for line in printed if line.startswith(("FAILED", "ERROR"))]
        failure = f"{len(failed)} failed, the first: {failed[0]}" if failed else None
        return Harvest(facts={"counts": counts, "failed": failed}, failure=failure)

    return Task(
        name="tests",
        part=TESTS,
        predicted_s=90,
        limit_s=240,
        command=command,
        harvest=harvest,
        any_of=("pytest",),
    )


def ceilings() -> Task:
    """Copy bandwidth and matrix rate."""

    def command(place: Place) -> list[str]:
        return place.module("evidence.ceilings", place.device)

    def harvest(place: Place, printed: list[str]) -> Harvest:
        return Harvest(facts=json.loads(printed[-1]))

    return Task(
        name="ceilings",
        part=CEILINGS,
        predicted_s=20,
        limit_s=90,
        command=command,
        harvest=harvest,
    )


def loops(model: str, size: Size) -> Task:
    """Our training loop beside those of others."""
    name = f"bench-train {model}"

    def command(place: Place) -> list[str]:
        shutil.rmtree(place.folder_of(name), ignore_errors=True)
        return place.script(
            "tests/benchmarks/bench_train.py",
            *("--models", model, "--device", place.device, "--dataset", size.dataset),
            *("--out", str(place.folder_of(name)), *size.loops),
        )

    def harvest(place: Place, printed: list[str]) -> Harvest:
        file = place.folder_of(name) / "records.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        ends = [line["contender"] for line in lines if line["kind"] == "end"]
        failed = {line["contender"]: line["reason"] for line in lines if line["kind"] == "failed"}
        return Harvest(
            facts={"contenders": ends, "failed": failed},
            lines=tuple((TRAINING, line) for line in lines),
            failure=next((f"{name}: {reason}" for name, reason in failed.items()), None),
        )

    return Task(
        name=name,
        part=LOOPS,
        predicted_s=size.loops_s,
        limit_s=480,
        command=command,
        harvest=harvest,
    )


def export(model: str, target: str, precisions: str, any_of: tuple[str, ...]) -> Task:
    """Write and prove the files of one format."""

    def command(place: Place) -> list[str]:
        run = require_run(place, model)
        options = ("--to", target, "--precision", precisions, "--device", _device(place, target))
        return place.command("zoo-export", str(run), *options)

    def harvest(place: Place, printed: list[str]) -> Harvest:
        folder = require_run(place, model) / "artifacts"
        manifests = [read_json(file) for file in sorted(folder.glob(f"{target}-*.json"))]
        facts = {
            "files": {
                one["precision"]: {
                    "proof": one.get("proof"),
                    "parity": one.get("parity"),
                    "accuracy": one.get("accuracy"),
                    "pending": one.get("pending"),
                    "size_bytes": one["size_bytes"],
                }
                for one in manifests
            }
        }
        return Harvest(facts=facts, lines=tuple((ARTIFACT, one) for one in manifests))

    return Task(
        name=f"export {model} {target}",
        part=EXPORT,
        predicted_s=60,
        limit_s=240,
        command=command,
        harvest=harvest,
        any_of=any_of,
        is_ready=lambda place: find_run(place, model) is not None,
    )


def infer(model: str, size: Size) -> Task:
    """Time a network on every backend that is found; untrained where there is no run of it."""
    name = f"infer {model}"

    def command(place: Place) -> list[str]:
        shutil.rmtree(place.folder_of(name), ignore_errors=True)
        run = find_run(place, model)
        backends = size.backends if run is not None else None
        return place.command(
            "zoo-bench",
            model if run is None else str(run),
            *("--device", place.device, "--batch", size.batches, "--budget", f"{size.budget_s:g}"),
            *("--out", str(place.folder_of(name))),
            *(() if backends is None else ("--backend", backends)),
        )

    def harvest(place: Place, printed: list[str]) -> Harvest:
        files = sorted((place.folder_of(name) / "records").glob("*/*.json"))
        records = [read_json(file) for file in files]
        roofs = read_roofs(place.folder_of(name)).values()
        bad = {f"{one['backend']} b{one['batch']}": one["reason"] for one in _not_ok(records)}
        return Harvest(
            facts={"records": len(records), "not_measured": bad},
            lines=(
                *((MEASUREMENT, record) for record in records),
                *((ROOF, roof.to_json()) for roof in roofs),
            ),
        )

    batches = len(size.batches.split(","))
    return Task(
        name=name,
        part=INFER,
        predicted_s=30 + 4 * batches * (size.budget_s + 4),
        limit_s=420,
        command=command,
        harvest=harvest,
    )


def require_run(place: Place, model: str) -> Path:
    """The run that a step works on."""
    run = find_run(place, model)
    assert run is not None, f"no run of {model}"
    return run


def _device(place: Place, target: str) -> str:
    """ONNX files are proven on the CPU where ONNX Runtime has no provider for the GPU."""
    return "cpu" if target == "onnx" and "onnxruntime.cuda" in place.missing else place.device


def _not_ok(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in records if one["status"] != OK]
