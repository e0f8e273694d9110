"""Counting layers by type: of a built engine as its inspector describes it, and holding counts."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from export.tensorrt_inspect import engine_layer_types, summarise, verify_engine, verify_types
from export.to_tensorrt import TensorRtTarget
from zoo.errors import MachineError

UNKNOWN = "N/A due to dynamic shapes"  # TensorRT's words
TRT = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="json"))


class EngineWithoutGpu:
    """Stands in for a deserialised engine, which takes a GPU: its inspector answers `layers`.

    With a free batch the types of tensors are told to who names a context alone.
    """

    def __init__(self, layers: list[object], *, is_batch_free: bool = False) -> None:
        self.layers, self.is_batch_free = layers, is_batch_free
        self.execution_context: str | None = None

    def create_engine_inspector(self) -> "EngineWithoutGpu":
        return self

    def get_engine_information(self, form: str) -> str:
        assert form == "json"
        text = json.dumps({"Layers": self.layers, "I/O Tensors": []})
        if self.is_batch_free and self.execution_context != "context of a shape":
            text = re.sub('"Format/Datatype": "[^"]*"', f'"Format/Datatype": "{UNKNOWN}"', text)
        return text


def layer(kind: str, inputs: list[str], outputs: list[str], **more: object) -> dict[str, object]:
    return more | {
        "Name": "fused",
        "LayerType": kind,
        "Inputs": [{"Name": "a", "Format/Datatype": text} for text in inputs],
        "Outputs": [{"Name": "b", "Format/Datatype": text} for text in outputs],
    }


def test_engine_layers_are_counted_by_the_words_of_both_generations() -> None:
    engine = EngineWithoutGpu(
        [
            layer("kgen", ["Float"], ["Half"]),
            layer("kgen", ["Half"], ["Half"]),
            layer("gemm", ["Half", "Half"], ["Float"]),
            layer("CaskConvolution", ["Row major linear FP16 format"], ["Channel major FP16"]),
            layer(
                "CaskConvolution",
                ["Thirty-two wide channel vectorized row major Int8 format."],
                ["Row major linear FP32"],
            ),
            layer(
                "CaskConvActPool",
                ["Row major linear FP16 format"],
                ["Row major linear FP32"],
                ParameterType="Convolution",
                Weights={"Type": "Half", "Count": 432},
            ),
            layer("shape_call", ["Int64"], ["Int64"]),
            layer("signal", [], []),
        ]
    )

    types = engine_layer_types(engine, TRT)

    assert types == {
        "CaskConvolution": {"fp16": 1, "int8": 1},
        "convolution": {"fp16": 1},
        "gemm": {"fp32": 1},
        "kgen": {"fp16": 2},
    }
    assert summarise(types) == "fp16 4, fp32 1, int8 1"


def test_an_engine_with_a_free_batch_tells_its_types_for_a_shape() -> None:
    engine = EngineWithoutGpu([layer("kgen", ["Half"], ["Half"])], is_batch_free=True)

    assert engine_layer_types(engine, TRT) == {}
    assert engine_layer_types(engine, TRT, "context of a shape") == {"kgen": {"fp16": 1}}


def test_a_convolution_that_does_not_tell_the_type_of_its_weights_is_a_layer_like_others() -> None:
    """Its output may have been cast to another."""
    strange = layer(
        "Cask", ["Half"], ["Float"], ParameterType="Convolution", Weights={"Count": 432}
    )

    assert engine_layer_types(EngineWithoutGpu([strange]), TRT) == {"Cask": {"fp32": 1}}


@pytest.mark.parametrize("key", ["Datatype", "DataType"])
def test_engine_layers_are_counted_by_the_keys_of_tensorrt_11(key: str) -> None:
    """It tells the type and the format of a tensor apart; NVIDIA writes the key both ways."""

    def tensors(*kinds: str) -> list[dict[str, str]]:
        return [{"Name": "a", key: kind, "Format": "Row major linear"} for kind in kinds]

    engine = EngineWithoutGpu(
        [
            {"LayerType": "kgen", "Inputs": tensors("Float"), "Outputs": tensors("Half")},
            {"LayerType": "gemm", "Inputs": tensors("Int8", "Int8"), "Outputs": tensors("Half")},
            {"LayerType": "kgen", "Inputs": tensors("Int64"), "Outputs": tensors("Int64")},
        ]
    )

    assert engine_layer_types(engine, TRT) == {"gemm": {"int8": 1}, "kgen": {"fp16": 1}}


def test_an_engine_that_names_its_layers_only_has_no_types() -> None:
    assert engine_layer_types(EngineWithoutGpu(["conv1 + relu1", "fc"]), TRT) == {}
    assert summarise({}) == "none"


GRAPH = {"convolution": {"fp16": 3}, "matrix_multiply": {"fp16": 1}}


def test_types_that_agree_pass() -> None:
    found = GRAPH | {"softmax": {"fp32": 1}, "activation": {"fp16": 2}}

    verify_types(found, GRAPH, precision="fp16")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"convolution": {"fp16": 2, "fp32": 1}, "matrix_multiply": {"fp16": 1}},
            "the fp16 network has convolution layers in fp16 2, fp32 1 where its graph has fp16 3",
        ),
        (
            {"convolution": {"fp16": 3}},
            "the fp16 network has matrix_multiply layers in none where its graph has fp16 1",
        ),
        (
            GRAPH | {"softmax": {"fp16": 1, "fp32": 1}},
            "a softmax layer computes in fp16, not fp32",
        ),
    ],
)
def test_types_that_differ_are_named(found: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(MachineError) as caught:
        verify_types(found, GRAPH, precision="fp16")

    assert str(caught.value) == message


def test_a_precision_that_no_layer_has_is_refused() -> None:
    with pytest.raises(MachineError) as caught:
        verify_types(GRAPH, GRAPH, precision="int8")

    assert str(caught.value) == (
        "no convolution and no matrix product of the int8 network computes in int8, but in fp16"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_has_a_layer_in_its_precision(precision: str) -> None:
    verify_engine({"kgen": {"fp32": 1}, "gemm": {precision: 1}}, None, precision=precision)
    verify_engine({}, GRAPH, precision=precision)  # it tells nothing

    for other in {"fp32", "fp16", "int8"} - {precision}:
        with pytest.raises(MachineError) as caught:
            verify_engine({"kgen": {other: 3}}, None, precision=precision)

        assert str(caught.value) == (
            f"no layer of the {precision} engine computes in {precision}, but in {other}"
        )


def test_convolutions_of_an_engine_have_the_formats_of_its_graph() -> None:
    verify_engine({"convolution": {"fp16": 9}, "kgen": {"fp32": 2}}, GRAPH, precision="fp16")

    with pytest.raises(MachineError) as caught:
        verify_engine({"convolution": {"fp16": 8, "fp32": 1}}, GRAPH, precision="fp16")

    assert str(caught.value) == (
        "the fp16 engine has convolutions in fp16 8, fp32 1 where its graph computes in fp16"
    )


HALF = """<ir_version: 10, opset_import: ["" : 20]>
half (float16[N,3,8,8] x, float16[4,3,3,3] w) => (float16[N,4,6,6] y) { y = Conv(x, w) }"""


class SessionWithoutGpu:
    """Stands in for a session on an engine, which takes a GPU."""

    precision = "int8"
    layer_types = {"kgen": {"fp16": 2}}

    def __init__(self, path: Path, *, device: str) -> None:
        pass


def test_an_engine_that_is_opened_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none is proven or measured in another precision than it is said to have."""
    monkeypatch.setattr("export.to_tensorrt.TensorRtSession", SessionWithoutGpu)

    with pytest.raises(MachineError, match="no layer of the int8 engine computes in int8, but in"):
        TensorRtTarget().open(Path("trt-int8.engine"), device="cuda")


def test_an_engine_that_is_opened_is_held_against_the_graph_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.to_tensorrt.TensorRtSession", SessionWithoutGpu)
    monkeypatch.setattr(SessionWithoutGpu, "precision", "fp16")
    monkeypatch.setattr(SessionWithoutGpu, "layer_types", {"convolution": {"fp16": 1, "fp32": 1}})
    engine = tmp_path / "trt-fp16.engine"
    TensorRtTarget().open(engine, device="cuda")  # alone it says no more than its precision
    onnx.save(onnx.parser.parse_model(HALF), engine.with_suffix(".onnx"))

    with pytest.raises(MachineError, match=r"convolutions in fp16 1, fp32 1 where .* in fp16$"):
        TensorRtTarget().open(engine, device="cuda")
