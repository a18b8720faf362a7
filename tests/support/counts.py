"""Count what a piece of work asks of a device: operators that it calls, and results that it waits for.

    with counted() as counts:
        work()
    assert counts.reads == 0 and counts.calls < 100

On a GPU a call is a launch, and a read (`.item()`, `.cpu()`, `if tensor:`) waits for all that was launched before it.
Both are the same on a CPU, where tests hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # values, or shapes that values decide
COPIES = {Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__}


class Counts(TorchDispatchMode):
    """`names`: how often each operator was called, in forward and backward passes; `reads`: how often it was waited."""

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()
        self.reads = 0

    @property
    def calls(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.name()] += 1
        self.reads += not READS.isdisjoint(func.tags) and not _by_numbers(func, args)
        return func(*args, **(kwargs or {}))


def _by_numbers(func, args) -> bool:
    """Whether it indexes by numbers: only a mask of booleans decides the shape of what it gives."""
    return func is torch.ops.aten.index.Tensor and all(i is None or i.dtype != torch.bool for i in args[1])


class _Copies(TorchFunctionMode):
    """Counts copies to the CPU by name, also where a tensor is there already; `to(device)` goes anywhere."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_cpu = func is Tensor.to and "cpu" in [a for a in (*args[1:], *kwargs.values()) if isinstance(a, str)]
        self.counts.reads += func in COPIES or to_cpu
        return func(*args, **kwargs)


@contextmanager
def counted() -> Iterator[Counts]:
    """The counts of what is done while the context lasts."""
    counts = Counts()
    with _Copies(counts), counts:
        yield counts


def in_a_step(work, few: int = 2, many: int = 7) -> tuple[float, float]:
    """Calls and reads of one step of `work(steps)`, from the difference that some more steps make."""
    totals = []
    for steps in (few, many):
        with counted() as counts:
            work(steps)
        totals.append((counts.calls, counts.reads))
    (calls, reads), (more_calls, more_reads) = totals
    return (more_calls - calls) / (many - few), (more_reads - reads) / (many - few)
