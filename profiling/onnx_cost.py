"""Cost of an ONNX file, from its graph alone; onnx is imported where it is needed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiling.footprint import Footprint
from profiling.onnx_footprint import footprint_of_graph
from zoo.cost import Cost
from zoo.errors import ZooError
from zoo.onnx_graph import precision_of

Shape = tuple[int, ...]

# operator -> positions of its data and its weight among the inputs
CONVOLUTIONS = {"Conv": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
TRANSPOSED = {"ConvTranspose": (0, 1)}
PRODUCTS = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
# These multiply too, in ways that are not counted here: the MACs of a graph with one are unknown,
# as they are of one with operators that are not ONNX's own.
UNCOUNTED = {"Attention", "DeformConv", "Einsum", "GRU", "If", "Loop", "LSTM", "RNN", "Scan"}
DOMAINS = ("", "ai.onnx")  # two names of ONNX's own operators


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxModel:
    """What a bench needs to know of a model that is only a file."""

    cost: Cost
    image_shape: tuple[int, int, int]  # (C, H, W)
    num_classes: int | None  # None where the output is no (B, K)
    precision: str  # the narrowest number format of its weights
    footprint: Footprint | None  # None where a shape is unknown


def cost_of_onnx(path: Path) -> Cost:
    """Count the weights of an ONNX file and the multiply-accumulates of one image.

    Parameters are the elements of its float initialisers, and of integer ones that are
    dequantised; running statistics of a batch norm and quantisation scales are left out. An
    exporter that folds batch norms into convolutions changes this number, and only this one.

    Raises:
        ZooError: the file is not an ONNX model of images.
    """
    return read_onnx(path).cost


def read_onnx(path: Path) -> OnnxModel:
    """Read the graph; see `cost_of_onnx`."""
    import onnx
    import onnx.inliner

    model = _load(path, onnx)
    inputs = _true_inputs(model.graph)
    dims = [] if len(inputs) != 1 else inputs[0].type.tensor_type.shape.dim
    if len(dims) != 4:
        raise ZooError(
            f"{path} is not a model of images: expected one input (B, C, H, W), its inputs are "
            f"{', '.join(item.name for item in inputs) or 'none'}"
        )
    batch = dims[0].dim_value or 1
    for dim in dims:
        dim.dim_value = dim.dim_value or 1
    shapes = _shapes(model, onnx)
    output = shapes.get(model.graph.output[0].name) if len(model.graph.output) == 1 else None
    macs = _macs(model.graph, shapes)
    return OnnxModel(
        cost=Cost(_params(model.graph, onnx), None if macs is None else macs // batch),
        image_shape=(dims[1].dim_value, dims[2].dim_value, dims[3].dim_value),
        num_classes=output[1] if output is not None and len(output) == 2 else None,
        precision=precision_of(model),
        footprint=_footprint(model.graph, shapes, inputs[0].name, batch),
    )


def _footprint(graph: Any, shapes: dict[str, Shape], image: str, batch: int) -> Footprint | None:
    if any(_is_uncounted(node) for node in graph.node):
        return None
    stored = {tensor.name: tensor for tensor in _tensors(graph)}
    return footprint_of_graph(graph, shapes, stored, image=image, batch=batch)


def _load(path: Path, onnx: Any) -> Any:
    if not path.is_file():
        raise ZooError(f"there is no file {path}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's error classes differ between its versions
        model = None
    if model is None or not model.graph.node:
        raise ZooError(f"{path} is not an ONNX file, or it is damaged")
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _true_inputs(graph: Any) -> list[Any]:
    """Inputs that a caller must give; old exporters list the initialisers among them."""
    stored = {tensor.name for tensor in graph.initializer}
    return [item for item in graph.input if item.name not in stored]


def _shapes(model: Any, onnx: Any) -> dict[str, Shape]:
    """Shape of every tensor that inference can tell, free axes of the input set to 1."""
    for item in model.graph.output:  # a free batch axis here would contradict the fixed input
        item.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # what follows from the file alone is still true
        inferred = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in _tensors(inferred)}
    for item in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = item.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes.setdefault(item.name, tuple(dim.dim_value for dim in kind.shape.dim))
    return shapes


def _tensors(graph: Any) -> Iterator[Any]:
    """Stored tensors: initialisers, and constants under the name of their node's output."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensor = type(attribute.t)()
                    tensor.CopyFrom(attribute.t)
                    tensor.name = node.output[0]
                    yield tensor


def _macs(graph: Any, shapes: dict[str, Shape]) -> int | None:
    total = 0
    for node in graph.node:
        if _is_uncounted(node):
            return None
        try:
            total += _node_macs(node, shapes)
        except KeyError:  # a shape is unknown
            return None
    return total


def _is_uncounted(node: Any) -> bool:
    return node.op_type in UNCOUNTED or node.domain not in DOMAINS


def _node_macs(node: Any, shapes: dict[str, Shape]) -> int:
    """Multiply-accumulates of one node; KeyError where a shape is unknown."""
    if node.op_type in CONVOLUTIONS:  # weight (C_out, C_in / groups, kernel...)
        weight = shapes[node.input[CONVOLUTIONS[node.op_type][1]]]
        return math.prod(shapes[node.output[0]]) * math.prod(weight[1:])
    if node.op_type in TRANSPOSED:  # weight (C_in, C_out / groups, kernel...)
        data, weight = (shapes[node.input[place]] for place in TRANSPOSED[node.op_type])
        return math.prod(data) * math.prod(weight[1:])
    if node.op_type in PRODUCTS:
        data = shapes[node.input[PRODUCTS[node.op_type][0]]]
        return math.prod(shapes[node.output[0]]) * data[-1]
    if node.op_type == "Gemm":
        data = shapes[node.input[0]]
        is_transposed = any(item.name == "transA" and item.i for item in node.attribute)
        return math.prod(shapes[node.output[0]]) * data[0 if is_transposed else 1]
    return 0


def _params(graph: Any, onnx: Any) -> int:
    kinds = onnx.TensorProto
    floats = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
    left_out: set[str] = set()
    dequantised: set[str] = set()
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            left_out.update(node.input[3:5])
        elif node.op_type == "DequantizeLinear":
            dequantised.add(node.input[0])
            left_out.update(node.input[1:])
        elif node.op_type == "QuantizeLinear":
            left_out.update(node.input[1:])
    sizes = {
        tensor.name: math.prod(tensor.dims)
        for tensor in _tensors(graph)
        if tensor.dims  # a scalar is a constant of a formula, not a weight
        and tensor.name not in left_out
        and (tensor.data_type in floats or tensor.name in dequantised)
    }
    return sum(sizes.values())
