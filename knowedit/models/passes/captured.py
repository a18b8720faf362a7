"""Work that is done over and over on the same tensors: on a CUDA device it is captured once, then replayed.

One step of a search launches thousands of small kernels, which takes Python longer than it takes a card to run them. A
CUDA graph launches all of them at once. It holds the addresses of the tensors, so the work changes these in place,
reads nothing from the device, and does not depend on what Python decides from one time to the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..adapter import Model

TRIES = 2  # a library that a thread calls for the first time makes what it works with, which cannot be captured


def capturing(model: Model) -> bool:
    """Whether work on `model` can be captured: all of it is on one CUDA device, and stays there."""
    devices = {tensor.device for tensor in (*model.hf.parameters(), *model.hf.buffers())}
    return len(devices) == 1 and devices.pop().type == "cuda" and not model.offloaded


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """What does `work` each time it is called; to capture it does nothing yet. It has been done before, as it is.

    Some families' blocks ask the device how to go on (a mixture of experts, which tokens go where): `work` itself is
    given back then.
    """
    for _ in range(TRIES):
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                work()
            return graph.replay
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            torch.cuda.synchronize()
    return work
