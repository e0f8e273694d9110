"""Peak of live activations, by looking at every value of an exported program at every node."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps whatever its nodes gave."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.given: dict[torch.fx.Node, list[Tensor]] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        result = super().run_node(n)
        self.given[n] = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result


def peak_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes of distinct memory that later nodes still take, at the worst node; images included."""
    program = torch.export.export(model.eval(), (images,))
    recorder = Recorder(program.module())
    with torch.no_grad():
        recorder.run(images)
    known = (*program.state_dict.values(), *program.constants.values(), images)
    fixed = {tensor.data_ptr() for tensor in known}
    nodes = list(recorder.given)
    worst = 0
    for place in range(len(nodes)):
        wanted = {use for node in nodes[place:] for use in (node, *node.all_input_nodes)}
        made = [node for node in nodes[: place + 1] if node in wanted]
        memory = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for node in made
            for tensor in recorder.given[node]
        }
        live = sum(size for pointer, size in memory.items() if pointer not in fixed)
        worst = max(worst, live + images.untyped_storage().nbytes())
    return worst
