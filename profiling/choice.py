"""What the words of a command line name: paths, and networks that no run made."""

from collections.abc import Sequence
from pathlib import Path

from zoo.command import names
from zoo.errors import ZooError, closest, nearest
from zoo.models import MODELS
from zoo.neighbours import is_neighbour
from zoo.own import is_own
from zoo.registry import GROUPS


def paths_and_models(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tell paths from names of models, which may have commas between; an existing path wins.

    Raises:
        ZooError: a word is nearly the name of a model, or names code of the user's.
    """
    paths: list[Path] = []
    models: list[str] = []
    for word in words:
        if Path(word).exists() or Path(word).suffix == ".onnx":
            paths.append(Path(word))
            continue
        for name in names(word):
            if name in MODELS or is_neighbour(name):
                models.append(name)
            elif is_own(name):
                raise ZooError(f"{name} is code of your own: --model {name} has it imported")
            else:
                paths.append(_run(name))
    return list(dict.fromkeys(paths)), list(dict.fromkeys(models))


def catalogue(groups: Sequence[str] | None) -> list[str]:
    """Every model of the catalogue, or those of some groups.

    Raises:
        ZooError: there is no such group; the message holds the nearest.
    """
    for group in groups or ():
        if group not in GROUPS:
            raise ZooError(f"no group named {group!r}: {nearest(group, GROUPS)}")
    return [spec.name for spec in MODELS.values() if not groups or spec.group in groups]


def _run(name: str) -> Path:
    """A run that does not exist is reported as such, unless a model was meant."""
    near = closest(name, MODELS)
    if near is not None:
        raise ZooError(f"there is no run and no model {name}: {near} (a run: zoo-train MODEL)")
    return Path(name)
