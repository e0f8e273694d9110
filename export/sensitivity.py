"""Which layers cannot be rounded to int8, and stay in float."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from export.calibrate import Calibration
from export.ranges import WEIGHTED
from export.simulate import SimulatedSession

if TYPE_CHECKING:
    import onnx

IMAGES = 64  # that an error is measured on
SMALLEST = 1e-12  # of the squared logits of one image, all of which may be equal


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution or product with weights, and what follows it up to the next one."""

    name: str  # of the module that holds its weights, or else of its node
    nodes: tuple[str, ...]  # that become float with it


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A quantised graph."""

    kept: Sequence[Layer]  # in float, the most sensitive first
    graph: "onnx.ModelProto"
    top1: float  # on the validation images, in [0, 1]


Rounded = Callable[[Collection[Layer]], "onnx.ModelProto"]  # all but these layers in int8


def find_layers(proto: "onnx.ModelProto", operators: Collection[str]) -> list[Layer]:
    """The layers of a graph that quantising these operators would round, in its order.

    An addition of two branches goes with the layer that comes later in the graph, what comes before
    any layer with the first.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    owners: dict[str, int] = {}  # value -> layer that it comes from
    names: list[str] = []
    nodes: list[list[str]] = []
    before: list[str] = []
    for node in proto.graph.node:
        has_weights = len(node.input) > 1 and node.input[1] in constants
        is_layer = node.op_type in WEIGHTED and has_weights and not is_grouped_transpose(node)
        if is_layer and node.op_type in operators:
            owner = len(names)
            name = node.input[1]
            names.append(name.removesuffix(".weight") if name.endswith(".weight") else node.name)
            nodes.append([node.name])
        else:
            owner = max((owners[name] for name in node.input if name in owners), default=-1)
            if node.op_type in operators:
                (nodes[owner] if owner >= 0 else before).append(node.name)
        if owner >= 0:
            owners.update(dict.fromkeys(node.output, owner))
    if nodes:
        nodes[0][:0] = before
    return [Layer(name, tuple(group)) for name, group in zip(names, nodes, strict=True)]


def is_grouped_transpose(node: "onnx.NodeProto") -> bool:
    """Whether it is a transposed convolution in groups, which stays in float.

    Its weights have a scale for each channel of a group, and ONNX Runtime 1.31 fails to round the
    biases, one for each channel of all, with these.
    """
    groups = [attribute.i for attribute in node.attribute if attribute.name == "group"]
    return node.op_type == "ConvTranspose" and groups not in ([], [1])


def output_errors(
    proto: "onnx.ModelProto", rounded: Iterable["onnx.ModelProto"], calibration: Calibration
) -> list[float]:
    """How far the logits of rounded graphs are from those of this graph, for each of them.

    It is the square of the error as a share of that of the image's logits, both about their mean,
    which tells no class from another: the mean share over IMAGES calibration images. Images with
    far larger logits than most count no more than these.
    """
    images = calibration.preprocessing.to_batch(calibration.images[:IMAGES])

    def answers(graph: "onnx.ModelProto") -> Tensor:
        logits = SimulatedSession(graph).run(images).double()
        return logits - logits.mean(1, keepdim=True)

    expected = answers(proto)
    size = expected.square().sum(1).clamp(min=SMALLEST)
    return [float(((answers(graph) - expected).square().sum(1) / size).mean()) for graph in rounded]


def sensitivities(
    proto: "onnx.ModelProto", layers: Sequence[Layer], rounded: Rounded, calibration: Calibration
) -> list[float]:
    """The error of the logits with one layer in int8 and all others in float, for each layer."""
    alone = (rounded([other for other in layers if other is not layer]) for layer in layers)
    return output_errors(proto, alone, calibration)


def kept_in_float(
    proto: "onnx.ModelProto",
    layers: Sequence[Layer],
    rounded: Rounded,
    calibration: Calibration,
    top1: Callable[["onnx.ModelProto"], float],
    *,
    at_least: float,
) -> Choice:
    """The fewest layers in float, in order of their sensitivity, that give this top-1.

    Numbers of layers are doubled until one is enough, then halved between it and the last that
    was not. Where all but one layer in float are not enough, that is the choice.
    """

    def tried(kept: Sequence[Layer]) -> Choice:
        graph = rounded(kept)
        return Choice(kept=kept, graph=graph, top1=top1(graph))

    best = tried([])
    if best.top1 >= at_least or len(layers) == 1:
        return best
    errors = sensitivities(proto, layers, rounded, calibration)
    order = sorted(range(len(layers)), key=lambda index: -errors[index])
    ranked = [layers[index] for index in order]
    too_few, count = 0, 1
    while (best := tried(ranked[:count])).top1 < at_least and count < len(layers) - 1:
        too_few, count = count, min(2 * count, len(layers) - 1)
    if best.top1 < at_least:
        return best
    while count - too_few > 1:
        middle = (too_few + count) // 2
        between = tried(ranked[:middle])
        if between.top1 >= at_least:
            best, count = between, middle
        else:
            too_few = middle
    return best
