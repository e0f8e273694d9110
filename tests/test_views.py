"""Two views of an image: where they agree with torchvision, what they depend on."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from training import jitter
from training.philox import Numbers, make_key
from training.pretraining import Pretraining
from training.views import ATTEMPTS, RATIO, ViewDraw, Views, boxes, resized_crop
from zoo.data import MEAN, STD, load_dataset
from zoo.preprocess import Preprocessing

CPU = torch.device("cpu")
FED = Preprocessing(32, MEAN, STD)
SETTINGS = Pretraining(name="simclr")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Real images and noise: (48, 3, 32, 32)."""
    real = torch.tensor(load_dataset("cifar100-mini").train.images[:40]).permute(0, 3, 1, 2)
    noise = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return torch.cat((real, noise.to(torch.uint8)))


def views(settings: Pretraining = SETTINGS, fed: Preprocessing = FED) -> Views:
    return Views(settings, fed, size=32, device=CPU, channels_last=False)


def numbers(batch: int, *, first: int = 0) -> Numbers:
    place = torch.arange(first, first + batch)
    return Numbers(key=make_key(0, CPU), epoch=torch.tensor(1), place=place)


def test_a_crop_agrees_with_torchvision_within_a_level(images: Tensor) -> None:
    drawn = views().draw(numbers(len(images)), 5).box
    extreme = torch.tensor([[0, 0, 32, 32], [31, 31, 1, 1], [0, 31, 32, 1], [3, 5, 9, 2]])
    box = torch.cat((extreme, drawn[4:]))

    crops = resized_crop(images, box)

    for image, crop, (top, left, height, width) in zip(images, crops, box.tolist(), strict=True):
        theirs = vision.resized_crop(image, top, left, height, width, [32, 32])
        assert (crop.int() - theirs.int()).abs().max() <= 1
    assert torch.equal(crops[0], images[0])
    assert (crops[1] == images[1, :, 31:, 31:]).all()


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    """Chi-square over 36 kinds of area and shape, of samples of 20,000."""
    count, area, shape = 20_000, 0.08, torch.zeros(3, 32, 32)
    made = v2.RandomResizedCrop(32, scale=(area, 1.0), ratio=RATIO)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [made.make_params([shape]) for _ in range(count)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    u = torch.rand(count, 2 * ATTEMPTS + 2, generator=torch.Generator().manual_seed(0))

    ours = boxes(u, area, 32)

    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= 32).all()
    table = torch.stack([torch.bincount(kinds(box), minlength=36) for box in (ours, theirs)])
    table = table[:, table.sum(0) >= 50].double()
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    square = ((table - expected) ** 2 / expected).sum()
    freedom = torch.tensor(table.shape[1] - 1.0, dtype=torch.float64)
    assert table.shape[1] >= 24
    assert torch.special.gammaincc(freedom / 2, square / 2) > 1e-3


def kinds(box: Tensor) -> Tensor:
    """A number for the area, shape and place of a crop: (N, 4) -> (N,) in 0 to 35."""
    top, left, height, width = box.unbind(1)
    area = (height * width / 1024 * 4).long().clamp(max=3)
    shape = 1 + (width > height).long() - (width < height).long()
    place = 1 + (top > left).long() - (top < left).long()
    return area * 9 + shape * 3 + place


def test_a_crop_that_never_fits_is_the_whole_image() -> None:
    u = torch.full((1, 2 * ATTEMPTS + 2), 0.999)  # all of the area and the widest shape
    u[0, :ATTEMPTS] = 0.999

    assert boxes(u, 0.08, 32).tolist() == [[0, 0, 32, 32]]


@pytest.mark.parametrize("is_grey", [False, True])
@pytest.mark.parametrize("is_jittered", [False, True])
@pytest.mark.parametrize("is_flipped", [False, True])
def test_the_steps_of_a_view(
    is_flipped: bool, is_jittered: bool, is_grey: bool, images: Tensor
) -> None:
    made, batch = views(), len(images)
    drawn = made.draw(numbers(batch), 5)
    flags = (torch.full((batch,), flag) for flag in (is_flipped, is_jittered, is_grey))
    draw = ViewDraw(
        box=drawn.box,
        jitter=drawn.jitter,
        **dict(zip(("is_flipped", "is_jittered", "is_grey"), flags, strict=True)),
    )

    found = made.apply(images, draw)

    expected = resized_crop(images, draw.box)
    if is_flipped:
        expected = vision.horizontal_flip(expected)
    if is_jittered:
        expected = jitter.color_jitter(expected, made.amounts, draw.jitter)
    if is_grey:
        expected = vision.rgb_to_grayscale(expected, num_output_channels=3)
    assert torch.equal(found, expected)


def test_the_hue_turns_by_a_quarter_of_what_the_rest_changes() -> None:
    made = views()

    _, amounts = jitter.draw(made.amounts, torch.rand(2000, jitter.UNIFORMS))

    assert amounts.abs().amax(0) == pytest.approx(torch.tensor([0.4, 0.4, 0.4, 0.1]), rel=0.02)


def test_each_chance_is_what_the_settings_say() -> None:
    drawn = views().draw(numbers(20_000), 5)

    shares = [flag.float().mean().item() for flag in (drawn.is_flipped, drawn.is_jittered)]

    assert shares == pytest.approx([0.5, 0.8], abs=0.02)
    assert drawn.is_grey.float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_a_view_depends_on_its_place_and_part_alone(images: Tensor) -> None:
    made = views()

    whole = made(images, numbers(48), part=5)
    half = made(images[24:], numbers(24, first=24), part=5)
    other = made(images, numbers(48), part=6)

    assert torch.equal(whole[24:], half)
    assert all(not torch.equal(a, b) for a, b in zip(whole, other, strict=True))


def test_views_are_prepared_as_the_model_is_fed(images: Tensor) -> None:
    still = Pretraining(name="byol", crop_area=1.0, flip_p=0.0, jitter_p=0.0, grey_p=0.0)
    large = Preprocessing(48, MEAN, STD)

    found = views(still, large)(images, numbers(48), part=5)

    whole = views(still).draw(numbers(48), 5).box == torch.tensor([0, 0, 32, 32])
    rows = whole.all(dim=1)
    expected = large.to_batch(images.permute(0, 2, 3, 1))
    assert rows.sum() >= 5
    torch.testing.assert_close(found[rows], expected[rows])


def test_views_are_one_graph_without_a_look_at_a_value(images: Tensor) -> None:
    made = views()
    drawn = made.draw(numbers(48), 5)
    compiled = torch.compile(made.apply, fullgraph=True, backend="eager")

    assert torch.equal(compiled(images, drawn), made.apply(images, drawn))
