"""Rows of token ids in batches: those of about one length together, so that little is padding.

    for chosen in batches([len(row) for row in rows], tokens=768):
        tokens, seen = padded([rows[i] for i in chosen])

    for chosen, result in halving(model, batches(lengths, tokens=768), run, "prompts"):

A decoder never looks at what comes after a token, so rows that are padded on the right need no mask there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ...errors import KnoweditWarning, ModelError
from ..adapter import Model

DEVICE_TOKENS = 16384  # keep any accelerator busy for longer than it takes to launch what is done with them
DEVICE_ROWS = 2048  # of logits

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def halving(
    model: Model, parts: Iterable[list[Item]], work: Callable[[list[Item]], Result], what: str
) -> Iterator[tuple[list[Item], Result]]:
    """Each of `parts` with what `work` makes of it, in order; one too large for the device's memory is done in halves.

    Later parts have no more items than these, and a warning says so, which calls the items `what`. Work that does not
    fit is done again, so it has no effect but by its result, or one that may come twice. Raises `ModelError` where an
    item does not fit by itself.
    """
    most: int | None = None
    for whole in parts:
        waiting = [whole]
        while waiting:
            part = waiting.pop()
            if most is None or len(part) <= most:
                if results := _fitting(work, part):
                    yield part, results[0]
                    continue
                if len(part) == 1:
                    raise ModelError(
                        f"one of the {what} alone does not fit into the memory of {model.device}; give {model.name} "
                        "shorter texts, more free memory, or fewer bits a weight"
                    )
                most = len(part) // 2
                message = (
                    f"{len(part)} {what} at once do not fit into the memory of {model.device}; they go on in halves"
                )
                warnings.warn(message, KnoweditWarning, stacklevel=2)
            waiting += [part[start : start + most] for start in range(0, len(part), most)][::-1]


def _fitting(work: Callable[[list[Item]], Result], part: list[Item]) -> list[Result]:
    """The result; none where the device's memory is too small. What was allocated for it is free again then."""
    try:
        return [work(part)]
    except torch.OutOfMemoryError:
        return []


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


def fitting_tokens(model: Model, least: int, a_token: int | None = None) -> int:
    """How many tokens a batch may have: `DEVICE_TOKENS` on a CUDA device, or what `room` holds there.

    At least, and on any other device, it is `least`: what suits a processor and its cache. `a_token`: the bytes that
    one keeps alive, `bytes_per_token` where it is not told.
    """
    if model.device.type != "cuda":
        return least
    return max(least, min(DEVICE_TOKENS, room(model.device) // (a_token or bytes_per_token(model))))


def fitting_logits(model: Model, least: int) -> int:
    """Likewise how many rows of logits may be held at once, `DEVICE_ROWS` at most."""
    return min(max(DEVICE_ROWS, least), fitting_tokens(model, least, 3 * 4 * model.vocabulary))


def of_device(model: Model, numbers: Mapping[str, int]) -> int:
    """Which of the numbers by the type of a device is that of the model's; `"cpu"` where it has none of its own."""
    return numbers.get(model.device.type, numbers["cpu"])


def bytes_per_token(model: Model) -> int:
    """About how much one token keeps alive in one layer while its gradient is computed: neurons and states."""
    return model.dtype.itemsize * (5 * model.n_neurons + 8 * model.d_model)


def room(device: torch.device) -> int:
    """Half of the bytes of a CUDA device that are free, or that torch holds and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // 2
