import pytest
import torch

from training.philox import MASK, Numbers, make_key, philox

CPU = torch.device("cpu")


# The known answers that the authors of the generator publish with it.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((MASK,) * 4, (MASK, MASK), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: str
) -> None:
    a, b, c, d = (torch.tensor(word) for word in counter)

    words = philox((a, b, c, d), torch.tensor(key))

    assert " ".join(f"{int(word):08x}" for word in words) == expected


def numbers(seed: int = 0, epoch: int = 1, places: int = 1000) -> Numbers:
    return Numbers(key=make_key(seed, CPU), epoch=torch.tensor(epoch), place=torch.arange(places))


def test_uniforms_are_24_bits_below_one_and_uniform() -> None:
    u = numbers().uniforms(3, 101)

    assert u.shape == (1000, 101)
    assert torch.equal((u * 2.0**24).frac(), torch.zeros_like(u))
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, bins=64, min=0, max=1)
    assert ((counts - u.numel() / 64) ** 2 / (u.numel() / 64)).sum() < 63 + 4 * (2 * 63) ** 0.5


def test_no_integer_is_reached_by_its_product_with_a_number_below_one() -> None:
    largest = torch.tensor(1 - 2.0**-24)
    integers = torch.arange(1, 100_001)

    assert torch.equal((largest * integers).long(), integers - 1)


def test_every_place_epoch_seed_and_part_has_its_own() -> None:
    rows = [
        numbers(seed=seed, epoch=epoch, places=50).uniforms(part, 4)
        for seed in (0, 1, 1 << 32)
        for epoch in (0, 1, 2)
        for part in (0, 1)
    ]

    found = torch.cat(rows)
    assert len(found.unique(dim=0)) == len(found)


def test_parts_at_once_are_those_of_each_alone() -> None:
    counts = {3: 5, 0: 23, 1: 4}

    found = numbers().uniforms_of(counts)

    assert list(found) == list(counts)
    for part, count in counts.items():
        assert torch.equal(found[part], numbers().uniforms(part, count))


def test_more_numbers_leave_the_first_as_they_are() -> None:
    few, many = numbers().uniforms(0, 5), numbers().uniforms(0, 30)

    assert torch.equal(few, many[:, :5])
