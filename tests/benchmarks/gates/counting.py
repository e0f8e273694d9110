"""Counts that are the same on every machine: what a network costs, holds and is compiled to."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .hot_paths import MODELS, exported, network, trainer

FILE = Path(__file__).parents[1].joinpath("counts.json")
REMAKE = "if that is meant: PYTHONPATH=. .venv/bin/python tests/benchmarks/counts.py --write"
COMPILED = ("resnet_20", "improved_resnet20_convnext")
EXPORTED = ("resnet_20", "ecanet20_adaptive")
STEPS = 3
TRAIN_BATCH = 8

Counts = dict[str, dict[str, int]]


def count_models() -> Counts:
    """Trainable parameters and multiply-accumulates; those of all others stand in the registry."""
    from zoo.cost import cost_of_model

    found = {}
    for name in MODELS:
        cost = cost_of_model(network(name))
        assert cost.params is not None
        assert cost.macs is not None
        found[name] = {"params": cost.params, "macs": cost.macs}
    return found


def count_artifacts() -> Counts:
    """Nodes and bytes of exported files; the bytes of a weights file."""
    import onnx
    from safetensors.torch import save

    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        for model in EXPORTED:
            path = exported("onnx", model, folder)
            nodes = len(onnx.load(path).graph.node)
            found[f"{model}.onnx"] = {"nodes": nodes, "bytes": path.stat().st_size}
        path = exported("openvino", "resnet_20", folder)
        nodes = path.read_text().count("<layer ")
        found["resnet_20.xml"] = {"nodes": nodes, "bytes": path.stat().st_size}
        found["resnet_20.bin"] = {"bytes": path.with_suffix(".bin").stat().st_size}
    weights = save(
        {key: value.contiguous() for key, value in network("resnet_20").state_dict().items()}
    )
    return {**found, "resnet_20.safetensors": {"bytes": len(weights)}}


def count_compilations() -> Counts:
    """Graph breaks, graphs of two batch sizes, and graphs made when both are met again."""
    import torch

    found = {}
    for name in COMPILED:
        torch._dynamo.reset()
        session = network(name)
        session.compile(dynamic=False, backend="eager")
        with torch.inference_mode():
            found[name] = _compilations(
                lambda session=session: [session(torch.zeros(b, 3, 32, 32)) for b in (1, 4)]
            )
    torch._dynamo.reset()
    stepper = _stepper()
    stepper.forward_loss = torch.compile(stepper.forward_loss, dynamic=False, backend="eager")
    found["train-step"] = _compilations(stepper.take)
    torch._dynamo.reset()
    return found


def count_kernels() -> Counts:
    """What a training step of torch, without its compiler, starts: all operations but views.

    On a GPU each starts one kernel, or a few. The step includes its augmentation.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.operations = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.operations += not func.is_view
            return func(*args, **(kwargs or {}))

    stepper = _stepper()
    stepper.take()  # the optimiser makes its state in the first step
    found = {}
    for part, work in (("augmentation", stepper.batch), ("step", stepper.take)):
        stepper.drawn.clear()  # a GPU draws for each step
        with Count() as count:
            work()
        found[part] = {"kernels": count.operations}
    return found


# name -> how it is counted, and the packages whose release it depends on
GROUPS: Mapping[str, tuple[Callable[[], Counts], tuple[str, ...]]] = {
    "models": (count_models, ()),
    "artifacts": (count_artifacts, ("torch", "onnx", "onnxscript", "openvino", "safetensors")),
    "compilations": (count_compilations, ("torch", "accelerate")),
    "kernels": (count_kernels, ("torch", "accelerate")),
}


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """What of these packages is installed, without the build that a release is of."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = None
    return found


def other_versions(group: str, stored: Mapping[str, Any]) -> str | None:
    """Why the counts of a group cannot be compared here; None: they can."""
    here = versions(GROUPS[group][1])
    there = {package: stored["versions"].get(package) for package in here}
    for package, release in here.items():
        if release is None:
            return f"the package {package} is not installed"
        if release != there[package]:
            return f"counted with {package} {there[package]}, this is {release}"
    return None


def differences(stored: Counts, found: Counts) -> Iterator[str]:
    """One line for each count that moved, came or went: what it was and what it is."""
    for name in sorted(stored.keys() | found.keys()):
        old, new = stored.get(name, {}), found.get(name, {})
        for what in sorted(old.keys() | new.keys()):
            if old.get(what) != new.get(what):
                yield f"{what} of {name}: {_text(old.get(what))} -> {_text(new.get(what))}"


def _stepper() -> Any:
    stepper = trainer(TRAIN_BATCH).stepper
    stepper.train_mode()
    stepper.begin(1)
    return stepper


def _compilations(work: Callable[[], object]) -> dict[str, int]:
    from torch._dynamo.utils import counters

    counters.clear()
    work()
    graphs = counters["stats"]["unique_graphs"]
    for _ in range(STEPS):
        work()
    again = counters["stats"]["unique_graphs"] - graphs
    return {
        "graph breaks": sum(counters["graph_break"].values()),
        "graphs": graphs,
        "recompilations": again,
    }


def _text(count: int | None) -> str:
    return "none" if count is None else f"{count:,}"
