"""x W for x in float32 and W in bfloat16, as one Triton kernel: each tile of x is split on its way to the units.

It reads x once and W once a tile of rows, and writes y; nothing else reaches the device's memory. Only where Triton
is installed, as it is beside torch for CUDA on Linux; `split_product.py` does the same without it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = (  # rows of x up to which a tile is taken: rows and columns of y, terms of a sum, warps, stages
    (16, (16, 64, 128, 4, 4)),
    (64, (64, 64, 64, 4, 4)),
    (float("inf"), (128, 128, 32, 8, 4)),
)


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x (rows, in), float32, times a matrix (in, out), bfloat16; float32."""
    x = x.contiguous()
    matrix = matrix if 1 in matrix.stride() else matrix.contiguous()
    upright = matrix.stride(1) == 1  # its rows lie one behind the other, or its columns
    rows, columns = len(x), matrix.shape[1]
    y = torch.empty(rows, columns, device=x.device)
    tile_rows, tile_columns, terms, warps, stages = next(tile for most, tile in TILES if rows <= most)
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
    with torch.cuda.device_of(x):
        _product[grid](
            x, matrix, y, rows, columns, len(matrix), matrix.stride(0 if upright else 1),
            upright, tile_rows, tile_columns, terms, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["rows"])
def _product(
    x, w, y, rows, columns, terms, w_step,
    UPRIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    # programs that run side by side share the columns of W
    row_tiles = tl.cdiv(rows, ROWS)
    row = (tl.program_id(0) % row_tiles) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) // row_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    term = tl.arange(0, TERMS)
    x_at = x + row[:, None].to(tl.int64) * terms + term[None, :]
    if UPRIGHT:
        w_at = w + term[:, None].to(tl.int64) * w_step + column[None, :]
    else:
        w_at = w + term[:, None] + column[None, :].to(tl.int64) * w_step
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, terms, TERMS):
        inside = term < terms - start
        a = tl.load(x_at, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        b = tl.load(w_at, mask=inside[:, None] & (column < columns)[None, :], other=0.0)
        high = a.to(tl.bfloat16)
        low = (a - high.to(tl.float32)).to(tl.bfloat16)
        # the units round sums down: few terms are added up there, the rest in float32
        total += tl.dot(high, b, tl.dot(low, b))
        x_at += TERMS
        w_at += TERMS * w_step if UPRIGHT else TERMS
    y_at = y + row[:, None].to(tl.int64) * columns + column[None, :]
    tl.store(y_at, total, mask=(row < rows)[:, None] & (column < columns)[None, :])
