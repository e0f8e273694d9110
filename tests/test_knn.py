import math

import torch

from training.knn import NEIGHBOURS, SHARPNESS, knn_top1


def test_the_vote_of_the_nearest_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(count, 6, generator=generator) for count in (200, 700))
    bank_labels, labels = (torch.randint(0, 4, (n,), generator=generator) for n in (200, 700))

    found = knn_top1(bank, bank_labels, queries, labels)

    right = 0
    for query, label in zip(queries.tolist(), labels.tolist(), strict=True):
        near = sorted(((cosine(query, row), k) for row, k in labelled(bank, bank_labels)))
        votes = [0.0] * 4
        for similarity, k in near[-NEIGHBOURS:]:
            votes[k] += math.exp(similarity / SHARPNESS)
        right += votes.index(max(votes)) == label
    assert found == right / 700


def labelled(bank: torch.Tensor, labels: torch.Tensor) -> list[tuple[list[float], int]]:
    return list(zip(bank.tolist(), labels.tolist(), strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.hypot(*a) / math.hypot(*b)


def test_features_that_tell_classes_apart_are_always_right() -> None:
    labels = torch.arange(50) % 5
    features = torch.eye(5)[labels] * 3

    assert knn_top1(features, labels, features + 0.01, labels) == 1.0
