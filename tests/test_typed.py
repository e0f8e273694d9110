"""fp16 written into ONNX graphs: what becomes fp16, what stays fp32, and that the answer stays."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.simulate import SimulatedSession, rounded_in_fp32
from export.typed import typed_fp16
from zoo.errors import MachineError

Array = np.ndarray
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.standard_normal((2, 4, 8, 8)).astype(np.float32)
KERNEL = RANDOM.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6
WEIGHTS = RANDOM.standard_normal((8, 8)).astype(np.float32) / 3


def graph(*nodes: onnx.NodeProto, **constants: Array) -> onnx.ModelProto:
    """A model from `x`, images of (B, 4, 8, 8), to `y`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    body = helper.make_graph(list(nodes), "test", [x], [y], tensors)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], **attributes)


def types(model: onnx.ModelProto) -> dict[str, str]:
    """Operator -> type of its output, of all nodes but casts."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
    known = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    return {
        node.op_type: TensorProto.DataType.Name(known[node.output[0]].type.tensor_type.elem_type)
        for node in model.graph.node
        if node.op_type != "Cast"
    }


def answers(model: onnx.ModelProto) -> Array:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    # The graph as it is written, not what an optimiser makes of it.
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": IMAGES})
    return found


def simulated(model: onnx.ModelProto) -> Array:
    """What a typed graph with quantisers is proven by; ONNX Runtime 1.23 cuts off what is fp16."""
    found: Array = SimulatedSession(model).run(torch.from_numpy(IMAGES)).numpy()
    return found


def assert_same_answers(
    typed: onnx.ModelProto,
    model: onnx.ModelProto,
    answered: Callable[[onnx.ModelProto], Array] = answers,
) -> None:
    onnx.checker.check_model(typed, full_check=True)
    expected, found = answers(model), answered(typed)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 * abs(expected).max())


def test_convolutions_compute_in_fp16_between_fp32_ends() -> None:
    model = graph(
        node("Conv", ["x", "kernel"], "a", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "y"),
        kernel=KERNEL,
    )

    typed = typed_fp16(model)

    assert types(typed) == {"Conv": "FLOAT16", "Relu": "FLOAT16"}
    assert [tensor.data_type for tensor in typed.graph.initializer] == [TensorProto.FLOAT16]
    assert [(v.name, v.type.tensor_type.elem_type) for v in typed.graph.output] == [
        ("y", TensorProto.FLOAT)
    ]
    assert_same_answers(typed, model)


def test_the_graph_given_is_left_as_it_was() -> None:
    model = graph(node("Conv", ["x", "kernel"], "y"), kernel=KERNEL)
    before = model.SerializeToString(deterministic=True)

    typed_fp16(model)

    assert model.SerializeToString(deterministic=True) == before


SCALE = np.ones(8, np.float32)


@pytest.mark.parametrize(
    "kept",
    [
        node("LayerNormalization", ["a", "scale", "scale"], "b"),
        node("Softmax", ["a"], "b"),
        node("ReduceMean", ["a", "axes"], "b", keepdims=1),
        node("ReduceL2", ["a", "axes"], "b", keepdims=1),
        node("GlobalAveragePool", ["a"], "b"),
        node("Exp", ["a"], "b"),
        node("Div", ["x", "a"], "b"),
    ],
    ids=lambda node: node.op_type,
)
def test_sums_and_quotients_stay_fp32(kept: onnx.NodeProto) -> None:
    model = graph(
        node("Sigmoid", ["x"], "a"),
        kept,
        node("Mul", ["b", "a"], "y"),
        scale=SCALE,
        axes=np.array([1], np.int64),
    )

    typed = typed_fp16(model)

    assert types(typed) == {"Sigmoid": "FLOAT16", kept.op_type: "FLOAT", "Mul": "FLOAT16"}
    assert_same_answers(typed, model)


@pytest.mark.parametrize(
    ("constant", "kind"),
    [(1e-6, "FLOAT"), (-1e9, "FLOAT"), (0.5, "FLOAT16"), (0.0, "FLOAT16"), (-np.inf, "FLOAT16")],
)
def test_a_constant_that_fp16_cannot_hold_keeps_its_operator_fp32(
    constant: float, kind: str
) -> None:
    model = graph(
        node("Relu", ["x"], "a"), node("Max", ["a", "c"], "y"), c=np.array(constant, np.float32)
    )

    typed = typed_fp16(model)

    assert types(typed) == {"Relu": "FLOAT16", "Max": kind}
    assert_same_answers(typed, model)


def test_a_constant_of_both_types_has_two_copies() -> None:
    model = graph(
        node("MatMul", ["x", "w"], "a"),
        node("Pow", ["a", "two"], "b"),
        node("MatMul", ["b", "w"], "c"),
        node("LayerNormalization", ["c", "w0", "w0"], "d"),
        node("Mul", ["d", "w0"], "y"),
        w=WEIGHTS,
        two=np.array(2, np.float32),
        w0=SCALE,
    )

    typed = typed_fp16(model)

    kinds = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    assert kinds == {"w_fp16": half, "two": single, "w0": single, "w0_fp16": half}
    assert_same_answers(typed, model)


def test_constants_in_nodes_are_typed_too() -> None:
    value = numpy_helper.from_array(WEIGHTS)
    model = graph(node("Constant", [], "w", value=value), node("MatMul", ["x", "w"], "y"))

    typed = typed_fp16(model)

    assert types(typed) == {"MatMul": "FLOAT16"}
    assert_same_answers(typed, model)


def test_resizing_keeps_its_scales_fp32() -> None:
    model = graph(
        node("Resize", ["x", "", "scales"], "y", mode="nearest"),
        scales=np.array([1, 1, 2, 2], np.float32),
    )

    typed = typed_fp16(model)

    assert types(typed) == {"Resize": "FLOAT16"}
    assert_same_answers(typed, model)


def test_typing_twice_changes_nothing_that_matters() -> None:
    model = graph(node("Conv", ["x", "kernel"], "a"), node("Softmax", ["a"], "y"), kernel=KERNEL)
    once = typed_fp16(model)

    twice = typed_fp16(once)

    assert types(twice) == types(once)
    assert_same_answers(twice, model)


def quantised(scale: float) -> onnx.ModelProto:
    """A convolution with explicit quantisation of its images and, per channel, of its weights."""
    scales = np.full(4, scale, np.float32)
    integers = np.clip(np.rint(KERNEL / 0.01), -127, 127).astype(np.int8)
    return graph(
        node("Relu", ["x"], "a"),
        node("QuantizeLinear", ["a", "step", "zero"], "b"),
        node("DequantizeLinear", ["b", "step", "zero"], "c"),
        node("DequantizeLinear", ["integers", "scales", "zeros"], "w", axis=0),
        node("Conv", ["c", "w"], "y"),
        step=np.array(0.03, np.float32),
        zero=np.array(0, np.int8),
        integers=integers,
        scales=scales,
        zeros=np.zeros(4, np.int8),
    )


def test_quantised_weights_stay_integers_and_their_scales_become_fp16() -> None:
    model = quantised(0.01)

    typed = typed_fp16(model)

    kinds = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    assert kinds["integers"] == TensorProto.INT8
    assert kinds["scales_fp16"] == kinds["step_fp16"] == TensorProto.FLOAT16
    assert types(typed)["Conv"] == types(typed)["DequantizeLinear"] == "FLOAT16"
    assert_same_answers(typed, model, simulated)


def test_a_simulation_rounds_in_fp32_what_is_fp16() -> None:
    typed = typed_fp16(quantised(0.01))
    assert quantiser_takes(typed) == ["FLOAT16", "FLOAT16"]

    proto = rounded_in_fp32(typed)

    onnx.checker.check_model(proto, full_check=True)
    assert quantiser_takes(proto) == ["FLOAT", "FLOAT"]
    assert quantiser_takes(typed) == ["FLOAT16", "FLOAT16"]


def quantiser_takes(model: onnx.ModelProto) -> list[str]:
    """Types of the number and the scale that the one QuantizeLinear is given."""
    body = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
    known = {one.name: one.data_type for one in body.initializer}
    known |= {one.name: one.type.tensor_type.elem_type for one in body.value_info}
    (quantiser,) = [node for node in body.node if node.op_type == "QuantizeLinear"]
    return [TensorProto.DataType.Name(known[name]) for name in quantiser.input[:2]]


def test_a_scale_too_small_for_fp16_keeps_its_layer_fp32() -> None:
    model = quantised(1e-7)  # 1.2e-7 in fp16

    typed = typed_fp16(model)

    kinds = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    assert kinds["scales"] == TensorProto.FLOAT
    assert types(typed)["Conv"] == types(typed)["DequantizeLinear"] == "FLOAT"
    assert types(typed)["Relu"] == "FLOAT16"
    assert_same_answers(typed, model, simulated)


def test_a_value_of_unknown_type_is_refused() -> None:
    model = graph(node("Strange", ["x"], "a"), node("Relu", ["a"], "y"))
    model.graph.node[0].domain = "somebody.else"
    model.opset_import.add(domain="somebody.else", version=1)

    with pytest.raises(MachineError) as caught:
        typed_fp16(model)

    assert str(caught.value) == "the type of the value 'a' in the ONNX graph is not known"


def test_branches_are_refused() -> None:
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Relu", ["x"], "z")], "branch", [], [out])
    model = graph(node("If", ["c"], "y", then_branch=branch, else_branch=branch), c=np.array(True))

    with pytest.raises(MachineError) as caught:
        typed_fp16(model)

    assert str(caught.value) == ("the ONNX graph has branches, which fp16 cannot go through: If")


def test_an_operator_of_an_unknown_set_is_refused() -> None:
    model = graph(node("Relu", ["x"], "y"))
    model.graph.node[0].domain = "somebody.else"

    with pytest.raises(MachineError, match="^the types of the ONNX graph are not known: .*else"):
        typed_fp16(model)
