from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from model_checks import smallest_of_each_family
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export import load_target
from export.target import ExportOptions
from profiling.activation import footprint_of
from profiling.onnx_cost import cost_of_onnx, read_onnx
from zoo.cost import Cost, cost_of_model
from zoo.errors import ZooError
from zoo.models import create_model, list_models

# Convolutions of resnet_20 by hand: inputs x outputs x kernel x outputs of the map, and the head.
RESNET_20_MACS = (
    3 * 16 * 9 * 32**2
    + 6 * (16 * 16 * 9 * 32**2)
    + (16 * 32 * 9 + 5 * 32 * 32 * 9 + 16 * 32) * 16**2
    + (32 * 64 * 9 + 5 * 64 * 64 * 9 + 32 * 64) * 8**2
    + 64 * 100
)
FEW = {"attention", *smallest_of_each_family()}


class Attention(nn.Module):
    """Four heads over 64 tokens of 32 channels; norms and softmax are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(3, 32, 4, stride=4)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.tokens(x).flatten(2).transpose(1, 2))  # (B, 64, 32)
        parts = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return self.head(mixed.mean(1))


ATTENTION_MACS = (
    64 * 3 * 16 * 32  # patches
    + 64 * 32 * 96  # queries, keys, values
    + 2 * 4 * 64 * 64 * 8  # scores, and their product with the values
    + 32 * 10
)


def test_resnet_20_by_hand() -> None:
    cost = cost_of_model(create_model("resnet_20"))

    assert cost == Cost(params=278_324, macs=RESNET_20_MACS)
    assert RESNET_20_MACS == 40_818_944
    assert cost.flops == 81_637_888


def test_attention_by_hand() -> None:
    assert cost_of_model(Attention()).macs == ATTENTION_MACS


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in ("attention", *list_models())
    ],
)
# fvcore traces with TorchScript, which torch is about to drop.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_fvcore_agrees(name: str) -> None:
    analysis_of = pytest.importorskip("fvcore.nn", reason="needs fvcore").FlopCountAnalysis
    model = Attention() if name == "attention" else create_model(name)
    analysis = analysis_of(model.eval(), torch.zeros(1, 3, 32, 32))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention_macs)

    by_operator = analysis.by_operator()

    products = ("conv", "linear", "matmul", "bmm", "einsum", "scaled_dot_product_attention")
    assert sum(by_operator[operator] for operator in products) == cost_of_model(model).macs


def attention_macs(inputs: list[torch.Value], outputs: list[torch.Value]) -> dict[str, int]:
    batch, heads, queries, width = inputs[0].type().sizes()
    keys = inputs[1].type().sizes()[2]
    return {"scaled_dot_product_attention": 2 * batch * heads * queries * keys * width}


def test_model_is_left_as_it_is() -> None:
    model = create_model("resnet_20").train()

    cost_of_model(model)

    assert model.training
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert model.stem[1].num_batches_tracked == 0


def test_only_trainable_parameters_count() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[0].weight.requires_grad_(False)

    assert cost_of_model(model).params == 4 + 4 + 4


def test_other_image_shapes() -> None:
    assert cost_of_model(nn.Conv2d(1, 2, 3, padding=1), (1, 8, 8)).macs == 2 * 9 * 64


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "resnet_20.onnx"
    example = torch.zeros(2, 3, 32, 32)
    model = create_model("resnet_20").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # the exporter drops a bias of zeros
            nn.init.uniform_(module.bias)
    metadata = {"cifar_zoo_version": "0"}
    load_target("onnx").export(
        model, example, path, precision="fp32", metadata=metadata, options=ExportOptions()
    )
    return path


def test_exported_model_costs_the_same(exported: Path) -> None:
    model = read_onnx(exported)

    # Of each norm's two numbers a channel one is left, the bias of the convolution before it.
    channels = 7 * 16 + 7 * 32 + 7 * 64
    assert model.cost == Cost(params=278_324 - channels, macs=RESNET_20_MACS)
    assert model.image_shape == (3, 32, 32)
    assert model.num_classes == 100


def test_exported_model_moves_the_same(exported: Path) -> None:
    found, expected = read_onnx(exported).footprint, footprint_of(create_model("resnet_20"))

    assert found is not None
    assert (found.moved, found.peaks) == (expected.moved, expected.peaks)
    assert (found.norm_flops, found.buffers) == (0, 0)  # folded into the convolutions


def graph_file(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, tuple[int, ...]],
    *,
    batch: int | str = "batch",
    shape: tuple[str, tuple[int, ...]] | None = None,
) -> Path:
    """An ONNX file of images (B, 4, 8, 8) whose last node gives `y`."""
    stored = [
        numpy_helper.from_array(torch.ones(shape).numpy(), name) for name, shape in weights.items()
    ]
    if shape is not None:
        stored.append(numpy_helper.from_array(torch.tensor(shape[1]).numpy(), shape[0]))
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 8, 8])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [images], [logits], stored)
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def test_grouped_and_transposed_convolutions(tmp_path: Path) -> None:
    path = graph_file(
        tmp_path / "model.onnx",
        [
            helper.make_node("Conv", ["x", "w"], ["a"], group=2, pads=[1, 1, 1, 1]),
            helper.make_node("ConvTranspose", ["a", "v"], ["y"], strides=[2, 2]),
        ],
        {"w": (6, 2, 3, 3), "v": (6, 5, 2, 2)},
    )

    assert cost_of_onnx(path) == Cost(
        params=6 * 2 * 9 + 6 * 5 * 4,
        macs=6 * 64 * (2 * 9) + 6 * 64 * (5 * 4),
    )


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_products_and_any_batch(tmp_path: Path, batch: int | str) -> None:
    path = graph_file(
        tmp_path / "model.onnx",
        [
            helper.make_node("MatMul", ["x", "m"], ["a"]),
            helper.make_node("Flatten", ["a"], ["b"]),
            helper.make_node("Gemm", ["b", "g", "c"], ["y"], transB=1),
        ],
        {"m": (8, 8), "g": (10, 256), "c": (10,)},
        batch=batch,
    )

    model = read_onnx(path)

    assert model.cost == Cost(params=64 + 2560 + 10, macs=4 * 8 * 8 * 8 + 10 * 256)
    assert model.num_classes == 10


@pytest.mark.parametrize("batch", ["batch", 4])
def test_footprint_of_a_graph(tmp_path: Path, batch: int | str) -> None:
    path = graph_file(
        tmp_path / "model.onnx",
        [
            helper.make_node("Transpose", ["w"], ["t"]),  # known before any image comes
            helper.make_node("Conv", ["x", "t"], ["a"]),
            helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]),
            helper.make_node("Reshape", ["n", "to"], ["r"]),
            helper.make_node("Identity", ["r"], ["y"]),
        ],
        {"w": (1, 1, 4, 6)} | {name: (6,) for name in "sbmv"},
        batch=batch,
        shape=("to", (0, -1)),
    )

    found = read_onnx(path).footprint

    assert found is not None
    assert (found.buffers, found.norm_flops) == (12, 2 * 6 * 64)
    assert (found.weights, found.moved) == (6 * 4, 4 * 64 + 6 * 64)
    assert found.peaks == ((0, 4 * (4 + 6 + 6) * 64),)  # images, what the norm takes and makes


def test_unknown_operators_leave_the_footprint_unknown(tmp_path: Path) -> None:
    for node in (
        helper.make_node("Mystery", ["x"], ["y"], domain="com.example"),
        helper.make_node("Einsum", ["x"], ["y"], equation="bchw->bc"),
    ):
        path = graph_file(tmp_path / "model.onnx", [node], {"m": (8, 8)})

        assert read_onnx(path).footprint is None


def test_unknown_operators_leave_the_macs_unknown(tmp_path: Path) -> None:
    path = graph_file(
        tmp_path / "model.onnx",
        [
            helper.make_node("Mystery", ["x"], ["a"], domain="com.example"),
            helper.make_node("MatMul", ["a", "m"], ["y"]),
        ],
        {"m": (8, 8)},
    )

    assert cost_of_onnx(path) == Cost(params=64, macs=None)


def test_operators_of_others_leave_the_macs_unknown(tmp_path: Path) -> None:
    path = graph_file(
        tmp_path / "fused.onnx",
        [helper.make_node("FusedMatMul", ["x", "m"], ["y"], domain="com.microsoft")],
        {"m": (8, 5)},
    )

    assert cost_of_onnx(path).macs is None


def test_products_within_functions_count(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    inner = helper.make_node("MatMul", ["a", "b"], ["c"])
    function = helper.make_function("local", "product", ["a", "b"], ["c"], [inner], opsets[:1])
    path = graph_file(
        tmp_path / "function.onnx",
        [helper.make_node("product", ["x", "m"], ["y"], domain="local")],
        {"m": (8, 5)},
    )
    model = onnx.load(path)
    model.functions.append(function)
    model.opset_import.append(opsets[1])
    onnx.save(model, path)

    assert cost_of_onnx(path).macs == 4 * 8 * 8 * 5


def test_running_statistics_are_no_parameters(tmp_path: Path) -> None:
    path = graph_file(
        tmp_path / "model.onnx",
        [helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
        {name: (4,) for name in "sbmv"},
    )

    assert cost_of_onnx(path) == Cost(params=8, macs=0)


def test_text_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("not a model")

    with pytest.raises(ZooError, match="is not an ONNX file, or it is damaged"):
        cost_of_onnx(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="there is no file .*model.onnx"):
        cost_of_onnx(tmp_path / "model.onnx")


def test_model_of_something_else(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 7])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Relu", ["x"], ["y"])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", [value], [result])), path)

    with pytest.raises(ZooError, match=r"expected one input \(B, C, H, W\), its inputs are x"):
        cost_of_onnx(path)
