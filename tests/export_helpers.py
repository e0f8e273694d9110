"""What tests of exported files do to them."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from sample_run import stored

from export.artifact import Artifact
from export.cli import main
from zoo.data import Dataset

NAMES = ["onnx-fp32.json", "onnx-fp32.onnx"]


def run_of(artifact: Artifact) -> Path:
    return artifact.path.parents[1]


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "artifacts").glob("*"))


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def exit_code(arguments: list[str]) -> object:
    """Of zoo-export, whether it returns or exits."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def teach(network: torch.nn.Module, data: Dataset) -> None:
    """Set the last layer to the class means of its input, so that some answers are right."""
    inputs: list[torch.Tensor] = []
    network.head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        network(stored(data.train.images[:2000], data))
        labels = torch.from_numpy(data.train.fine[:2000].copy())
        features = torch.nn.functional.normalize(inputs[0] - inputs[0].mean(0))
        means = torch.stack([features[labels == k].sum(0) for k in range(data.num_classes)])
        network.head.weight.copy_(torch.nn.functional.normalize(means))
        network.head.bias.zero_()
