"""Attention over tokens: every token looks at every other one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.basic import DropPath, LayerNorm2d, Mlp


class SelfAttention(nn.Module):
    """Mean of all tokens, weighted by how well the one that asks agrees with each; several heads.

    With a `grid` the tokens are a map of that side, row by row, and each head adds to the agreement
    a learned number for the offset between the two pixels. Without one, order means nothing.
    `inputs`, the width of the tokens that come in, is `width` by default.

    Shapes:
        (B, N, inputs) -> (B, N, width); N is free without a grid, and grid * grid with one.
    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.2; the offsets as in Dai et al. 2021,
        arXiv:2106.04803, equation 3, left side. Dropout comes after the last projection alone.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        inputs: int | None = None,
        qkv_bias: bool = True,
        grid: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"attention needs a width that {heads} heads divide, got {width}")
        self.heads = heads
        self.qkv = nn.Linear(width if inputs is None else inputs, 3 * width, bias=qkv_bias)
        self.offsets = None if grid is None else OffsetBias(heads, grid)
        self.project = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of `x`."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, h, D / h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, D / h) each
        bias = None if self.offsets is None else self.offsets()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
        # With a mask, torch 2.14 takes a bare transpose for contiguous while exporting to ONNX and
        # fails to view it; `contiguous()` is then no copy, a clone is one.
        y = y.clone(memory_format=torch.contiguous_format).flatten(2)  # (B, N, D)
        return self.dropout(self.project(y))


class OffsetBias(nn.Module):
    """A learned number for each head and each offset between two pixels of a square map.

    Shapes:
        nothing -> (1, h, N, N), query before key; N = grid * grid.
    Source:
        Dai et al. 2021, arXiv:2106.04803, appendix A.1: for each head a table of
        (2 grid - 1) x (2 grid - 1), which holds the query's place minus the key's. It starts from
        a truncated normal distribution with standard deviation 0.02.
    """

    index: Tensor

    def __init__(self, heads: int, grid: int) -> None:
        super().__init__()
        side = 2 * grid - 1  # offsets from 1 - grid to grid - 1
        self.table = nn.Parameter(torch.empty(heads, side * side))
        nn.init.trunc_normal_(self.table, std=0.02)
        place = torch.arange(grid)
        apart = place[:, None] - place[None, :] + grid - 1  # (grid, grid)
        index = apart[:, None, :, None] * side + apart[None, :, None, :]
        self.register_buffer("index", index.reshape(grid**2, grid**2), persistent=False)

    def forward(self) -> Tensor:
        """Look every pair of pixels up."""
        # As a mask of rank 3, it would keep torch 2.14 from its fused kernels.
        return self.table[:, self.index].unsqueeze(0)  # (1, h, N, N)


class TransformerBlock(nn.Module):
    """Attention over the pixels of a map, then an MLP, each beside a shortcut; a gate at the end.

    A stride pools 3x3 before the attention. `grid` is the side of the pooled map, for attention
    that knows offsets.

    Shapes:
        (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    Source:
        Dai et al. 2021, arXiv:2106.04803, section 2.2 and appendix A.1: layer norm first, the
        largest of a window in both branches, 1x1 in the shortcut. The gate is no part of it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        heads: int,
        mlp_ratio: int,
        qkv_bias: bool = False,
        grid: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = LayerNorm2d(inputs)
        if stride == 1 and inputs == outputs:
            self.pool: nn.Module = nn.Identity()
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.pool = nn.MaxPool2d(3, stride, padding=1)
            self.shortcut = nn.Sequential(
                nn.MaxPool2d(3, stride, padding=1), nn.Conv2d(inputs, outputs, 1)
            )
        self.attention = SelfAttention(
            outputs, heads, inputs=inputs, qkv_bias=qkv_bias, grid=grid, dropout=dropout
        )
        self.mlp_norm = nn.LayerNorm(outputs, eps=1e-6)
        self.mlp = Mlp(outputs, mlp_ratio * outputs, dropout=dropout)
        self.drop_path = DropPath(drop_path)
        self.gate = nn.Identity() if gate is None else gate

    def forward(self, x: Tensor) -> Tensor:
        """Mix pixels, then channels."""
        y = self.pool(self.attention_norm(x))
        size = y.shape[2:]
        y = self.attention(y.flatten(2).transpose(1, 2))  # (B, N, D)
        x = self.shortcut(x).flatten(2).transpose(1, 2) + self.drop_path(y)  # (B, N, D)
        x = x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return self.gate(torch.unflatten(x.transpose(1, 2), 2, size))  # (B, D, H, W)
