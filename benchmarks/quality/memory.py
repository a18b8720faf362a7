"""Peak memory of loading the default model and attributing, less what the bare imports take, over the fp32 weights.

    python -m benchmarks.quality.memory

Each figure comes from a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

from ..results import save

IMPORTS = (  # with the model's own code, which transformers imports late
    "import resource, torch, transformers, knowedit; from knowedit.locate.attribution import *; knowedit.load; "
    "import transformers.models.llama.modeling_llama; "
)
PEAK = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
RUN = (
    "m = knowedit.load(); attribute(m, 'The Eiffel Tower is located in the city of', 'Paris', AttributionConfig({})); "
)


def main() -> None:
    bare = _peak(IMPORTS + PEAK)
    loaded = _peak(IMPORTS + "m = knowedit.load(); " + PEAK)
    weights = _peak(IMPORTS + "m = knowedit.load(); print(4 * sum(p.numel() for p in m.hf.parameters()))")
    runs = {name: _peak(IMPORTS + RUN.format(arguments) + PEAK) for name, arguments in _configs().items()}
    save(
        "robustness/memory",
        {
            "weights_bytes": weights,
            "imports_bytes": bare,
            "loaded_over_weights": (loaded - bare) / weights,
            "peak_over_weights": {name: (peak - bare) / weights for name, peak in runs.items()},
        },
    )


def _configs() -> dict[str, str]:
    return {"8 nodes": "nodes=8", "20 nodes": "nodes=20", "64 nodes": "nodes=64", "256 nodes": "nodes=256", "auto": ""}


def _peak(code: str) -> int:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
