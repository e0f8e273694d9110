"""What the tests of the bench share."""

import subprocess
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper


def workers_of(process: int) -> list[int]:
    command = ("ps", "-o", "pid=,args=", "--ppid", str(process))
    listing = subprocess.run(command, capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listing.splitlines() if "profiling.worker" in line]


def onnx_file(path: Path, *, batch: int | str) -> Path:
    """A pooling and a product: images (B, 3, 8, 8) to four logits."""
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])
    weight = numpy_helper.from_array(torch.ones(3, 4).numpy(), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["a"]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [images], [logits], [weight])
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path
