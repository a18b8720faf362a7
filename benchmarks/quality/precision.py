"""What is left of the default model's facts, located neurons and ROME edits at 8, 4, 2 and 1 bit.

    python -m benchmarks.quality.precision

Built-in facts that the model knows, evenly over relations; the edits are ROME's of some of them, with its own settings.
MLPs are rounded and, as control, attention; the table of docs/analyses/mlp.md.
"""

from __future__ import annotations

import argparse

from tqdm.auto import tqdm

import knowedit
from knowedit.cli.shared.facts import known_facts
from knowedit.mlp.quantization import PrecisionConfig, precision

from ..results import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=44)
    parser.add_argument("--neurons", type=int, default=6, help="facts whose neurons are located")
    parser.add_argument("--edits", type=int, default=6)
    parser.add_argument("--figure", help="draw it, too")
    options = parser.parse_args()
    model = knowedit.load()
    facts = list(known_facts(model, "builtin", limit=options.facts))
    editable = [fact for fact in facts if fact.target_new]
    some = editable[:: max(1, len(editable) // options.edits)][: options.edits]
    edits = knowedit.rome_many(model, some)
    config = PrecisionConfig(neurons=options.neurons)
    with tqdm(total=1 + len(config.bits) * len(config.parts), unit="level") as bar:
        found = precision(model, facts, edits, config, progress=lambda done: bar.update(done - bar.n))
    save("quality/precision", {"edited": [fact.id for fact in some], **found.as_dict()})
    if options.figure:
        from knowedit.report.figures.mlp import precision_figure

        precision_figure(options.figure, found)


if __name__ == "__main__":
    main()
