"""Dataclasses from JSON that anybody may have edited: every type is checked."""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
LARGEST = 2**63  # of what is counted; a number beyond it is damage


def from_plain(kind: type[T], value: object, *, known_only: bool = False) -> T:
    """Build the dataclass `kind` from JSON values; lists become tuples.

    A field that is absent takes its default; a key that is no field is dropped, or refused with
    `known_only`.

    Raises:
        TypeError: `value` or a field is missing or of another type; the message names it.
        ValueError: the dataclass itself refuses a value.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in value:
            found[field.name] = _checked(hints[field.name], value[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise TypeError(f"{field.name} is missing")
    unknown = sorted(map(str, value.keys() - hints.keys()))
    if known_only and unknown:
        raise TypeError(f"{unknown[0]} is no field of a {kind.__name__}")
    return kind(**found)


def _checked(hint: Any, value: Any, name: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{name} is {value}")
    if isinstance(value, int) and hint is not Any and abs(value) > LARGEST:
        raise TypeError(f"{name} is too large")
    if type(value) is hint:  # nearly always, and records hold thousands of samples
        return value
    origin = get_origin(hint)
    is_bool = isinstance(value, bool)  # an int to Python, but to nobody else
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (hint,) = (option for option in get_args(hint) if option is not type(None))
        return _checked(hint, value, name)
    if origin is tuple and isinstance(value, list | tuple):
        options = get_args(hint)
        item_hints = options if options[-1] is not ... else options[:1] * len(value)
        if len(item_hints) == len(value):
            return tuple(_checked(h, v, name) for h, v in zip(item_hints, value, strict=True))
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return value
    elif isinstance(hint, type) and is_dataclass(hint):
        return from_plain(hint, value)
    elif hint is float and isinstance(value, int | float) and not is_bool:
        return float(value)
    elif origin is None and isinstance(value, hint) and is_bool == (hint is bool):
        return value
    wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise TypeError(f"{name} is no {wanted}")
