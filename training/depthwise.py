"""Depthwise convolutions as banded matrix products, for training on tensor cores.

A row of the result of a depthwise convolution is a sum of products of rows of its input with
banded matrices, which hold one row of taps on each diagonal. Several rows at once make one
matrix product a channel, large enough for tensor cores. The zeros outside of the bands cost
arithmetic, of which tensor cores have plenty; the map itself is read once or twice.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.transpose import transpose

# Results of one matrix product, rows times width: more read the map less often, and multiply more
# zeros.
OUTPUTS = 256


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve each channel with its own square filter of odd size k, padded by k // 2.

    Between the operators a map is a matrix, (C, B * H * W): of a tensor with four axes a compiler
    that prefers channels last would keep a transposed copy for the backward pass.

    Shapes:
        (B, C, H, W), (C, 1, k, k) -> (B, C, ceil(H / stride), ceil(W / stride)), channels last.
    """
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()  # as it is in channels last
    high, wide = _strided(height, width, stride)
    matrix = _forward_matrix(weight.detach(), _rows_at_once(high, wide), width, stride)
    planes: Tensor = _convolve(transpose(pixels), weight, matrix, height, width, stride)
    y: Tensor = transpose(planes)  # (B * H / stride * W / stride, C)
    return y.view(batch, high, wide, channels).permute(0, 3, 1, 2)


@torch.library.custom_op("cifar_zoo::depthwise", mutates_args=())
def _convolve(
    x: Tensor, weight: Tensor, matrix: Tensor, height: int, width: int, stride: int
) -> Tensor:
    """Convolve planes; `weight` only says whose gradient is wanted, `matrix` holds its values."""
    x = x.view(x.shape[0], -1, height, width)  # (C, B, H, W)
    y = x.new_empty(*x.shape[:2], *_strided(height, width, stride))
    rows = matrix.shape[2] // y.shape[3]
    _by_strips(x, matrix, y, start=-(weight.shape[3] // 2), step=rows * stride)
    return y.flatten(1)


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, matrix: Tensor, height: int, width: int, stride: int) -> Tensor:
    high, wide = _strided(height, width, stride)
    return x.new_empty(x.shape[0], x.shape[1] // (height * width) * high * wide)


@torch.library.custom_op("cifar_zoo::depthwise_input_gradient", mutates_args=())
def _input_gradient(
    g: Tensor, matrix: Tensor, height: int, width: int, stride: int, size: int
) -> Tensor:
    g = g.view(g.shape[0], -1, *_strided(height, width, stride))  # (C, B, H / stride, W / stride)
    dx = g.new_empty(*g.shape[:2], height, width)
    rows = matrix.shape[2] // width
    _by_strips(g, matrix, dx, start=-_reach(size, stride), step=rows // stride)
    return dx.flatten(1)


@_input_gradient.register_fake
def _(g: Tensor, matrix: Tensor, height: int, width: int, stride: int, size: int) -> Tensor:
    high, wide = _strided(height, width, stride)
    return g.new_empty(g.shape[0], g.shape[1] // (high * wide) * height * width)


@torch.library.custom_op("cifar_zoo::depthwise_weight_gradient", mutates_args=())
def _weight_gradient(
    x: Tensor, g: Tensor, height: int, width: int, stride: int, size: int
) -> Tensor:
    """The gradient of every entry of the matrices, summed along the diagonals: (C, 1, k, k)."""
    channels, (high, wide) = x.shape[0], _strided(height, width, stride)
    x = x.view(x.shape[0], -1, height, width)  # (C, B, H, W)
    g = g.view(channels, -1, high, wide)  # (C, B, H / stride, W / stride)
    rows = _rows_at_once(high, wide)
    seen = (rows - 1) * stride + size  # rows of x for one strip
    strips = -(-high // rows)
    full = x.new_empty(strips, channels, seen, width, rows, wide)
    start = -(size // 2)
    for strip, (to, window, skip) in enumerate(_strips(x, g, seen, rows, start, rows * stride)):
        entries = full[strip]
        if window.shape[2] < seen or to.shape[2] < rows:
            entries.zero_()
        kept = entries[:, skip : skip + window.shape[2], :, : to.shape[2]]
        torch.bmm(
            window.flatten(2).transpose(1, 2),
            to.flatten(2),
            out=kept.flatten(1, 2).flatten(2),
        )
    wider = torch.promote_types(x.dtype, torch.float32)
    by_strip, by_channel, by_seen, by_column, by_row, _ = full.stride()
    taps = full.as_strided(
        (strips, channels, size, rows, width, wide),
        (by_strip, by_channel, by_seen, stride * by_seen + by_row, by_column, 1),
    )
    across = taps.sum((0, 3), dtype=wider)  # (C, k, W, W / stride)
    behind = max(0, size - size // 2 + (wide - 1) * stride - width)
    across = F.pad(across, (0, 0, size // 2, behind))
    by_channel, by_tap, by_column, _ = across.stride()
    taps = across.as_strided(
        (channels, size, size, wide), (by_channel, by_tap, by_column, stride * by_column + 1)
    )
    return taps.sum(3).unsqueeze(1).to(x.dtype)


@_weight_gradient.register_fake
def _(x: Tensor, g: Tensor, height: int, width: int, stride: int, size: int) -> Tensor:
    return x.new_empty(x.shape[0], 1, size, size)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.shape = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    height, width, stride = ctx.shape
    size, (_, wide) = weight.shape[3], _strided(height, width, stride)
    g = g.contiguous()
    dx = dw = None
    if ctx.needs_input_grad[0]:
        rows = _rows_at_once(height, width, up=stride)
        matrix = _backward_matrix(weight, rows, wide, width, stride)
        dx = _input_gradient(g, matrix, height, width, stride, size)
    if ctx.needs_input_grad[1]:
        dw = _weight_gradient(x, g, height, width, stride, size)
    return dx, dw, None, None, None, None


_convolve.register_autograd(_backward, setup_context=_remember)


def _strided(height: int, width: int, stride: int) -> tuple[int, int]:
    return -(-height // stride), -(-width // stride)


def _reach(size: int, stride: int) -> int:
    """How many rows of the result before the one at the same place see a row of the input."""
    return (size - 1 - size // 2) // stride


def _rows_at_once(high: int, wide: int, *, up: int = 1) -> int:
    """How many rows of a result of this size one product computes: a multiple of `up`."""
    return max(1, min(OUTPUTS // wide // up, -(-high // up))) * up


def _forward_matrix(weight: Tensor, rows: int, width: int, stride: int) -> Tensor:
    """(C, 1, k, k) -> (C, seen rows * W, rows * W / stride)."""
    device, size = weight.device, weight.shape[3]
    seen = (rows - 1) * stride + size
    wide = -(-width // stride)
    tap_row = _steps(seen, device)[:, None] - stride * _steps(rows, device)
    tap_column = _steps(width, device)[:, None] - stride * _steps(wide, device) + size // 2
    return _banded(weight, tap_row, tap_column)


def _backward_matrix(weight: Tensor, rows: int, wide: int, width: int, stride: int) -> Tensor:
    """(C, 1, k, k) -> (C, seen rows * W / stride, rows * W)."""
    device, size = weight.device, weight.shape[3]
    reach = _reach(size, stride)
    seen = (rows - 1 + size // 2) // stride + reach + 1
    tap_row = _steps(rows, device) - stride * (_steps(seen, device)[:, None] - reach) + size // 2
    tap_column = _steps(width, device) - stride * _steps(wide, device)[:, None] + size // 2
    return _banded(weight, tap_row, tap_column)


def _banded(weight: Tensor, tap_row: Tensor, tap_column: Tensor) -> Tensor:
    """Place each tap wherever its row and column are asked for, and zeros elsewhere."""
    channels, _, size, _ = weight.shape
    row, column = tap_row[:, None, :, None], tap_column[None, :, None, :]
    known = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    taps = weight.flatten(1)[:, torch.where(known, row * size + column, 0)]
    matrix = torch.where(known, taps, 0)  # (C, seen, W, rows, W')
    return matrix.flatten(3).flatten(1, 2)


def _steps(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


def _by_strips(x: Tensor, matrix: Tensor, y: Tensor, *, start: int, step: int) -> None:
    """Fill `y`, a strip of rows at a time, with the rows of `x` that it sees times `matrix`."""
    width, wide = x.shape[3], y.shape[3]
    seen, rows = matrix.shape[1] // width, matrix.shape[2] // wide
    for to, window, skip in _strips(x, y, seen, rows, start, step):
        there = window.flatten(2)  # (C, B, seen rows * W)
        part = matrix[:, skip * width : skip * width + there.shape[2], : to.shape[2] * wide]
        torch.bmm(there, part, out=to.flatten(2))


def _strips(
    x: Tensor, y: Tensor, seen: int, rows: int, start: int, step: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Strips of `y`, the rows of `x` that each sees, and how many it would see above them."""
    for strip, top in enumerate(range(0, y.shape[2], rows)):
        first = start + strip * step
        low = max(0, first)
        yield y[:, :, top : top + rows], x[:, :, low : first + seen], low - first
