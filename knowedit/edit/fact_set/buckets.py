"""Search for the values of many facts in batches of fixed shape: a fact's value tells nothing of what shared its batch.

A product of matrices gives a row the same bits whatever the other rows hold, but not whatever their number is. So a
batch (a bucket) always has room for a device's number of facts (`SIZES`), columns for prefix and suffix that are
rounded up, and as many logits; all of this follows from one fact alone, and facts share a bucket only with others of
its shape. What is not filled is filled with copies. A search that ends gives its place to the next fact; the others go
on from where they were, in a bucket of the same shape.

Where a device's kernels give a row other bits at another place of a batch, or add in no fixed order, rows of a fact
depend on their bucket by rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ...models.adapter import Model, frozen
from ...models.passes.batches import of_device
from ..methods.search_rows import Request, Run, Shape
from ..methods.v_star import Searches, Value, VStarSearch, until_done

SIZES = {"cpu": 4, "cuda": 16}
"""Facts in a bucket: some 128 tokens of suffixes, at which a processor is as fast as it gets; more keep a card busy."""
PREFIX, SUFFIX, READS = 16, 4, 4
"""Columns of prefixes and suffixes, and tokens of targets, are rounded up to multiples of these."""


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
    size = of_device(model, SIZES)
    with frozen(model):
        for queue in waiting.values():
            shape = _shape(model, requests[queue[0]])
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
    return len(request.rows), request.per_prompt, request.begins_with_essence, _shape(model, request)


def _shape(model: Model, request: Request) -> Shape:
    """The shape of a request's bucket. There is always a column of padding, so a mask, in every bucket."""
    rows = request.batched
    prefix = max(row.lookup for row in rows) + 1
    suffix, whole = request.suffix, max(len(row.ids) for row in rows) + 1
    reads = _up(max(len(row.reads) for row in rows), READS) * (len(request.rows) - 1)
    columns = (_up(prefix, PREFIX), _up(suffix if model.cached else whole, SUFFIX))
    return Shape(columns, reads=of_device(model, SIZES) * (reads + 1))


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
