"""A list or a grid of jobs in a TOML file.

    dataset = "cifar100-mini"  # these four are defaults of the command line's options
    seeds = [0, 1]
    epochs = 20
    max_macs = 6e11

    [[job]]
    name = "rates"  # of these jobs in the plan; else their number
    model = ["resnet_20", "resnet_32"]  # a list where one value is expected: a job for each
    recipe = "quick"
    set = { peak_lr = [0.1, 0.3], label_smoothing = 0.1 }  # fields of the recipe

A `[[job]]` may also have image_size, pretrained (true or false), pretraining (a method of
zoo-pretrain) and epochs. Lists span a grid: the jobs above are four for each seed.
"""

import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.ablations import Arm
from training.sweep_jobs import Group, Scale
from zoo.errors import ZooError, first_line, nearest

TOP = {"dataset": str, "seeds": list, "epochs": int, "max_macs": float, "job": list}
FIELDS = {
    "model": str,
    "recipe": str,
    "image_size": int,
    "pretrained": bool,
    "pretraining": str,
    "epochs": int,
}
KEYS = (*FIELDS, "name", "set")
WORDS = {str: "a text", int: "a whole number of 1 or more", float: "a number above 0"}
WORDS |= {bool: "true or false", list: "a list", dict: "a table"}


def read_sweep(path: Path, scale: Scale) -> list[Group]:
    """The groups of a file; what `scale` says comes before what the file says.

    Raises:
        ZooError: the file is missing, is no TOML, or holds a key or a value that is none of ours.
    """
    try:
        value = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ZooError(
            f"there is no file {path}: name comparison, second-study, ablation or a .toml file"
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as reason:
        raise ZooError(f"{path} is not valid TOML: {first_line(reason)}") from None
    for key in value:
        if key not in TOP:
            raise ZooError(f"{path} has no key {key!r}: {nearest(key, TOP)}")
        _check(path, key, value[key], TOP[key])
    seeds = value.get("seeds", [])
    if not all(_is(seed, int, least=0) for seed in seeds) or ("seeds" in value and not seeds):
        raise ZooError(f"{path}: seeds must be whole numbers of 0 or more, got {seeds!r}")
    jobs = value.get("job", [])
    if not jobs:
        raise ZooError(f"{path} names no job: add a [[job]] with a model")
    merged = replace(
        scale,
        seeds=scale.seeds or tuple(dict.fromkeys(seeds)) or None,
        dataset=scale.dataset or value.get("dataset"),
        max_macs=scale.max_macs or value.get("max_macs"),
    )
    return [
        _group(f"{path}: job {number}", str(number), table, merged, value.get("epochs"))
        for number, table in enumerate(jobs, start=1)
    ]


def _group(where: str, number: str, table: Any, scale: Scale, epochs: int | None) -> Group:
    _check(where, "job", table, dict)
    for key in table:
        if key not in KEYS:
            raise ZooError(f"{where} has no key {key!r}: {nearest(key, KEYS)}")
    if "model" not in table:
        raise ZooError(f'{where} has no model: add one, such as model = "resnet_20"')
    name, settings = table.get("name", number), table.get("set", {})
    _check(where, "name", name, str)
    _check(where, "set", settings, dict)
    axes = {key: _values(where, key, table[key], FIELDS[key]) for key in FIELDS if key in table}
    axes |= {f"set.{key}": _values(where, f"set.{key}", v, None) for key, v in settings.items()}
    arms = [(_arm(axes, point), point.get("epochs", epochs)) for point in _points(axes)]
    return scale.group(name, arms)


def _points(axes: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _arm(axes: dict[str, list[Any]], point: dict[str, Any]) -> Arm:
    varied = [key for key in axes if len(axes[key]) > 1 and key != "model"]
    changes = [f"{key.removeprefix('set.')}={_text(point[key])}" for key in varied]
    return Arm(
        label=" ".join([point["model"], *changes]),
        model=point["model"],
        recipe=point.get("recipe", "study"),
        settings={k.removeprefix("set."): _text(v) for k, v in point.items() if "set." in k},
        image_size=point.get("image_size"),
        pretrained=point.get("pretrained", False),
        pretraining=point.get("pretraining"),
    )


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(where: str, key: str, value: Any, kind: type | None) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ZooError(f"{where}: {key} is an empty list: give it a value or leave it out")
    for one in values:
        if kind is not None:
            _check(where, key, one, kind)
        elif not isinstance(one, str | int | float):
            raise ZooError(f"{where}: {key} must be a number, a text or a truth, got {one!r}")
    return values


def _check(where: object, key: str, value: Any, kind: type) -> None:
    if not _is(value, kind):
        raise ZooError(f"{where}: {key} must be {WORDS[kind]}, got {value!r}")


def _is(value: Any, kind: type, *, least: float = 1) -> bool:
    if isinstance(value, bool) or kind not in (int, float):
        return isinstance(value, kind)
    is_number = isinstance(value, int) or (kind is float and isinstance(value, float))
    return is_number and (0 < value < float("inf") if kind is float else value >= least)
