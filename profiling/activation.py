"""Activation memory, traffic and norms of a network, from the operators that it calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiling.footprint import Footprint, front
from zoo.cost import on_meta

BATCH = 2  # with one image some copies are views
aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
# operator -> FLOPs of a number that it normalises: without weights, with them. A batch norm in
# inference is one product and one sum; the others find their statistics as well.
BATCH_NORM, OTHER_NORM = (1, 2), (4, 5)
NORMS = {
    aten.native_batch_norm: BATCH_NORM,
    aten._native_batch_norm_legit_no_training: BATCH_NORM,
    aten.native_layer_norm: OTHER_NORM,
    aten.native_group_norm: OTHER_NORM,
    aten._fused_rms_norm: OTHER_NORM,
}
NORM_WEIGHT = {aten.native_layer_norm: 2, aten._fused_rms_norm: 2}  # its place; elsewhere 1


def footprint_of(model: nn.Module, image_shape: tuple[int, int, int] = (3, 32, 32)) -> Footprint:
    """Follow the inference of a network; `model` itself is left as it is.

    Nothing is computed: the operators run on the meta device, in the order of a call. A tensor is
    live from the operator that makes it to the last that takes it or a view of it, an operator
    that works in place makes none, and fused attention is one operator. The images are live
    throughout, parameters and buffers are no activations. Python may hold a tensor for longer, a
    kernel may want work space of its own.

    Traffic is that of convolutions and matrix products, fused attention included, which read what
    they take and write what they make once; all between them is taken to be fused into them.

    Shapes:
        image_shape is (C, H, W).
    Source:
        FLOPs of norms as fvcore counts them: 2 for a number in a batch norm, 5 in another, one
        less without weights.
    """
    twin = on_meta(model).eval()
    images = torch.empty((BATCH, *image_shape), device="meta")
    trace = _Trace(twin, images)
    with torch.no_grad(), _FusedAttention(trace), trace:
        logits = twin(images)
    state = model.state_dict()
    return Footprint(
        buffers=sum(x.numel() for name, x in model.named_buffers() if name in state),
        state_bytes=sum(x.numel() * x.element_size() for x in state.values()),
        norm_flops=trace.norm_flops // BATCH,
        weights=trace.weights,
        moved=trace.moved // BATCH,
        peaks=_peaks(trace.of_each, trace.step, [images, *_tensors(logits)]),
    )


@dataclass
class _Storage:
    """The memory of one tensor and its views."""

    memory: torch.UntypedStorage  # kept, so that no other gets its address
    made: int  # number of the operator
    last: int  # that takes it
    is_of_images: bool  # and so grows with the batch


class _Trace(TorchDispatchMode):
    """Notes what each operator takes and makes."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step = 0
        self.norm_flops = self.weights = self.moved = 0
        self.of_each: dict[int, _Storage] = {}  # by address; those of the model are left out
        self.is_paused = False
        self._fixed = {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._note(images, is_of_images=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.is_paused:
            operator, made = func.overloadpacket, _tensors(out)
            if NORMS.get(operator) is BATCH_NORM:
                made = made[:1]  # statistics that meta adds are empty elsewhere
            self.add(_tensors((args, kwargs)), made, is_product=operator in PRODUCTS)
            if operator in NORMS:
                weight = args[NORM_WEIGHT.get(operator, 1)]
                self.norm_flops += NORMS[operator][weight is not None] * args[0].numel()
        return out

    def add(self, given: Sequence[Tensor], made: Sequence[Tensor], *, is_product: bool) -> None:
        """One operator."""
        self.step += 1
        for tensor in given:
            if (known := self.of_each.get(_address(tensor))) is not None:
                known.last = self.step
        is_of_images = any(self._is_of_images(tensor) for tensor in given)
        for tensor in made:
            self._note(tensor, is_of_images=is_of_images)
        if is_product:
            for tensor in given:
                if self._is_of_images(tensor):
                    self.moved += _numbers(tensor)
                else:
                    self.weights += _numbers(tensor)
            self.moved += sum(map(_numbers, made)) if is_of_images else 0

    def _is_of_images(self, tensor: Tensor) -> bool:
        known = self.of_each.get(_address(tensor))
        return known is not None and known.is_of_images

    def _note(self, tensor: Tensor, *, is_of_images: bool) -> None:
        address = _address(tensor)
        if address in self._fixed:
            return
        memory = tensor.untyped_storage()
        known = self.of_each.setdefault(
            address, _Storage(memory, self.step, self.step, is_of_images)
        )
        known.is_of_images |= is_of_images


class _FusedAttention(TorchFunctionMode):
    """Shows a trace attention as the one operator that it is elsewhere: meta has no kernel."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self._trace.is_paused = True
        try:
            out = func(*args, **kwargs)
        finally:
            self._trace.is_paused = False
        self._trace.add(_tensors((args, kwargs)), [out], is_product=True)
        return out


def _peaks(
    of_each: dict[int, _Storage], steps: int, held: Sequence[Tensor]
) -> tuple[tuple[int, int], ...]:
    """What is live at each operator, as far as no other moment has more of both."""
    for tensor in held:
        if (known := of_each.get(_address(tensor))) is not None:
            known.last = steps
    changes = [[0, 0] for _ in range(steps + 2)]  # bytes of the batch, whatever the batch
    for one in of_each.values():
        size = one.memory.nbytes()
        changes[one.made][one.is_of_images] += size
        changes[one.last + 1][one.is_of_images] -= size
    live, moments = [0, 0], []
    for fixed, of_images in changes:
        live = [live[0] + fixed, live[1] + of_images]
        moments.append((live[0], live[1] // BATCH))
    return front(moments)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _numbers(tensor: Tensor) -> int:
    """Elements in memory: those of an expanded view are fewer than its shape says."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())
