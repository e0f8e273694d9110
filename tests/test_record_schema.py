"""The JSON Schema of records, held against the dataclass and against real records."""

import json
import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import jsonschema
import pytest
from sample_records import MEASUREMENT, gap, measurement

import profiling.record
from profiling.record import FAILED, SCHEMA, GpuState, HostLoad, Measurement

ROOT = Path(__file__).parents[1]
NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"}
DESCRIBED = json.loads(Path(profiling.record.__file__).with_name("record.schema.json").read_text())
REMARKS = ("description", "enum", "minimum", "maximum", "exclusiveMinimum")


def schema_of(hint: Any) -> dict[str, Any]:
    """What JSON Schema calls a type of the dataclasses."""
    if get_origin(hint) in (Union, types.UnionType):
        (present,) = (option for option in get_args(hint) if option is not type(None))
        found = schema_of(present)
        if found["type"] == "object":
            return {"anyOf": [found, {"type": "null"}]}
        return found | {"type": [found["type"], "null"]}
    if get_origin(hint) is tuple:
        options = get_args(hint)
        found = {"type": "array", "items": schema_of(options[0])}
        size = {} if options[-1] is ... else {"minItems": len(options), "maxItems": len(options)}
        return found | size
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return {
            "type": "object",
            "properties": {name: schema_of(kind) for name, kind in hints.items()},
            "required": [field.name for field in fields(hint) if field.default is MISSING],
        }
    return {"type": NAMES[hint]}


def bare(schema: Any) -> Any:
    """Without what is said for people, and without bounds."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "properties" in schema:
        inner = {name: bare(kind) for name, kind in schema["properties"].items()}
        schema = schema | {"properties": inner}
        return {key: value for key, value in schema.items() if key not in REMARKS}
    return {key: bare(value) for key, value in schema.items() if key not in REMARKS}


def test_the_schema_describes_the_dataclass() -> None:
    wanted = schema_of(Measurement)
    wanted["required"].append("schema")

    found = {key: bare(DESCRIBED)[key] for key in wanted}

    for name, kind in wanted["properties"].items():
        assert found["properties"].get(name) == kind, name
    assert found == wanted
    assert DESCRIBED["properties"]["schema"]["maximum"] == SCHEMA


def samples() -> list[dict[str, Any]]:
    """A record of each kind, as JSON."""
    gpu = GpuState(clock_mhz=(1980,), throttled_by=(), energy_mj_per_image=0.1)
    records = [
        MEASUREMENT,
        measurement(host=HostLoad(others=0.0, steal=0.0), gpu=gpu, logits_error=1e-6),
        gap(FAILED, "the process was ended by SIGSEGV", source=None, top1=None),
    ]
    files = sorted((ROOT / "bench_results" / "records").rglob("*.json"))
    return [
        *(json.loads(json.dumps(value)) for value in map(profiling.record.to_json, records)),
        *(json.loads(file.read_text()) for file in files),
    ]


def test_records_have_the_keys_of_the_schema() -> None:
    for value in samples():
        missing = set(DESCRIBED["required"]) - value.keys()
        assert missing == set()
        if value["schema"] == SCHEMA:
            assert value.keys() == DESCRIBED["properties"].keys()


def test_records_validate() -> None:
    jsonschema.Draft202012Validator.check_schema(DESCRIBED)
    validator = jsonschema.Draft202012Validator(DESCRIBED)
    for value in samples():
        validator.validate(value)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(samples()[0] | {"status": "good"})
