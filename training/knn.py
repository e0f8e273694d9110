"""How well the nearest images tell a class: what features are worth before they are trained on."""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 20
SHARPNESS = 0.07  # a neighbour counts by exp(similarity / this)
QUERIES = 512  # at a time: the similarities to all stored images are held for each


def knn_top1(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> float:
    """Share of queries whose class the nearest of the bank, by their cosine, vote for.

    Shapes:
        (N, D), (N,), (M, D), (M,) -> a share in [0, 1].
    Source:
        Wu et al. 2018, arXiv:1805.01978, section 3.4; twenty neighbours as in Caron et al. 2021,
        arXiv:2104.14294, section 4.1.
    """
    bank, queries = (F.normalize(features.float(), dim=1) for features in (bank, queries))
    classes = int(bank_labels.max()) + 1
    count = min(NEIGHBOURS, len(bank))
    right = 0
    for part, wanted in zip(
        torch.split(queries, QUERIES), torch.split(labels, QUERIES), strict=True
    ):
        similarity, rows = (part @ bank.T).topk(count, dim=1)  # (m, count)
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, bank_labels[rows], (similarity / SHARPNESS).exp())
        right += int((votes.argmax(1) == wanted).sum())
    return right / len(queries)
