"""Typed ONNX: half precision written into the graph, single precision kept where it is needed."""

from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import MachineError, first_line

if TYPE_CHECKING:
    import onnx

# Sums over many elements, and functions that leave the range of fp16 for ordinary arguments.
FP32_OPERATORS = frozenset(
    {
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
        *("BatchNormalization", "LpNormalization", "MeanVarianceNormalization"),
        *(
            "Attention",
            "Softmax",
            "LogSoftmax",
            "LogSumExp",
            "GlobalAveragePool",
            "GlobalLpPool",
            "CumSum",
        ),
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceL1", "ReduceL2"),
        *("ReduceLogSum", "ReduceLogSumExp", "Exp", "Log", "Pow", "Sqrt", "Reciprocal"),
        *("Range", "OneHot"),
    }
)
SELF_TYPED = frozenset({"Cast", "Constant", "ConstantOfShape", "EyeLike"})  # by an attribute
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
SINGLE_INPUTS = {"Resize": (1, 2)}  # region and scales: float32 by the operator's definition
SMALLEST, LARGEST = 2.0**-14, 65504.0  # the normal numbers of fp16
SCALE_ERROR = 0.01  # a quantiser whose scale fp16 rounds by more stays fp32


def typed_fp16(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Write fp16 into a copy of a float32 graph; its inputs and outputs stay float32.

    Normalisations, softmax, sums over many elements, quotients and powers stay in fp32, as does an
    operator with a constant that fp16 cannot hold (an epsilon, a mask of -1e9). Explicit
    quantisation keeps its integers; its scales become fp16 where that costs less than 1%.

    Raises:
        MachineError: the type of a value in the graph cannot be inferred, or it has branches.
    """
    import onnx

    typed = onnx.ModelProto()
    typed.CopyFrom(proto)
    _inline_constants(typed.graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(typed)
    except onnx.shape_inference.InferenceError as reason:
        raise MachineError(
            f"the types of the ONNX graph are not known: {first_line(reason)}"
        ) from None
    _Typing(typed, inferred).run()
    return typed


class _Typing:
    """One walk through a graph in order, with what is known of its values so far."""

    def __init__(self, proto: "onnx.ModelProto", inferred: "onnx.ModelProto") -> None:
        import onnx

        self.single, self.half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        self.graph = proto.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.types = _types(inferred.graph)  # of each value; updated while walking
        self.nodes: list[onnx.NodeProto] = []
        self.copies: dict[tuple[str, int], str] = {}

    def run(self) -> None:
        kept = self._kept()
        for index, node in enumerate(self.graph.node):
            if any(attribute.HasField("g") for attribute in node.attribute):
                raise MachineError(
                    f"the ONNX graph has branches, which fp16 cannot go through: {node.op_type}"
                )
            if node.op_type in SELF_TYPED:
                self.nodes.append(node)
                continue
            wanted = self.single if index in kept else self.half
            single = SINGLE_INPUTS.get(node.op_type, ())
            for position, name in enumerate(node.input):
                if name and self._is_float(name):
                    kind = self.single if position in single else wanted
                    node.input[position] = self._as(name, kind)
            self.nodes.append(node)
            for name in node.output:
                if name and self._is_float(name):
                    self.types[name] = wanted
        self._restore_outputs()
        used = {name for node in self.nodes for name in node.input}
        constants = [tensor for tensor in self.constants.values() if tensor.name in used]
        for field, values in (("node", self.nodes), ("initializer", constants), ("value_info", ())):
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(values)

    def _kept(self) -> set[int]:
        """Indices of the nodes that stay fp32."""
        nodes = list(enumerate(self.graph.node))
        kept = {index for index, node in nodes if self._stays(node)}
        dequantisers = {
            node.output[0]: index for index, node in nodes if node.op_type == "DequantizeLinear"
        }
        for index, node in nodes:
            sources = {dequantisers[name] for name in node.input if name in dequantisers}
            if sources & kept:  # all of a layer's inputs have one type
                kept |= sources | {index}
        return kept

    def _stays(self, node: "onnx.NodeProto") -> bool:
        if node.op_type in QUANTIZERS:
            return self._is_coarse(node.input[1])
        constants = [self.constants[name] for name in node.input if name in self.constants]
        return (
            node.op_type in FP32_OPERATORS
            or (node.op_type == "Div" and node.input[1] not in self.constants)
            or not all(_fits(tensor) for tensor in constants)
        )

    def _is_coarse(self, scale: str) -> bool:
        if scale not in self.constants:
            return True
        exact = _array(self.constants[scale])
        with np.errstate(over="ignore"):
            error = np.abs(exact.astype(np.float16).astype(np.float64) - exact)
        return bool((error > SCALE_ERROR * np.abs(exact)).any())

    def _is_float(self, name: str) -> bool:
        if name not in self.types:
            raise MachineError(f"the type of the value {name!r} in the ONNX graph is not known")
        return self.types[name] in (self.single, self.half)

    def _as(self, name: str, kind: int) -> str:
        """A name under which the value has this type: its own, a constant's copy or a cast."""
        import onnx

        if self.types[name] == kind:
            return name
        if (name, kind) not in self.copies:
            suffix, dtype = ("fp16", np.float16) if kind == self.half else ("fp32", np.float32)
            copy = self._new_name(f"{name}_{suffix}")
            if name in self.constants:
                array = _array(self.constants[name]).astype(dtype)
                self.constants[copy] = onnx.numpy_helper.from_array(array, copy)
            else:
                self.nodes.append(onnx.helper.make_node("Cast", [name], [copy], copy, to=kind))
            self.copies[name, kind], self.types[copy] = copy, kind
        return self.copies[name, kind]

    def _new_name(self, name: str) -> str:
        while name in self.types:
            name += "_"
        return name

    def _restore_outputs(self) -> None:
        """Give the graph's outputs their float32 back, under their old names."""
        import onnx

        for output in self.graph.output:
            if self.types.get(output.name) != self.half:
                continue
            inner = self._new_name(f"{output.name}_fp16")
            for node in self.nodes:
                for names in (node.input, node.output):
                    for position, name in enumerate(names):
                        if name == output.name:
                            names[position] = inner
            self.nodes.append(
                onnx.helper.make_node("Cast", [inner], [output.name], inner, to=self.single)
            )


def _inline_constants(graph: "onnx.GraphProto") -> None:
    """Turn Constant nodes that hold a tensor into initializers."""
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
        else:
            nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)


def _types(graph: "onnx.GraphProto") -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _fits(tensor: "onnx.TensorProto") -> bool:
    """Whether the largest number of a float constant is a normal number of fp16, or zero."""
    array = np.abs(_array(tensor))
    if array.dtype.kind != "f":
        return True
    largest = array[np.isfinite(array)].max(initial=0.0)
    return bool(largest == 0 or SMALLEST <= largest <= LARGEST)


def _array(tensor: "onnx.TensorProto") -> Any:
    import onnx

    return onnx.numpy_helper.to_array(tensor)
