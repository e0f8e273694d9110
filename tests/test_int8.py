"""int8: which images it is made with, which ranges they give, and which layers stay in float."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from small_network import SIZE, images, small_network
from torch import nn

import export.to_onnx
import export.to_openvino
from export.calibrate import Calibration, chosen, divided, methods_of
from export.flags import export_parser
from export.quantize import CPU, TENSORRT, Preset, quantise, with_quantisers
from export.ranges import (
    BINS,
    LEVELS,
    METHODS,
    STEP,
    Range,
    entropy_bins,
    percentile_bins,
    value_ranges,
)
from export.raw import RawModel
from export.sensitivity import (
    IMAGES,
    Layer,
    find_layers,
    kept_in_float,
    output_errors,
    sensitivities,
)
from export.simulate import SimulatedSession
from export.target import ExportOptions
from export.to_onnx import onnx_graph
from export.to_openvino import (
    OpenVinoSession,
    OpenVinoTarget,
    read_graph,
    save_network,
    verified_int8,
)
from zoo.data import Dataset, image_digests, load_dataset
from zoo.errors import MachineError, ZooError
from zoo.evaluate import predict
from zoo.onnx_graph import precision_of
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return small_network()


@pytest.fixture(scope="module")
def graph(model: torch.nn.Module) -> onnx.ModelProto:
    proto = onnx_graph(model, images(2), metadata={"cifar_zoo_version": "0"})
    return onnx.shape_inference.infer_shapes(proto)


@pytest.fixture(scope="module")
def calibration(data: Dataset, model: torch.nn.Module) -> Calibration:
    """What eager says is the truth, so that a drop is a changed answer."""
    rows, validation = divided(data)
    preprocessing = Preprocessing.of(data, image_size=SIZE)
    answers = predict(EagerSession(model), validation.images, preprocessing).argmax(1)
    return Calibration(
        images=data.train.images[chosen(rows, 100)],
        validation=replace(validation, fine=answers.numpy()),
        is_held_out=True,
        preprocessing=preprocessing,
        methods=("minmax",),
        max_drop=1.0,
        eager_right=lambda: torch.ones(len(answers), dtype=torch.bool),
    )


def found_ranges(graph: onnx.ModelProto, calibration: Calibration) -> Mapping[str, Range]:
    def feeds() -> Iterator[np.ndarray]:
        return calibration.batches(graph)

    return value_ranges(graph, CPU.operators, feeds, methods=["minmax"])["minmax"]


# Images


def test_images_are_of_the_training_part_alone(data: Dataset) -> None:
    rows, validation = divided(data)

    picked = data.train.images[chosen(rows, 200)]

    others = {*image_digests(validation), *image_digests(data.test)}
    split = replace(data.train, images=picked)
    assert len(picked) == 200
    assert others.isdisjoint(image_digests(split))


def test_images_are_the_same_in_every_call() -> None:
    rows = np.arange(1000)

    picked = chosen(rows, 50)

    assert picked.tolist() == chosen(rows, 50).tolist() == sorted(set(picked.tolist()))
    assert picked.tolist() != list(range(50))
    assert chosen(rows, 5000).tolist() == rows.tolist()


def test_batches_are_what_the_model_is_fed_with(
    calibration: Calibration, graph: onnx.ModelProto
) -> None:
    batches = list(calibration.batches(graph))

    expected = calibration.preprocessing.to_batch(calibration.images).numpy()
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    assert batches[0].flags.c_contiguous


def test_all_methods_are_tried_where_none_is_named() -> None:
    asked = export_parser().parse_args([]).int8_method

    assert methods_of(asked) == methods_of(ExportOptions().int8_method) == METHODS


def test_unknown_method_is_named() -> None:
    with pytest.raises(ZooError) as caught:
        methods_of("percentil")

    assert str(caught.value) == "no int8 method named 'percentil': did you mean percentile?"


# Ranges


def test_minmax_keeps_every_number(graph: onnx.ModelProto) -> None:
    batches = [images(4).numpy(), 3 * images(2).numpy()]

    ranges = value_ranges(graph, ("Conv",), lambda: batches, methods=["minmax"])["minmax"]

    assert ranges["images"] == (batches[1].min(), batches[1].max())
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    values = {name for node in convolutions for name in (node.input[0], *node.output)}
    assert ranges.keys() == values  # no weights among them


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_lone_outliers_are_cut_off(graph: onnx.ModelProto, method: str) -> None:
    batch = images(256).numpy()
    batch[0, 0, 0, 0] = 400.0

    ranges = value_ranges(graph, ("Conv",), lambda: [batch], methods=[method])[method]

    low, high = ranges["images"]
    assert low == batch.min()
    assert 2.5 < high < 100


def test_every_method_at_once_finds_what_it_finds_alone(graph: onnx.ModelProto) -> None:
    batch = images(64).numpy()

    together = value_ranges(graph, CPU.operators, lambda: [batch], methods=METHODS)

    assert tuple(together) == METHODS
    for method, ranges in together.items():
        alone = value_ranges(graph, CPU.operators, lambda: [batch], methods=[method])
        assert alone == {method: ranges}


def test_percentile_counts_values() -> None:
    counts = np.zeros(BINS, np.int64)
    counts[:10], counts[100], counts[-1] = 1_000_000, 195, 5

    bins = percentile_bins(counts)

    assert bins == 10 + 91  # 99.999% lie in the first ten bins and the hundredth


def divergence(counts: np.ndarray, bins: int) -> float:
    """Of what LEVELS levels over so many bins make of a histogram, value by value."""
    real = [float(count) for count in counts[:bins]]
    rounded = [0.0] * bins
    for level in range(LEVELS):
        mine = [k for k in range(bins) if k * LEVELS // bins == level and real[k]]
        for k in mine:
            rounded[k] = sum(real[j] for j in mine) / len(mine)
    rounded[-1] = max(1.0, rounded[-1])
    real[-1] += float(counts[bins:].sum())
    return sum(
        p / sum(real) * np.log(p / sum(real) / (q / sum(rounded)))
        for p, q in zip(real, rounded, strict=True)
        if p
    )


@pytest.mark.parametrize("tail", [0, 3, 3000])
def test_entropy_finds_the_least_divergence(tail: int) -> None:
    values = np.abs(np.random.default_rng(0).normal(size=100_000))
    values = np.append(values, np.full(tail, 20.0))
    counts, _ = np.histogram(values, 512, (0, values.max()))

    bins = entropy_bins(counts)

    tried = range(LEVELS, len(counts) + 1, STEP)
    assert divergence(counts, bins) == pytest.approx(min(divergence(counts, n) for n in tried))
    threshold = bins * values.max() / len(counts)
    assert threshold > 4 if tail < 3000 else threshold == pytest.approx(20)


def test_entropy_leaves_zeros_out_and_an_empty_histogram_alone() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=100_000))
    counts, _ = np.histogram(values, BINS, (0, values.max()))
    many = counts.copy()
    counts[0] = counts[1]
    many[0] = 10_000_000

    assert entropy_bins(many) == entropy_bins(counts)
    assert entropy_bins(np.zeros(BINS, np.int64)) == BINS


@pytest.mark.parametrize("values", [np.linspace(0.4, 0.6, 10_000), np.full(10_000, 0.5)])
def test_entropy_keeps_what_stays_away_from_zero(values: np.ndarray) -> None:
    """As the gates of attention over channels do: nothing lies in the first 128 bins."""
    counts, _ = np.histogram(values, BINS, (0, values.max()))

    assert entropy_bins(counts) * values.max() / BINS > values.max() * 0.99


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("method", METHODS)
def test_numbers_without_a_range_are_one_line(
    number: float, method: str, graph: onnx.ModelProto
) -> None:
    batch = images(4).numpy()
    batch[1, 2, 3, 4] = number

    with pytest.raises(MachineError) as caught:
        value_ranges(graph, CPU.operators, lambda: [batch], methods=[method])

    assert re.fullmatch(
        r"int8: the value \w+ inside the graph is infinite or NaN for a training image, and "
        r"rounding to integers needs a range: export in another precision",
        str(caught.value),
    )


# Graphs


@pytest.mark.parametrize(("preset", "kind"), [(CPU, "uint8"), (TENSORRT, "int8")])
def test_every_layer_is_quantised(
    preset: Preset,
    kind: str,
    graph: onnx.ModelProto,
    calibration: Calibration,
    model: torch.nn.Module,
) -> None:
    proto, facts = quantise(graph, preset, calibration, SimulatedSession)

    assert precision_of(proto) == "int8"
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    offsets = [
        constants[node.input[2]] for node in proto.graph.node if node.op_type == "QuantizeLinear"
    ]
    assert {str(offset.dtype) for offset in offsets} == {kind}
    producers = {name: node.op_type for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert {producers[name] for name in node.input[:2]} == {"DequantizeLinear"}
    batch = images(8)
    expected = EagerSession(model).run(batch)
    found = SimulatedSession(proto).run(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * expected.abs().max().item())
    assert facts["kept_float"] == []
    assert (facts["preset"], facts["method"]) == (preset.name, "minmax")
    assert facts["calibration_images"] == 100
    assert facts["validation_drop"] == 1 - facts["validation_top1"] < 0.2


@pytest.mark.parametrize("preset", [CPU, TENSORRT])
@pytest.mark.parametrize("is_raw", [False, True])
def test_answers_are_not_rounded(
    preset: Preset,
    is_raw: bool,
    graph: onnx.ModelProto,
    calibration: Calibration,
    model: torch.nn.Module,
) -> None:
    if is_raw:
        raw = RawModel(model, calibration.preprocessing)
        pixels = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
        graph = onnx.shape_inference.infer_shapes(
            onnx_graph(raw, pixels, metadata={"cifar_zoo_version": "0"})
        )

    ranges = found_ranges(graph, calibration)
    proto = with_quantisers(graph, preset, ranges, [])

    makers = {name: node for node in proto.graph.node for name in node.output}
    last = makers[proto.graph.output[0].name]
    if is_raw:
        assert last.op_type == "Softmax"
        last = makers[last.input[0]]
    assert last.op_type == "Gemm"
    assert makers[last.input[0]].op_type == "DequantizeLinear"


def integer_weights(proto: onnx.ModelProto) -> np.ndarray:
    """The absolute values of all integers that the layers multiply with."""
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    found = [constants[makers[node.input[1]].input[0]] for node in layers]
    assert {str(one.dtype) for one in found} == {"int8"}
    return np.concatenate([np.abs(one.astype(int)).ravel() for one in found])


def test_sixteen_bits_hold_what_a_cpu_adds_up_in_them(
    graph: onnx.ModelProto, calibration: Calibration
) -> None:
    found, facts = quantise(graph, CPU, calibration, SimulatedSession)
    for_gpus, all_bits = quantise(graph, TENSORRT, calibration, SimulatedSession)

    assert 2 * 255 * integer_weights(found).max() < 2**15
    assert integer_weights(for_gpus).max() == 127
    assert (facts["weight_bits"], all_bits["weight_bits"]) == (7, 8)


@pytest.mark.parametrize("target", [export.to_onnx, export.to_openvino], ids=["onnx", "openvino"])
def test_full_activations_and_weights_add_up_on_every_cpu(target: ModuleType) -> None:
    """On one without VNNI this fails with weights of 8 bits."""
    white = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten())
    torch.nn.init.constant_(white[0].weight, 0.5)
    white_images = torch.full((2, 3, 16, 16), 2.0)
    seen = onnx_graph(white.eval(), white_images, metadata={"cifar_zoo_version": "0"})
    seen = onnx.shape_inference.infer_shapes(seen)
    ranges = value_ranges(seen, CPU.operators, lambda: [white_images.numpy()], methods=["minmax"])
    proto = with_quantisers(seen, CPU, ranges["minmax"], [])

    found = target._opened(proto).run(white_images)

    torch.testing.assert_close(found, SimulatedSession(proto).run(white_images))


def test_tensorrt_gets_no_offsets_and_float_biases(
    graph: onnx.ModelProto, calibration: Calibration
) -> None:
    proto, _ = quantise(graph, TENSORRT, calibration, SimulatedSession)

    kinds = {one.name: one.data_type for one in proto.graph.initializer}
    offsets = [
        onnx.numpy_helper.to_array(one)
        for one in proto.graph.initializer
        if one.name.endswith("zero_point")
    ]
    assert offsets
    assert not any(offset.any() for offset in offsets)
    biases = [kinds[node.input[2]] for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert set(biases) == {TensorProto.FLOAT}


class Attention(torch.nn.Module):
    """One head over the four quarters of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = torch.nn.Conv2d(3, 8, SIZE // 2, SIZE // 2)
        self.mix = torch.nn.Linear(8, 24)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(self.cut(images).flatten(2).mT).chunk(3, -1)
        mixed = (query @ key.mT).softmax(-1) @ value
        logits: torch.Tensor = self.head(mixed.mean(1))
        return logits


@pytest.mark.parametrize("preset", [CPU, TENSORRT], ids=["cpu", "trt"])
def test_products_of_two_activations_stay_in_float(
    preset: Preset, calibration: Calibration
) -> None:
    seen = onnx_graph(Attention().eval(), images(2), metadata={"cifar_zoo_version": "0"})
    seen = onnx.shape_inference.infer_shapes(seen)
    made = with_quantisers(seen, preset, found_ranges(seen, calibration), []).graph

    makers = {name: node for node in made.node for name in node.output}
    (softmax,) = (node for node in made.node if node.op_type == "Softmax")
    assert makers[softmax.input[0]].op_type == "MatMul"  # not DequantizeLinear
    assert {node.op_type for node in made.node if softmax.output[0] in node.input} == {"MatMul"}
    assert sum(node.op_type == "MatMul" for node in made.node) == 3


class Masked(Attention):
    """No quarter attends to those after it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(self.cut(images).flatten(2).mT).chunk(3, -1)
        mixed = (query @ key.mT + self.mask).softmax(-1) @ value
        logits: torch.Tensor = self.head(mixed.mean(1))
        return logits


@pytest.mark.parametrize("method", METHODS)
def test_what_a_mask_is_added_to_stays_in_float(method: str, calibration: Calibration) -> None:
    model = Masked().eval()
    seen = onnx_graph(model, images(2), metadata={"cifar_zoo_version": "0"})
    asked = replace(calibration, methods=(method,))

    made, facts = quantise(seen, CPU, asked, SimulatedSession)

    makers = {name: node for node in made.graph.node for name in node.output}
    (softmax,) = (node for node in made.graph.node if node.op_type == "Softmax")
    add = makers[softmax.input[0]]
    assert add.op_type == "Add"
    assert "DequantizeLinear" not in {makers[name].op_type for name in add.input if name in makers}
    assert (facts["layers"], facts["kept_float"]) == (3, [])
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) >= 3
    batch = images(8)
    expected = EagerSession(model).run(batch)
    found = SimulatedSession(made).run(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.25 * expected.abs().max().item())


def test_auto_takes_the_method_that_changes_the_answers_least(
    graph: onnx.ModelProto, calibration: Calibration
) -> None:
    """One image of the largest contrast among dim ones: its range leaves these few levels."""
    dim = (120 + calibration.images // 20).astype(np.uint8)
    dim[-1] = np.where(calibration.images[-1] > 127, 255, 0)
    auto = replace(calibration, images=dim, methods=methods_of("auto"))

    made, facts = quantise(graph, CPU, auto, SimulatedSession)

    alone = {
        method: quantise(graph, CPU, replace(auto, methods=(method,)), SimulatedSession)[0]
        for method in METHODS
    }
    errors = dict(zip(alone, output_errors(graph, alone.values(), auto), strict=True))
    assert facts["method"] == min(errors, key=errors.__getitem__) != "minmax"
    assert errors[facts["method"]] < errors["minmax"] / 2
    assert made == alone[facts["method"]]


def test_int8_gives_the_same_file_again(graph: onnx.ModelProto, calibration: Calibration) -> None:
    first, second = (quantise(graph, CPU, calibration, SimulatedSession)[0] for _ in range(2))

    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_too_large_a_drop_is_one_line(graph: onnx.ModelProto, calibration: Calibration) -> None:
    strict = replace(calibration, max_drop=-0.01)  # better than eager, which nothing can be
    count = len(calibration.validation.fine)

    with pytest.raises(MachineError) as caught:
        quantise(graph, CPU, strict, SimulatedSession)

    message = str(caught.value)
    layers, ranges = find_layers(graph, CPU.operators), found_ranges(graph, calibration)
    errors = sensitivities(
        graph, layers, lambda kept: with_quantisers(graph, CPU, ranges, kept), calibration
    )
    worst = [layers[k].name for k in np.argsort(-np.array(errors), kind="stable")]
    assert message.startswith(
        f"int8 (minmax, 100 images): top-1 on {count} validation images fell from 100.00% to "
    )
    assert message.endswith(
        "%, more than the -1.00 points allowed, with all but one of 3 layers in float (the most "
        f"sensitive: {worst[0]}, {worst[1]}): nothing was written; try another --int8-method, more "
        "--int8-images or a larger --int8-max-drop"
    )


def test_graph_without_layers_is_refused(calibration: Calibration) -> None:
    value = onnx.helper.make_tensor_value_info
    relu = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["images"], ["logits"])],
        "relu",
        [value("images", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [value("logits", TensorProto.FLOAT, ["batch", 3, 16, 16])],
    )

    with pytest.raises(MachineError) as caught:
        quantise(onnx.helper.make_model(relu), CPU, calibration, SimulatedSession)

    assert str(caught.value) == "int8: the graph has no convolution and no product with weights"


# OpenVINO, which may compute a quantised graph in float and give the same answers


def test_openvino_computes_in_integers(
    model: torch.nn.Module, calibration: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "int8.xml"

    facts = OpenVinoTarget().export(
        model,
        images(2),
        path,
        precision="int8",
        metadata={"cifar_zoo_version": "0"},
        options=ExportOptions(calibration=calibration),
    )

    session = OpenVinoTarget().open(path, device="cpu")
    assert session.precision == "int8"
    assert facts["computed_in"] == session.computed_in
    assert session.computed_in["u8"] >= facts["int8"]["layers"] == 3  # and a product of activations


def test_float_in_place_of_integers_is_refused(
    graph: onnx.ModelProto, calibration: Calibration, tmp_path: Path
) -> None:
    proto, _ = quantise(graph, CPU, calibration, SimulatedSession)
    path = tmp_path / "folded.xml"
    network = read_graph(proto.SerializeToString())  # folds the integer weights
    save_network(network, path, precision="int8", metadata={})

    with pytest.raises(MachineError) as caught:
        verified_int8(OpenVinoSession(path))

    assert str(caught.value) == ("OpenVINO computes the int8 network in f32 here, not in integers")


# Layers


class Tokens(nn.Module):
    """Products over tokens, one of which is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.first(x.flatten(2).transpose(1, 2))
        return self.both(self.both(tokens).relu()).mean(1)


def test_a_product_over_tokens_is_named_after_its_module() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), Tokens())
    proto = onnx_graph(network.eval(), images(2), metadata={"cifar_zoo_version": "0"})

    layers = find_layers(proto, CPU.operators)

    *named, again = (layer.name for layer in layers)
    assert named == ["0", "1.first", "1.both"]
    assert again.startswith("node_")  # the second call: names are unique
    assert len({node.name for node in proto.graph.node}) == len(proto.graph.node)


def test_a_layer_is_named_after_its_module_and_takes_what_follows(graph: onnx.ModelProto) -> None:
    layers = find_layers(graph, CPU.operators)

    kinds = {node.name: node.op_type for node in graph.graph.node}
    assert len(layers) == 3
    assert [kinds[layer.nodes[0]] for layer in layers] == ["Conv", "Conv", "Gemm"]
    assert "Relu" in [kinds[name] for name in layers[0].nodes]
    every = [name for layer in layers for name in layer.nodes]
    assert len(every) == len(set(every))


def test_what_comes_before_any_layer_goes_with_the_first(calibration: Calibration) -> None:
    class Scaled(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.max_pool2d(images * 0.5 + 0.5, 2))

    network = Scaled(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    proto = onnx_graph(network.eval(), images(2), metadata={"cifar_zoo_version": "0"})
    layers = find_layers(proto, CPU.operators)

    left = with_quantisers(proto, CPU, found_ranges(proto, calibration), layers)

    kinds = {node.name: node.op_type for node in proto.graph.node}
    assert {"Mul", "Add", "MaxPool"} <= {kinds[name] for name in layers[0].nodes[:-1]}
    assert precision_of(left) == "fp32"


@pytest.mark.parametrize("preset", [CPU, TENSORRT])
def test_a_transposed_convolution_in_groups_stays_in_float(
    preset: Preset, calibration: Calibration
) -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 4, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )
    proto = onnx_graph(network.eval(), images(2), metadata={"cifar_zoo_version": "0"})
    layers = find_layers(proto, preset.operators)

    rounded = with_quantisers(proto, preset, found_ranges(proto, calibration), [])

    assert [layer.name for layer in layers] == ["0", "3", "6"]
    makers = {name: node.op_type for node in rounded.graph.node for name in node.output}
    weights = {
        next(item.i for item in node.attribute if item.name == "group"): makers.get(node.input[1])
        for node in rounded.graph.node
        if node.op_type == "ConvTranspose"
    }
    assert weights == {1: "DequantizeLinear", 2: None}


def test_all_layers_in_float_leave_the_graph_as_it_was(
    graph: onnx.ModelProto, calibration: Calibration
) -> None:
    layers = find_layers(graph, CPU.operators)

    proto = with_quantisers(graph, CPU, found_ranges(graph, calibration), layers)

    assert precision_of(proto) == "fp32"


@pytest.mark.parametrize("shift", ["of all classes", "of one class"])
def test_error_is_the_mean_share_of_each_image(
    shift: str, graph: onnx.ModelProto, model: torch.nn.Module, calibration: Calibration
) -> None:
    (name,) = (node.input[2] for node in graph.graph.node if node.op_type == "Gemm")
    shifted = onnx.ModelProto()
    shifted.CopyFrom(graph)
    (bias,) = (one for one in shifted.graph.initializer if one.name == name)
    values = onnx.numpy_helper.to_array(bias).copy()
    added = np.ones_like(values) if shift == "of all classes" else np.eye(len(values))[0]
    bias.CopyFrom(onnx.numpy_helper.from_array(values + added.astype(values.dtype), name))

    (error,) = output_errors(graph, [shifted], calibration)

    batch = calibration.preprocessing.to_batch(calibration.images[:IMAGES])
    logits = EagerSession(model).run(batch).double().numpy()
    shares = [np.var(added) / np.var(mine) for mine in logits]
    assert error == pytest.approx(np.mean(shares), rel=1e-4, abs=1e-9)


def test_sweep_finds_the_layer_that_does_not_bear_rounding(
    graph: onnx.ModelProto, calibration: Calibration
) -> None:
    layers = find_layers(graph, CPU.operators)
    ranges = dict(found_ranges(graph, calibration))
    outputs = {node.name: node.output[0] for node in graph.graph.node}
    ranges[outputs[layers[1].nodes[0]]] = (-1000.0, 1000.0)  # steps of 8

    errors = sensitivities(
        graph, layers, lambda kept: with_quantisers(graph, CPU, ranges, kept), calibration
    )

    assert errors[1] > 10 * max(errors[0], errors[2])
    assert all(0 < error < np.inf for error in errors)


@pytest.mark.parametrize(("needed", "tries"), [(0, 1), (1, 2), (2, 3), (3, 5), (5, 6), (6, 7)])
def test_search_keeps_the_fewest_layers_in_float(
    needed: int,
    tries: int,
    graph: onnx.ModelProto,
    calibration: Calibration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers 0 to 7 in order of their errors, of which the `needed` worst have to stay."""
    layers = [Layer(str(index), ()) for index in range(8)]
    monkeypatch.setattr("export.sensitivity.sensitivities", lambda *_: list(range(8)))
    tried: list[int] = []

    def rounded(kept: Collection[Layer]) -> onnx.ModelProto:
        tried.append(len(kept))
        return onnx.ModelProto(doc_string=str(len(kept)))

    def top1(proto: onnx.ModelProto) -> float:
        return 1.0 if int(proto.doc_string) >= needed else 0.0

    choice = kept_in_float(graph, layers, rounded, calibration, top1, at_least=0.5)

    names: Sequence[str] = [layer.name for layer in choice.kept]
    assert names == [str(7 - index) for index in range(needed)]
    assert choice.graph.doc_string == str(needed)
    assert choice.top1 == 1.0
    assert len(tried) <= tries


def test_search_gives_up_before_nothing_is_int8(
    graph: onnx.ModelProto, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [Layer(str(index), ()) for index in range(5)]
    monkeypatch.setattr("export.sensitivity.sensitivities", lambda *_: list(range(5)))

    choice = kept_in_float(
        graph, layers, lambda _: onnx.ModelProto(), calibration, lambda _: 0.2, at_least=0.5
    )

    assert len(choice.kept) == 4
    assert choice.top1 == 0.2
