import copy

import onnx
import pytest
import torch
from export_helpers import teach
from onnx import numpy_helper
from sample_run import sample_run
from torch import Tensor, nn

from export import mcnemar
from export.bisect import bisected
from export.blame import first_stray
from export.mcnemar import compare_answers, exact_p_value, most_lost
from export.parity import compare
from export.proof import Reference, Unproven, prove
from export.raw import RawReference
from export.target import FLOATS, ExportOptions, Tolerance
from export.to_onnx import onnx_graph
from export.to_torchexport import TorchExportTarget
from export.typed import typed_fp16
from zoo.data import Dataset
from zoo.session import EagerSession, InferenceSession

pytest_plugins = ["export_fixtures"]


# McNemar


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 32),
        (6, 0, 2 / 64),
        (1, 9, 22 / 1024),
        (5, 15, 0.041389465),
        (9, 2, 0.065429688),  # scipy.stats.binomtest(2, 11).pvalue
        (121, 59, 4.434e-06),  # a textbook's 59 and 121, binomtest(59, 180)
    ],
)
def test_p_value_is_the_exact_one(only_first: int, only_second: int, p_value: float) -> None:
    assert exact_p_value(only_first, only_second) == pytest.approx(p_value, rel=1e-3)
    assert exact_p_value(only_second, only_first) == exact_p_value(only_first, only_second)


def test_p_value_of_a_whole_test_split_is_a_number() -> None:
    assert 0 < exact_p_value(4900, 5100) < 0.05
    assert exact_p_value(0, 10_000) == 0.0  # below the smallest float


def answers(images: int, only_eager: int, only_artifact: int) -> tuple[Tensor, Tensor, Tensor]:
    """Guesses of class 0 and 1 where 0 is always right; both are right in the rest."""
    eager, artifact = torch.zeros(images, dtype=torch.long), torch.zeros(images, dtype=torch.long)
    artifact[:only_eager] = 1
    eager[only_eager : only_eager + only_artifact] = 1
    return eager, artifact, torch.zeros(images, dtype=torch.long)


def test_comparison_counts_image_by_image() -> None:
    beside = compare_answers(*answers(10_000, 12, 7), max_drop=0.0015)

    assert (beside.only_eager_right, beside.only_artifact_right) == (12, 7)
    assert (beside.eager_top1, beside.top1) == (0.9993, 0.9988)
    assert beside.is_gate
    assert beside.fault is None


@pytest.mark.parametrize(
    ("only_eager", "only_artifact", "fault"),
    [
        (15, 0, "more than chance"),  # allowed by the drop, but no accident
        (115, 100, None),  # 15 of 10,000: what 0.15 points allow
        (116, 100, "more than the 0.15 points allowed"),
        (0, 50, None),  # better, and not by chance
        (5, 0, None),
    ],
)
def test_artifact_may_be_worse_by_little_and_by_chance(
    only_eager: int, only_artifact: int, fault: str | None
) -> None:
    beside = compare_answers(*answers(10_000, only_eager, only_artifact), max_drop=0.0015)

    assert (beside.fault is None) == (fault is None)
    assert fault is None or fault in beside.fault


def test_few_images_decide_nothing() -> None:
    assert not compare_answers(*answers(9_999, 50, 0), max_drop=0.0015).is_gate


@pytest.mark.parametrize(
    ("images", "only_eager", "only_artifact", "fault"),
    [
        (10_000, 50, 0, None),  # what 0.5 points allow, although no accident
        (10_000, 51, 0, "more than the 0.50 points allowed"),
        (10_000, 1051, 1000, None),  # one more than allowed, which chance explains
        (64, 1, 0, None),
        (64, 30, 0, "top-1 fell from 100.00% to 53.12%, more than the 0.50 points allowed"),
    ],
)
def test_lossy_artifact_may_use_its_drop_and_chance_beyond_it(
    images: int, only_eager: int, only_artifact: int, fault: str | None
) -> None:
    beside = compare_answers(
        *answers(images, only_eager, only_artifact), max_drop=0.005, is_lossy=True
    )

    assert beside.is_gate
    assert (beside.fault is None) == (fault is None)
    assert fault is None or fault in beside.fault


# Noise


@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize("size", [0.01, 30.0])
def test_noise_is_a_share_of_what_tells_images_apart(classes: int, size: float) -> None:
    torch.manual_seed(0)
    reference = size * (torch.randn(4000, classes) + 3)
    near = reference + 0.3 * size * torch.randn(4000, classes)

    def noise(candidate: Tensor) -> tuple[float | None, bool]:
        parity = compare(reference, candidate, tolerance=None, noise_limit=0.75)
        return parity.noise, parity.passed

    assert noise(reference) == (0, True)
    assert noise(near) == (pytest.approx(0.3, rel=0.05), True)
    assert noise(reference.mean(0).expand(4000, -1)) == (pytest.approx(1), False)
    assert noise(reference.flip(0)) == (pytest.approx(2**0.5, rel=0.05), False)
    assert noise(torch.zeros(4000, classes))[1] is False
    assert noise(reference / 0) == (None, False)


def test_noise_is_that_of_most_images() -> None:
    """One image in a hundred is answered with logits a hundred times as large."""
    torch.manual_seed(0)
    reference = torch.randn(1000, 100)
    reference[::100] *= 100
    cut_off = reference.clamp(-5, 5)
    those_alone = torch.zeros_like(reference)
    those_alone[::100] = reference[::100]

    of_others = reference.clone()
    of_others[:110] = reference[110:220]

    few = compare(reference, cut_off, tolerance=None, noise_limit=0.75)
    confused = compare(reference, of_others, tolerance=None, noise_limit=0.75)
    most = compare(reference, those_alone, tolerance=None, noise_limit=0.75)

    assert (few.passed, few.noise) == (True, 0)
    assert not confused.passed  # one in nine gets the answer to another image
    assert (most.passed, most.noise) == (False, pytest.approx(1, rel=0.1))


def test_answers_that_hardly_differ_need_no_more_than_to_be_met() -> None:
    """Those of some untrained networks: rounding to int8 is more than what tells images apart."""
    torch.manual_seed(0)
    reference = 0.01 * torch.randn(1, 10) + 1e-6 * torch.randn(500, 10)

    for candidate, passed in ((reference.mean(0).expand(500, -1), True), (0 * reference, False)):
        parity = compare(reference, candidate, tolerance=None, noise_limit=0.75)

        assert parity.noise > 0.5
        assert parity.passed is passed


# Divergence


def test_kl_divergence_is_that_of_the_probabilities() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=torch.float64)
    by_hand = (0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))) / 2

    of_logits = compare(p.log() + 3, q.log() - 1, tolerance=None)
    of_probabilities = compare(p, q, tolerance=None, are_probabilities=True)

    assert of_logits.mean_kl == pytest.approx(by_hand.item())
    assert of_probabilities.mean_kl == pytest.approx(by_hand.item())


def test_probability_of_zero_has_a_divergence() -> None:
    sure = torch.tensor([[1.0, 0.0]])

    assert compare(sure, sure, tolerance=1e-4, are_probabilities=True).mean_kl == 0


def test_without_a_tolerance_every_finite_error_passes() -> None:
    logits = torch.tensor([[1.0, 2.0]])

    far = compare(logits, logits + 100, tolerance=None)
    broken = compare(logits, logits / 0, tolerance=None)

    assert (far.passed, far.limit) == (True, None)
    assert not broken.passed


def test_sure_images_keep_their_class_where_parity_passes() -> None:
    torch.manual_seed(0)
    reference = torch.randn(4000, 10)
    noise = torch.rand(4000, 10) * 2 - 1
    found = reference + 1e-2 * noise

    parity = compare(reference, found, tolerance=1e-2)

    best = reference.topk(2).values
    sure = best[:, 0] - best[:, 1] > 2 * parity.limit
    assert parity.passed
    assert parity.top1_agreement < 1  # some were not sure
    assert (reference.argmax(1) == found.argmax(1))[sure].all()


# The gate on accuracy


@pytest.fixture(scope="module")
def taught(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A run that is right more often than chance."""
    path = tmp_path_factory.mktemp("taught") / "resnet_20-s0"
    return Reference(sample_run(path, data, change=lambda network: teach(network, data)), data)


class ReversedSession(EagerSession):
    """The least likely class first."""

    def run(self, images: Tensor) -> Tensor:
        return -super().run(images)


LOOSE = Tolerance(logits=None, max_drop=0.0015)


def test_accuracy_is_a_gate_on_a_whole_test_split(
    taught: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcnemar, "FULL_TEST", 1000)

    with pytest.raises(
        Unproven, match=r"its accuracy failed: top-1 fell from \d\.\d\d% to .*0\.15"
    ):
        prove(ReversedSession(taught.model), taught, LOOSE)

    proof = prove(EagerSession(taught.model), taught, LOOSE)
    assert proof.comparison is not None
    assert (proof.comparison.is_gate, proof.comparison.fault) == (True, None)
    assert (proof.comparison.only_eager_right, proof.comparison.p_value) == (0, 1)


def test_accuracy_of_a_lossy_artifact_is_a_gate_on_any_test_split(taught: Reference) -> None:
    lossy = Tolerance(logits=None, max_drop=0.005, is_lossy=True)

    with pytest.raises(Unproven, match=r"its accuracy failed: top-1 fell from .*0\.50 points"):
        prove(ReversedSession(taught.model), taught, lossy)

    assert prove(EagerSession(taught.model), taught, lossy).comparison.is_gate


class TiringSession(EagerSession):
    """After 500 images its answers are no numbers."""

    seen = 0

    def run(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().run(images) / (self.seen <= 500)


@pytest.mark.parametrize("tolerance", [Tolerance(logits=1e-4), LOOSE])
def test_every_answer_is_a_number(
    taught: Reference, tolerance: Tolerance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.proof.IMAGES", 100)
    reference = Reference(taught.run, taught.data)

    with pytest.raises(Unproven, match=r"^its answer to test image \d+ is not finite$") as refusal:
        prove(TiringSession(reference.model), reference, tolerance)

    assert 100 <= refusal.value.worst_image < 500


def test_accuracy_on_fewer_images_is_reported(taught: Reference) -> None:
    proof = prove(ReversedSession(taught.model), taught, LOOSE)

    beside = proof.comparison
    assert beside is not None
    assert beside.fault is not None
    assert not beside.is_gate
    assert beside.top1 == proof.accuracy.top1 < beside.eager_top1


class BlindSession(EagerSession):
    """The same answer to every image of a batch."""

    def run(self, images: Tensor) -> Tensor:
        answers = super().run(images)
        return answers[:1].expand_as(answers)


class NoisySession(EagerSession):
    """The right answers, and errors as large as what tells one class from another."""

    def run(self, images: Tensor) -> Tensor:
        answers = super().run(images)
        return answers + answers.std(1, keepdim=True) * torch.randn_like(answers)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("is_raw", [False, True])
@pytest.mark.parametrize("kind", [BlindSession, NoisySession])
def test_a_file_of_few_bits_tells_images_apart_on_any_test_split(
    precision: str, is_raw: bool, kind: type[EagerSession], taught: Reference
) -> None:
    reference = taught.raw() if is_raw else taught
    session: InferenceSession = kind(taught.model)
    session = RawReference(session, taught.preprocessing) if is_raw else session

    assert len(taught.data.test.images) < mcnemar.FULL_TEST
    with pytest.raises(Unproven, match=r"^parity with eager failed: "):
        prove(session, reference, FLOATS[precision])


# Which layer it was


@pytest.fixture(scope="module")
def graph(taught: Reference) -> onnx.ModelProto:
    return onnx_graph(taught.model, torch.zeros(2, 3, 32, 32), metadata={"cifar_zoo_version": "0"})


def image(taught: Reference) -> Tensor:
    return taught.preprocessing.to_batch(taught.data.test.images[:1])


def changed(graph: onnx.ModelProto, convolution: int, factor: float) -> onnx.ModelProto:
    """The graph with other weights in one convolution, counted from 0."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    node = [node for node in copy.graph.node if node.op_type == "Conv"][convolution]
    for tensor in copy.graph.initializer:
        if tensor.name == node.input[1]:
            array = numpy_helper.to_array(tensor) * factor
            tensor.CopyFrom(numpy_helper.from_array(array.astype("float32"), tensor.name))
    return copy


@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_first_layer_that_is_off_is_named(
    taught: Reference, graph: onnx.ModelProto, factor: float
) -> None:
    stray = first_stray(taught.model, changed(graph, 3, factor), image(taught), 1e-4)

    assert stray is not None
    assert stray.module == "stages.0.1.first.1"  # the batch norm that lies in its convolution
    assert not stray.max_abs_error <= stray.limit


def test_no_layer_is_named_where_none_is_off(taught: Reference, graph: onnx.ModelProto) -> None:
    assert first_stray(taught.model, graph, image(taught), 1e-4) is None


def test_layers_of_a_typed_graph_are_found_too(taught: Reference, graph: onnx.ModelProto) -> None:
    stray = first_stray(taught.model, typed_fp16(graph), image(taught), 1e-6)

    assert stray is not None
    assert stray.module == "stem.1"


class SpoilingTarget(TorchExportTarget):
    """Another weight in one layer, as a compiler's fault would have it."""

    def export(self, model: nn.Module, *rest: object, **options: object) -> object:
        spoiled = copy.deepcopy(model)
        layer = dict(spoiled.named_modules()).get("model.4", nn.Identity())
        for weight in layer.parameters():
            weight.data.mul_(1.1)
        return super().export(spoiled, *rest, **options)


@pytest.mark.parametrize(
    ("target", "module"), [(SpoilingTarget(), "4"), (TorchExportTarget(), None)]
)
def test_layer_is_found_by_halving_where_a_format_shows_none(
    target: TorchExportTarget, module: str | None
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)),
    ).eval()

    stray = bisected(
        model,
        target,
        torch.randn(1, 3, 8, 8),
        tolerance=1e-4,
        precision="fp32",
        metadata={"cifar_zoo_version": "0"},
        options=ExportOptions(),
    )

    assert (stray and stray.module) == module


@pytest.mark.parametrize(("max_drop", "images", "lost"), [(0.005, 5000, 25), (0.29, 100, 29)])
def test_a_drop_of_exactly_the_limit_is_allowed(max_drop: float, images: int, lost: int) -> None:
    assert most_lost(max_drop, images) == lost
    assert most_lost(max_drop, images - 1) == lost - 1
