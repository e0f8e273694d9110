import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from training import trivial
from training.augment import Draw, Policy, apply, draw, shuffled, step_generator
from zoo.data import MEAN, STD, load_dataset
from zoo.preprocess import Preprocessing

OFF = Policy(crop_padding=0, flip_p=0.0, trivial=False, erase_p=0.0)
LEVELS = range(1 - trivial.LEVELS, trivial.LEVELS)
# Without a fused multiply-add torchvision rounds twice where we round once: one level of 255.
SLACK = 0 if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 1
FED = Preprocessing(32, MEAN, STD)
BYTES = Preprocessing(32, (0.0, 0.0, 0.0), (1 / 255,) * 3)  # leaves the levels as they are


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Noise, ramps, grey, two values, one value, a narrow range; real ones: (16, 3, 32, 32)."""
    noise = torch.randint(0, 256, (3, 3, 32, 32), generator=step_generator(0, 0, 0))
    ramp = torch.arange(0, 256, 8).expand(3, 32, 32)
    ramps = torch.stack((ramp[0], ramp[1].T, (ramp[2] + ramp[2].T) // 2))
    grey = noise[1:2, :1].expand(1, 3, 32, 32)
    two = noise[2:] // 128 * 255
    one = torch.tensor((0, 77, 255)).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    narrow = 100 + noise[:1] // 16
    made = torch.cat((noise, ramps[None], grey, two, one, narrow)).to(torch.uint8)
    real = torch.tensor(load_dataset("cifar100-mini").train.images[:8]).permute(0, 3, 1, 2)
    return torch.cat((made, real))


def chosen(batch: int, *, operation: int = 0, level: int = 0) -> Draw:
    return replace(
        draw(OFF, batch, step_generator(0, 0, 0)),
        operation=torch.full((batch,), operation),
        level=torch.full((batch,), level),
    )


def through_torchvision(policy: Policy, image: Tensor, choice: Draw) -> Tensor:
    """One image (3, S, S) and its row of a draw, step by step."""
    size = image.shape[-1]
    image = vision.pad(image, [policy.crop_padding] * 4)
    image = vision.crop(image, int(choice.top), int(choice.left), size, size)
    image = vision.horizontal_flip(image) if choice.is_flipped else image
    image = operate_as_torchvision(image, int(choice.operation), int(choice.level))
    values = vision.normalize(vision.to_dtype(image, torch.float32, scale=True), MEAN, STD)
    top, left, height, width = choice.erase.flatten().tolist()
    return vision.erase(values, top, left, height, width, v=torch.zeros(1))


def operate_as_torchvision(image: Tensor, operation: int, level: int) -> Tensor:
    transform = v2.TrivialAugmentWide()
    name = trivial.OPERATIONS[operation].name
    steps = transform._AUGMENTATION_SPACE[name][0](trivial.LEVELS, *image.shape[-2:])
    magnitude = 0.0 if steps is None else float(steps[abs(level)])
    if level < 0 and transform._AUGMENTATION_SPACE[name][1]:
        magnitude = -magnitude
    return transform._apply_image_or_video_transform(
        image, name, magnitude, transform.interpolation, transform._fill
    )


def assert_uniform(values: Tensor, weights: Tensor) -> None:
    """Chi-square of the counts of 0, 1, ... against the weights, within 4 deviations."""
    counts = values.bincount(minlength=len(weights)).double()
    expected = weights.double() / weights.sum() * len(values)
    freedom = len(weights) - 1
    assert len(counts) == len(weights)
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom)


def assert_same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Two-sample Kolmogorov-Smirnov test at 0.1 %."""
    points = torch.cat((ours, theirs)).unique()
    gap = torch.searchsorted(ours.sort().values, points, right=True) / len(ours)
    gap -= torch.searchsorted(theirs.sort().values, points, right=True) / len(theirs)
    assert gap.abs().max() < 1.95 * math.sqrt(1 / len(ours) + 1 / len(theirs))


def test_operations_are_those_of_torchvision() -> None:
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE

    assert [operation.name for operation in trivial.OPERATIONS] == list(space)
    for operation, ours in zip(trivial.OPERATIONS, trivial.magnitudes(), strict=True):
        steps, is_signed = space[operation.name]
        theirs = steps(trivial.LEVELS, 32, 32)
        assert operation.is_signed == is_signed
        assert ours[trivial.LEVELS - 1 :].tolist() == (
            [0] * 31 if theirs is None else theirs.tolist()
        )


@pytest.mark.parametrize("operation", range(14), ids=lambda row: trivial.OPERATIONS[row].name)
def test_operation_equals_torchvision_at_every_level(operation: int, images: Tensor) -> None:
    for level in LEVELS:
        draws = chosen(len(images), operation=operation, level=level)

        values = apply(OFF, images, draws, BYTES)

        expected = torch.stack([operate_as_torchvision(x, operation, level) for x in images])
        assert (values - expected).abs().max() <= SLACK, f"level {level}"


@pytest.mark.parametrize("size", [24, 33])
def test_other_image_sizes_move_as_in_torchvision(size: int, images: Tensor) -> None:
    some = torch.cat((images, images), dim=-1).repeat(1, 1, 2, 1)[..., :size, :size].contiguous()
    for operation in range(trivial.MOVES.start, trivial.MOVES.stop):
        for level in (-30, -17, -1, 0, 8, 20, 29):
            draws = chosen(len(some), operation=operation, level=level)

            values = apply(OFF, some, draws, replace(BYTES, image_size=size))

            expected = torch.stack([operate_as_torchvision(x, operation, level) for x in some])
            assert torch.equal(values, expected.float()), f"operation {operation}, level {level}"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "policy", [Policy(), Policy(crop_padding=0), Policy(crop_padding=7, trivial=False, erase_p=1)]
)
def test_a_mixed_batch_equals_torchvision_image_by_image(
    policy: Policy, channels_last: bool, images: Tensor
) -> None:
    batch = images.repeat(8, 1, 1, 1)
    draws = draw(policy, len(batch), step_generator(1, 2, 3))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    stored = batch.contiguous(memory_format=layout)

    values = apply(policy, stored, draws, FED, channels_last=channels_last)

    one_by_one = [
        through_torchvision(policy, batch[i], draws.rows(slice(i, i + 1)))
        for i in range(len(batch))
    ]
    atol = 1e-6 + SLACK / 255 / min(STD)
    torch.testing.assert_close(values, torch.stack(one_by_one), rtol=0, atol=atol)
    assert values.is_contiguous(memory_format=layout)


def test_nothing_switched_on_is_the_normalisation_of_evaluation(images: Tensor) -> None:
    values = apply(OFF, images, draw(OFF, len(images), step_generator(0, 0, 0)), FED)

    evaluated = FED.to_batch(images.permute(0, 2, 3, 1))
    assert torch.equal(values, evaluated)


def test_choices_are_uniform() -> None:
    draws = draw(Policy(), 100_000, step_generator(0, 0, 0))

    assert_uniform(draws.top, torch.ones(9))
    assert_uniform(draws.left, torch.ones(9))
    assert_uniform(draws.top * 9 + draws.left, torch.ones(81))
    assert_uniform(draws.is_flipped.long(), torch.ones(2))
    assert_uniform(draws.operation, torch.ones(14))
    for row, operation in enumerate(trivial.OPERATIONS):
        levels = draws.level[draws.operation == row]
        if operation.is_signed:  # nothing is both 0 and negative, so level 0 comes twice as often
            assert_uniform(levels + 30, 1.0 + (torch.arange(61) == 30))
        else:
            assert_uniform(levels, torch.ones(31))
    signs = draws.level[(draws.operation > 0) & (draws.operation < 10) & (draws.level != 0)] > 0
    assert_uniform(signs.long(), torch.ones(2))


def test_rectangles_come_as_from_torchvision() -> None:
    erasing = v2.RandomErasing(p=1.0)
    blank = torch.zeros(3, 32, 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        params = [erasing.make_params([blank]) for _ in range(10_000)]
    theirs = torch.tensor([[p["i"], p["j"], p["h"], p["w"]] for p in params])

    ours = draw(Policy(erase_p=1.0), 50_000, step_generator(0, 0, 0)).erase

    for column in range(4):  # top, left, height, width
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert_same_distribution(ours[:, 0] + ours[:, 2], theirs[:, 0] + theirs[:, 2])
    assert_same_distribution(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])


def test_rectangle_is_the_first_that_fits_and_comes_at_its_chance() -> None:
    seldom_fits = Policy(erase_p=1.0, erase_scale=(0.9, 1.0))  # most are longer than the image
    never_fits = Policy(erase_p=1.0, erase_scale=(1.0, 1.0))
    tall_fits = Policy(erase_p=1.0, erase_scale=(0.1, 0.1), erase_ratio=(4.0, 4.0))

    half = draw(Policy(), 10_000, step_generator(0, 0, 0)).erase
    seldom = draw(seldom_fits, 10_000, step_generator(0, 0, 0)).erase
    never = draw(never_fits, 100, step_generator(0, 0, 0)).erase
    tall = draw(tall_fits, 100, step_generator(0, 0, 0)).erase

    assert_uniform((half[:, 2] > 0).long(), torch.ones(2))
    assert 0 < (seldom[:, 2] == 0).sum() < 10_000
    assert (seldom[:, :2] + seldom[:, 2:]).max() <= 32
    assert not never.any()
    assert torch.equal(tall[:, 2:], torch.tensor((20, 5)).expand(100, 2))


def test_processes_that_share_a_batch_see_the_whole_one(images: Tensor) -> None:
    batch = images.repeat(4, 1, 1, 1)
    draws = draw(Policy(), 64, step_generator(5, 0, 7))

    whole = apply(Policy(), batch, draws, FED)
    parts = [
        apply(Policy(), batch[rows], draws.rows(rows), FED)
        for rows in (slice(0, 32), slice(32, 64))
    ]

    assert torch.equal(torch.cat(parts), whole)


def test_choices_depend_neither_on_the_batch_nor_on_what_is_off() -> None:
    draws = draw(Policy(), 64, step_generator(0, 0, 0))
    shorter = draw(Policy(), 37, step_generator(0, 0, 0))
    plainer = draw(Policy(crop_padding=0, trivial=False), 64, step_generator(0, 0, 0))

    for field in fields(Draw):
        assert torch.equal(getattr(draws, field.name)[:37], getattr(shorter, field.name))
    assert torch.equal(draws.is_flipped, plainer.is_flipped)
    assert torch.equal(draws.erase, plainer.erase)


def test_nothing_else_changes(images: Tensor) -> None:
    state, before = torch.get_rng_state(), images.clone()
    draws = draw(Policy(), len(images), step_generator(0, 0, 0))
    choices = [getattr(draws, field.name).clone() for field in fields(Draw)]

    apply(Policy(), images, draws, FED)
    shuffled(100, 0, 0)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    for field, choice in zip(fields(Draw), choices, strict=True):
        assert torch.equal(getattr(draws, field.name), choice)


def test_apply_reads_nothing_back_from_the_device() -> None:
    draws = draw(Policy(), 128, step_generator(0, 0, 0))
    empty = torch.empty(128, 3, 32, 32, dtype=torch.uint8, device="meta")  # has no values to read

    values = apply(Policy(), empty, draws, FED, channels_last=True)

    assert values.shape == (128, 3, 32, 32)
    assert values.is_meta


@pytest.mark.gpu
def test_gpu_gives_the_same_without_waiting(images: Tensor) -> None:
    batch = images.repeat(8, 1, 1, 1)
    draws = draw(Policy(), len(batch), step_generator(0, 0, 0))
    expected = apply(Policy(), batch, draws, FED)
    on_device = batch.cuda()

    torch.cuda.set_sync_debug_mode("error")
    try:
        values = apply(Policy(), on_device, draws, FED)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    torch.testing.assert_close(values.cpu(), expected, rtol=0, atol=1e-6)


def test_shuffle_is_a_permutation_by_seed_and_epoch() -> None:
    order = shuffled(1000, 3, 4)

    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, shuffled(1000, 3, 4))
    assert not torch.equal(order, shuffled(1000, 4, 3))
    assert not torch.equal(order, shuffled(1000, 3, 5))


def test_generator_follows_from_seed_epoch_and_step() -> None:
    keys = [(seed, epoch, step) for seed in range(5) for epoch in range(20) for step in range(20)]
    first = {tuple(torch.rand(4, generator=step_generator(*key)).tolist()) for key in keys}

    assert len(first) == len(keys)
    assert step_generator(1, 2, 3).initial_seed() == 14_996_924_889_465_292_438


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
        ({"flip_p": 1.5}, r"flip_p must lie in \[0, 1\], got 1.5"),
        ({"erase_p": -0.5}, r"erase_p must lie in \[0, 1\], got -0.5"),
        ({"erase_scale": (0.5, 0.2)}, r"erase_scale must be .* got \(0.5, 0.2\)"),
        ({"erase_ratio": (0.0, 2.0)}, r"erase_ratio must be .* got \(0.0, 2.0\)"),
    ],
)
def test_policy_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Policy(), **change)


def test_apply_refuses_other_images() -> None:
    draws = draw(Policy(), 2, step_generator(0, 0, 0))

    with pytest.raises(ValueError, match=r"expected \(B, 3, S, S\) uint8, got \(2, 32, 32, 3\)"):
        apply(Policy(), torch.zeros(2, 32, 32, 3, dtype=torch.uint8), draws, FED)
    with pytest.raises(ValueError, match="torch.float32"):
        apply(Policy(), torch.zeros(2, 3, 32, 32), draws, FED)
