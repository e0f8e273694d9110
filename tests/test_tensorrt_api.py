"""Every name of TensorRT that our source uses exists in 10.4, in 11.4 and in TensorRT-RTX 1.7."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.tensorrt_build import RESIZE

ROOT = Path(__file__).parents[1]
APIS = {
    path.stem: {name: set(members or ()) for name, members in json.loads(path.read_text()).items()}
    for path in (ROOT / "tests" / "reference" / "trt_api").glob("*.json")
}
RTX = "rtx-1.7"
SOURCES = sorted([*ROOT.glob("export/tensorrt_*.py"), ROOT / "export" / "to_tensorrt.py"])
# Our variables, with or without an underscore before them, and what they hold.
CLASSES = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "settings": "IRuntimeConfig",
    "tensor": "ITensor",
}

Use = tuple[str, str, bool]  # a class or an enumeration, "" for the module; its member; RTX alone


def uses(node: ast.AST, *, rtx: bool = False) -> Iterator[Use]:
    """What a tree uses of TensorRT; functions named `_rtx_...` are for TensorRT-RTX alone."""
    if isinstance(node, ast.FunctionDef):
        rtx = rtx or node.name.startswith("_rtx_")
    if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
        owner = last_name(node.value)
        if owner == "trt":
            yield "", node.attr, rtx
        elif isinstance(node.value, ast.Attribute) and last_name(node.value.value) == "trt":
            yield owner, node.attr, rtx
        elif owner in CLASSES:
            yield CLASSES[owner], node.attr, rtx
    for child in ast.iter_child_nodes(node):
        yield from uses(child, rtx=rtx)


def last_name(node: ast.AST) -> str:
    """`engine` of `engine`, `self._engine` and `opened.engine`; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id.lstrip("_")
    return node.attr.lstrip("_") if isinstance(node, ast.Attribute) else ""


def unknown(found: set[Use], version: str) -> set[str]:
    api = APIS[version]
    return {
        f"{owner}.{member}"
        for owner, member, rtx in found
        if (version == RTX or not rtx) and member not in (api.get(owner, ()) if owner else api)
    }


@pytest.fixture(scope="module")
def found() -> set[Use]:
    return {use for path in SOURCES for use in uses(ast.parse(path.read_text()))}


@pytest.mark.parametrize("version", ["10.4", "11.4", RTX])
def test_every_name_exists(found: set[Use], version: str) -> None:
    assert not unknown(found, version)


def test_the_walk_sees_what_it_is_for(found: set[Use]) -> None:
    owners = {owner for owner, _, _ in found}

    assert owners >= {"", "BuilderFlag", *CLASSES.values()}
    assert ("IBuilderConfig", "clear_flag", False) in found
    assert ("BuilderFlag", "REQUIRE_USER_ALLOCATION", True) in found


def test_the_feature_that_is_asked_for_by_name_exists() -> None:
    there = {version for version, api in APIS.items() if RESIZE in api["PreviewFeature"]}

    assert there == {"11.4", RTX}  # and not in 10.4


def test_names_that_one_version_lacks_are_found() -> None:
    source = """
def build(trt, builder):
    builder.create_builder_config().set_flag(trt.BuilderFlag.FP16)
    builder.max_batch_size = 1

def _rtx_build(trt, config):
    config.num_compute_capabilities = 1
"""

    gone = set(uses(ast.parse(source)))

    assert unknown(gone, "10.4") == {"Builder.max_batch_size"}
    assert unknown(gone, "11.4") == {"Builder.max_batch_size", "BuilderFlag.FP16"}
    assert unknown(gone, RTX) == {"Builder.max_batch_size", "BuilderFlag.FP16"}


def test_the_stored_names_are_those_of_the_installed_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings")

    missing = {
        f"{owner}.{member}"
        for owner, members in APIS[RTX].items()
        for member in members
        if not hasattr(getattr(trt, owner, None), member)
    }

    assert not missing
