"""The shared blocks, element by element, in plain Python over float64 arrays."""

import math

import numpy as np


def eca(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Wang et al. 2020, equation 9: x (B, C, H, W), weight (k,)."""
    out = np.empty_like(x)
    reach = len(weight) // 2
    for b in range(x.shape[0]):
        means = [x[b, c].mean() for c in range(x.shape[1])]
        for c in range(x.shape[1]):
            total = 0.0
            for tap, value in enumerate(weight):
                neighbour = c + tap - reach
                if 0 <= neighbour < len(means):
                    total += value * means[neighbour]
            out[b, c] = x[b, c] / (1 + math.exp(-total))
    return out


def conv(x: np.ndarray, weight: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """Cross-correlation with zero padding k // 2: x (B, C, H, W), weight (O, C / groups, k, k)."""
    batch, channels, height, width = x.shape
    outputs, per_group, size, _ = weight.shape
    pad = size // 2
    rows, columns = -(-height // stride), -(-width // stride)
    out = np.zeros((batch, outputs, rows, columns))
    for o in range(outputs):
        first = (o // (outputs // groups)) * per_group
        for i in range(rows):
            for j in range(columns):
                for u in range(size):
                    for v in range(size):
                        y, z = i * stride + u - pad, j * stride + v - pad
                        if 0 <= y < height and 0 <= z < width:
                            for c in range(per_group):
                                out[:, o, i, j] += weight[o, c, u, v] * x[:, first + c, y, z]
    assert channels == per_group * groups
    return out


def norm(x: np.ndarray, mean: np.ndarray, var: np.ndarray, scale: np.ndarray, shift: np.ndarray):
    """Batch norm in eval mode with epsilon 1e-5."""
    channel = (None, slice(None), None, None)
    return (x - mean[channel]) / np.sqrt(var[channel] + 1e-5) * scale[channel] + shift[channel]
