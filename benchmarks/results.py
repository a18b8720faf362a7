"""How every benchmark keeps what it found: one JSON file, with the command and the machine that made it."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import torch
import transformers

import knowedit
from knowedit.files import write_text

FOLDER = Path(__file__).parent / "results"


def save(name: str, record: dict) -> None:
    """Write `benchmarks/results/<name>.json` and print it."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]  # no folders
    made = {
        "command": " ".join(["python -m", sys.modules["__main__"].__spec__.name, *words]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {
            "knowedit": knowedit.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**made, **record}, indent=1, ensure_ascii=False)
    write_text(FOLDER / f"{name}.json", text + "\n")
    print(text)
