"""What is left of facts, located neurons and ROME edits at 8, 4, 2 and 1 bit; for docs/analyses/mlp.md.

Built-in facts that the model knows, evenly over relations; the edits are ROME's of some of them, with its own settings.
MLPs are rounded and, as control, attention.
"""

from __future__ import annotations

from pathlib import Path

from tqdm.auto import tqdm

import knowedit
from knowedit.mlp.quantization import PrecisionConfig, precision as measure_precision

from ..registry import benchmark
from ..samples import evenly, known


@benchmark("quality.precision", "What is left of facts, neurons and edits when weights are rounded to few bits?")
def precision(facts: int = 44, neurons: int = 6, edits: int = 6, figure: Path | None = None) -> dict:
    """`neurons`: facts whose neurons are located; `figure`: a file to draw it into."""
    model = knowedit.load()
    chosen = evenly(known(model), facts)
    editable = [fact for fact in chosen if fact.target_new]
    edited = editable[:: max(1, len(editable) // edits)][:edits]
    config = PrecisionConfig(neurons=neurons)
    with tqdm(total=1 + len(config.bits) * len(config.parts), unit="level") as bar:
        progress = lambda done: bar.update(done - bar.n)  # noqa: E731
        result = measure_precision(model, chosen, knowedit.rome_many(model, edited), config, progress=progress)
    if figure is not None:
        result.figure(figure)
    return {"edited": [fact.id for fact in edited], **result.as_dict()}


@precision.row
def precision_row(record: dict) -> list[str]:
    lines = []
    for level in (level for level in record["levels"] if level["bits"] in (8, 4)):
        known_share, located, edited = (level[key]["value"] for key in ("known", "found_again", "edited"))
        part = {"mlp": "MLPs"}.get(level["part"], level["part"])
        lines.append(
            f"{part}, {level['bits']} bits: {known_share:.0%} of facts known, {located:.0%} of neurons located again, "
            f"{edited:.0%} of edits answered"
        )
    return lines
