"""The section about the layer to edit: edits in some layers, beside where tracing and locating point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.stats import rankdata, spearmanr

from knowedit.edit.methods.best_layer import LayerScore, best_layer, layer_scores
from knowedit.edit.methods.rome import SMOLLM2
from knowedit.edit.rewrite_quality import PARTS
from knowedit.recall.trace.exact import TraceConfig, trace_facts
from knowedit.statistics import Estimate, bounded_interval, estimate, harmonic_mean, proportion

from .sample import Sample
from .tracing import at_subject_end
from .words import Row, number, percent

LAYERS = (0, 1, 3, 5, 8, 11, 14, 16, 19, 23, 27)  # to edit: what `--layer auto` tries, the table's, and two above
CHOOSING, DRAWN = (6, 12, 24, 48), 1000  # facts to choose the layer by, and how often they are drawn


def editing(sample: Sample) -> dict:
    """Edits of every fact in some layers, made as `--layer auto` makes them (and kept in the cache as it does), and how
    well that command's few facts choose."""
    automatic = best_layer(sample.model)
    scores = layer_scores(sample.model, LAYERS, facts=sample.facts)
    parts = np.stack([score.parts for score in scores])  # (layers, facts, 3)
    best = int(harmonic_mean(parts.mean(1)).argmax())
    traces = trace_facts(sample.model, sample.facts, TraceConfig(("mlp",), draws=sample.draws, fast=True))
    traced = np.stack([at_subject_end(trace, "mlp")[list(LAYERS)] for trace in traces], 1)  # (layers, facts)
    return {
        "n": len(sample.facts),
        "best": LAYERS[best],
        "table": SMOLLM2.layer,
        "chosen_by_auto": automatic,
        "layers": [_layer(score, parts[best]) for score in scores],
        "choosing": [_choosing(parts, n) for n in CHOOSING if n < len(sample.facts)],
        "rank_correlation_in_a_layer": _within(traced, parts.mean(2)),
    }


def correlations(editing: dict, exact: dict, neurons: dict) -> dict:
    """How the Score goes over layers with what other sections find in them."""
    curves = {
        "traced mlp at subject end": exact["kinds"]["mlp"]["curves"]["last subject"],
        "traced state at subject end": exact["kinds"]["state"]["curves"]["last subject"],
        "located at subject end": neurons["profiles"]["lookup"],
        "located at last token": neurons["profiles"]["read"],
    }
    scores = [layer["Score"]["value"] for layer in editing["layers"]]
    return {name: _correlation([curve[layer] for layer in LAYERS], scores) for name, curve in curves.items()}


def editing_rows(section: dict) -> Iterator[Row]:
    n = str(section["n"])
    layers = {layer["layer"]: layer for layer in section["layers"]}
    for layer, scores in layers.items():
        parts = ", ".join(f"{name} {100 * scores[name]['value']:.1f}" for name in PARTS)
        yield f"edits of layer {layer}: Score ({parts})", percent(scores["Score"]), n, ""
    behind = percent(layers[section["table"]]["behind"], True)
    words = f"**layer {section['best']}**; the table's layer {section['table']} {behind} of Score"
    yield "the best of these layers to edit, and how far behind is the table's", words, n, ""
    lost = ", ".join(f"{choice['facts']}: {100 * choice['lost']:.1f}" for choice in section["choosing"])
    draws = f"{section['choosing'][0]['draws']:,} draws"
    yield "Score points lost on other facts when the layer is chosen by so many facts", lost, draws, ""
    yield "the layer that `--layer auto` chooses", f"**{section['chosen_by_auto']}**", "", ""
    for name, rho in section["rank_correlation_with"].items():
        yield f"rank correlation over layers of the Score with *{name}*", number(rho, 2), f"{rho['n']} layers", ""
    title = "rank correlation over facts, in a layer, of *traced mlp at subject end* with what the edit reaches, mean"
    yield title, number(section["rank_correlation_in_a_layer"], 2), n, "none (Hase et al. 2023)"


def _layer(score: LayerScore, best: np.ndarray) -> dict:
    """A layer's means and Score, and the Score's distance to the `best` layer's, (facts, 3), in pairs of facts."""
    record = {"layer": score.layer}
    for name, values in zip(PARTS, score.parts.T, strict=True):
        record[name] = proportion(values).as_dict()
    record["Score"] = _bounded(score.parts, harmonic_mean)
    record["behind"] = _bounded(np.hstack([score.parts, best]), _difference)
    return record


def _bounded(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> dict:
    low, high = bounded_interval(values, statistic)
    return Estimate(float(statistic(values.mean(0))), low, high, len(values)).as_dict()


def _difference(means: np.ndarray) -> np.ndarray:
    return harmonic_mean(means[..., :3]) - harmonic_mean(means[..., 3:])


def _within(a: np.ndarray, b: np.ndarray) -> dict:
    """Spearman's ρ over facts in each layer, of (layers, facts), the mean of layers; resampled over facts."""

    def over(facts: np.ndarray, axis: int = -1) -> np.ndarray:
        ranks = [rankdata(rows[:, facts.astype(int)], axis=axis) for rows in (a, b)]
        x, y = (r - r.mean(axis, keepdims=True) for r in ranks)
        return ((x * y).sum(axis) / np.sqrt((x**2).sum(axis) * (y**2).sum(axis))).mean(0)

    return estimate(over, (np.arange(a.shape[1]),)).as_dict()


def _choosing(parts: np.ndarray, n: int) -> dict:
    """The mean Score that is lost, beside the layer that is best on all facts, when the layer is chosen by `n` of them
    and both are judged by the others."""
    rng, lost, best = np.random.default_rng(0), [], harmonic_mean(parts.mean(1)).argmax()
    for _ in range(DRAWN):
        order = rng.permutation(parts.shape[1])
        by, judged = (harmonic_mean(parts[:, part].mean(1)) for part in (order[:n], order[n:]))
        lost.append(judged[best] - judged[by.argmax()])
    return {"facts": n, "lost": float(np.mean(lost)), "draws": DRAWN}


def _correlation(a: Sequence[float], b: Sequence[float]) -> dict:
    """Spearman's ρ with the interval of Fieller et al. 1957; n counts layers."""
    rho, n = float(spearmanr(a, b).statistic), len(a)
    if not np.isfinite(rho) or n < 4 or abs(rho) >= 1:
        return {"value": rho if np.isfinite(rho) else None, "low": None, "high": None, "n": n}
    width = 1.96 * (1.06 / (n - 3)) ** 0.5
    low, high = (float(np.tanh(np.arctanh(rho) + sign * width)) for sign in (-1, 1))
    return {"value": rho, "low": low, "high": high, "n": n}
