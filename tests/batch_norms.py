"""How many batch norms an ONNX graph may keep: those that no convolution before them can take."""

from collections import Counter

import onnx
import torch


def batch_norms_that_stay(program: torch.export.ExportedProgram) -> int:
    """Calls of batch norms whose input is not a convolution's output that they alone read."""
    stay = 0
    for node in program.graph.nodes:
        if "batch_norm" in str(node.target):
            source = node.args[0]
            stay += "conv" not in str(source.target) or len(source.users) > 1
    return stay


def batch_norms_after_convolutions(proto: onnx.ModelProto) -> int:
    """Those that an exporter forgot to fold: they alone read what a convolution gives."""
    readers = Counter(name for node in proto.graph.node for name in node.input)
    readers.update(output.name for output in proto.graph.output)
    convolved = {node.output[0] for node in proto.graph.node if node.op_type == "Conv"}
    return sum(
        node.op_type == "BatchNormalization"
        and node.input[0] in convolved
        and readers[node.input[0]] == 1
        for node in proto.graph.node
    )
