"""Activation memory and traffic of an ONNX graph, by the rules of `profiling.activation`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from profiling.footprint import FP32_BYTES, Footprint, front

Shape = tuple[int, ...]

# They hand their first input on as it is; runtimes compute in the format that a graph quantises to.
VIEWS = {
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"),
    *("QuantizeLinear", "DequantizeLinear", "Cast"),
}
PRODUCTS = {
    *("Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "Gemm"),
    *("MatMul", "MatMulInteger", "QLinearMatMul"),
}
NORM_FLOPS = {  # of a number; all have weights here
    "BatchNormalization": 2,
    "GroupNormalization": 5,
    "InstanceNormalization": 5,
    "LayerNormalization": 5,
    "RMSNormalization": 5,
}
OF_THE_SHAPE = {"Shape", "Size"}  # they look at their input, not at its numbers


@dataclass
class _Memory:
    """What one tensor and its views take, from the node that makes it to the last that takes it."""

    numbers: int
    made: int
    last: int


def footprint_of_graph(
    graph: Any, shapes: Mapping[str, Shape], stored: Mapping[str, Any], *, image: str, batch: int
) -> Footprint | None:
    """Follow the nodes in their order, for the shapes of `batch` images; None where one is unknown.

    `stored` are the tensors of the file by name, `image` is the name of the input.
    """
    memory = {image: _Memory(math.prod(shapes[image]), 0, 0)}
    fixed = {name: math.prod(tensor.dims) for name, tensor in stored.items()}
    moved = weights = norm_flops = 0
    buffers: set[str] = set()
    for step, node in enumerate(graph.node, start=1):
        given = [name for name in node.input if name]
        for name in given:
            if name in memory:
                memory[name].last = step
        of_images = [name for name in given if name in memory]
        try:
            made = {name: math.prod(shapes[name]) for name in node.output if name}
            moved_here = sum(math.prod(shapes[name]) for name in of_images) + sum(made.values())
        except KeyError:
            return None
        if not of_images or node.op_type in OF_THE_SHAPE:  # the runtime folds it
            fixed |= made
            continue
        if node.op_type in PRODUCTS:
            moved += moved_here
            weights += sum(fixed.get(name, 0) for name in given if name not in memory)
        norm_flops += NORM_FLOPS.get(node.op_type, 0) * next(iter(made.values()))
        if node.op_type == "BatchNormalization":
            buffers.update(given[3:5])
        for name, numbers in made.items():
            is_view = node.op_type in VIEWS and given[0] in memory
            memory[name] = memory[given[0]] if is_view else _Memory(numbers, step, step)
    steps = len(graph.node)
    for name in (image, *(item.name for item in graph.output)):
        if name in memory:
            memory[name].last = steps
    live = [0] * (steps + 2)
    for one in {id(one): one for one in memory.values()}.values():
        live[one.made] += one.numbers
        live[one.last + 1] -= one.numbers
    return Footprint(
        buffers=sum(fixed.get(name, 0) for name in buffers),
        state_bytes=sum(tensor.ByteSize() for tensor in stored.values()),
        norm_flops=norm_flops // batch,
        weights=weights,
        moved=moved // batch,
        peaks=front((0, FP32_BYTES * numbers // batch) for numbers in accumulate(live)),
    )
