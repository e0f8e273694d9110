"""int8 in the graph: explicit quantisation, with ranges from training images."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from export.calibrate import Calibration, right
from export.mcnemar import most_lost
from export.ranges import WEIGHTED, Range, is_finite, value_ranges
from export.sensitivity import (
    Layer,
    find_layers,
    is_grouped_transpose,
    kept_in_float,
    output_errors,
)
from export.target import require
from zoo.errors import MachineError, first_line
from zoo.evaluate import predict
from zoo.session import InferenceSession

if TYPE_CHECKING:
    import onnx

NAMED = 3  # of the most sensitive layers, where int8 fails
Opener = Callable[["onnx.ModelProto"], InferenceSession]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """How one kind of runtime wants its integers; weights are signed and per channel in all."""

    name: str
    activations: str  # a QuantType of ONNX Runtime
    weight_bits: int  # 8, or 7, which is from -64 to 64
    is_symmetric: bool  # whether zero is zero in integers too
    operators: tuple[str, ...]  # whose inputs become integers, and outputs but for those of CUT
    options: Mapping[str, object]


# Unsigned activations with an offset and all that lies between two convolutions in integers too:
# a network that goes back to float for every addition is no faster than in fp32. Weights of 7 bits:
# an x86 CPU without VNNI adds two neighbouring products in 16 bits, where two full activations clip
# with larger weights (2 * 255 * 64 < 2**15). Such a file would lose points that its proof kept.
CPU = Preset(
    name="cpu",
    activations="QUInt8",
    weight_bits=7,
    is_symmetric=False,
    operators=(
        *WEIGHTED,
        *("Add", "Mul", "Relu", "Clip", "Concat"),
        *("MaxPool", "AveragePool", "GlobalAveragePool"),
    ),
    options={},
)
# No offsets and float biases, all that TensorRT's parser reads. Only what goes into a convolution
# or product is rounded: what comes out is fused with the addition and activation that follow.
TENSORRT = Preset(
    name="trt",
    activations="QInt8",
    weight_bits=8,
    is_symmetric=True,
    operators=WEIGHTED,
    options={
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
    },
)


def quantise(
    proto: "onnx.ModelProto", preset: Preset, calibration: Calibration, opened: Opener
) -> tuple["onnx.ModelProto", Mapping[str, Any]]:
    """Quantise a float graph; return it with what the manifest tells about it.

    Of the methods to find ranges with, that one is taken with which the logits change least. As
    many layers as needed, the most sensitive first, stay in float until top-1 on the validation
    images, measured with what `opened` makes of a graph, falls by no more than `max_drop`.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        MachineError: no layer can be quantised, or none without a larger drop.
    """
    require("onnxruntime", extra="cpu", needed_by="--precision int8")
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto)
    layers = find_layers(inferred, preset.operators)
    if not layers:
        raise MachineError("int8: the graph has no convolution and no product with weights")
    method, found = _closest_ranges(inferred, preset, calibration)
    eager, labels = calibration.eager_right(), calibration.validation.fine
    count = len(labels)

    def rounded(kept: Collection[Layer]) -> "onnx.ModelProto":
        return with_quantisers(inferred, preset, found, kept)

    def top1(candidate: "onnx.ModelProto") -> float:
        session = opened(candidate)
        logits = predict(session, calibration.validation.images, calibration.preprocessing)
        return int(right(logits, labels).sum()) / count

    allowed = (int(eager.sum()) - most_lost(calibration.max_drop, count)) / count
    choice = kept_in_float(inferred, layers, rounded, calibration, top1, at_least=allowed)
    eager_top1 = int(eager.sum()) / count
    if choice.top1 < allowed:
        worst = ", ".join(layer.name for layer in choice.kept[:NAMED])
        raise MachineError(
            f"int8 ({method}, {len(calibration.images)} images): top-1 on {count} "
            f"validation images fell from {eager_top1:.2%} to {choice.top1:.2%}, more than the "
            f"{100 * calibration.max_drop:.2f} points allowed, with all but one of {len(layers)} "
            f"layers in float{f' (the most sensitive: {worst})' if worst else ''}: nothing was "
            "written; try another --int8-method, more --int8-images or a larger --int8-max-drop"
        )
    return choice.graph, {
        "preset": preset.name,
        "weight_bits": preset.weight_bits,
        "method": method,
        "calibration_images": len(calibration.images),
        "layers": len(layers),
        "kept_float": [layer.name for layer in choice.kept],
        "validation_images": count,
        "validation_is_held_out": calibration.is_held_out,
        "validation_top1_eager": eager_top1,
        "validation_top1": choice.top1,
        "validation_drop": eager_top1 - choice.top1,
        "max_drop": calibration.max_drop,
    }


def _closest_ranges(
    proto: "onnx.ModelProto", preset: Preset, calibration: Calibration
) -> tuple[str, Mapping[str, Range]]:
    """The method, and its ranges, with which the rounded graph answers most like the float one."""
    ranges = value_ranges(
        proto, preset.operators, lambda: calibration.batches(proto), methods=calibration.methods
    )
    if len(ranges) == 1:
        return next(iter(ranges.items()))
    rounded = (with_quantisers(proto, preset, found, []) for found in ranges.values())
    errors = dict(zip(ranges, output_errors(proto, rounded, calibration), strict=True))
    method = min(errors, key=errors.__getitem__)
    return method, ranges[method]


def with_quantisers(
    proto: "onnx.ModelProto",
    preset: Preset,
    found: Mapping[str, Range],
    kept: Collection[Layer],
) -> "onnx.ModelProto":
    """A copy of the graph with QuantizeLinear and DequantizeLinear around all that is not kept."""
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    finite = {name: limits for name, limits in found.items() if is_finite(limits)}
    ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in finite.items()}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    quantizer = QDQQuantizer(
        copy,
        True,  # a scale for each channel of the weights
        preset.weight_bits == 7,  # ONNX Runtime's reduced range
        QuantType.QInt8,
        QuantType[preset.activations],
        TensorsData(CalibrationMethod.MinMax, ranges),
        [],
        [
            *products_of_activations(copy),
            *nodes_with_infinities(copy, found.keys() - finite.keys()),
            *(node.name for node in copy.graph.node if is_grouped_transpose(node)),
            *(name for layer in kept for name in layer.nodes),
        ],
        list(preset.operators),
        dict(preset.options),
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    leave_answers(result)
    result.producer_name, result.producer_version = proto.producer_name, proto.producer_version
    result.graph.ClearField("value_info")  # the float types of before
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as reason:
        raise MachineError(f"the quantised graph is not valid: {first_line(reason)}") from None
    return result


def leave_answers(proto: "onnx.ModelProto") -> None:
    """Take the rounding of the logits, or of what becomes probabilities, out of a quantised graph.

    Of the 256 numbers that logits are rounded to, the largest is often there twice, for 4% of the
    test images with resnet_20: their class would be a matter of chance.
    """
    nodes = proto.graph.node
    makers = {name: node for node in nodes for name in node.output}
    for output in proto.graph.output:
        name = output.name
        if makers[name].op_type == "Softmax":
            name = makers[name].input[0]
        back = makers[name]
        there = makers.get(back.input[0]) if back.op_type == "DequantizeLinear" else None
        if there is None or there.op_type != "QuantizeLinear":
            continue
        source = makers[there.input[0]]
        source.output[list(source.output).index(there.input[0])] = name
        nodes.remove(there)
        nodes.remove(back)


def products_of_activations(proto: "onnx.ModelProto") -> list[str]:
    """Names of the products without weights, as in attention; they stay in float.

    Rounded, ONNX Runtime 1.31 fuses them to integer kernels that give another answer than the graph
    (coatnet_cifar_opt_csp), and its own option to leave them is for another kind of graph.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and not constants.intersection(node.input)
    ]


def nodes_with_infinities(proto: "onnx.ModelProto", values: Collection[str]) -> list[str]:
    """Names of the nodes that take or make one of these values, or take an infinite constant.

    A mask of attention is such a constant: what it is added to has no range, and stays float.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    constants = {
        tensor.name
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.isinf(numpy_helper.to_array(tensor)).any()
    }
    infinite = constants | set(values)
    return [
        node.name
        for node in proto.graph.node
        if not infinite.isdisjoint((*node.input, *node.output))
    ]
