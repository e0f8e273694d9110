"""The three commands that the package is made for; each finds what the one before it made."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from profiling.record import read_records
from zoo.checkpoint import Checkpoint, newest_run

MODEL = "improved_resnet20_convnext"
BINARIES = Path(sys.executable).parent

IS_COMPLETE = find_spec("tensorrt_rtx_bindings") is not None and (BINARIES / "zoo-train").is_file()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(  # where the set-up is ours, its lack is a failure
        not IS_COMPLETE and os.environ.get("ZOO_TEST_INSTALLED") != "1",
        reason="needs the installed commands and the package tensorrt-rtx-cu13-bindings",
    ),
]


def called(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, on the shipped images."""
    name, *arguments = command.split()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [BINARIES / name, *arguments], cwd=folder, env=environment, text=True, capture_output=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mission")


@pytest.fixture(scope="module")
def run(folder: Path) -> Checkpoint:
    done = called(folder, f"zoo-train {MODEL} --compile --dataset cifar100-mini --epochs 1")

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path(f"runs/{MODEL}-s0")
    return Checkpoint.open(newest_run(folder / "runs"))


@pytest.fixture(scope="module")
def manifest(folder: Path, run: Checkpoint) -> dict[str, Any]:
    done = called(folder, "zoo-export --to trt")

    assert done.returncode == 0, done.stderr
    engine = folder / done.stdout.strip()
    assert engine == run.path / "artifacts" / "trt-fp32.engine"
    assert engine.stat().st_size > 100_000
    assert "proof pending" in done.stderr
    found: dict[str, Any] = json.loads(engine.with_suffix(".json").read_text())
    return found


def test_the_training_is_complete(run: Checkpoint) -> None:
    assert (run.meta.model, run.meta.epochs_done, run.meta.compiled) == (MODEL, 1, True)
    assert run.meta.test_top1 is not None


def test_the_engine_waits_for_its_proof(manifest: dict[str, Any]) -> None:
    assert manifest["proof"] == "pending"
    assert manifest["proxy_parity"]["passed"]  # of the graph from which it was built


def test_what_runs_here_is_measured_and_the_rest_explained(
    folder: Path, run: Checkpoint, manifest: dict[str, Any]
) -> None:
    done = called(folder, "zoo-bench --batch 1,256 --budget 4")

    assert done.returncode == 0, done.stderr
    measured = {(r.backend, r.batch) for r in read_records(run.path) if r.status == "ok"}
    assert measured >= {(backend, batch) for backend in ("eager", "compile") for batch in (1, 256)}
    assert str(manifest["pending"]) in done.stderr
    assert all(backend != "trt" for backend, _ in measured)
