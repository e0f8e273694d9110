"""Time and multiply-accumulates of a network layer by layer, on torch without a compiler."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from profiling.latency import warm_up
from profiling.subject import Subject
from profiling.tables import millions, number, percent
from zoo.anatomy import describe
from zoo.cost import on_meta
from zoo.errors import MachineError, first_line
from zoo.session import EagerSession, torch_threads
from zoo.text import columns

WARM_UP_SHARE = 0.2  # of the budget, at most
LEAST_PASSES, MOST_PASSES = 5, 300
MOST_OPERATORS = 3  # named of a module that has children


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One module without what its children do: a leaf, or what a block itself computes."""

    name: str  # empty for the network
    kind: str
    output_shape: tuple[int, ...] | None  # with the batch; None where it is no one tensor
    params: int  # trainable
    macs: int  # of one image
    time_ms: float  # in one call of the network, median


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTimes:
    """All layers of one network at one batch size."""

    model: str
    backend: str
    runtime: str
    device: str
    threads: int
    batch: int
    image_shape: tuple[int, int, int]
    params: int
    macs: int  # of one image
    forward_ms: float  # of whole calls without timers inside, median
    passes: int  # timed calls of each kind, in turns
    layers: tuple[Layer, ...]  # in the order of their ends
    between_ms: float  # of modules that only call others: Python

    @property
    def layers_ms(self) -> float:
        """Sum of all layers and of what lies between them."""
        return self.between_ms + sum(layer.time_ms for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values, the sum included."""
        return asdict(self) | {"layers_ms": self.layers_ms}


def layer_times(
    session: EagerSession,
    name: str,
    *,
    image_shape: tuple[int, int, int],
    batch: int,
    budget_s: float,
) -> LayerTimes:
    """Count every layer on the meta device, and time it in calls on random images.

    Calls with a timer around each module take turns with calls without any. A layer's time is the
    median over the calls, without the time of the modules that it calls. Their MACs add up to those
    of the network. On a GPU the timers are events of the stream.

    Raises:
        ValueError: no budget, or a batch below 1.
    """
    if batch < 1 or not budget_s > 0:
        raise ValueError(f"no layer times with batch {batch} and budget_s {budget_s}")
    counted = _count(session.model, image_shape)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch, *image_shape), generator=generator).to(session.device)
    warm_up(session, images, seconds=WARM_UP_SHARE * budget_s)
    clock = _cuda_clock(session.device) if session.device.startswith("cuda") else _host_clock
    whole: list[float] = []
    by_module: list[dict[str, float]] = []
    end = time.perf_counter() + (1 - WARM_UP_SHARE) * budget_s
    while len(whole) < MOST_PASSES and (len(whole) < LEAST_PASSES or time.perf_counter() < end):
        start = time.perf_counter()
        session.run(images)
        session.synchronize()
        whole.append(1e3 * (time.perf_counter() - start))
        by_module.append(_timed_pass(session, images, clock))
    medians = {
        module: statistics.median(times.get(module, 0.0) for times in by_module)
        for module in by_module[0]
    }
    layers = tuple(
        Layer(
            name=key,
            kind=one.kind,
            output_shape=None if one.shape is None else (batch, *one.shape),
            params=one.params,
            macs=one.macs,
            time_ms=medians.get(key, 0.0),
        )
        for key, one in counted.items()
        if one.is_layer
    )
    between = sum(ms for key, ms in medians.items() if not counted[key].is_layer)
    return LayerTimes(
        model=name,
        backend=session.backend,
        runtime=session.runtime,
        device=session.device,
        threads=torch.get_num_threads(),
        batch=batch,
        image_shape=image_shape,
        params=sum(x.numel() for x in session.model.parameters() if x.requires_grad),
        macs=sum(one.macs for one in counted.values()),
        forward_ms=statistics.median(whole),
        passes=len(whole),
        layers=layers,
        between_ms=between,
    )


def of_subject(
    subject: Subject,
    *,
    batches: Sequence[int],
    budget_s: float,
    device: str = "cpu",
    threads: int | None = None,
) -> list[LayerTimes]:
    """Open what eager torch runs, here in this process, and time its layers at each batch size.

    Raises:
        MachineError: memory ran out, or the network needs more than shapes to be followed.
    """
    consent = {} if subject.allow is None else {"allow": subject.allow}
    name, shape = subject.model, subject.image_shape
    with torch_threads(threads):
        session = resolve_name(subject.opener)(subject.path, device, **consent)
        try:
            return [
                layer_times(session, name, image_shape=shape, batch=batch, budget_s=budget_s)
                for batch in batches
            ]
        except (RuntimeError, MemoryError) as error:
            why = first_line(error)
            raise MachineError(f"the layers of {name} cannot be timed: {why}") from error


# Counting -----------------------------------------------------------------------------------


@dataclass
class _Counted:
    kind: str
    params: int
    macs: int = 0
    shape: tuple[int, ...] | None = None
    is_layer: bool = False  # it computes something by itself


class _Operators(TorchDispatchMode):
    """Names of the operators so far, those left out that only look at their input otherwise."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not func.is_view and func.overloadpacket is not torch.ops.aten.empty:
            self.names.append(func.overloadpacket.__name__.strip("_"))
        return func(*args, **(kwargs or {}))


def _count(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, _Counted]:
    """What each module computes without its children, in the order of their ends."""
    twin = on_meta(model).eval()
    found: dict[str, _Counted] = {}
    stack: list[
        list[Any]
    ] = []  # of each open module: FLOPs and operators before it, its children's
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        _Operators() as operators,
    ):

        def enter(name: str, module: nn.Module) -> None:
            stack.append([counter.get_total_flops(), len(operators.names), 0, []])

        def leave(name: str, module: nn.Module, out: object) -> None:
            flops, start, inner_flops, inner = stack.pop()
            flops, names = counter.get_total_flops() - flops, operators.names[start:]
            own = _own(names, start, inner)
            if stack:
                stack[-1][2] += flops
                stack[-1][3].append((start, start + len(names)))
            one = found.pop(name, None) or _Counted(_kind(module, own), _own_params(module))
            one.macs += (flops - inner_flops) // 2
            one.shape = tuple(out.shape[1:]) if isinstance(out, Tensor) else None
            one.is_layer |= bool(own or one.macs or one.params)
            found[name] = one

        with _watched(twin, enter, leave):
            twin(torch.empty((1, *image_shape), device="meta"))
    return found


def _own(names: list[str], start: int, inner: Sequence[tuple[int, int]]) -> list[str]:
    """Names of the operators that no child called."""
    ranges = [range(a - start, b - start) for a, b in inner]
    return [name for place, name in enumerate(names) if not any(place in one for one in ranges)]


def _kind(module: nn.Module, own: Sequence[str]) -> str:
    if not any(True for _ in module.children()):
        return describe(module)
    distinct = list(dict.fromkeys(own))
    more = ", ..." if len(distinct) > MOST_OPERATORS else ""
    return f"{type(module).__name__}: {', '.join(distinct[:MOST_OPERATORS])}{more}"


def _own_params(module: nn.Module) -> int:
    return sum(x.numel() for x in module.parameters(recurse=False) if x.requires_grad)


@contextmanager
def _watched(
    model: nn.Module,
    enter: Callable[[str, nn.Module], None],
    leave: Callable[[str, nn.Module, object], None],
) -> Iterator[None]:
    """Call `enter` before and `leave` after every module."""
    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda m, _, name=name: enter(name, m)))
            handles.append(
                module.register_forward_hook(lambda m, _, out, name=name: leave(name, m, out))
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


# Timing -------------------------------------------------------------------------------------

Mark = Any  # a moment: seconds, or an event


def _host_clock() -> Mark:
    return time.perf_counter()


def _cuda_clock(device: str) -> Callable[[], Mark]:
    """Events of this device's stream; that of the current device may be another's."""
    stream = torch.cuda.current_stream(device)

    def mark() -> Mark:
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    return mark


def _between_ms(start: Mark, end: Mark) -> float:
    if isinstance(start, float):
        return float(1e3 * (end - start))
    return float(start.elapsed_time(end))


def _timed_pass(
    session: EagerSession, images: Tensor, clock: Callable[[], Mark]
) -> dict[str, float]:
    """Milliseconds of every module without those that it calls, over all its calls."""
    spans: list[tuple[str, Mark, Mark, list[tuple[Mark, Mark]]]] = []
    stack: list[tuple[Mark, Mark, list[tuple[Mark, Mark]]]] = []

    def enter(name: str, module: nn.Module) -> None:
        came = clock()
        stack.append((came, clock(), []))

    def leave(name: str, module: nn.Module, out: object) -> None:
        ended = clock()
        came, started, inside = stack.pop()
        spans.append((name, started, ended, inside))
        if stack:
            stack[-1][2].append((came, clock()))  # what a timer costs is nobody's

    with _watched(session.model, enter, leave):
        session.run(images)
    session.synchronize()
    times: dict[str, float] = {}
    for name, started, ended, inside in spans:
        children = sum(_between_ms(*one) for one in inside)
        times[name] = times.get(name, 0.0) + max(0.0, _between_ms(started, ended) - children)
    return times


# Text ---------------------------------------------------------------------------------------


def layers_text(times: LayerTimes) -> str:
    """A table with one line a layer, and what the sums say of the whole."""
    lines = [["layer", "what", "output", "params", "MACs M", "ms", "time %", "GMAC/s"]]
    for layer in times.layers:
        rate = layer.macs * times.batch / layer.time_ms / 1e6 if layer.time_ms else None
        lines.append(
            [
                layer.name or "(network)",
                layer.kind,
                "" if layer.output_shape is None else "x".join(map(str, layer.output_shape)),
                f"{layer.params:,}" if layer.params else "",
                millions(layer.macs) if layer.macs else "",
                number(layer.time_ms),
                percent(layer.time_ms / times.layers_ms, 1),
                number(rate) if layer.macs else "",
            ]
        )
    share = percent(times.between_ms / times.layers_ms, 1)
    lines.append(["(between)", "Python", "", "", "", number(times.between_ms), share, ""])
    total = number(times.layers_ms)
    lines.append(["sum", "", "", f"{times.params:,}", millions(times.macs), total, "100.0", ""])
    image = "x".join(map(str, times.image_shape))
    threads = f"{times.threads} thread{'s' if times.threads > 1 else ''}"
    head = f"{times.model}, {times.backend}, b{times.batch} of {image}, {times.device}, {threads}"
    foot = (
        f"A whole call without timers takes {number(times.forward_ms)} ms: the sum is "
        f"{percent(times.layers_ms / times.forward_ms, 0)}% of it. Medians of {times.passes} calls "
        "each, in turns."
    )
    table = "".join(f"{line}\n" for line in columns(lines, right=range(3, 8)))
    return f"{head}\n{table}{foot}\n"
