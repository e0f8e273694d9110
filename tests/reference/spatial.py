"""The layers that mix neighbouring pixels, tap by tap, in plain Python over float64 arrays."""

import numpy as np

Conv = tuple[np.ndarray, np.ndarray]  # weight (O, C / groups, kh, kw) and bias (O,)


def conv(x: np.ndarray, layer: Conv, *, groups: int = 1, dilation: int = 1) -> np.ndarray:
    """Cross-correlation that keeps H and W, zeros beyond the border: x (B, C, H, W)."""
    weight, bias = layer
    outputs, per_group, rows, columns = weight.shape
    assert x.shape[1] == per_group * groups
    batch, _, height, width = x.shape
    out = np.empty((batch, outputs, height, width))
    for o in range(outputs):
        first = o // (outputs // groups) * per_group
        for i in range(height):
            for j in range(width):
                total = np.full(batch, bias[o])
                for u in range(rows):
                    for v in range(columns):
                        y = i + (u - rows // 2) * dilation
                        z = j + (v - columns // 2) * dilation
                        if 0 <= y < height and 0 <= z < width:
                            for c in range(per_group):
                                total += weight[o, c, u, v] * x[:, first + c, y, z]
                out[:, o, i, j] = total
    return out


def depthwise(x: np.ndarray, layer: Conv, *, dilation: int = 1) -> np.ndarray:
    """Each map by itself."""
    return conv(x, layer, groups=x.shape[1], dilation=dilation)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Of each value."""
    return 1 / (1 + np.exp(-x))


def summed_attention(
    x: np.ndarray, near: Conv, strips: list[tuple[Conv, Conv]], mix: Conv
) -> np.ndarray:
    """Guo et al. 2022, equations 1 and 2, with a sigmoid."""
    seen = depthwise(x, near)
    total = seen.copy()
    for row, column in strips:
        total += depthwise(depthwise(seen, row), column)
    return x * sigmoid(conv(total, mix))


def concatenated_attention(
    x: np.ndarray, near: Conv, strips: list[tuple[Conv, Conv]], mix: Conv
) -> np.ndarray:
    """The same where the mixing convolution has weights of its own for each branch."""
    seen = depthwise(x, near)
    branches = [seen] + [depthwise(depthwise(seen, row), column) for row, column in strips]
    weight, bias = mix
    channels = x.shape[1]
    total = np.zeros_like(x)
    for position, branch in enumerate(branches):
        part = weight[:, position * channels : (position + 1) * channels]
        total += conv(branch, (part, np.zeros(channels)))
    return x * sigmoid(total + bias[:, None, None])


def selective_kernel(x: np.ndarray, layers: dict[str, Conv]) -> np.ndarray:
    """Li et al. 2023, section 3.3: the weights of either view differ from pixel to pixel."""
    near = depthwise(x, layers["near"])
    far = depthwise(near, layers["far"], dilation=3)
    views = [conv(near, layers["narrow_near"]), conv(far, layers["narrow_far"])]
    batch, half, height, width = views[0].shape
    seen = np.empty((batch, 2, height, width))
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                values = [view[b, c, i, j] for view in views for c in range(half)]
                seen[b, 0, i, j] = sum(values) / len(values)
                seen[b, 1, i, j] = max(values)
    weights = sigmoid(conv(seen, layers["select"]))
    chosen = np.zeros_like(views[0])
    for position, view in enumerate(views):
        for c in range(half):
            chosen[:, c] += weights[:, position] * view[:, c]
    return x * conv(chosen, layers["widen"])


def gated_conv(
    x: np.ndarray, enter: Conv, see: Conv, widen: list[Conv], leave: Conv, *, alpha: float
) -> np.ndarray:
    """Rao et al. 2022, section 3.1: p_(k+1) = f_k(q_k) * g_k(p_k) / alpha, of order 1 + g's."""
    order, channels = len(widen) + 1, x.shape[1]
    widths = [channels // 2 ** (order - k - 1) for k in range(order)]
    entered = conv(x, enter)
    p, start = entered[:, : widths[0]], widths[0]
    for k, width in enumerate(widths):
        q = entered[:, start : start + width]
        begin = start - widths[0]  # of this step's maps among those of the depthwise convolution
        f = depthwise(q, tuple(part[begin : begin + width] for part in see))
        p = f * (p if k == 0 else conv(p, widen[k - 1])) / alpha
        start += width
    assert start == entered.shape[1]
    return conv(p, leave)
