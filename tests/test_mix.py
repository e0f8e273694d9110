import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from training.mix import (
    CELLS,
    UNIFORMS,
    Mixing,
    beta_quantiles,
    mix,
    mixed_cross_entropy,
    neighbours,
    quantile,
)
from training.recipe import MOST_ALPHA

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(64)


def uniforms(batch: int, *, seed: int = 1) -> Tensor:
    return torch.rand(batch, UNIFORMS, generator=torch.Generator().manual_seed(seed))


def mixing(*, mixup: float = 0.0, cutmix: float = 0.0, p: float = 1.0) -> Mixing:
    made = Mixing.of(mixup_alpha=mixup, cutmix_alpha=cutmix, p=p, device=CPU)
    assert made is not None
    return made


def assert_same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Two-sample Kolmogorov-Smirnov test at 0.1 %."""
    points = torch.cat((ours, theirs)).unique()
    gap = torch.searchsorted(ours.sort().values, points, right=True) / len(ours)
    gap -= torch.searchsorted(theirs.sort().values, points, right=True) / len(theirs)
    assert gap.abs().max() < 1.95 * math.sqrt(1 / len(ours) + 1 / len(theirs))


def test_the_largest_alpha_has_quantiles() -> None:
    found = beta_quantiles(float(MOST_ALPHA))

    assert found.isfinite().all()
    assert (found.diff() >= 0).all()
    assert 0 <= found[0] < 0.1


def test_quantiles_are_those_of_the_formulas() -> None:
    p = torch.arange(CELLS + 1, dtype=torch.float64) / CELLS
    half, two = beta_quantiles(0.5).double(), beta_quantiles(2.0).double()

    torch.testing.assert_close(beta_quantiles(1.0).double(), p, rtol=0, atol=1e-7)
    torch.testing.assert_close(half, torch.sin(math.pi / 2 * p) ** 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(3 * two**2 - 2 * two**3, p, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 5.0, 100.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = torch.distributions.Beta(alpha, alpha).sample((100_000,))

    ours = quantile(beta_quantiles(alpha), u)

    # Rounded, because shares within 1e-7 of 1 are one number to us and another to torch.
    assert_same_distribution(ours.round(decimals=5), theirs.round(decimals=5))
    assert ((ours >= 0) & (ours <= 1)).all()
    assert (beta_quantiles(alpha).diff() >= 0).all()


def test_mixup_is_its_formula(images: Tensor, labels: Tensor) -> None:
    u = uniforms(64)

    mixed, others, share = mix(mixing(mixup=0.3), images, labels, u)

    assert len(share.unique()) == 64  # each image draws its own
    for i in range(64):
        torch.testing.assert_close(
            mixed[i], share[i] * images[i] + (1 - share[i]) * images[i ^ 1], rtol=0, atol=3e-6
        )
    torch.testing.assert_close(share, quantile(beta_quantiles(0.3), u[:, 2]))
    assert others.tolist() == [i ^ 1 for i in range(64)]


def test_cutmix_pastes_the_rectangle_of_torchvision(images: Tensor, labels: Tensor) -> None:
    u = uniforms(64)

    mixed, _, share = mix(mixing(cutmix=1.0), images, labels, u)

    for i, (_, _, lam, row, column) in enumerate(u.tolist()):
        half = int(0.5 * math.sqrt(1 - lam) * 32)
        y, x = int(row * 32), int(column * 32)
        y1, x1, y2, x2 = max(y - half, 0), max(x - half, 0), min(y + half, 32), min(x + half, 32)
        expected = images[i].clone()
        expected[:, y1:y2, x1:x2] = images[i ^ 1][:, y1:y2, x1:x2]
        assert torch.equal(mixed[i], expected)
        assert share[i] == pytest.approx(1 - (y2 - y1) * (x2 - x1) / 1024)


def test_cutmix_shares_are_distributed_as_in_torchvision() -> None:
    batch = torch.zeros(20_000, 1, 32, 32)
    cutmix = v2.CutMix(alpha=0.5, num_classes=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [cutmix.make_params([batch[:1]]) for _ in range(10_000)]

    _, _, share = mix(mixing(cutmix=0.5), batch, torch.zeros(20_000), uniforms(20_000))

    assert_same_distribution(share, torch.tensor([params["lam_adjusted"] for params in theirs]))


def test_either_comes_by_its_chance() -> None:
    batch = torch.arange(2.0).repeat(10_000)[:, None, None, None].expand(-1, 1, 32, 32)

    mixed, _, share = mix(
        mixing(mixup=1.0, cutmix=1.0, p=0.6), batch, torch.zeros(20_000), uniforms(20_000)
    )

    is_whole = share == 1
    is_cut = ~is_whole & ((mixed == 0) | (mixed == 1)).flatten(1).all(dim=1)
    # Of CutMix, rectangles smaller than two pixels cut nothing: 1 - share < 1 / 256.
    assert is_cut.float().mean() == pytest.approx(0.3, abs=0.015)
    assert is_whole.float().mean() == pytest.approx(0.4, abs=0.015)


def test_what_is_not_mixed_stays_to_the_last_bit(images: Tensor, labels: Tensor) -> None:
    u = uniforms(64)

    mixed, _, share = mix(mixing(mixup=0.2, cutmix=1.0, p=0.5), images, labels, u)

    assert torch.equal(mixed[u[:, 0] >= 0.5], images[u[:, 0] >= 0.5])
    assert (share[u[:, 0] >= 0.5] == 1).all()
    assert not torch.equal(mixed[u[:, 0] < 0.5], images[u[:, 0] < 0.5])


def test_processes_that_share_a_batch_mix_as_one(images: Tensor, labels: Tensor) -> None:
    both, u = mixing(mixup=0.2, cutmix=1.0), uniforms(64)

    whole = mix(both, images, labels, u)
    parts = [mix(both, images[r], labels[r], u[r]) for r in (slice(0, 16), slice(16, 64))]

    for all_of_it, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(all_of_it, torch.cat(pieces))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_weighs_two_cross_entropies(smoothing: float) -> None:
    logits = torch.randn(16, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, share = torch.arange(16) % 10, torch.rand(16, dtype=torch.float64)

    loss = mixed_cross_entropy(logits, labels, neighbours(labels), share, label_smoothing=smoothing)

    own, other = (
        F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
        for y in (labels, neighbours(labels))
    )
    torch.testing.assert_close(loss, (share * own + (1 - share) * other).mean())


def test_the_memory_format_stays(images: Tensor, labels: Tensor) -> None:
    stored = images.contiguous(memory_format=torch.channels_last)
    both, u = mixing(mixup=0.2, cutmix=1.0), uniforms(64)

    mixed, _, _ = mix(both, stored, labels, u)

    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed, mix(both, images, labels, u)[0])


def test_one_graph_without_a_look_at_a_value(images: Tensor, labels: Tensor) -> None:
    both, u = mixing(mixup=0.2, cutmix=1.0), uniforms(64)
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")

    for got, expected in zip(
        compiled(both, images, labels, u), mix(both, images, labels, u), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert mix(_on_meta(both), *(x.to("meta") for x in (images, labels, u)))[0].is_meta


def _on_meta(one: Mixing) -> Mixing:
    assert one.mixup is not None
    assert one.cutmix is not None
    return Mixing(mixup=one.mixup.to("meta"), cutmix=one.cutmix.to("meta"), p=one.p)


def test_nothing_to_mix_is_none() -> None:
    for off in ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "p": 1.0}, {"mixup_alpha": 1.0, "p": 0}):
        assert Mixing.of(**{"cutmix_alpha": 0.0, **off}, device=CPU) is None


def test_an_odd_batch_is_refused(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="expected an even batch, got 63"):
        mix(mixing(mixup=1.0), images[:63], labels[:63], uniforms(63))


@pytest.mark.gpu
def test_gpu_mixes_the_same_without_waiting(images: Tensor, labels: Tensor) -> None:
    u, device = uniforms(64), torch.device("cuda")
    there = Mixing.of(mixup_alpha=0.2, cutmix_alpha=1.0, p=1.0, device=device)
    assert there is not None
    batch = [values.cuda() for values in (images, labels, u)]

    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed = mix(there, *batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    expected = mix(mixing(mixup=0.2, cutmix=1.0), images, labels, u)
    for ours, theirs in zip(mixed, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=3e-6)
