"""Dense 3x3 convolutions of few channels, for training on tensor cores.

With 16 channels a library's kernels, made for hundreds, leave most of the memory bandwidth unused.
Here a pixel's 9 neighbours are gathered as one row of a matrix, from the cache and never in
memory, and multiplied with the taps. The gradient of the input is the same product with turned
taps; that of the weights multiplies the gathered rows with the gradient of the result.
"""
# Triton's kernels have no types.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# By input channels: pixels at once, of the 9 * CI products of each how many at once, warps, and
# for the weights how many loads are under way. The fastest of those that were tried on an H200
# (bench_results/gpu/training_kernels.jsonl).
FORWARD = {3: (128, 32, 4), 16: (128, 16, 4), 32: (128, 32, 4), 64: (64, 64, 4)}
WEIGHTS = {3: (128, 32, 4, 3), 16: (128, 64, 4, 3), 32: (64, 128, 4, 3), 64: (64, 64, 4, 3)}
PROGRAMS = 1056  # 8 for each of the 132 multiprocessors of an H100 or H200


@triton.jit
def _gather(
    x_ptr, pixel, k, pixels, H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr
):  # fmt: skip
    """Entries `k` of the neighbours of `pixel`, (pixels, k): the channels of tap after tap."""
    tap, channel = k // CI, k % CI
    up, left = tap // 3 - 1, tap % 3 - 1
    row = (pixel // W % H)[:, None] + up[None, :]
    column = (pixel % W)[:, None] + left[None, :]
    inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
    known = inside & (pixel < pixels)[:, None] & (k < 9 * CI)[None, :]
    place = pixel[:, None] * CI + ((up * W + left) * CI + channel)[None, :]
    return tl.load(x_ptr + place, known, 0.0)


@triton.jit
def _product_kernel(
    x_ptr, taps_ptr, y_ptr, pixels,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr,
    PIXELS: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """y[pixel, :] = neighbours[pixel, :] @ taps."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    output = tl.arange(0, N)
    y = tl.zeros((PIXELS, N), tl.float32)
    for start in tl.static_range(0, 9 * CI, K):
        k = start + tl.arange(0, K)
        known = (k < 9 * CI)[:, None] & (output < CO)[None, :]
        taps = tl.load(taps_ptr + k[:, None] * CO + output[None, :], known, 0.0)
        y = tl.dot(_gather(x_ptr, pixel, k, pixels, H, W, CI), taps, y)
    place = y_ptr + pixel[:, None] * CO + output[None, :]
    known = (pixel < pixels)[:, None] & (output < CO)[None, :]
    tl.store(place, y.to(y_ptr.dtype.element_ty), known)


@triton.jit
def _weight_gradient_kernel(
    x_ptr, g_ptr, parts_ptr, pixels, share,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr,
    PIXELS: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """parts[share, k, :] = sum over a share of the pixels of neighbours[pixel, k] * g[pixel, :]."""
    split = tl.program_id(1)
    k = tl.program_id(0) * K + tl.arange(0, K)
    output = tl.arange(0, N)
    total = tl.zeros((K, N), tl.float32)
    for start in range(split * share, min((split + 1) * share, pixels), PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        known = (pixel < pixels)[:, None] & (output < CO)[None, :]
        g = tl.load(g_ptr + pixel[:, None] * CO + output[None, :], known, 0.0)
        x = _gather(x_ptr, pixel, k, pixels, H, W, CI)
        total = tl.dot(tl.trans(x), g, total)
    place = parts_ptr + (split * 9 * CI + k)[:, None] * CO + output[None, :]
    tl.store(place, total, (k < 9 * CI)[:, None] & (output < CO)[None, :])


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with 3x3 filters at stride 1, padded by 1.

    Between the operators a map is a matrix, (B * H * W, C): of a tensor with four axes a compiler
    that prefers channels last would keep a transposed copy for the backward pass.

    Shapes:
        (B, CI, H, W), (CO, CI, 3, 3) -> (B, CO, H, W), channels last.
    """
    batch, inputs, height, width = x.shape
    outputs = len(weight)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, inputs).contiguous()  # as it is in channels last
    taps = weight.permute(2, 3, 1, 0).reshape(-1, outputs)  # (9 * CI, CO)
    y: Tensor = _convolve(pixels, taps.contiguous(), height, width)
    return y.view(batch, height, width, outputs).permute(0, 3, 1, 2)


@torch.library.custom_op("cifar_zoo::conv3x3", mutates_args=())
def _convolve(x: Tensor, taps: Tensor, height: int, width: int) -> Tensor:
    (pixels, inputs), outputs = x.shape, taps.shape[1]
    y = x.new_empty(pixels, outputs)
    tile, depth, warps = FORWARD[_row(inputs)]
    _product_kernel[(triton.cdiv(pixels, tile),)](
        x, taps, y, pixels,
        H=height, W=width, CI=inputs, CO=outputs,
        PIXELS=tile, K=depth, N=_room(outputs), num_warps=warps,
    )  # fmt: skip
    return y


@_convolve.register_fake
def _(x: Tensor, taps: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty(x.shape[0], taps.shape[1])


@torch.library.custom_op("cifar_zoo::conv3x3_weight_gradient", mutates_args=())
def _weight_gradient(x: Tensor, g: Tensor, height: int, width: int) -> Tensor:
    """Sums over shares of the pixels, which are still to be added: (shares, 9 * CI, CO)."""
    (pixels, inputs), outputs = x.shape, g.shape[1]
    tile, depth, warps, stages = WEIGHTS[_row(inputs)]
    shares, share, parts = _shares(pixels, inputs)
    sums = x.new_empty(shares, 9 * inputs, outputs, dtype=torch.float32)
    _weight_gradient_kernel[(parts, shares)](
        x, g, sums, pixels, share,
        H=height, W=width, CI=inputs, CO=outputs,
        PIXELS=tile, K=depth, N=_room(outputs), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return sums


@_weight_gradient.register_fake
def _(x: Tensor, g: Tensor, height: int, width: int) -> Tensor:
    (pixels, inputs), outputs = x.shape, g.shape[1]
    return x.new_empty(_shares(pixels, inputs)[0], 9 * inputs, outputs, dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, taps, *ctx.size = inputs
    ctx.save_for_backward(x, taps)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, taps = ctx.saved_tensors
    g = g.contiguous()
    dx = dtaps = None
    if ctx.needs_input_grad[0]:
        inputs = x.shape[1]
        turned = taps.view(9, inputs, -1).flip(0).transpose(1, 2)
        dx = _convolve(g, turned.reshape(-1, inputs).contiguous(), *ctx.size)
    if ctx.needs_input_grad[1]:
        dtaps = _weight_gradient(x, g, *ctx.size).sum(0).to(taps.dtype)
    return dx, dtaps, None, None


_convolve.register_autograd(_backward, setup_context=_remember)


def _room(channels: int) -> int:
    """The least size of a tensor core's product that holds this many channels."""
    return max(16, 1 << (channels - 1).bit_length())


def _row(inputs: int) -> int:
    """The row of the tables above for so many inputs."""
    return 3 if inputs <= 3 else _room(inputs)


def _shares(pixels: int, inputs: int) -> tuple[int, int, int]:
    """How many shares of the pixels, how large they are, into how many parts the taps are cut."""
    tile, depth, _, _ = WEIGHTS[_row(inputs)]
    parts = triton.cdiv(9 * inputs, depth)
    share = triton.cdiv(triton.cdiv(pixels, PROGRAMS // parts), tile) * tile
    return triton.cdiv(pixels, share), share, parts
