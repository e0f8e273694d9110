"""Find the layer where a format that shows no layers first strays from eager: halve the model."""

import bisect
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from export.blame import Stray, module_outputs
from export.target import ExportOptions, ExportTarget


class Head(nn.Module):
    """A model up to one of its modules, whose output takes the place of the logits."""

    def __init__(self, model: nn.Module, module: str) -> None:
        super().__init__()
        self.model = model
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), all that the module gives for an image."""
        kept: list[Tensor] = []
        hook = self.model.get_submodule(self.module).register_forward_hook(
            lambda _, __, output: kept.append(output)
        )
        try:
            self.model(images)
        finally:
            hook.remove()
        return kept[0].flatten(1)


def bisected(
    model: nn.Module,
    target: ExportTarget,
    images: Tensor,
    *,
    tolerance: float,
    precision: str,
    metadata: Mapping[str, str],
    options: ExportOptions,
) -> Stray | None:
    """Export the model up to a module in the middle, compare, and go on with one half.

    A convolution is passed over: a batch norm behind it may have become part of it. None where no
    module's output is off by more than `tolerance * max(1, its largest number)`.

    Shapes:
        images: (B, 3, H, W), as the model is fed.

    Note:
        Costs one export for each halving: seconds to minutes, in a case that should not occur.
    """
    expected = {
        module: output.flatten(1).double().cpu()
        for module, output in module_outputs(model, images).items()
        if not isinstance(model.get_submodule(module), nn.Conv2d) and output.ndim > 1
    }
    modules = list(expected)
    found: dict[str, Stray] = {}

    def is_off(module: str) -> bool:
        eager = expected[module]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"head{target.suffix}"
            target.export(
                Head(model, module),
                images.repeat(2, 1, 1, 1)[:2].contiguous(),
                path,
                precision=precision,
                metadata=metadata,
                options=options,
            )
            session = target.open(path, device=options.device)
            output = session.run(images.to(session.device)).double().cpu()
        error = (output - eager).abs().max().item()
        limit = tolerance * max(1.0, eager.abs().max().item())
        if error <= limit:  # NaN is off
            return False
        found[module] = Stray(module=module, max_abs_error=error, limit=limit)
        return True

    with torch.no_grad():
        first = bisect.bisect_left(modules, True, key=is_off)
    return found[modules[first]] if first < len(modules) else None
