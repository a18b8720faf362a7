"""Sections about the stages of recall (Geva et al. 2023): knockouts, attributes of the subject, extraction events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

import knowedit
from knowedit.prompts import Query
from knowedit.recall.flow.extraction_events import extraction
from knowedit.recall.flow.knockout import Knockout, attention_knockout, source_sets, sublayer_knockout
from knowedit.recall.flow.subject_enrichment import attributes_of, content_vocabulary, enrichment
from knowedit.statistics import mean, rate

from .sample import Sample, curve_of, highest, lowest, values_of
from .words import Row, percent

HIDDEN = {"subject": "the subject", "relation": "the rest of the prompt", "last": "the last token itself"}
SILENT = {"mlp": "MLPs", "attention": "attention"}
SOURCES = {"attention": "an attention sublayer", "mlp": "an MLP", "heads": "a head"}


def edges(sample: Sample) -> dict:
    """Hiding tokens from the last one, in a window around every layer."""
    return _knocked(sample, lambda query: attention_knockout(sample.model, query, sources=_sets(query)))


def edges_rows(section: dict) -> Iterator[Row]:
    yield from _knocked_rows(section, "hiding {} from the last token", HIDDEN)


def _sets(query: Query) -> dict[str, tuple[int, ...]]:
    return {name: tokens for name, tokens in source_sets(query).items() if name != "first"}


def sublayers(sample: Sample) -> dict:
    """Silencing MLPs, then attention, at the subject's last token, in a window around every layer."""
    return _knocked(sample, lambda query: sublayer_knockout(sample.model, query))


def sublayers_rows(section: dict) -> Iterator[Row]:
    yield from _knocked_rows(section, "silencing the {} at the subject's last token", SILENT)


def _knocked(sample: Sample, knockout: Callable[[Query], Knockout]) -> dict:
    knockouts = [knockout(query) for query in tqdm(sample.queries(), unit="fact")]
    sets = {}
    for name in dict.fromkeys(name for each in knockouts for name in each.after):
        curve = curve_of([each.change(name) for each in knockouts if name in each.after])
        sets[name] = {**lowest(curve), "curve": values_of(curve)}
    return {"n": len(knockouts), "window": knockouts[0].window, "sets": sets}


def _knocked_rows(section: dict, what: str, names: dict[str, str]) -> Iterator[Row]:
    for name, change in section["sets"].items():
        title = f"{what.replace('{}', names[name])} in {section['window']} layers: change of p(answer)"
        yield title, f"{percent(change, True)} around layer {change['layer']}", str(change["n"]), ""


def attributes(sample: Sample) -> dict:
    """Attributes of the subject among the first words at its last token, layer by layer."""
    words, facts = content_vocabulary(sample.model), knowedit.builtin_facts()
    pairs = zip(sample.facts, tqdm(sample.queries(), unit="fact"), strict=True)
    enrichments = [
        enrichment(sample.model, query.prompt, attributes_of(fact, facts), vocabulary=words) for fact, query in pairs
    ]
    rates, control = curve_of([fact.rate for fact in enrichments]), curve_of([fact.control for fact in enrichments])
    peak, read = highest(rates), enrichments[0].read
    return {
        "n": len(enrichments),
        "attributes": mean([fact.attributes for fact in enrichments]).as_dict(),
        "peak": peak,
        "control_there": control[peak["layer"]].as_dict(),
        "separation": highest(curve_of([fact.separation for fact in enrichments])),
        "curves": {"own": values_of(rates), "control": values_of(control)},
        "read": read,
        "without": {
            name: lowest(curve_of([[value - fact.rate[read] for value in fact.without[name]] for fact in enrichments]))
            for name in enrichments[0].without
        },
    }


def attributes_rows(section: dict) -> Iterator[Row]:
    peak, separation = section["peak"], section["separation"]
    yield (
        "attributes rate at the subject's last token, highest",
        f"{percent(peak)} after layer {peak['layer']}; other subjects' {percent(section['control_there'])}",
        str(peak["n"]),
        "about 50 %, with the words of Wikipedia (Geva et al. 2023)†",
    )
    yield (
        "an attribute's logit there is above another subject's, highest",
        f"{percent(separation)} after layer {separation['layer']}",
        str(separation["n"]),
        "",
    )


def events(sample: Sample, normed: bool = False) -> dict:
    """Extraction events as the paper looks for them, without the final norm, or through it."""
    extractions = [extraction(sample.model, query, normed=normed) for query in tqdm(sample.queries(), unit="fact")]
    rows = {"attention": [fact.attention for fact in extractions], "mlp": [fact.mlp for fact in extractions]}
    heads = Counter(head for fact in extractions for head in fact.heads)
    any_layer = {name: rate([any(row) for row in by_fact]) for name, by_fact in rows.items()}
    any_layer["heads"] = rate([bool(fact.heads) for fact in extractions])
    return {
        "n": len(extractions),
        "any_layer": {name: share.as_dict() for name, share in any_layer.items()},
        "most": {
            name: highest([rate(layer) for layer in zip(*by_fact, strict=True)]) for name, by_fact in rows.items()
        },
        "heads": [[*head, n] for head, n in heads.most_common(5)],
    }


def events_rows(section: dict, normed: bool = False) -> Iterator[Row]:
    reported = {} if normed else {"attention": "about 68 % (Geva et al. 2023)†"}
    how = ", through the final norm" if normed else ""
    for name, share in section["any_layer"].items():
        title = f"facts with an extraction event of {SOURCES[name]}{how}"
        yield title, percent(share), str(share["n"]), reported.get(name, "")
