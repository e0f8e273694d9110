"""Attention and token mixing, number by number, in plain Python over float64 arrays."""

import math

import numpy as np

Weights = tuple[np.ndarray, np.ndarray]  # of a linear layer, (O, I) and (O,)


def linear(values: np.ndarray, weights: Weights) -> np.ndarray:
    """One vector (I,) -> (O,)."""
    weight, bias = weights
    return np.array([bias[o] + sum(weight[o] * values) for o in range(len(bias))])


def gelu(values: np.ndarray) -> np.ndarray:
    """Hendrycks and Gimpel 2016, section 2, the exact form."""
    return np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in values])


def layer_norm(values: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """One vector, epsilon 1e-6."""
    mean = sum(values) / len(values)
    var = sum((values - mean) ** 2) / len(values)
    return (values - mean) / math.sqrt(var + 1e-6) * scale + shift


def mlp(values: np.ndarray, first: Weights, second: Weights) -> np.ndarray:
    return linear(gelu(linear(values, first)), second)


def attention(
    tokens: np.ndarray,
    *,
    qkv: Weights,
    project: Weights,
    heads: int,
    table: np.ndarray | None = None,
) -> np.ndarray:
    """Dai et al. 2021, equation 3, left side: tokens (N, I); table (h, (2 side - 1) ** 2) or None.

    Without a table, Vaswani et al. 2017, section 3.2.
    """
    count, width = len(tokens), len(project[1])
    size = width // heads
    made = [linear(token, qkv) for token in tokens]  # (3 D,) each: queries, keys, values
    mixed = np.zeros((count, width))
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for asking in range(count):
            query = made[asking][:width][own]
            scores = []
            for asked in range(count):
                key = made[asked][width : 2 * width][own]
                score = sum(query * key) / math.sqrt(size)
                if table is not None:
                    score += table[head, place_in_table(asking, asked, math.isqrt(count))]
                scores.append(score)
            total = sum(math.exp(score) for score in scores)
            for asked in range(count):
                value = made[asked][2 * width :][own]
                mixed[asking, own] += math.exp(scores[asked]) / total * value
    return np.array([linear(token, project) for token in mixed])


def place_in_table(asking: int, asked: int, side: int) -> int:
    """Dai et al. 2021, appendix A.1: rows and columns that the query lies after the key."""
    rows = asking // side - asked // side  # from 1 - side to side - 1
    columns = asking % side - asked % side
    return (rows + side - 1) * (2 * side - 1) + (columns + side - 1)


def largest_of_3x3(x: np.ndarray, stride: int) -> np.ndarray:
    """Max pooling with one pixel of padding: x (C, H, W)."""
    channels, height, width = x.shape
    out = np.full((channels, -(-height // stride), -(-width // stride)), -np.inf)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            for y in range(i * stride - 1, i * stride + 2):
                for z in range(j * stride - 1, j * stride + 2):
                    if 0 <= y < height and 0 <= z < width:
                        out[:, i, j] = np.maximum(out[:, i, j], x[:, y, z])
    return out


def mixer_block(
    x: np.ndarray,
    *,
    token_norm: Weights,
    token_mlp: tuple[Weights, Weights],
    channel_norm: Weights,
    channel_mlp: tuple[Weights, Weights],
) -> np.ndarray:
    """Tolstikhin et al. 2021, equation 1: x (N, D), one image."""
    normed = np.array([layer_norm(token, *token_norm) for token in x])
    u = x.copy()
    for channel in range(x.shape[1]):
        u[:, channel] += mlp(normed[:, channel], *token_mlp)
    y = u.copy()
    for token in range(len(u)):
        y[token] += mlp(layer_norm(u[token], *channel_norm), *channel_mlp)
    return y
