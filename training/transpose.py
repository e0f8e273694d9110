"""Transposition of large 16-bit matrices at the speed of memory, through the chip's own memory."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # rows and columns of what one program moves


@triton.jit
def _transpose_kernel(x_ptr, y_ptr, rows, columns, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """y[column, row] = x[row, column]."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    known = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(x_ptr + row[:, None] * columns + column[None, :], known)
    place = y_ptr + column.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(place, tl.trans(tile), tl.trans(known))


@torch.library.custom_op("cifar_zoo::transpose", mutates_args=())
def transpose(x: Tensor) -> Tensor:
    """Transpose a contiguous matrix into a contiguous one: (R, C) -> (C, R).

    An operator of its own, because a compiler's transposing copy takes up to 19 times as long as a
    plain copy (64 channels of 1,024 images of 32x32 pixels on an H200: 1.20 against 0.065 ms).
    """
    rows, columns = x.shape
    if not x.is_cuda:
        return x.t().contiguous()
    y = x.new_empty(columns, rows)
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    _transpose_kernel[grid](x, y, rows, columns, TILE=TILE, num_warps=4)
    return y


@transpose.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[0])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Nothing is needed for the gradient."""


def _backward(ctx: Any, g: Tensor) -> Tensor:
    turned: Tensor = transpose(g.contiguous())
    return turned


transpose.register_autograd(_backward, setup_context=_remember)
