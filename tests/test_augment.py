import math
from dataclasses import fields, replace

import pytest
import torch
from sample_images import varied_images
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from training import trivial
from training.augment import Augmentation, Draw, Policy, epoch_seed, shuffled
from training.philox import Numbers, make_key
from zoo.data import MEAN, STD
from zoo.preprocess import Preprocessing

CPU = torch.device("cpu")
OFF = Policy(crop_padding=0, flip_p=0.0, augment="none", erase_p=0.0)
LEVELS = range(1 - trivial.LEVELS, trivial.LEVELS)
# Without a fused multiply-add torchvision rounds twice where we round once: one level of 255.
SLACK = 0 if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 1
FED = Preprocessing(32, MEAN, STD)
BYTES = Preprocessing(32, (0.0, 0.0, 0.0), (1 / 255,) * 3)  # leaves the levels as they are


@pytest.fixture(scope="module")
def images() -> Tensor:
    return varied_images()


def augmentation(
    policy: Policy, fed: Preprocessing = FED, *, size: int = 32, channels_last: bool = False
) -> Augmentation:
    return Augmentation(policy, fed, size=size, device=CPU, channels_last=channels_last)


def numbers(batch: int, *, seed: int = 0, epoch: int = 1, first: int = 0) -> Numbers:
    place = torch.arange(first, first + batch)
    return Numbers(key=make_key(seed, CPU), epoch=torch.tensor(epoch), place=place)


def drawn(policy: Policy, batch: int, **at: int) -> Draw:
    return augmentation(policy).draw(numbers(batch, **at))


def values_of(draw: Draw) -> list[Tensor]:
    """All choices of a draw."""
    found: list[Tensor] = []
    for field in fields(draw):
        value = getattr(draw, field.name)
        if isinstance(value, tuple):
            found += [tensor for stage in value for tensor in stage]
        elif value is not None:
            found.append(value)
    return found


def through_torchvision(policy: Policy, image: Tensor, draw: Draw, row: int) -> Tensor:
    """One image (3, S, S) and its row of a draw, step by step."""
    size = image.shape[-1]
    image = vision.pad(image, [policy.crop_padding] * 4)
    image = vision.crop(image, int(draw.top[row]), int(draw.left[row]), size, size)
    image = vision.horizontal_flip(image) if draw.is_flipped[row] else image
    image = vision.vertical_flip(image) if draw.is_upside_down[row] else image
    for operation, column in draw.stages:
        level = int(column[row]) - trivial.LEVELS + 1
        image = operate_as_torchvision(image, int(operation[row]), level)
    values = vision.normalize(vision.to_dtype(image, torch.float32, scale=True), MEAN, STD)
    top, left, height, width = draw.erase[row].tolist()
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
    policy = replace(OFF, augment="trivial")
    augment = augmentation(policy, BYTES)
    for level in LEVELS:
        stage = (
            torch.full((len(images),), operation),
            torch.full((len(images),), level + trivial.LEVELS - 1),
        )
        draw = replace(augment.draw(numbers(len(images))), stages=(stage,))

        values = augment.apply(images, draw)

        expected = torch.stack([operate_as_torchvision(x, operation, level) for x in images])
        assert (values - expected).abs().max() <= SLACK, f"level {level}"


@pytest.mark.parametrize("size", [24, 33])
def test_other_image_sizes_move_as_in_torchvision(size: int, images: Tensor) -> None:
    some = torch.cat((images, images), dim=-1).repeat(1, 1, 2, 1)[..., :size, :size].contiguous()
    policy, fed = replace(OFF, augment="trivial"), replace(BYTES, image_size=size)
    augment = augmentation(policy, fed, size=size)
    for operation in range(trivial.MOVES.start, trivial.MOVES.stop):
        for level in (-30, -17, -1, 0, 8, 20, 29):
            stage = (
                torch.full((len(some),), operation),
                torch.full((len(some),), level + trivial.LEVELS - 1),
            )
            draw = replace(augment.draw(numbers(len(some))), stages=(stage,))

            values = augment.apply(some, draw)

            expected = torch.stack([operate_as_torchvision(x, operation, level) for x in some])
            assert torch.equal(values, expected.float()), f"operation {operation}, level {level}"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(crop_padding=0, vertical_flip_p=0.5),
        Policy(crop_padding=7, augment="none", erase_p=1),
    ],
)
def test_a_mixed_batch_equals_torchvision_image_by_image(
    policy: Policy, channels_last: bool, images: Tensor
) -> None:
    batch = images.repeat(8, 1, 1, 1)
    augment = augmentation(policy, channels_last=channels_last)
    draw = augment.draw(numbers(len(batch), seed=1, epoch=2))

    values = augment.apply(batch, draw)

    one_by_one = [through_torchvision(policy, batch[i], draw, i) for i in range(len(batch))]
    atol = 1e-6 + SLACK / 255 / min(STD)
    torch.testing.assert_close(values, torch.stack(one_by_one), rtol=0, atol=atol)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert values.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("channels_last", [False, True])
def test_resized_images_lie_in_the_memory_format_that_is_asked_for(
    channels_last: bool, images: Tensor
) -> None:
    larger = replace(FED, image_size=48)
    augment = augmentation(OFF, larger, channels_last=channels_last)

    values = augment.apply(images, augment.draw(numbers(len(images))))

    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert values.shape[-2:] == (48, 48)
    assert values.is_contiguous(memory_format=layout)


def test_nothing_switched_on_is_the_normalisation_of_evaluation(images: Tensor) -> None:
    augment = augmentation(OFF)

    values = augment.apply(images, augment.draw(numbers(len(images))))

    evaluated = FED.to_batch(images.permute(0, 2, 3, 1))
    assert torch.equal(values, evaluated)
    assert torch.equal(values, augment.plain(images))


def test_choices_are_uniform() -> None:
    draw = drawn(Policy(vertical_flip_p=0.5), 100_000)
    ((operations, columns),) = draw.stages

    assert_uniform(draw.top, torch.ones(9))
    assert_uniform(draw.left, torch.ones(9))
    assert_uniform(draw.top * 9 + draw.left, torch.ones(81))
    assert_uniform(draw.is_flipped.long(), torch.ones(2))
    assert_uniform(draw.is_flipped.long() + 2 * draw.is_upside_down.long(), torch.ones(4))
    assert_uniform(operations, torch.ones(14))
    for row, operation in enumerate(trivial.OPERATIONS):
        chosen = columns[operations == row]
        if operation.is_signed:  # nothing is both 0 and negative, so level 0 comes twice as often
            assert_uniform(chosen, 1.0 + (torch.arange(61) == 30))
        else:
            assert_uniform(chosen - 30, torch.ones(31))


def test_rectangles_come_as_from_torchvision() -> None:
    erasing = v2.RandomErasing(p=1.0)
    blank = torch.zeros(3, 32, 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        params = [erasing.make_params([blank]) for _ in range(10_000)]
    theirs = torch.tensor([[p["i"], p["j"], p["h"], p["w"]] for p in params])

    ours = drawn(Policy(erase_p=1.0), 50_000).erase

    for column in range(4):  # top, left, height, width
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert_same_distribution(ours[:, 0] + ours[:, 2], theirs[:, 0] + theirs[:, 2])
    assert_same_distribution(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])


def test_rectangle_is_the_first_that_fits_and_comes_at_its_chance() -> None:
    seldom_fits = Policy(erase_p=1.0, erase_scale=(0.9, 1.0))  # most are longer than the image
    never_fits = Policy(erase_p=1.0, erase_scale=(1.0, 1.0))
    tall_fits = Policy(erase_p=1.0, erase_scale=(0.1, 0.1), erase_ratio=(4.0, 4.0))

    half = drawn(Policy(), 10_000).erase
    seldom = drawn(seldom_fits, 10_000).erase
    never = drawn(never_fits, 100).erase
    tall = drawn(tall_fits, 100).erase

    assert_uniform((half[:, 2] > 0).long(), torch.ones(2))
    assert 0 < (seldom[:, 2] == 0).sum() < 10_000
    assert (seldom[:, :2] + seldom[:, 2:]).max() <= 32
    assert not never.any()
    assert torch.equal(tall[:, 2:], torch.tensor((20, 5)).expand(100, 2))


def test_processes_that_share_a_batch_see_the_whole_one(images: Tensor) -> None:
    batch, labels = images.repeat(4, 1, 1, 1), torch.arange(64)
    augment = augmentation(Policy(mixup_alpha=0.2, cutmix_alpha=1.0))

    whole = augment(batch, labels, numbers(64, epoch=7))
    parts = [
        augment(batch[first : first + 32], labels[first : first + 32], part)
        for first in (0, 32)
        for part in (numbers(32, epoch=7, first=first),)
    ]

    for kind, all_ in enumerate(whole):
        assert all_ is not None
        assert torch.equal(torch.cat([part[kind] for part in parts]), all_)


def test_choices_depend_neither_on_the_batch_nor_on_what_is_off() -> None:
    draw = drawn(Policy(), 64)
    shorter = drawn(Policy(), 37)
    plainer = drawn(Policy(crop_padding=0, augment="none"), 64)

    for whole, part in zip(values_of(draw), values_of(shorter), strict=True):
        assert torch.equal(whole[:37], part)
    assert torch.equal(draw.is_flipped, plainer.is_flipped)
    assert torch.equal(draw.erase, plainer.erase)


def test_choices_follow_from_seed_epoch_and_place() -> None:
    keys = [(seed, epoch) for seed in range(8) for epoch in range(20)]
    first = {tuple(drawn(Policy(), 3, seed=s, epoch=e).erase.flatten().tolist()) for s, e in keys}
    crops = {tuple(drawn(Policy(), 40, seed=s, epoch=e).top.tolist()) for s, e in keys}

    assert len(crops) == len(keys)
    assert len(first) > len(keys) / 2  # half of the images are not erased


def test_every_other_epoch_can_see_plain_images(images: Tensor) -> None:
    augment = augmentation(Policy(alternates_plain=True))
    labels = torch.arange(len(images))

    plain, *_ = augment(images, labels, numbers(len(images), epoch=1))
    changed, *_ = augment(images, labels, numbers(len(images), epoch=2))

    assert torch.equal(plain, augment.plain(images))
    assert not torch.equal(changed, plain)


def test_nothing_else_changes(images: Tensor) -> None:
    state, before = torch.get_rng_state(), images.clone()
    augment = augmentation(Policy())
    draw = augment.draw(numbers(len(images)))
    choices = [value.clone() for value in values_of(draw)]

    augment.apply(images, draw)
    shuffled(100, 0, 0)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    for value, choice in zip(values_of(draw), choices, strict=True):
        assert torch.equal(value, choice)


def test_a_step_reads_nothing_back_from_the_device() -> None:
    meta = torch.device("meta")  # its tensors have no values to read
    policy = Policy(mixup_alpha=0.2, cutmix_alpha=1.0, jitter=0.2)
    augment = Augmentation(policy, FED, size=32, device=CPU)
    augment = on_meta(augment)
    place = Numbers(
        key=torch.empty(2, dtype=torch.int64, device=meta),
        epoch=torch.empty((), dtype=torch.int64, device=meta),
        place=torch.empty(128, dtype=torch.int64, device=meta),
    )
    empty = torch.empty(128, 3, 32, 32, dtype=torch.uint8, device=meta)

    values, _, others, share = augment(empty, place.place, place)

    assert values.shape == (128, 3, 32, 32)
    assert values.is_meta
    assert others is not None
    assert share is not None


def on_meta(augment: Augmentation) -> Augmentation:
    """The same with every table on the meta device."""

    def move(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to("meta")
        if hasattr(value, "__dataclass_fields__") and not isinstance(value, Policy | Preprocessing):
            found = {field.name: move(getattr(value, field.name)) for field in fields(value)}
            return replace(value, **found)
        return value

    for name, value in vars(augment).items():
        setattr(augment, name, move(value))
    return augment


@pytest.mark.gpu
@pytest.mark.parametrize("augment", ["trivial", "rand", "auto"])
def test_gpu_gives_the_same_without_waiting(augment: str, images: Tensor) -> None:
    batch, labels = images.repeat(8, 1, 1, 1), torch.arange(128)
    policy = Policy(augment=augment)
    expected, *_ = augmentation(policy)(batch, labels, numbers(128))
    here = torch.device("cuda")
    on_device = Augmentation(policy, FED, size=32, device=here, channels_last=False)
    place = Numbers(
        key=make_key(0, here),
        epoch=torch.tensor(1, device=here),
        place=torch.arange(128, device=here),
    )
    stored, labels = batch.cuda(), labels.cuda()

    torch.cuda.set_sync_debug_mode("error")
    try:
        values, *_ = on_device(stored, labels, place)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    # One level of 255, where a product and a sum were rounded once instead of twice.
    torch.testing.assert_close(values.cpu(), expected, rtol=0, atol=1.001 / 255 / min(STD))


def test_shuffle_is_a_permutation_by_seed_and_epoch() -> None:
    order = shuffled(1000, 3, 4)

    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, shuffled(1000, 3, 4))
    assert not torch.equal(order, shuffled(1000, 4, 3))
    assert not torch.equal(order, shuffled(1000, 3, 5))


def test_seed_of_the_network_follows_from_seed_epoch_and_process() -> None:
    keys = [(seed, epoch, rank) for seed in range(5) for epoch in range(20) for rank in range(4)]

    assert len({epoch_seed(*key) for key in keys}) == len(keys)
    assert epoch_seed(1, 2, 3) == epoch_seed(1, 2, 3)


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
    augment = augmentation(Policy())
    draw = augment.draw(numbers(2))

    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\) uint8, got \(2, 32, 32, 3\)"):
        augment.apply(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), draw)
    with pytest.raises(ValueError, match="torch.float32"):
        augment.apply(torch.zeros(2, 3, 32, 32), draw)
