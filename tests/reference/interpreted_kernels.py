"""Compare Triton's kernels with torch; run with TRITON_INTERPRET=1, which needs no GPU."""

import torch
import torch.nn.functional as F

from training import transpose
from training.conv3x3 import conv3x3

MATRICES = ((64, 64), (130, 3), (3, 130), (1, 1))
SHAPES = (  # B, CI, CO, H, W
    (3, 16, 16, 7, 9),  # more pixels than one program takes, no multiple of it
    (2, 3, 16, 8, 8),
    (1, 32, 32, 5, 4),
    (1, 64, 64, 4, 4),
    (2, 20, 40, 3, 5),
    (2, 16, 12, 1, 1),
)


def compare_conv3x3() -> None:
    for batch, inputs, outputs, height, width in SHAPES:
        x = torch.randn(batch, height, width, inputs + 2)[..., 1:-1].permute(0, 3, 1, 2)
        x.requires_grad_()  # some channels of a map in channels last
        weight = torch.randn(outputs, inputs, 3, 3, requires_grad=True)
        g = torch.randn(batch, outputs, height, width)
        y = conv3x3(x, weight)
        expected = F.conv2d(x, weight, padding=1)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert y.is_contiguous(memory_format=torch.channels_last)
        found = torch.autograd.grad(y, (x, weight), g)
        for one, other in zip(found, torch.autograd.grad(expected, (x, weight), g), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        (alone,) = torch.autograd.grad(conv3x3(x.detach(), weight), weight, g)  # images need none
        torch.testing.assert_close(alone, found[1])
        kept: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, to=kept: to.append(one.shape), id
        ):
            conv3x3(x, weight)
        assert (batch * height * width, inputs) in kept  # as a matrix, or Inductor copies it


def compare_transpose() -> None:
    tile = transpose.TILE
    for rows, columns in MATRICES:
        x = torch.randn(rows, columns)
        y = torch.empty(columns, rows)
        grid = (-(-rows // tile), -(-columns // tile))
        transpose._transpose_kernel[grid](x, y, rows, columns, TILE=tile)
        assert torch.equal(y, x.t())


def main() -> None:
    torch.manual_seed(0)
    compare_conv3x3()
    compare_transpose()
    print(f"{len(SHAPES)} convolutions and {len(MATRICES)} transpositions agree")


if __name__ == "__main__":
    main()
