import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sample_images import varied_images
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from training import geometry, trivial
from training.auto_augment import (
    AUTO_LEVELS,
    OPERATIONS,
    PLACE,
    Auto,
    Policy,
    Rand,
    Tables,
    Trivial,
    make_policy,
)
from training.jitter import UNIFORMS, color_jitter, draw, hue
from training.stage import apply_stage, moves, retouch_all, retouch_groups

CPU = torch.device("cpu")
# Without a fused multiply-add torchvision rounds twice where we round once: one level of 255.
SLACK = 0 if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 1
KINDS = {
    "trivial": v2.TrivialAugmentWide(),
    "rand": v2.RandAugment(num_ops=2, magnitude=7),
    "auto": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
}
LEVELS = {"trivial": trivial.LEVELS, "rand": trivial.LEVELS, "auto": AUTO_LEVELS}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return varied_images()


def policy(kind: str, *, size: int = 32, ops: int = 2, magnitude: int = 7) -> Policy:
    made = make_policy(kind, rand_ops=ops, rand_magnitude=magnitude, size=size, device=CPU)
    assert made is not None
    return made


def uniforms(batch: int, count: int, *, seed: int = 0) -> Tensor:
    return torch.rand(batch, count, generator=torch.Generator().manual_seed(seed))


def through_torchvision(kind: str, image: Tensor, name: str, magnitude: float) -> Tensor:
    transform = KINDS[kind]
    return transform._apply_image_or_video_transform(
        image, name, magnitude, transform.interpolation, transform._fill
    )


def strengths(kind: str, name: str, *, size: int = 32) -> Iterator[tuple[float, int]]:
    """Every strength that torchvision gives an operation, with our column of it."""
    levels = LEVELS[kind]
    steps, is_signed = KINDS[kind]._AUGMENTATION_SPACE[name]
    values = steps(levels, size, size)
    for level in range(levels):
        strength = 0.0 if values is None else float(values[level])
        for sign in (1, -1) if is_signed else (1,):
            yield sign * strength, levels - 1 + sign * level


@pytest.mark.parametrize("kind", ["rand", "auto"])
@pytest.mark.parametrize("name", [operation.name for operation in OPERATIONS])
def test_operation_equals_torchvision_at_every_strength(
    kind: str, name: str, images: Tensor
) -> None:
    if name not in KINDS[kind]._AUGMENTATION_SPACE:
        return
    for strength, column in strengths(kind, name):
        if kind == "rand":  # its tables hold one strength, negative and positive
            level = column - trivial.LEVELS + 1
            tables, column = rand_tables(abs(level)), int(level >= 0)
        else:
            tables = policy(kind).tables
        operation = torch.full((len(images),), PLACE[name])

        changed = apply_stage(tables, images, operation, torch.full_like(operation, column))

        expected = torch.stack([through_torchvision(kind, x, name, strength) for x in images])
        gap = (changed.int() - expected.int()).abs().max()
        assert gap <= SLACK, f"strength {strength}"


_RAND: dict[int, Tables] = {}


def rand_tables(magnitude: int) -> Tables:
    return _RAND.setdefault(magnitude, policy("rand", magnitude=magnitude).tables)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 48])
def test_a_batch_equals_torchvision_image_by_image(kind: str, size: int, images: Tensor) -> None:
    batch = torch.cat((images, images), dim=-1).repeat(4, 1, 2, 1)[..., :size, :size].contiguous()
    chosen = policy(kind, size=size, magnitude=11)
    stages = chosen.stages(uniforms(len(batch), chosen.uniforms))

    changed, expected = batch, list(batch)
    for operation, column in stages:
        changed = apply_stage(chosen.tables, changed, operation, column)
        for i, (row, place) in enumerate(zip(operation.tolist(), column.tolist(), strict=True)):
            strength = float(chosen.tables.magnitudes[row, place])
            expected[i] = through_torchvision(kind, expected[i], OPERATIONS[row].name, strength)

    assert (changed.int() - torch.stack(expected).int()).abs().max() <= SLACK * len(stages)


@pytest.mark.parametrize("kind", KINDS)
def test_all_at_once_equals_by_groups(kind: str, images: Tensor) -> None:
    batch, chosen = images.repeat(8, 1, 1, 1), policy(kind)

    for operation, column in chosen.stages(uniforms(len(batch), chosen.uniforms)):
        choice = (chosen.tables, batch, operation, column)
        assert torch.equal(retouch_all(*choice), retouch_groups(*choice))


Choice = tuple[tuple[str, float], ...]  # of one image: names and strengths, what is left alone out


def our_choices(kind: str, draws: int) -> Counter[Choice]:
    chosen = policy(kind)
    stages = chosen.stages(uniforms(draws, chosen.uniforms))
    found = torch.stack([torch.stack(stage, 1) for stage in stages], 1)  # (B, stages, 2)
    seen: Counter[Choice] = Counter()
    for rows, count in zip(*found.unique(dim=0, return_counts=True), strict=True):
        named = [
            (OPERATIONS[row].name, float(chosen.tables.magnitudes[row, column]))
            for row, column in rows.tolist()
        ]
        seen[_as_seen(kind, named)] += int(count)
    return seen


def their_choices(kind: str, draws: int, monkeypatch: pytest.MonkeyPatch) -> Counter[Choice]:
    met: list[tuple[str, float]] = []

    def note(image: Tensor, name: str, magnitude: float, *_: Any, **__: Any) -> Tensor:
        met.append((name, magnitude))
        return image

    monkeypatch.setattr(KINDS[kind], "_apply_image_or_video_transform", note)
    seen: Counter[Choice] = Counter()
    blank = torch.zeros(3, 32, 32, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for _ in range(draws):
            met.clear()
            KINDS[kind](blank)
            seen[_as_seen(kind, met)] += 1
    return seen


def _as_seen(kind: str, named: list[tuple[str, float]]) -> Choice:
    """One spelling of what has the same effect; AutoAugment leaves out what it does not do."""
    has_strength = {
        name: steps(LEVELS[kind], 32, 32) is not None
        for name, (steps, _) in KINDS[kind]._AUGMENTATION_SPACE.items()
    }
    return tuple(
        (name, strength + 0.0 if has_strength.get(name) else 0.0)  # + 0.0: -0.0 is 0.0
        for name, strength in named
        if not (kind == "auto" and name == "Identity")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_choices_are_distributed_as_in_torchvision(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = our_choices(kind, 100_000), their_choices(kind, 5_000, monkeypatch)

    assert ours.total() == 100_000
    assert theirs.keys() <= ours.keys()
    assert probability(ours, theirs) > 1e-3


def probability(ours: Counter[Choice], theirs: Counter[Choice]) -> float:
    """That two samples of one distribution differ so much: chi-square, rare choices together."""
    common = [key for key in ours if ours[key] >= 100]
    counts = torch.tensor([[ours[key] for key in common], [theirs[key] for key in common]])
    rest = torch.tensor([[ours.total()], [theirs.total()]]) - counts.sum(1, keepdim=True)
    table = torch.cat((counts, rest), dim=1).double() if rest.any() else counts.double()
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    square = ((table - expected) ** 2 / expected).sum()
    freedom = torch.tensor(table.shape[1] - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, square / 2))


def test_auto_takes_each_pair_at_its_chance() -> None:
    """Against the chances themselves: 100,000 draws, the two halves of a pair together."""
    theirs = KINDS["auto"]
    expected: Counter[Choice] = Counter()
    for pair in theirs._policies:
        options = []
        for name, chance, level in pair:
            steps, is_signed = theirs._AUGMENTATION_SPACE[name]
            values = steps(AUTO_LEVELS, 32, 32)
            strength = 0.0 if values is None else float(values[level])
            signs = (0.5, -0.5) if is_signed else (1.0,)
            done = [((name, math.copysign(1, s) * strength), chance * abs(s)) for s in signs]
            options.append([(None, 1 - chance), *done])
        for first, a in options[0]:
            for second, b in options[1]:
                met = [step for step in (first, second) if step is not None]
                expected[_as_seen("auto", met)] += a * b / 25 * 1e6  # in millionths

    ours = our_choices("auto", 100_000)

    likely = Counter({key: round(count) for key, count in expected.items() if count >= 1})
    assert ours.keys() == likely.keys()
    square = sum((ours[key] - expected[key] / 10) ** 2 / (expected[key] / 10) for key in likely)
    half = torch.tensor((len(likely) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(half, torch.tensor(square / 2, dtype=torch.float64)) > 1e-3


def test_extreme_random_numbers_choose_within_the_tables() -> None:
    most = torch.tensor(1.0).nextafter(torch.tensor(0.0))
    for kind in KINDS:
        chosen = policy(kind)
        for u in (torch.zeros(1, chosen.uniforms), most.expand(1, chosen.uniforms)):
            for operation, column in chosen.stages(u):
                assert 0 <= operation < len(chosen.tables.magnitudes)
                assert 0 <= column < chosen.tables.magnitudes.shape[1]


def test_the_number_of_operations_is_that_of_the_recipe() -> None:
    for count in (1, 3):
        chosen = policy("rand", ops=count)

        assert len(chosen.stages(uniforms(5, chosen.uniforms))) == count
    assert make_policy("none", rand_ops=2, rand_magnitude=9, size=32, device=CPU) is None
    for kind, made in {"trivial": Trivial, "rand": Rand, "auto": Auto}.items():
        assert isinstance(policy(kind), made)


@pytest.mark.parametrize("kind", ["rand", "auto"])
def test_choices_and_changes_are_one_graph_without_a_look_at_a_value(
    kind: str, images: Tensor
) -> None:
    chosen, batch = policy(kind), images.repeat(2, 1, 1, 1)

    def augment(images: Tensor, u: Tensor) -> Tensor:
        for operation, column in chosen.stages(u):
            images = geometry.move(images, moves(chosen.tables, operation, column))
            images = retouch_all(chosen.tables, images, operation, column)
        return images

    u = uniforms(len(batch), chosen.uniforms)
    compiled = torch.compile(augment, fullgraph=True, backend="eager")

    assert torch.equal(compiled(batch, u), augment(batch, u))


def test_a_device_without_values_is_enough(images: Tensor) -> None:
    tables = policy("auto").tables
    meta = Tables(magnitudes=tables.magnitudes.to("meta"), sources=tables.sources.to("meta"))
    empty = torch.empty(16, dtype=torch.int64, device="meta")

    changed = apply_stage(meta, images.to("meta"), empty, empty)

    assert changed.shape == images.shape


def test_a_name_that_moves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="'Invert' moves no pixels: expected one of ShearX"):
        geometry.source("Invert", 0.0, 32)


def test_colour_jitter_equals_torchvision_image_by_image(images: Tensor) -> None:
    batch = images.repeat(4, 1, 1, 1)
    u = uniforms(len(batch), UNIFORMS)

    changed = color_jitter(batch, 0.2, u)

    operations = (
        *(vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation),
        vision.adjust_hue,
    )
    expected = []
    for image, row in zip(batch, u, strict=True):
        order = row[:4].argsort().tolist()
        factors = (0.2 * (2 * row[4:] - 1) + torch.tensor((1, 1, 1, 0))).tolist()
        for place in order:
            image = operations[place](image, factors[place])
        expected.append(image)
    gap = (changed.int() - torch.stack(expected).int()).abs()
    # One level of the hue may grow where saturation and contrast follow it.
    assert gap.max() <= 2
    assert (gap > 0).float().mean() < 0.01


def test_all_but_the_hue_is_exact_in_a_jitter(images: Tensor) -> None:
    u = uniforms(len(images), UNIFORMS)
    u[:, :4] = torch.tensor((0.1, 0.2, 0.3, 0.4))  # the hue comes last

    changed = color_jitter(images, 0.2, u)

    before = torch.stack([_three_steps(x, row) for x, row in zip(images, u, strict=True)])
    expected = hue(before, (0.2 * (2 * u[:, 7] - 1)).view(-1, 1, 1, 1))
    assert (changed.int() - expected.int()).abs().max() <= 3 * SLACK


def _three_steps(image: Tensor, row: Tensor) -> Tensor:
    brightness, contrast, saturation = (1 + 0.2 * (2 * row[4:7] - 1)).tolist()
    image = vision.adjust_brightness(image, brightness)
    return vision.adjust_saturation(vision.adjust_contrast(image, contrast), saturation)


@pytest.mark.parametrize("turn", [-0.5, -0.2, -0.07, 0.0, 0.1, 0.2, 0.5])
def test_hue_is_within_a_level_of_torchvision(turn: float, images: Tensor) -> None:
    turned = hue(images, torch.full((len(images), 1, 1, 1), turn))

    gap = (turned.int() - vision.adjust_hue(images, turn).int()).abs()
    assert gap.max() <= 1
    assert (gap > 0).float().mean() < 0.01


def test_jitter_draws_are_uniform() -> None:
    order, magnitudes = draw(0.2, uniforms(100_000, UNIFORMS))

    orders = order.unique(dim=0, return_counts=True)[1]
    assert len(orders) == 24
    assert_even(orders)
    assert magnitudes.abs().max() <= 0.2
    for column in magnitudes.unbind(1):
        assert_even((column.add(0.2) / 0.02).long().clamp(0, 19).bincount())


def assert_even(counts: Tensor) -> None:
    mean = counts.double().mean()
    square = ((counts - mean) ** 2 / mean).sum()
    half = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(half, square / 2) > 1e-3


def test_jitter_is_one_graph_without_a_look_at_a_value(images: Tensor) -> None:
    u = uniforms(len(images), UNIFORMS)
    compiled = torch.compile(color_jitter, fullgraph=True, backend="eager")

    assert torch.equal(compiled(images, 0.2, u), color_jitter(images, 0.2, u))
    assert color_jitter(images.to("meta"), 0.2, u.to("meta")).is_meta


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_gives_the_same_without_waiting(kind: str, images: Tensor) -> None:
    batch, chosen = images.repeat(8, 1, 1, 1), policy(kind)
    u = uniforms(len(batch), chosen.uniforms)
    there = make_policy(kind, rand_ops=2, rand_magnitude=7, size=32, device=torch.device("cuda"))
    assert there is not None
    expected = batch
    for operation, column in chosen.stages(u):
        expected = apply_stage(chosen.tables, expected, operation, column)
    changed, u = batch.cuda(), u.cuda()

    torch.cuda.set_sync_debug_mode("error")
    try:
        for operation, column in there.stages(u):
            changed = apply_stage(there.tables, changed, operation, column)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert torch.equal(changed.cpu(), expected)


@pytest.mark.gpu
def test_gpu_jitters_without_waiting(images: Tensor) -> None:
    u = uniforms(len(images), UNIFORMS)
    on_device, v = images.cuda(), u.cuda()

    torch.cuda.set_sync_debug_mode("error")
    try:
        changed = color_jitter(on_device, 0.2, v)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert (changed.cpu().int() - color_jitter(images, 0.2, u).int()).abs().max() <= 2
