"""Search for the values of many facts in batches of fixed shape: a fact's value tells nothing of what shared its batch.

A product of matrices gives a row the same bits whatever the other rows hold, but not whatever their number is. So a
batch (a bucket) always has room for a device's number of facts (`SIZES`), columns for prefix and suffix that are
rounded up, and as many logits; all of this follows from one fact alone, and facts share a bucket only with others of
its shape. What is not filled is filled with copies. A search that ends gives its place to the next fact; the others go
on from where they were, in a bucket of the same shape.

Some processors' kernels give a row other bits at another place of a batch. There a bucket holds one fact, which takes
longer and keeps the promise; copies of a fact in all places of a bucket tell (`_steady`). On a GPU they are not asked:
where its kernels do so, or add in no fixed order, rows of a fact depend on their bucket by rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

import torch

from ...models.adapter import Model, frozen
from ...models.passes.batches import of_device
from ..methods.search_rows import Request, Run, Shape
from ..methods.v_star import Searches, Value, VStarSearch, until_done

SIZES = {"cpu": 4, "cuda": 16}
"""Facts in a bucket: some 128 tokens of suffixes, at which a processor is as fast as it gets; more keep a card busy."""
PREFIX, SUFFIX, READS = 16, 4, 4
"""Columns of prefixes and suffixes, and tokens of targets, are rounded up to multiples of these."""

_found_steady: WeakKeyDictionary = WeakKeyDictionary()  # transformers model → {(kind, layer, threads): steady}


def find_in_buckets(
    model: Model,
    requests: Sequence[Request],
    layer: int,
    search: VStarSearch,
    keep: Callable[[Mapping[int, Value]], None],
) -> None:
    """Find δ for every request; `keep` gets the values that are found, by the number of their request, as they are."""
    waiting: dict[tuple, deque[int]] = {}
    for i, request in enumerate(requests):
        waiting.setdefault(_kind(model, request), deque()).append(i)
    with frozen(model):
        for kind, queue in waiting.items():
            size = _size(model, kind, requests[queue[0]], layer, search)
            shape = _shape(model, requests[queue[0]], size)
            going: list[int] = []
            searches: Searches | None = None
            left: list[int] = []  # rows of searches that go on
            while queue or going:
                going += [queue.popleft() for _ in range(min(size - len(going), len(queue)))]
                filled = [requests[i] for i in (*going, *going[:1] * (size - len(going)))]
                run = Run.of(model, filled, layer, shape)
                begun = Searches(run, search, len(going))
                searches = begun if searches is None else begun.continuing(searches, left)
                ended = until_done(run, searches, len(going) // 2 if queue else 0)
                keep({going[j]: value for j, value in ended.items()})
                left = [j for j in range(len(going)) if j not in ended]
                going = [going[j] for j in left]


def _kind(model: Model, request: Request) -> tuple:
    """What requests of one bucket have in common: the number of their rows, and the shape."""
    return len(request.rows), request.per_prompt, request.begins_with_essence, _shape(model, request, 1)


def _size(model: Model, kind: tuple, request: Request, layer: int, search: VStarSearch) -> int:
    """Facts in a bucket of requests of this kind, of which `request` is one."""
    size = of_device(model, SIZES)
    if model.device.type != "cpu":
        return size
    found = _found_steady.setdefault(model.hf, {})
    asked = kind, layer, torch.get_num_threads()
    if asked not in found:
        found[asked] = _steady(model, request, layer, search, size)
    return size if found[asked] else 1


@torch.enable_grad()
def _steady(model: Model, request: Request, layer: int, search: VStarSearch, size: int) -> bool:
    """Whether a fact has the same bits in all places of a bucket: its keys and v0, and the gradient of a step."""
    run = Run.of(model, [request] * size, layer, _shape(model, request, size))
    searches = Searches(run, search)
    loss = searches.judged(run)
    (gradient,) = torch.autograd.grad(loss.sum(), searches.leaf)
    found = (torch.stack(searches.keys), searches.v0, loss.detach(), gradient)
    return all(torch.equal(values, values[:1].expand_as(values)) for values in found)


def _shape(model: Model, request: Request, size: int) -> Shape:
    """The shape of a request's bucket. There is always a column of padding, so a mask, in every bucket."""
    rows = request.batched
    prefix = max(row.lookup for row in rows) + 1
    suffix, whole = request.suffix, max(len(row.ids) for row in rows) + 1
    reads = _up(max(len(row.reads) for row in rows), READS) * (len(request.rows) - 1)
    columns = (_up(prefix, PREFIX), _up(suffix if model.cached else whole, SUFFIX))
    return Shape(columns, reads=size * (reads + 1))


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
