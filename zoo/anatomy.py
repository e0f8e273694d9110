"""What a network is made of: its stages, their maps and costs, and how far its last map sees."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.cost import on_meta

CONTAINERS = ("stages", "blocks", "layers")  # their children are stages, not they themselves
REST = "rest"  # what belongs to no stage: a class token, a position table

# Rows of the maps that a block is tried on. One that reaches every row of the tallest, eight times
# as tall as our images, sees everything.
TRIED_ROWS = (16, 64, 256)
REFUSALS = (AssertionError, RuntimeError, ValueError)  # of a block that is tied to one size

Shape = tuple[int, ...]  # without the batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One stage of a network at one image size."""

    name: str
    blocks: str  # such as "3 x BasicBlock"
    inputs: Shape | None  # None for what belongs to no stage
    outputs: Shape | None
    params: int  # trainable
    macs: int  # of one image


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceptiveField:
    """Rows of the image that one pixel of the last map depends on.

    `pixels` is None where the whole image is seen, whatever its size: `whole_from` then names the
    first block that sees its whole map. Where both are None it cannot be told.
    """

    pixels: int | None = None
    whole_from: str | None = None

    def __str__(self) -> str:
        if self.pixels is not None:
            return f"{self.pixels} x {self.pixels} pixels"
        return "not known" if self.whole_from is None else f"global, from {self.whole_from} on"


def stages(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts of a network in the order of its forward: stem, each stage, what follows.

    These are the children of the network; a child named as in `CONTAINERS` gives way to its own
    children, and those without parameters, such as a dropout, are left out. Of a network of ours,
    or of timm's, each is called exactly once for an image and returns one tensor.
    """
    found = []
    for name, child in model.named_children():
        if name in CONTAINERS and isinstance(child, nn.Sequential | nn.ModuleList):
            found += [(f"{name}.{key}", part) for key, part in child.named_children()]
        elif any(True for _ in child.parameters()):
            found.append((name, child))
    return found


def parts(model: nn.Module, image_size: int = 32) -> tuple[Part, ...]:
    """Describe every stage; their parameters and MACs add up to those of the network.

    Counted on the meta device, as `zoo.cost.cost_of_model` does; `model` is left as it is.
    """
    twin = on_meta(model).eval()
    named = stages(twin)
    with FlopCounterMode(display=False) as counter:
        calls = _watch(twin, dict(named), image_size, counter)
    made = [
        Part(
            name=name,
            blocks=describe(module),
            inputs=tuple(calls[name].inputs.shape[1:]),
            outputs=tuple(calls[name].outputs.shape[1:]),
            params=_params(module),
            macs=calls[name].flops // 2,
        )
        for name, module in named
    ]
    params = _params(twin) - sum(part.params for part in made)
    macs = counter.get_total_flops() // 2 - sum(part.macs for part in made)
    if params or macs:
        blocks = ", ".join(name for name, _ in twin.named_parameters(recurse=False))
        made.append(
            Part(name=REST, blocks=blocks, inputs=None, outputs=None, params=params, macs=macs)
        )
    return tuple(made)


def describe(module: nn.Module) -> str:
    """Name what a module is made of: "conv 3x3, BatchNorm2d, ReLU" or "5 x BasicBlock"."""
    match module:
        case nn.Conv2d():
            size = "x".join(str(size) for size in module.kernel_size)
            stride = "" if module.stride == (1, 1) else f" stride {module.stride[0]}"
            depthwise = "depthwise " if module.groups == module.in_channels > 1 else ""
            return f"{depthwise}conv {size}{stride}"
        case nn.Sequential():
            names = [describe(child) for child in module if not isinstance(child, nn.Identity)]
            return ", ".join(_times(name, len(list(run))) for name, run in groupby(names))
    blocks = getattr(module, "blocks", None)  # what timm calls the inside of a stage
    inside = f" of {describe(blocks)}" if isinstance(blocks, nn.Sequential) else ""
    return f"{type(module).__name__}{inside}"


def receptive_field(model: nn.Module, image_size: int = 32) -> ReceptiveField:
    """How many rows of the image one pixel of the last map before the global mean depends on.

    The network is taken as a chain of blocks: what of its stages hands one map on to the next. Of
    every block a copy, its weights set to zero, gets a taller map in which one row is NaN, the
    others zero. NaN times zero is NaN, so the outputs that are NaN are exactly those that depend
    on that row by some path: through any activation, pooling or gate, whatever the weights. The
    extents of the blocks add up, each times the stride of what lies before it.

    A block whose every output is NaN, on the tallest map that is tried too, sees everything:
    attention, mixing of tokens, or a gate that looks at means. So does one that is tied to the
    size of its map and sees all of it. The field of the network is then global.

    Shapes:
        Maps are (B, C, H, W), tokens (B, N, D); where a network has maps of another layout the
        field is not known.
    """
    twin = on_meta(model).eval()
    calls = _watch(twin, dict(twin.named_modules()), image_size)
    maps = [(name, part) for name, part in stages(twin) if calls[name].outputs.ndim > 2]
    links = [link for name, part in maps for link in _links(name, part, calls)]
    before = after = 0  # rows above and below the one of the pixel itself
    step, is_known = 1, True
    for name, link in links:
        view = _view(link, calls[name])
        if view is None:
            is_known = False
        elif view.sees_all:
            return ReceptiveField(whole_from=name)
        else:
            before, after = before + step * view.before, after + step * view.after
            step *= view.step
    return ReceptiveField(pixels=before + after + 1 if is_known else None)


@dataclass(frozen=True, slots=True)
class _Call:
    """What went in and came out; the tensors are kept, so that they can be told apart."""

    inputs: Tensor
    outputs: Tensor
    flops: int


@dataclass(frozen=True, slots=True)
class _View:
    """Output row o of a block depends on input rows o * step - before ... o * step + after."""

    step: int = 1
    before: int = 0
    after: int = 0
    sees_all: bool = False


def _watch(
    model: nn.Module,
    named: Mapping[str, nn.Module],
    image_size: int,
    counter: FlopCounterMode | None = None,
) -> dict[str, _Call]:
    """Run the network, which lies on meta, on one image; note the calls of `named` in order."""
    calls: dict[str, _Call] = {}
    handles = []

    def total() -> int:
        return 0 if counter is None else counter.get_total_flops()

    def watch(name: str, module: nn.Module) -> None:
        started = []

        def enter(_: nn.Module, args: tuple[object, ...]) -> None:
            started.append(total())

        def leave(_: nn.Module, args: tuple[object, ...], out: object) -> None:
            flops = total() - started.pop()
            match args, out:
                case (Tensor() as x, *others), Tensor():
                    # With a second input it is no link of a chain: x must not look handed on.
                    calls[name] = _Call(x.detach() if others else x, out, flops)

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))

    for name, module in named.items():
        watch(name, module)
    with torch.no_grad():
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    for handle in handles:
        handle.remove()
    return calls


def _links(
    name: str, module: nn.Module, calls: Mapping[str, _Call]
) -> Iterator[tuple[str, nn.Module]]:
    """A module, or what it only calls one after the other, down to single blocks."""
    children = [(f"{name}.{key}", child) for key, child in module.named_children()]
    called = sorted(  # a call is noted when it ends
        (link for link in children if link[0] in calls), key=lambda link: list(calls).index(link[0])
    )
    x = calls[name].inputs
    for child, _ in called:
        if calls[child].inputs is not x:
            break
        x = calls[child].outputs
    else:
        if called and x is calls[name].outputs:
            for link in called:
                yield from _links(*link, calls)
            return
    yield name, module


def _view(link: nn.Module, call: _Call) -> _View | None:
    """How far a block sees, None where that cannot be told from its maps."""
    block = copy.deepcopy(link).to_empty(device="cpu").double()
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.zero_()
    shape, out_shape = call.inputs.shape[1:], call.outputs.shape[1:]
    if len(shape) == len(out_shape) == 2:
        return _view_of_tokens(block, shape)
    if any(len(one) != 3 or one[1] != one[2] for one in (shape, out_shape)):
        return None
    step = max(1, round(shape[1] / out_shape[1]))
    margin = step * _longest_hop(block)
    for rows in TRIED_ROWS:
        try:
            reached = _reached(block, shape, rows, step)
        except REFUSALS:
            break
        if view := _extent(reached, step, margin):
            return view
    else:
        return _View(sees_all=True) if reached.all() else None
    try:
        reached = _reached(block, shape, shape[1], step)
    except REFUSALS:
        return None
    return _View(sees_all=True) if reached.all() else _extent(reached, step, margin)


def _view_of_tokens(block: nn.Module, shape: torch.Size) -> _View | None:
    tokens = torch.zeros(1, *shape, dtype=torch.float64)
    tokens[:, shape[0] // 2] = torch.nan
    with torch.no_grad():
        reached = block(tokens).isnan().any(-1)
    if reached.all() and shape[0] > 1:
        return _View(sees_all=True)
    return _View() if reached.sum() == 1 else None


def _reached(block: nn.Module, shape: torch.Size, rows: int, step: int) -> Tensor:
    """Which rows of the output depend on each of `step` neighbouring rows in the middle.

    Shapes:
        -> (step, rows / step), true or false.
    """
    channels, _, width = shape
    maps = torch.zeros(step, channels, rows, width, dtype=torch.float64)
    for position in range(step):
        maps[position, :, _middle(rows, step) + position] = torch.nan
    with torch.no_grad():
        out: Tensor = block(maps)
    if out.ndim != 4 or len(out) != step:
        raise ValueError(f"{rows} rows of a map came out as {tuple(out.shape)}")
    return out.isnan().any(1).any(-1)


def _extent(reached: Tensor, step: int, margin: int) -> _View | None:
    """The view that `reached` shows, None where it may go on beyond `margin` rows of an end."""
    outs = reached.shape[1]
    rows = [row for row in range(outs) if reached[:, row].any()]
    if min(rows[0], outs - 1 - rows[-1]) * step < margin:
        return None
    middle = _middle(outs * step, step)
    offsets = [middle + row - out * step for row, out in reached.nonzero().tolist()]
    return _View(step, before=-min(offsets), after=max(offsets))


def _longest_hop(block: nn.Module) -> int:
    """Rows that one kernel of the block reaches up or down at once, at least one.

    As far a dilated kernel may jump over the end of a map without a trace in its last row.
    """
    hops = [1]
    for module in block.modules():
        match module:
            case nn.Conv2d() | nn.MaxPool2d() | nn.AvgPool2d():
                size, padding = _rows(module.kernel_size), _rows(module.padding)
                span = _rows(getattr(module, "dilation", 1)) * (size - 1)
                hops += [padding, span - padding]
    return max(hops)


def _rows(setting: object) -> int:
    """Of (rows, columns), of a number for both, or of a word, which stands for no number."""
    first = setting[0] if isinstance(setting, tuple) else setting
    return first if isinstance(first, int) else 0


def _middle(rows: int, step: int) -> int:
    return rows // 2 // step * step


def _times(name: str, count: int) -> str:
    if count == 1:
        return name
    return f"{count} x ({name})" if "," in name else f"{count} x {name}"


def _params(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters() if tensor.requires_grad)
