"""Sections about causal tracing: exact and fast traces, and the neurons that are located beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from knowedit.locate.attribution import AttributionConfig, attribute
from knowedit.locate.refinement import coarse
from knowedit.recall.flow.knockout import SUBLAYERS
from knowedit.recall.trace.average import average_traces, token_classes
from knowedit.recall.trace.exact import Trace, TraceConfig, trace_facts
from knowedit.statistics import mean, rate

from .sample import Sample
from .words import Row, number, percent

T = 0.2  # of the largest score: a located neuron, for one prompt
FIRST = 2  # the lowest layer in which neurons are located, as in the proofs
POSITIONS = {"read": "the last token", "lookup": "the subject's last token"}
KINDS = {"state": "states", "mlp": "MLP windows", "attention": "attention windows"}
EARLY = dict.fromkeys(("state", "mlp"), "middle layers at the subject's last token (Meng et al. 2022)")
OVERLAPS = {
    ("traced mlp", "lookup"): "traced MLPs and located neurons, both at the subject's last token",
    ("traced mlp", "read"): "traced MLPs there and neurons located at the last token",
    ("traced attention", "read"): "traced attention and located neurons, both at the last token",
    ("lookup", "read"): "neurons located at the subject's last token and at the last token",
}


def exact(sample: Sample) -> dict:
    """Exact traces and the fast ones of the same noise, and how well these rank the same effects."""
    configs = [TraceConfig(draws=sample.exact_draws, fast=fast) for fast in (False, True)]
    traces, fast = (trace_facts(sample.model, sample.facts, config) for config in configs)
    ranks = {
        kind: mean([_agreement(a, b, kind) for a, b in zip(traces, fast, strict=True)]).as_dict()
        for kind in traces[0].effects
    }
    return {**_traced(traces), "rank_correlation_of_the_fast_mode": ranks, "fast": _traced(fast)}


def exact_rows(section: dict) -> Iterator[Row]:
    yield from _traced_rows(section, "exact trace")
    yield from _traced_rows(section["fast"], "fast trace")
    ranks = section["rank_correlation_of_the_fast_mode"]
    words = "; ".join(f"{KINDS[kind]} {number(correlation, 2)}" for kind, correlation in ranks.items())
    yield "rank correlation of the fast with the exact trace, mean over facts", words, str(section["n"]), ""


def _agreement(exact: Trace, fast: Trace, kind: str) -> float:
    start = exact.subject_tokens[0]
    return float(spearmanr(exact.indirect(kind)[start:].ravel(), fast.indirect(kind)[start:].ravel()).statistic)


def _traced(traces: Sequence[Trace]) -> dict:
    average = average_traces(traces)
    record = {"n": len(traces), "window": average.window, "draws": traces[0].config.draws}
    record |= {"clean": average.high.as_dict(), "total_effect": average.total_effect.as_dict(), "kinds": {}}
    for kind, classes in average.effects.items():
        name, layer, effect = average.peak(kind)
        row = classes["last subject"]
        early = max(range(len(row)), key=lambda at: row[at].value)
        layers = [int(at_subject_end(trace, kind).argmax()) for trace in traces]
        peaks = [token_classes(trace)[trace.peak(kind)[0]] for trace in traces]
        record["kinds"][kind] = {
            "peak": {"token": name, "layer": layer, "effect": effect.as_dict()},
            "at_subject_end": {
                "layer": early,
                "effect": row[early].as_dict(),
                "layer_in_a_fact": mean(layers).as_dict(),
            },
            "facts_that_peak_at": {at: rate([at == peak for peak in peaks]).as_dict() for at in sorted(set(peaks))},
            "curves": {at: [estimate.value for estimate in curve] for at, curve in classes.items()},
        }
    return record


def _traced_rows(section: dict, name: str) -> Iterator[Row]:
    taken = f"{name}: what the noise takes away, of p = {section['clean']['value']:.2f}"
    yield taken, percent(section["total_effect"]), str(section["n"]), ""
    for kind, effects in section["kinds"].items():
        peak, early = effects["peak"], effects["at_subject_end"]
        words = f"layer {peak['layer']}, *{peak['token']}* token: {percent(peak['effect'])}"
        title = f"{name}: where restored {KINDS[kind]} bring back most"
        yield title, words, str(peak["effect"]["n"]), EARLY.get(kind, "")
        words = f"layer {early['layer']}: {percent(early['effect'])}; a fact's own peak: layer "
        title = f"{name}: the same at the subject's last token alone"
        yield title, words + number(early["layer_in_a_fact"]), str(early["effect"]["n"]), ""


def at_subject_end(trace: Trace, kind: str) -> np.ndarray:
    """The effects at the subject's last token, (layers,)."""
    return trace.indirect(kind)[trace.subject_tokens[1] - 1]


# ---------------------------------------------------------------- located neurons beside them


def neurons(sample: Sample) -> dict:
    """Where integrated gradients find the neurons of a fact, at the last token and at the subject's, and what of that
    lies in the layers that tracing points at."""
    model = sample.model
    traces = trace_facts(model, sample.facts, TraceConfig(SUBLAYERS, draws=sample.draws, fast=True))
    configs = {at: AttributionConfig(nodes=sample.nodes, position=at) for at in POSITIONS}
    rows = {name: [] for name in ("traced mlp", "traced attention", *POSITIONS)}
    counts = {at: [] for at in POSITIONS}
    for query, trace in zip(tqdm(sample.queries(), unit="fact"), traces, strict=True):
        rows["traced mlp"].append(_shares(at_subject_end(trace, "mlp")))
        rows["traced attention"].append(_shares(trace.indirect("attention")[trace.read]))
        for at, config in configs.items():
            scores = attribute(model, query, config=config).scores
            rows[at].append(_shares(scores.clamp(min=0).sum(1).double().numpy()))
            layers = [layer for layer, _ in coarse(scores, T, range(FIRST, model.n_layers))]
            counts[at].append(np.bincount(layers, minlength=model.n_layers))
    profiles = {name: np.stack(shares) for name, shares in rows.items()}  # (facts, layers)
    return {
        "n": len(sample.facts),
        "located": {at: _located(np.stack(numbers)) for at, numbers in counts.items()},
        "profiles": {name: shares.mean(0).tolist() for name, shares in profiles.items()},
        "first_layers": {at: mean(profiles[at][:, :FIRST].sum(1)).as_dict() for at in POSITIONS},
        "overlap": {f"{a} × {b}": _overlap(profiles[a], profiles[b]) for a, b in OVERLAPS},
        "rank_of_layer": {name: _rank_of(shares, 1) for name, shares in profiles.items()},
    }


def neurons_rows(section: dict) -> Iterator[Row]:
    n = str(section["n"])
    for position, located in section["located"].items():
        words = f"{number(located['neurons'])}, in layer {number(located['mean_layer'])} on average"
        yield f"neurons located at {POSITIONS[position]}, layers 2 to 29", words, n, ""
    for (a, b), title in OVERLAPS.items():
        overlap = section["overlap"][f"{a} × {b}"]
        words = f"{percent(overlap['share'])}; {percent(overlap['more'], True)} beside shifted layers"
        yield f"overlap by layer of {title}", words, n, ""


def _shares(values: np.ndarray) -> np.ndarray:
    """Positive values as shares of their sum, (layers,); even shares where none is positive."""
    values = values.clip(min=0)
    return values / values.sum() if values.sum() > 0 else np.full(len(values), 1 / len(values))


def _located(counts: np.ndarray) -> dict:
    """How many neurons there are and in which layers, of counts (facts, layers)."""
    layers = np.arange(counts.shape[1])
    return {
        "neurons": mean(counts.sum(1)).as_dict(),
        "mean_layer": mean([(row * layers).sum() / row.sum() for row in counts if row.sum()]).as_dict(),
        "share_by_layer": (counts.sum(0) / counts.sum()).tolist(),
    }


def _overlap(a: np.ndarray, b: np.ndarray) -> dict:
    """Σ min(p, q) over layers, and its control with one of the two shifted around by every other number of layers."""
    share = np.minimum(a, b).sum(1)
    shifts = [np.minimum(a, np.roll(b, shift, 1)).sum(1) for shift in range(1, a.shape[1])]
    shifted = np.mean(shifts, axis=0)
    return {"share": mean(share).as_dict(), "shifted": mean(shifted).as_dict(), "more": mean(share - shifted).as_dict()}


def _rank_of(profiles: np.ndarray, layer: int) -> dict:
    """The place of a layer among all of them, 1 is the largest."""
    return {"layer": layer, "rank": mean(1 + (profiles > profiles[:, [layer]]).sum(1)).as_dict()}
