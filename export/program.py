"""A model as a torch.export program: what AOTInductor compiles and what an .export.pt2 holds."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, nn

from export.fold import fold_batch_norms
from export.target import MAX_BATCH
from zoo.errors import MachineError, first_line

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node")


class InPrecision(nn.Module):
    """Compute in another floating-point format; images and logits stay float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Logits of one batch."""
        logits: Tensor = self.model(images.to(self.dtype))
        return logits.float()


def lowered(
    model: nn.Module, example: Tensor, *, precision: str, device: str = "cpu", fold: bool = False
) -> torch.export.ExportedProgram:
    """Trace a copy of `model` on `device`, with a free batch axis and channels-last weights.

    fp16 and bf16 hold for weights and activations alike; torch's kernels still add up norms,
    softmax and means in float32. Batch norms after a convolution become part of it before they
    are rounded, and with `fold` in fp32 too. The program holds none of torch's notes on where a
    node came from: they would hand on what is private, folders of this machine.

    Raises:
        MachineError: torch.export cannot trace the model.
    """
    model = copy.deepcopy(model).eval()
    if fold or precision != "fp32":
        model = fold_batch_norms(model, traced(model.cpu(), example))
    model = model.to(device).to(memory_format=torch.channels_last)
    if precision != "fp32":
        model = InPrecision(model, DTYPES[precision])
    program = traced(model, example.to(device))
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for note in NOTES:
                    node.meta.pop(note, None)
    return program


def traced(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace `model` for batches of 1 to MAX_BATCH images of the example's size.

    The program holds zeros in place of the example, which would hand on private images.

    Raises:
        MachineError: torch.export cannot trace it.
    """
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes = ({0: batch},)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(
                model, (torch.zeros_like(example),), dynamic_shapes=shapes, strict=False
            )
    except Exception as reason:  # of torch's many kinds
        raise MachineError(f"torch.export cannot trace this model: {first_line(reason)}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what torch's compilers tell their developers; what matters is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
