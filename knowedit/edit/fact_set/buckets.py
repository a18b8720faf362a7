"""Search for the values of many facts in batches of fixed shape: a fact's value tells nothing of what shared its batch.

A product of matrices gives a row the same bits whatever the other rows hold, but not whatever their number is. So a
batch (a bucket) always has room for `SIZE` facts, columns for prefix and suffix that are rounded up, and as many
logits; all of this follows from one fact alone, and facts share a bucket only with others of its shape. What is not
filled is filled with copies. A search that ends gives its place to the next fact; the others go on from where they
were, in a bucket of the same shape.

Where a device's kernels give a row other bits at another place of a batch, or add in no fixed order, rows of a fact
depend on their bucket by rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ...models.adapter import Model, frozen
from ..methods.v_star import Going, Request, Run, Shape, Value, VStarSearch, until_done

SIZE = 4
"""Facts in a bucket: some 128 tokens of suffixes, at which a processor is as fast as it gets."""
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
    with frozen(model):
        for queue in waiting.values():
            shape = _shape(model, requests[queue[0]])
            going: dict[int, Going] = {}
            while queue or going:
                new = [queue.popleft() for _ in range(min(SIZE - len(going), len(queue)))]
                places = [*going, *new]
                filled = [requests[i] for i in (*places, *places[:1] * (SIZE - len(places)))]
                run = Run.of(model, filled, layer, shape)
                values = dict(zip(places, zip(run.keys(), run.v0(), strict=True), strict=False))
                going |= {i: Going(values[i][0].clone(), values[i][1].clone(), search) for i in new}
                done = until_done(run, list(going.values()), search, share=0.5 if queue else 1.0)
                over = [i for i, ended in zip(places, done, strict=True) if ended]
                keep({i: going.pop(i).value(requests[i], search) for i in over})


def _kind(model: Model, request: Request) -> tuple:
    """What requests of one bucket have in common: the number of their rows, and the shape."""
    return len(request.rows), request.per_prompt, request.begins_with_essence, _shape(model, request)


def _shape(model: Model, request: Request) -> Shape:
    """The shape of a request's bucket. There is always a column of padding, so a mask, in every bucket."""
    *prompts, essence = request.rows
    suffix = max(len(row.ids) - row.lookup for row in prompts)
    whole = max(len(row.ids) for row in prompts)
    reads = _up(max(len(row.reads) for row in prompts), READS) * len(prompts)
    return Shape(
        prompts=(
            _up(max(row.lookup for row in prompts) + 1, PREFIX),
            _up(suffix if model.cached else whole + 1, SUFFIX),
        ),
        essences=(_up(essence.lookup + 1, PREFIX), 1 if model.cached else _up(len(essence.ids) + 1, SUFFIX)),
        reads=SIZE * (reads + 1),
    )


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
