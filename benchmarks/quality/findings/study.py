"""The findings as a study: its records are sections, all of the same built-in facts that the default model knows.

All intervals are 95 % over facts (over texts where it says so). A layer at which a mean is largest was chosen among 30,
so that mean is somewhat too large and its interval does not know it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import knowedit
from knowedit.errors import InputError, did_you_mean

from ...registry import benchmark
from ...studies import RecordStudy, summary_of
from . import editing, flow, sparsity, tracing
from .sample import Sample, chosen_facts
from .words import Row


@dataclass(frozen=True)
class Section:
    """What a section measures, as JSON values, and its rows of the table."""

    measure: Callable[[Sample], dict]
    rows: Callable[[dict], Iterator[Row]]


SECTIONS = {
    "exact": Section(tracing.exact, tracing.exact_rows),
    "edges": Section(flow.edges, flow.edges_rows),
    "sublayers": Section(flow.sublayers, flow.sublayers_rows),
    "attributes": Section(flow.attributes, flow.attributes_rows),
    "extraction": Section(flow.events, flow.events_rows),
    "extraction_normed": Section(partial(flow.events, normed=True), partial(flow.events_rows, normed=True)),
    "neurons": Section(tracing.neurons, tracing.neurons_rows),
    "sparsity": Section(sparsity.sparsity, sparsity.sparsity_rows),
    "editing": Section(editing.editing, editing.editing_rows),
}


@benchmark("quality.findings", "How does the default model recall facts?")
def findings(
    facts: int = 102,
    draws: int = 4,
    exact_draws: int = 2,
    nodes: int = 1,
    only: tuple[str, ...] = (),
    folder: Path = Path("runs/findings"),
) -> Iterator[tuple[str, dict]]:
    """A study of one record a section in `folder`: the same command goes on where it was stopped.

    `draws` of noise in fast traces, `exact_draws` in exact ones, `nodes` of integrated gradients; `only` some sections.
    """
    for name in only:
        if name not in SECTIONS:
            raise InputError(
                f"no section is called {name!r}{did_you_mean(name, SECTIONS)}; there are {', '.join(SECTIONS)}"
            )
    model = knowedit.load()
    chosen, about = chosen_facts(model, facts)
    options = {"facts": facts, "draws": draws, "exact_draws": exact_draws, "nodes": nodes}
    sample = Sample(model, chosen, draws, exact_draws, nodes)

    def measure(name: str) -> dict:
        section = json.dumps(SECTIONS[name].measure(sample))
        return json.loads(section, parse_float=lambda text: float(f"{float(text):.5g}"))  # as many digits as are said

    study = RecordStudy("findings", model, options, only or SECTIONS, measure, summary)
    sections = {"facts": about, **summary_of(study, folder)}
    yield "_".join(only), {"model": model.name, "layers": model.n_layers, "options": options, "sections": sections}


@findings.row
def findings_row(record: dict) -> list[str]:
    facts = record["sections"]["facts"]
    return [f"{facts['n']} facts of {len(facts['by_relation'])} relations: [findings](../docs/findings.md)"]


def summary(sections: dict[str, dict]) -> dict[str, dict]:
    """All sections, and in the one about editing how it goes with the others where these are there."""
    if {"exact", "neurons", "editing"} <= sections.keys():
        correlations = editing.correlations(*(sections[name] for name in ("editing", "exact", "neurons")))
        sections["editing"]["rank_correlation_with"] = correlations
    return sections
