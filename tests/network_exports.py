"""Networks as a user exports them, by the targets themselves: are the files the network?"""

import copy
from pathlib import Path

import onnx
import torch
from batch_norms import batch_norms_after_convolutions, batch_norms_that_stay
from model_checks import EXAMPLE, seeded, with_values_everywhere
from sample_run import stored
from torch import Tensor, nn

from export import load_target
from export.calibrate import Calibration, right
from export.parity import compare
from export.program import traced
from export.target import INT8, ExportOptions
from zoo.data import Dataset, Split
from zoo.evaluate import predict
from zoo.models import MODELS
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession

METADATA = {"cifar_zoo_version": "0"}
# Names of one and the same network: exported once.
ALIASES = {
    "ecanet20_adaptive": "eca_resnet_20",
    "ecanet20_fixed_k3": "eca_resnet_20",
    "improved_resnet20_convnext_no_droppath": "improved_resnet20_convnext",
}
NETWORKS = sorted(MODELS.keys() - ALIASES.keys())


def prepared(name: str, images: Tensor) -> nn.Module:
    """A variant whose batch norms hold the statistics of these images."""
    model = with_values_everywhere(seeded(name)).train()
    with torch.no_grad():
        model(images)
    return model.eval()


def write(
    target: str,
    model: nn.Module,
    images: Tensor,
    folder: Path,
    *,
    precision: str = "fp32",
    options: ExportOptions | None = None,
) -> Path:
    """Export the network as zoo-export does."""
    writer = load_target(target)
    path = folder / f"model{writer.suffix}"
    writer.export(
        model,
        images[:EXAMPLE],
        path,
        precision=precision,
        metadata=METADATA,
        options=options or ExportOptions(),
    )
    return path


def limit(expected: Tensor) -> float:
    return 1e-4 * max(1.0, expected.abs().max().item())


def assert_agrees(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=limit(expected))


def assert_images_matter(logits: Tensor) -> None:
    """Otherwise two networks of nothing but biases would agree."""
    assert logits.std(0).max() > 100 * limit(logits)


def assert_one_graph(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    """Under torch.compile."""
    torch._dynamo.reset()

    with torch.no_grad():
        found = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")(images[:3])

    assert_agrees(found, logits[:3])


def assert_file_agrees(target: str, path: Path, images: Tensor, logits: Tensor) -> None:
    """At three batch sizes, each with other images; the file is removed."""
    session = load_target(target).open(path, device="cpu")
    for batch in (1, 5, 26):
        part = slice(batch // 5, batch // 5 + batch)
        assert_agrees(session.run(images[part]), logits[part])
    for file in path.parent.iterdir():
        file.unlink()


def assert_norms_are_folded(path: Path, model: nn.Module, images: Tensor) -> None:
    """No batch norm is left that a convolution could have taken."""
    proto = onnx.load(path)
    found = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    assert found == batch_norms_that_stay(traced(model, images[:EXAMPLE]))
    assert batch_norms_after_convolutions(proto) == 0


def assert_int8_agrees(model: nn.Module, data: Dataset, folder: Path) -> None:
    """As closely as an artifact has to, on images that it was not made with."""
    preprocessing = Preprocessing.of(data)
    validation = Split(images=data.train.images[64:128], fine=data.train.fine[64:128])
    eager = right(predict(EagerSession(model), validation.images, preprocessing), validation.fine)
    calibration = Calibration(
        images=data.train.images[:64],
        validation=validation,
        is_held_out=True,
        preprocessing=preprocessing,
        methods=("minmax",),
        max_drop=1.0,  # an untrained network has nothing to lose
        eager_right=lambda: eager,
    )
    images = stored(data.test.images[:100], data)
    options = ExportOptions(calibration=calibration)

    path = write("onnx", model, images, folder, precision="int8", options=options)

    session = load_target("onnx").open(path, device="cpu")
    expected, found = EagerSession(model).run(images), session.run(images)
    parity = compare(expected, found, tolerance=INT8.logits, noise_limit=INT8.noise)
    assert session.precision == "int8"
    assert parity.passed, parity
