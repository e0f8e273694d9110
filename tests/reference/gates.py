"""Attention over coordinates and over splits, value by value, over float64 arrays."""

import math

import numpy as np

POOLS = {
    "mean": lambda values: sum(values) / len(values),
    "mean_max": lambda values: sum(values) / len(values) + max(values),
    "mean_l1": lambda values: (sum(values) + sum(abs(v) for v in values)) / len(values),
    "mean_l2": lambda values: (
        sum(values) / len(values) + math.sqrt(sum(v * v for v in values) / len(values) + 1e-12)
    ),
}
GATES = {  # the values of all channels at one place -> their gates
    "sigmoid": lambda values: [1 / (1 + math.exp(-v)) for v in values],
    "relu": lambda values: [max(v, 0.0) for v in values],
    "elu": lambda values: [v if v > 0 else math.exp(v) - 1 for v in values],
    "softmax": lambda values: [math.exp(v) / sum(math.exp(u) for u in values) for v in values],
}


def linear(values: list[float], weight: np.ndarray, bias: np.ndarray) -> list[float]:
    """One 1x1 convolution at one place: weight (O, I), bias (O,)."""
    return [
        bias[o] + sum(weight[o, i] * value for i, value in enumerate(values))
        for o in range(len(bias))
    ]


def norm(values: list[float], mean, var, scale, shift) -> list[float]:
    """Batch norm of all channels at one place, in eval mode with epsilon 1e-5."""
    return [
        (value - mean[c]) / math.sqrt(var[c] + 1e-5) * scale[c] + shift[c]
        for c, value in enumerate(values)
    ]


def hardswish(value: float) -> float:
    return value * min(max(value + 3, 0), 6) / 6


def coordinate(x: np.ndarray, *, reduce, norms, rows, columns, pool: str, gate: str) -> np.ndarray:
    """Hou et al. 2021, equations 4 to 9: x (B, C, H, W), weights as `linear` takes them."""

    def gates_of(line: np.ndarray, expand) -> list[float]:  # line (C, length)
        pooled = [POOLS[pool](list(values)) for values in line]
        inner = [hardswish(value) for value in norm(linear(pooled, *reduce), *norms)]
        return GATES[gate](linear(inner, *expand))

    out = np.empty_like(x)
    batch, channels, height, width = x.shape
    for b in range(batch):
        of_rows = [gates_of(x[b, :, i, :], rows) for i in range(height)]
        of_columns = [gates_of(x[b, :, :, j], columns) for j in range(width)]
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    out[b, c, i, j] = x[b, c, i, j] * of_rows[i][c] * of_columns[j][c]
    return out


def split(splits: np.ndarray, *, reduce, norms, expand) -> np.ndarray:
    """Zhang et al. 2022, section 3.1, one cardinal group: splits (B, radix, C, H, W)."""
    batch, radix, channels, height, width = splits.shape
    out = np.zeros((batch, channels, height, width))
    for b in range(batch):
        means = [splits[b, :, c].sum() / (height * width) for c in range(channels)]
        inner = [max(value, 0.0) for value in norm(linear(means, *reduce), *norms)]
        scores = linear(inner, *expand)  # those of the first split, then those of the second
        for c in range(channels):
            rivals = [math.exp(scores[r * channels + c]) for r in range(radix)]
            for r in range(radix):
                out[b, c] += rivals[r] / sum(rivals) * splits[b, r, c]
    return out
