"""Rows of token ids in batches: those of about one length together, so that little is padding.

    for chosen in batches([len(row) for row in rows], tokens=768):
        tokens, seen = padded([rows[i] for i in chosen])

A decoder never looks at what comes after a token, so rows that are padded on the right need no mask there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def batches(
    lengths: Sequence[int], *, tokens: float = math.inf, rows: float = math.inf, equal: bool = False
) -> Iterator[list[int]]:
    """Indices of rows, batch by batch, from the shortest to the longest; rows of one length stay in their order.

    A batch has at most `rows` rows and, padding included, at most `tokens` tokens; a row that alone has more is a batch
    of its own. With `equal` all rows of a batch are equally long.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = len(batch) >= rows or (len(batch) + 1) * lengths[i] > tokens
        if batch and (full or (equal and lengths[i] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], *, left: bool = False, columns: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids, (rows, longest), with zeros as padding on the right or `left`; and 1 where there is no padding.

    `columns`: at least so many of them.
    """
    longest = max(columns, *map(len, rows))
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    seen = torch.zeros_like(tokens)
    for r, row in enumerate(rows):
        part = slice(longest - len(row), longest) if left else slice(0, len(row))
        tokens[r, part] = torch.tensor(row, dtype=torch.long)
        seen[r, part] = 1
    return tokens, seen


def fitting_tokens(device: torch.device, bytes_per_token: int, least: int) -> int:
    """How many tokens a batch may have: what `room` holds on a CUDA device.

    At least, and on any other device, it is `least`: what suits a processor and its cache.
    """
    return max(least, room(device) // bytes_per_token) if device.type == "cuda" else least


def room(device: torch.device) -> int:
    """Half of the bytes of a CUDA device that are free, or that torch holds and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // 2
