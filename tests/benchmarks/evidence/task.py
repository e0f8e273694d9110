"""What a step is, before it is run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .place import Place


@dataclass(frozen=True, kw_only=True)
class Harvest:
    """What a step leaves."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[tuple[str, Any], ...] = ()  # further records: kind and value
    runs: tuple[Path, ...] = ()  # complete runs
    failure: str | None = None  # what its exit code does not tell


@dataclass(frozen=True, kw_only=True)
class Task:
    """One step of the plan."""

    name: str  # unique
    part: str
    predicted_s: float
    limit_s: float | None = None  # None: as long as there is time
    command: Callable[[Place], list[str]]
    harvest: Callable[[Place, list[str]], Harvest]  # of what was printed
    any_of: tuple[str, ...] = ()  # modules, one of which it needs
    can_resume: bool = False  # a training: a later call goes on where this one has to stop
    is_ready: Callable[[Place], bool] = lambda place: True  # whether what it works on is there
