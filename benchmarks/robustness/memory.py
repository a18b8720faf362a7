"""Peak memory of loading the default model and attributing, less what the bare imports take, over the fp32 weights.

Each figure comes from a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

from ..registry import benchmark
from ..samples import PROMPT, TARGET

IMPORTS = (  # with the model's own code, which transformers imports late
    "import resource, torch, transformers, knowedit; from knowedit.locate.attribution import *; knowedit.load; "
    "import transformers.models.llama.modeling_llama; "
)
LOAD = IMPORTS + "model = knowedit.load(); "
ATTRIBUTE = LOAD + f"attribute(model, {PROMPT!r}, {TARGET!r}, AttributionConfig({{}})); "
PEAK = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
CONFIGS = {"8 nodes": "nodes=8", "20 nodes": "nodes=20", "64 nodes": "nodes=64", "256 nodes": "nodes=256", "auto": ""}


@benchmark("robustness.memory", "How much memory do scores of all neurons take, as a multiple of the fp32 weights?")
def memory() -> dict:
    bare, loaded = _printed(IMPORTS + PEAK), _printed(LOAD + PEAK)
    weights = _printed(LOAD + "print(4 * sum(p.numel() for p in model.hf.parameters()))")
    peaks = {name: _printed(ATTRIBUTE.format(arguments) + PEAK) for name, arguments in CONFIGS.items()}
    return {
        "weights_bytes": weights,
        "imports_bytes": bare,
        "loaded_over_weights": (loaded - bare) / weights,
        "peak_over_weights": {name: (peak - bare) / weights for name, peak in peaks.items()},
    }


@memory.row
def memory_row(record: dict) -> list[str]:
    peaks = ", ".join(f"{name} {value:.2f}" for name, value in record["peak_over_weights"].items())
    return [f"peak, weights included: {peaks}"]


def _printed(code: str) -> int:
    """The number that the code prints last."""
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(process.stdout.strip().splitlines()[-1])
