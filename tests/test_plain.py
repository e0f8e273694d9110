from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zoo.plain import from_plain


@dataclass(frozen=True)
class Inner:
    names: tuple[str, ...]
    pair: tuple[float, float]


@dataclass(frozen=True)
class Outer:
    count: int
    share: float
    is_done: bool
    inner: Inner
    note: str | None
    facts: Mapping[str, Any]
    path: Path
    schema: int = 1


GOOD: dict[str, object] = {
    "count": 3,
    "share": 1,
    "is_done": True,
    "inner": {"names": ["a", "b"], "pair": [1, 2.5], "later": 1},
    "note": None,
    "facts": {"x": [1]},
    "path": Path("a"),
}


@pytest.mark.parametrize("name", ["count", "share"])
@pytest.mark.parametrize("value", [10**29, -(10**29), 10**400])
def test_a_number_beyond_all_counts_is_refused(name: str, value: int) -> None:
    with pytest.raises(TypeError, match=f"^{name} is too large$"):
        from_plain(Outer, {**GOOD, name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(TypeError, match=f"^share is {value}$"):
        from_plain(Outer, {**GOOD, "share": value})


def test_json_becomes_the_dataclass() -> None:
    found = from_plain(Outer, GOOD)

    inner = Inner(("a", "b"), (1.0, 2.5))
    assert found == Outer(3, 1.0, True, inner, None, {"x": [1]}, Path("a"), 1)
    assert isinstance(found.share, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "3"}, "count is no int"),
        ({"count": True}, "count is no int"),
        ({"count": 2.5}, "count is no int"),
        ({"share": "x"}, "share is no float"),
        ({"share": False}, "share is no float"),
        ({"is_done": 1}, "is_done is no bool"),
        ({"note": 5}, "note is no str"),
        ({"facts": []}, "facts is no "),
        ({"inner": None}, "expected an object, found NoneType"),
        ({"inner": {"names": "ab", "pair": [1, 2]}}, "names is no tuple"),
        ({"inner": {"names": [1], "pair": [1, 2]}}, "names is no str"),
        ({"inner": {"names": [], "pair": [1]}}, "pair is no tuple"),
        ({"inner": {"names": []}}, "pair is missing"),
    ],
)
def test_a_wrong_type_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        from_plain(Outer, GOOD | change)


def test_unknown_keys_are_dropped_or_refused() -> None:
    assert from_plain(Outer, GOOD | {"later": 1}).count == 3
    with pytest.raises(TypeError, match="later is no field of a Outer"):
        from_plain(Outer, GOOD | {"later": 1}, known_only=True)
