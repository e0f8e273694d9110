from dataclasses import dataclass, field

import pytest
import torch
from sample_run import settled, stored
from torch import Tensor, nn

from export import load_target
from export.parity import batched_logits, compare
from export.target import ExportOptions, ExportTarget
from zoo.data import Dataset, load_dataset
from zoo.errors import MachineError
from zoo.models import create_model
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession, InferenceSession

METADATA = {"cifar_zoo_version": "0"}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def images(data: Dataset) -> Tensor:
    return stored(data.test.images[:512], data)


@pytest.fixture(scope="module")
def preprocessing(data: Dataset) -> Preprocessing:
    return Preprocessing.of(data)


@pytest.fixture(scope="module")
def model(data: Dataset) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settled(create_model("resnet_20"), data)


@pytest.fixture(scope="module", params=["onnx", "torchexport", "openvino"])
def target(request: pytest.FixtureRequest) -> ExportTarget:
    """Not aoti, which compiles for a minute (test_aoti.py), nor trt, which needs a GPU."""
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    return load_target(request.param)


@pytest.fixture(scope="module")
def session(
    target: ExportTarget,
    model: nn.Module,
    images: Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> InferenceSession:
    path = tmp_path_factory.mktemp(target.name) / f"resnet_20{target.suffix}"
    target.export(
        model,
        images[:2],
        path,
        precision="fp32",
        metadata=METADATA,
        options=ExportOptions(),
    )
    return target.open(path, device="cpu")


@dataclass
class RecordingSession:
    """Eager that answers from one piece of memory, noting the size of each batch."""

    model: nn.Module
    batches: list[int] = field(default_factory=list)
    memory: Tensor = field(default_factory=lambda: torch.zeros(256, 100))
    backend: str = "eager"
    precision: str = "fp32"
    runtime: str = "torch"
    device: str = "cpu"

    def run(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return self.memory[: len(images)].copy_(EagerSession(self.model).run(images))

    def synchronize(self) -> None:
        pass


@pytest.mark.parametrize("batch", [1, 5, 256])
def test_artifact_agrees_with_eager(
    target: ExportTarget, session: InferenceSession, model: nn.Module, images: Tensor, batch: int
) -> None:
    logits = session.run(images[-batch:])

    with torch.inference_mode():
        expected = model(images[-batch:])
    torch.testing.assert_close(logits, expected, rtol=0, atol=target.tolerance["fp32"].logits)


def test_artifact_takes_any_memory_format(session: InferenceSession, images: Tensor) -> None:
    nhwc = images[:7].contiguous(memory_format=torch.channels_last)

    logits = session.run(nhwc)

    torch.testing.assert_close(logits, session.run(images[:7].contiguous()), rtol=0, atol=0)


def test_equal_logits_pass() -> None:
    logits = torch.tensor([[1.0, 2.0], [4.0, -3.0]])

    parity = compare(logits, logits.clone(), tolerance=1e-4)

    assert parity.passed
    assert (parity.images, parity.max_abs_error, parity.mean_abs_error) == (2, 0, 0)
    assert parity.top1_agreement == 1


@pytest.mark.parametrize(("error", "passed"), [(3.9e-4, True), (4.1e-4, False)])
def test_limit_is_a_share_of_the_largest_logit(error: float, passed: bool) -> None:
    reference = torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=torch.float64)
    candidate = reference + torch.tensor([[0.0, 0.0], [error, 0.0]])

    parity = compare(reference, candidate, tolerance=1e-4)

    assert parity.passed is passed
    assert parity.limit == pytest.approx(4e-4)
    assert parity.max_abs_error == pytest.approx(error)
    assert parity.mean_abs_error == pytest.approx(error / 4)
    assert parity.worst_image == 1


def test_small_logits_are_held_against_the_tolerance_itself() -> None:
    reference = torch.tensor([[1e-3, 2e-3]])

    assert compare(reference, reference, tolerance=1e-4).limit == pytest.approx(1e-4)


def test_agreement_counts_first_guesses() -> None:
    reference = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    candidate = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0], [1.0, 0.0]])

    parity = compare(reference, candidate, tolerance=1e-4)

    assert parity.top1_agreement == 0.75
    assert parity.worst_image == 0
    assert not parity.passed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_and_infinity_never_pass(value: float, side: int) -> None:
    pair = [torch.zeros(3, 2), torch.zeros(3, 2)]
    pair[side][1, 0] = value

    parity = compare(pair[0], pair[1], tolerance=1e-4)

    assert not parity.passed
    assert parity.worst_image == 1
    assert parity.top1_agreement == pytest.approx(2 / 3)


def test_equal_infinities_do_not_pass() -> None:
    logits = torch.tensor([[float("inf"), 0.0]])

    assert not compare(logits, logits, tolerance=1e-4).passed


def test_other_shape_is_refused() -> None:
    expected = r"gave logits of shape \(2, 9\) where the model gives \(2, 10\)"
    with pytest.raises(MachineError, match=expected):
        compare(torch.zeros(2, 10), torch.zeros(2, 9), tolerance=1e-4)


@pytest.mark.parametrize(
    ("count", "batches"), [(300, [1, 5, 256, 38]), (262, [1, 5, 256]), (4, [1, 3]), (1, [1])]
)
def test_logits_come_from_batches_of_many_sizes(
    model: nn.Module,
    data: Dataset,
    preprocessing: Preprocessing,
    images: Tensor,
    count: int,
    batches: list[int],
) -> None:
    session = RecordingSession(model)

    logits = batched_logits(session, data.test.images[:count], preprocessing)

    assert session.batches == batches
    torch.testing.assert_close(logits, EagerSession(model).run(images[:count]))
