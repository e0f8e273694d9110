"""Where steps run: folders, device, and how a command is started."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .store import Store

ROOT = Path(__file__).resolve().parents[3]  # of the checkout
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "benchmarks")))
COMMANDS = {"zoo-train": "train", "zoo-export": "export", "zoo-bench": "bench"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """What every step is given."""

    store: Store
    work: Path  # what is too large for the evidence: runs with their states, compiled code
    device: str  # "cpu" or "cuda"
    environment: str  # key of the machine
    missing: frozenset[str]  # optional modules that are not installed
    data: Path | None  # the folder of the data; None: where the commands look by themselves
    is_rehearsal: bool

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command of ours, without an installation of it."""
        call = f"from cifar_zoo import {COMMANDS[name]} as run; raise SystemExit(run())"
        return [sys.executable, "-c", call, *arguments]

    def script(self, path: str, *arguments: str) -> list[str]:
        """A script of the checkout."""
        return [sys.executable, str(ROOT / path), *arguments]

    def module(self, name: str, *arguments: str) -> list[str]:
        """A module as a command."""
        return [sys.executable, "-m", name, *arguments]

    def env(self) -> dict[str, str]:
        """Environment variables of every command."""
        given = {
            "PYTHONPATH": PYTHONPATH,
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "TRITON_CACHE_DIR": str(self.work / "triton"),
        }
        if self.data is not None:
            given["ZOO_DATA"] = str(self.data)
        return {**os.environ, **given}

    def folder_of(self, step: str) -> Path:
        """Where a step writes."""
        return self.work / "steps" / "-".join(step.split())

    def runs_of(self, step: str) -> Path:
        """The folder in which a step trains."""
        return self.work / "runs" / "-".join(step.split())
