"""Find the layer where an ONNX graph first strays from eager."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from export.inner import inner_values
from export.to_onnx import modules_of, traced
from zoo.errors import first_line

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, kw_only=True, slots=True)
class Stray:
    """A module whose output is further off than allowed."""

    module: str  # its path in the model, such as stages.1.0.first
    max_abs_error: float
    limit: float


def in_words(find: Callable[[], Stray | None]) -> str:
    """What `find` finds, as words to add to what went wrong."""
    try:
        stray = find()
    except Exception as error:  # whatever it is: this only explains another failure
        return f"; which layer is off was not found ({first_line(error)})"
    if stray is None:
        return "; no layer alone is off on that image"
    return (
        f"; the first layer that is off is {stray.module} (by {stray.max_abs_error:.2g} where "
        f"{stray.limit:.2g} is allowed)"
    )


def first_stray(
    model: nn.Module, graph: "onnx.ModelProto", images: Tensor, tolerance: float
) -> Stray | None:
    """Compare the output of every module, in the order of the graph.

    `graph` may be a descendant of the model's own graph, with casts or quantisers between, as long
    as it kept the names of its values. A module that is called twice is passed over. None where no
    output is off by more than `tolerance * max(1, its largest number)`.

    Shapes:
        images: (B, 3, H, W), as the model is fed.
    """
    expected = module_outputs(model, images)
    values = _values_of_modules(traced(model, images.repeat(2, 1, 1, 1)[:2]))
    known = {name for node in graph.graph.node for name in node.output}
    wanted = {name: module for name, module in values.items() if name in known}
    (arrays,) = inner_values(graph, list(wanted), [images.contiguous().numpy()])
    for name, module in wanted.items():
        found = torch.from_numpy(arrays[name])
        if module not in expected or expected[module].shape != found.shape:
            continue
        eager = expected[module].double()
        limit = tolerance * max(1.0, eager.abs().max().item())
        error = (found.double() - eager).abs().max().item()
        if not error <= limit:  # NaN is off
            return Stray(module=module, max_abs_error=error, limit=limit)
    return None


def module_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output of each module that is called once and gives one tensor."""
    outputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def keep(name: str, output: object) -> None:
        calls[name] += 1
        if isinstance(output, Tensor):
            outputs[name] = output.detach().clone()  # the next layer may work in place

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: output for name, output in outputs.items() if calls[name] == 1}


def _values_of_modules(proto: "onnx.ModelProto") -> dict[str, str]:
    """The value that is each module's output, to its module, in the order of the graph."""
    last: dict[str, str] = {}
    for node in proto.graph.node:
        for module in modules_of(node):
            last[module] = node.output[0]
    order = {name: at for at, node in enumerate(proto.graph.node) for name in node.output}
    inmost_first = sorted(last, key=lambda module: (order[last[module]], -module.count(".")))
    values: dict[str, str] = {}
    for module in inmost_first:
        values.setdefault(last[module], module)
    return values
