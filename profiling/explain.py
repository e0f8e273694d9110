"""Why a network is slower than its MACs say: the time of its operators, kind by kind.

`python -m profiling.explain FOLDER` finishes a study (`make zoo-speed`): it measures the slow
networks among the records of the folder, and writes study.json and README.md there.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from profiling.expected import Explanation, Part, markdown, study, to_json
from profiling.record import STUDY, read_records
from zoo import command
from zoo.files import write_atomic
from zoo.session import InferenceSession, open_untrained, torch_threads

README = "README.md"
REPEATS = 15  # of the forward pass; the time of an operator is its median
FEW_POSITIONS = 16
BLOCK = 16  # outputs that a convolution computes at a time
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
SHARED_WEIGHTS = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m profiling.explain`."""
    parser = command.Parser("explain", "Explain slow networks, and write README.md of a study.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds records of zoo-bench")
    args = parser.parse_args(argv)
    return command.run("explain", lambda: _finish(args.folder))


def explain_network(model: str, batch: int) -> Explanation:
    """Measure one untrained network, on the threads that torch has here."""
    session = open_untrained(f"{model}@32", "cpu")
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Explanation(batch, time_by_kind(session, images))


def time_by_kind(
    session: InferenceSession, images: Tensor, *, repeats: int = REPEATS
) -> dict[str, Part]:
    """Shares of time and of multiply-accumulates of the operators of one call, by kind.

    Note:
        What Python does between two operators belongs to neither and is left out.
    """
    session.run(images)
    passes = []
    for _ in range(repeats):
        with _OperatorTimes() as taken:
            session.run(images)
        passes.append(taken.operators)
    seconds: dict[str, float] = {}
    macs: dict[str, int] = {}
    calls: dict[str, int] = {}
    for same in zip(*passes, strict=True):  # one operator in every pass
        kind, products, _ = same[0]
        seconds[kind] = seconds.get(kind, 0.0) + statistics.median(one[2] for one in same)
        macs[kind] = macs.get(kind, 0) + products
        calls[kind] = calls.get(kind, 0) + 1
    all_seconds, all_macs = sum(seconds.values()), sum(macs.values())
    return {
        kind: Part(
            calls[kind],
            round(seconds[kind] / all_seconds, 4),
            round(macs[kind] / max(1, all_macs), 4),
        )
        for kind in sorted(seconds, key=lambda kind: -seconds[kind])
    }


class _OperatorTimes(TorchDispatchMode):
    """Notes kind, multiply-accumulates and seconds of each operator while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.operators: list[tuple[str, int, float]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:  # an operator that is made of others is seen as those
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        start = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - start
        self.operators.append((*kind_of(func._overloadpacket, args, kwargs, result), seconds))
        return result


def kind_of(
    operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> tuple[str, int]:
    """Name of the kind of an operator, among KINDS, and its multiply-accumulates."""
    if operator is ATTENTION:  # torch does not count this one: two products of queries and keys
        query, key = args[:2]
        return "dense", 2 * query.numel() * key.shape[-2]
    if operator not in flop_registry:
        return "other", 0
    macs = flop_registry[operator](*args, **kwargs, out_val=result) // 2
    if operator is torch.ops.aten.convolution:
        weight, dilation, groups = args[1], args[5], args[8]
        if groups > 1 and weight.shape[1] == 1:
            return "dilated" if max(dilation) > 1 else "depthwise", macs
        if weight.shape[0] // groups % BLOCK:
            return "narrow", macs
    channels = result.shape[1 if operator is torch.ops.aten.convolution else -1]
    is_few = operator in SHARED_WEIGHTS and result.numel() // channels <= FEW_POSITIONS
    return "few" if is_few else "dense", macs


def _finish(folder: Path) -> None:
    found = study(read_records(folder))
    explained = {}
    with torch_threads(found.environment.threads):
        for row in found.slow:
            print(f"explain: {row.model} at batch {row.slowest}", file=sys.stderr)
            explained[row.model] = explain_network(row.model, row.slowest)
    write_atomic(folder / STUDY, to_json(explained))
    write_atomic(folder / README, markdown(found, explained))
    print(folder / README)


if __name__ == "__main__":
    raise SystemExit(main())
