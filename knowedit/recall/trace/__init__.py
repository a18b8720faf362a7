"""Causal tracing and patching: which states bring the answer back into a corrupted run (Meng et al. 2022).

corruption   what a run is without its subject, and what a restored state changes in it
noise        the corruption itself: Gaussian noise on the subject's embeddings
restore      windows of states put back, and the rest of the model run again
exact        `trace`: every state restored, one growing batch a token
gradients    the same to first order, by one backward pass
average      traces of many facts by class of token
patching     `patch`: any sites of one prompt put into the run of another
figure       traces, their average and patches as heat maps
"""

from typing import TYPE_CHECKING

from ...lazy import exports

if TYPE_CHECKING:
    from .average import TraceAverage as TraceAverage, average_traces as average_traces
    from .exact import Trace as Trace, TraceConfig as TraceConfig, trace as trace, trace_facts as trace_facts
    from .patching import Patched as Patched, Site as Site, patch as patch
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
