"""Which layers of a TensorRT network or engine compute in which type, and whether they should."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.errors import MachineError

if TYPE_CHECKING:
    import onnx

LayerTypes = Mapping[str, Mapping[str, int]]  # kind of layer -> number format -> how many

FORMATS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8"}  # by TensorRT's names
# They move or hold numbers and compute none, so they are no sign of the precision of a network.
PLUMBING = frozenset(
    {
        *("CAST", "CONCATENATION", "CONSTANT", "DEQUANTIZE", "GATHER", "IDENTITY", "QUANTIZE"),
        *("SHAPE", "SHUFFLE", "SLICE", "SQUEEZE", "UNSQUEEZE"),
    }
)
COPIES = frozenset({"constant", "noop", "reformat", "shape"})  # of a built engine
AXES = frozenset({"SHUFFLE", "SQUEEZE", "UNSQUEEZE"})
HEAVY = {  # operators that do the work -> the layer that TensorRT makes of them
    "Conv": "convolution",
    "ConvTranspose": "deconvolution",
    "Gemm": "matrix_multiply",
    "MatMul": "matrix_multiply",
    "Einsum": "einsum",
}
SINGLE = ("normalization", "softmax")  # layers that stay fp32 whatever the precision
WORDS = {"float": "fp32", "half": "fp16"} | {name: name for name in FORMATS.values()}
_WORD = re.compile(rf"\b({'|'.join(WORDS)})\b")


def network_layer_types(network: Any) -> LayerTypes:
    """Count the computing layers of a parsed network by kind and number format.

    A convolution or matrix product of dequantised integers counts as int8, whatever its output.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }

    def is_dequantised(tensor: Any) -> bool:
        maker = makers.get(tensor.name)
        while maker is not None and maker.type.name in AXES:  # the parser lines them up
            maker = makers.get(maker.get_input(0).name)
        return maker is not None and maker.type.name == "DEQUANTIZE"

    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        made = layer.get_output(0) if layer.num_outputs else None  # a condition makes nothing
        if layer.type.name in PLUMBING or made is None or made.dtype.name not in FORMATS:
            continue
        kind, form = layer.type.name.lower(), FORMATS[made.dtype.name]
        if kind in HEAVY.values():
            inputs = [layer.get_input(index) for index in range(min(layer.num_inputs, 2))]
            if [is_dequantised(tensor) for tensor in inputs if tensor] == [True, True]:
                form = "int8"
        counts.setdefault(kind, Counter())[form] += 1
    return _plain(counts)


def engine_layer_types(engine: Any, trt: Any, context: Any = None) -> LayerTypes:
    """Count the computing layers of a built engine by kind and number format of the output.

    The engine fuses what the network has, so its kinds are TensorRT's own: kgen, gemm, ... A layer
    counts as int8 where an input is int8; one that copies into another format counts for nothing.
    What says that it convolves counts as convolution, in the format of its weights. Empty where the
    engine tells nothing of its layers.

    `context` is one of the engine that knows the shape of its input: without it, the formats of
    tensors whose batch is free are "N/A due to dynamic shapes".
    """
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    counts: dict[str, Counter[str]] = {}
    for entry in json.loads(text).get("Layers", []):
        if not isinstance(entry, dict):  # a name: the engine was built without details
            continue
        outputs, inputs = _formats(entry.get("Outputs", [])), _formats(entry.get("Inputs", []))
        kind = str(entry.get("LayerType", "?"))
        if not outputs or kind.lower() in COPIES:
            continue
        form = "int8" if "int8" in inputs else outputs[0]
        weights = entry.get("Weights")
        if entry.get("ParameterType") == "Convolution" and isinstance(weights, dict):
            told = WORDS.get(str(weights.get("Type")).lower())
            kind, form = ("convolution", told) if told else (kind, form)
        counts.setdefault(kind, Counter())[form] += 1
    return _plain(counts)


def graph_layer_types(proto: "onnx.ModelProto") -> LayerTypes:
    """Count what the convolutions and matrix products of an ONNX graph should become."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}
    source = {name: node.op_type for node in graph.node for name in node.output}
    counts: dict[str, Counter[str]] = {}
    for node in graph.node:
        if node.op_type not in HEAVY:
            continue
        form = names.get(types.get(node.output[0], 0), "unknown")
        if {source.get(name) for name in node.input[:2]} == {"DequantizeLinear"}:
            form = "int8"
        counts.setdefault(HEAVY[node.op_type], Counter())[form] += 1
    return _plain(counts)


def verify_types(found: LayerTypes, expected: LayerTypes, *, precision: str) -> None:
    """Hold the layers of a parsed network against the graph that it was parsed from.

    Raises:
        MachineError: a convolution or matrix product has another number format than in the graph,
            none has that of the precision, or a normalisation or softmax is not fp32.
    """
    for kind in sorted({*HEAVY.values()}):
        if found.get(kind, {}) != expected.get(kind, {}):
            raise MachineError(
                f"the {precision} network has {kind} layers in {_counts(found.get(kind, {}))} "
                f"where its graph has {_counts(expected.get(kind, {}))}"
            )
    heavy = {form for kind in HEAVY.values() for form in found.get(kind, {})}
    if precision not in heavy:
        raise MachineError(
            f"no convolution and no matrix product of the {precision} network computes in "
            f"{precision}, but in {', '.join(sorted(heavy)) or 'nothing'}"
        )
    for kind in SINGLE:
        wrong = {form for form in found.get(kind, {}) if form != "fp32"}
        if wrong:
            raise MachineError(f"a {kind} layer computes in {', '.join(sorted(wrong))}, not fp32")


def verify_engine(found: LayerTypes, expected: LayerTypes | None, *, precision: str) -> None:
    """Hold the layers of a built engine, where it tells of them, against its precision and graph.

    `expected` is what its graph has, None where that is not at hand.

    Raises:
        MachineError: it tells, and no layer computes in that precision, or a convolution in a
            number format that no convolution or product of the graph has.
    """
    formats = {form for counts in found.values() for form in counts}
    if formats and precision in FORMATS.values() and precision not in formats:
        raise MachineError(
            f"no layer of the {precision} engine computes in {precision}, "
            f"but in {', '.join(sorted(formats))}"
        )
    if expected is None:
        return
    known = {form for counts in expected.values() for form in counts}  # a product may become one
    told = found.get("convolution", {})
    if not set(told) <= known:
        raise MachineError(
            f"the {precision} engine has convolutions in {_counts(told)} where its graph computes "
            f"in {', '.join(sorted(known))}"
        )


def summarise(types: LayerTypes) -> str:
    """How many layers run in which type: "fp16 56, fp32 1"."""
    total: Counter[str] = Counter()
    for counts in types.values():
        total.update(counts)
    return _counts(total)


def _plain(counts: Mapping[str, Mapping[str, int]]) -> LayerTypes:
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{form} {counts[form]}" for form in sorted(counts)) or "none"


def _formats(entries: list[Any]) -> list[str]:
    """Number formats in entries such as {"Format/Datatype": "Row major linear FP16 format"}.

    TensorRT 11 tells the two apart: {"Datatype": "Half", "Format": "Row major linear"}.
    """
    found = []
    for entry in entries:
        told = {str(key).lower(): str(value).lower() for key, value in entry.items()}
        if match := _WORD.search(told.get("format/datatype", told.get("datatype", ""))):
            found.append(WORDS[match.group()])
    return found
