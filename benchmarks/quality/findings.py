"""What the analyses of recall show of the default model, on built-in facts that it knows, evenly over the relations.

    python -m benchmarks.quality.findings                         # goes on where it was stopped
    python -m benchmarks.quality.findings --only sparsity         # does one section anew
    python -m benchmarks.quality.findings_table                   # the table and the figure of docs/findings.md

Every section is kept in results/findings.json as soon as it is done, with the seconds of processor time that it took.
All intervals are 95 % over facts (over texts where it says so). A layer at which a mean is largest was chosen among 30,
so that mean is somewhat too large and its interval does not know it.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy.stats import rankdata, spearmanr
from tqdm.auto import tqdm

import knowedit
from knowedit.edit.methods.best_layer import LayerScore, best_layer, layer_scores
from knowedit.edit.methods.rome import SMOLLM2
from knowedit.edit.rewrite_quality import PARTS
from knowedit.locate.attribution import AttributionConfig, attribute
from knowedit.locate.refinement import coarse
from knowedit.memory.corpus_scan import scan
from knowedit.memory.sparsity import SparsityConfig, active_by_layer, keep_strongest
from knowedit.memory.values import compositional, mean_compositional
from knowedit.recall.flow.extraction_events import extraction
from knowedit.recall.flow.knockout import SUBLAYERS, Knockout, attention_knockout, source_sets, sublayer_knockout
from knowedit.recall.flow.subject_enrichment import attributes_of, content_vocabulary, enrichment
from knowedit.recall.trace.average import average_traces, token_classes
from knowedit.recall.trace.exact import Trace, TraceConfig, trace_facts
from knowedit.statistics import Estimate, bounded_interval, estimate, harmonic_mean, mean, proportion, rate

from .findings_run import Run, choose, keep, kept

T = 0.2  # of the largest score: a located neuron, for one prompt
FIRST = 2  # the lowest layer in which neurons are located, as in benchmarks/proof.py
POSITIONS = ("read", "lookup")
SCANNED, READ_OUT = 8192, 1024  # tokens of text for sparsity, and of these for what layers say
LAYERS = (0, 1, 3, 5, 8, 11, 14, 16, 19, 23, 27)  # to edit: what `--layer auto` tries, the table's, and two above
CHOOSING, DRAWN = (6, 12, 24, 48), 1000  # facts to choose the layer by, and how often they are drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=102)
    parser.add_argument("--draws", type=int, default=4, help="of noise, in the fast traces beside located neurons")
    parser.add_argument("--exact-draws", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=1, help="of integrated gradients")
    parser.add_argument("--only", choices=SECTIONS, nargs="*", default=list(SECTIONS), help="sections, done anew")
    options = vars(parser.parse_args())
    only = options.pop("only")
    model = knowedit.load()
    sections = kept(options)
    if "facts" not in sections:
        sections = keep(model, options, "facts", choose(model, options["facts"]))
    by_id = {fact.id: fact for fact in knowedit.builtin_facts()}
    run = Run(model, tuple(by_id[name] for name in sections["facts"]["ids"]), options)
    for name in only:
        if name in sections and only == list(SECTIONS):
            continue
        started = time.process_time()
        found = SECTIONS[name](run)
        found["seconds"] = round(time.process_time() - started, 1)
        sections = keep(model, options, name, found)


# ---------------------------------------------------------------- tracing


def _exact(run: Run) -> dict:
    """Exact traces and the fast ones of the same noise, and how well these rank the same effects."""
    draws = run.options["exact_draws"]
    exact = trace_facts(run.model, run.facts, TraceConfig(draws=draws))
    fast = trace_facts(run.model, run.facts, TraceConfig(draws=draws, fast=True))
    ranks = {
        kind: mean([_agreement(a, b, kind) for a, b in zip(exact, fast, strict=True)]).as_dict()
        for kind in exact[0].effects
    }
    return {**_traced(exact), "rank_correlation_of_the_fast_mode": ranks, "fast": _traced(fast)}


def _agreement(exact: Trace, fast: Trace, kind: str) -> float:
    start = exact.subject_tokens[0]
    return float(spearmanr(exact.indirect(kind)[start:].ravel(), fast.indirect(kind)[start:].ravel()).statistic)


def _traced(traces: Sequence[Trace]) -> dict:
    average = average_traces(traces)
    total = average.total_effect
    record = {"n": len(traces), "window": average.window, "draws": traces[0].config.draws}
    record |= {"clean": average.high.as_dict(), "total_effect": total.as_dict(), "kinds": {}}
    for kind, classes in average.effects.items():
        name, layer, effect = average.peak(kind)
        row = classes["last subject"]
        early = max(range(len(row)), key=lambda at: row[at].value)
        own = [_lookup(trace, kind) for trace in traces]
        where = [token_classes(trace)[trace.peak(kind)[0]] for trace in traces]
        record["kinds"][kind] = {
            "peak": {"token": name, "layer": layer, "effect": effect.as_dict()},
            "at_subject_end": {
                "layer": early,
                "effect": row[early].as_dict(),
                "layer_in_a_fact": mean([int(effects.argmax()) for effects in own]).as_dict(),
            },
            "facts_that_peak_at": {at: rate([at == one for one in where]).as_dict() for at in sorted(set(where))},
            "curves": {at: [one.value for one in row] for at, row in classes.items()},
        }
    return record


def _lookup(trace: Trace, kind: str) -> np.ndarray:
    """The effects at the subject's last token, (layers,)."""
    return trace.indirect(kind)[trace.subject_tokens[1] - 1]


# ---------------------------------------------------------------- the stages of recall


def _edges(run: Run) -> dict:
    """Hiding tokens from the last one, in a window around every layer."""
    return _knocked(run, lambda query: attention_knockout(run.model, query, sources=_sets(query)))


def _sets(query) -> dict[str, tuple[int, ...]]:
    return {name: tokens for name, tokens in source_sets(query).items() if name != "first"}


def _sublayers(run: Run) -> dict:
    """Silencing MLPs, then attention, at the subject's last token, in a window around every layer."""
    return _knocked(run, lambda query: sublayer_knockout(run.model, query))


def _knocked(run: Run, knockout: Callable[..., Knockout]) -> dict:
    found = [knockout(run.query(fact)) for fact in tqdm(run.facts, unit="fact")]
    sets = {}
    for name in dict.fromkeys(name for one in found for name in one.after):
        curve = _curve([one.change(name) for one in found if name in one.after])
        layer = min(range(len(curve)), key=lambda at: curve[at].value)
        sets[name] = {"layer": layer, **curve[layer].as_dict(), "curve": _means(curve)}
    return {"n": len(found), "window": found[0].window, "sets": sets}


def _curve(rows: Sequence[Sequence[float | None]]) -> list[Estimate]:
    """Means by layer over the rows that have a number there."""
    return [mean([value for value in column if value is not None]) for column in zip(*rows, strict=True)]


def _means(curve: Sequence[Estimate]) -> list[float | None]:
    return [one.value for one in curve]


def _highest(curve: Sequence[Estimate]) -> dict:
    layer = max(range(len(curve)), key=lambda at: -1.0 if curve[at].value is None else curve[at].value)
    return {"layer": layer, **curve[layer].as_dict()}


def _attributes(run: Run) -> dict:
    words, facts = content_vocabulary(run.model), knowedit.builtin_facts()
    found = [
        enrichment(run.model, run.query(fact).prompt, attributes_of(fact, facts), vocabulary=words)
        for fact in tqdm(run.facts, unit="fact")
    ]
    own = _curve([one.rate for one in found])
    control = _curve([one.control for one in found])
    peak = _highest(own)
    read = found[0].read
    without = {}
    for name in found[0].without:
        curve = _curve([[rate - one.rate[read] for rate in one.without[name]] for one in found])
        layer = min(range(len(curve)), key=lambda at: curve[at].value)
        without[name] = {"layer": layer, **curve[layer].as_dict()}
    return {
        "n": len(found),
        "attributes": mean([one.attributes for one in found]).as_dict(),
        "peak": peak,
        "control_there": control[peak["layer"]].as_dict(),
        "separation": _highest(_curve([one.separation for one in found])),
        "curves": {"own": _means(own), "control": _means(control)},
        "read": read,
        "without": without,
    }


def _extraction(run: Run, normed: bool = False) -> dict:
    """Extraction events as the paper looks for them, without the final norm, or through it."""
    found = [extraction(run.model, run.query(fact), normed=normed) for fact in tqdm(run.facts, unit="fact")]
    rows = {"attention": [one.attention for one in found], "mlp": [one.mlp for one in found]}
    heads = Counter(head for one in found for head in one.heads)
    any_layer = {name: rate([any(row) for row in of]) for name, of in rows.items()}
    any_layer["heads"] = rate([bool(one.heads) for one in found])
    return {
        "n": len(found),
        "any_layer": {name: one.as_dict() for name, one in any_layer.items()},
        "most": {name: _highest([rate(layer) for layer in zip(*of, strict=True)]) for name, of in rows.items()},
        "heads": [[*head, n] for head, n in heads.most_common(5)],
    }


# ---------------------------------------------------------------- located neurons against traces


def _neurons(run: Run) -> dict:
    """Where integrated gradients find the neurons of a fact, at the last token and at the subject's, and what of that
    lies in the layers that tracing points at."""
    traces = trace_facts(run.model, run.facts, TraceConfig(SUBLAYERS, draws=run.options["draws"], fast=True))
    config = {p: AttributionConfig(nodes=run.options["nodes"], position=p) for p in POSITIONS}
    profiles = {"traced mlp": [], "traced attention": [], **{p: [] for p in POSITIONS}}
    located = {p: [] for p in POSITIONS}
    for fact, trace in zip(tqdm(run.facts, unit="fact"), traces, strict=True):
        profiles["traced mlp"].append(_shares(_lookup(trace, "mlp")))
        profiles["traced attention"].append(_shares(trace.indirect("attention")[trace.read]))
        for p in POSITIONS:
            scores = attribute(run.model, run.query(fact), config=config[p]).scores
            profiles[p].append(_shares(scores.clamp(min=0).sum(1).double().numpy()))
            layers = [layer for layer, _ in coarse(scores, T, range(FIRST, run.model.n_layers))]
            located[p].append(np.bincount(layers, minlength=run.model.n_layers))
    stacked = {name: np.stack(rows) for name, rows in profiles.items()}  # (facts, layers)
    return {
        "n": len(run.facts),
        "located": {p: _located(np.stack(rows)) for p, rows in located.items()},
        "profiles": {name: rows.mean(0).tolist() for name, rows in stacked.items()},
        "first_layers": {p: mean(stacked[p][:, :FIRST].sum(1)).as_dict() for p in POSITIONS},
        "overlap": {
            f"{one} × {other}": _overlap(stacked[one], stacked[other])
            for one, other in (
                ("traced mlp", "lookup"),
                ("traced mlp", "read"),
                ("traced attention", "read"),
                ("lookup", "read"),
            )
        },
        "rank_of_layer": {name: _rank_of(rows, 1) for name, rows in stacked.items()},
    }


def _shares(values: np.ndarray) -> np.ndarray:
    """Positive values as shares of their sum, (layers,); even shares where none is positive."""
    values = values.clip(min=0)
    return values / values.sum() if values.sum() > 0 else np.full(len(values), 1 / len(values))


def _located(counts: np.ndarray) -> dict:
    """Of counts (facts, layers): how many neurons, in which layers."""
    numbers = counts.sum(1)
    layers = np.arange(counts.shape[1])
    return {
        "neurons": mean(numbers).as_dict(),
        "mean_layer": mean([(row * layers).sum() / row.sum() for row in counts if row.sum()]).as_dict(),
        "share_by_layer": (counts.sum(0) / counts.sum()).tolist(),
    }


def _overlap(one: np.ndarray, other: np.ndarray) -> dict:
    """Σ min(p, q) over layers, and its control with one of the two shifted around by every other number of layers."""
    shifts = range(1, one.shape[1])
    found = np.minimum(one, other).sum(1)
    control = np.mean([np.minimum(one, np.roll(other, shift, 1)).sum(1) for shift in shifts], axis=0)
    return {"share": mean(found).as_dict(), "shifted": mean(control).as_dict(), "more": mean(found - control).as_dict()}


def _rank_of(profiles: np.ndarray, layer: int) -> dict:
    """The place of a layer among all of them, 1 is the largest."""
    return {"layer": layer, "rank": mean(1 + (profiles > profiles[:, [layer]]).sum(1)).as_dict()}


# ---------------------------------------------------------------- sparsity


def _sparsity(run: Run) -> dict:
    model = run.model
    seen = scan(model, tokens=SCANNED, top=1)
    active = active_by_layer(seen)
    prompts = [run.query(fact).prompt for fact in run.facts]
    said = compositional(model, seen, samples=READ_OUT)
    shares = [layer.active.value for layer in active]
    return {
        "definition": seen.definition,
        "tokens": seen.tokens,
        "texts": len(seen.rows),
        "active": mean(seen.row_active.mean(0).numpy()).as_dict(),
        "least": {"layer": int(np.argmin(shares)), **active[int(np.argmin(shares))].active.as_dict()},
        "most": {"layer": int(np.argmax(shares)), **active[int(np.argmax(shares))].active.as_dict()},
        "effective": mean(seen.row_effective.mean(0).numpy()).as_dict(),
        "curves": {"active": shares, "effective": [layer.effective.value for layer in active]},
        "never_active": sum(layer.never for layer in active),
        **{
            name: [one.as_dict() for one in keep_strongest(model, prompts, SparsityConfig(draws=1, at=at))]
            for name, at in (("kept_at_last_token", "read"), ("kept_at_all_tokens", "all"))
        },
        "compositional": {"mean": mean_compositional(said).as_dict(), "layers": [one.as_dict() for one in said]},
    }


# ---------------------------------------------------------------- the layer to edit


def _editing(run: Run) -> dict:
    """Edits of every fact in some layers, made as `--layer auto` makes them (and kept in the cache as it does), against
    where tracing and locating point; and how well that command's few facts choose."""
    chosen = best_layer(run.model)
    scores = layer_scores(run.model, LAYERS, facts=run.facts)
    parts = np.stack([one.parts for one in scores])  # (layers, facts, 3)
    found = harmonic_mean(parts.mean(1))
    best = int(found.argmax())
    sections = kept(run.options)
    curves = {
        "traced mlp at subject end": sections["exact"]["kinds"]["mlp"]["curves"]["last subject"],
        "traced state at subject end": sections["exact"]["kinds"]["state"]["curves"]["last subject"],
        "located at subject end": sections["neurons"]["profiles"]["lookup"],
        "located at last token": sections["neurons"]["profiles"]["read"],
    }
    traces = trace_facts(run.model, run.facts, TraceConfig(("mlp",), draws=run.options["draws"], fast=True))
    traced = np.stack([_lookup(trace, "mlp")[list(LAYERS)] for trace in traces], 1)  # (layers, facts)
    return {
        "n": len(run.facts),
        "best": LAYERS[best],
        "table": SMOLLM2.layer,
        "chosen_by_auto": chosen,
        "layers": [_layer(one, parts[best]) for one in scores],
        "choosing": [_choosing(parts, n) for n in CHOOSING],
        "rank_correlation_with": {
            name: _correlation([curve[layer] for layer in LAYERS], found) for name, curve in curves.items()
        },
        "rank_correlation_in_a_layer": _within(traced, parts.mean(2)),
    }


def _layer(one: LayerScore, best: np.ndarray) -> dict:
    """A layer's means and Score, and the Score's distance to the `best` layer's, (facts, 3), in pairs of facts."""
    record = {"layer": one.layer}
    for name, values in zip(PARTS, one.parts.T, strict=True):
        record[name] = proportion(values).as_dict()
    record["Score"] = _bounded(one.parts, harmonic_mean)
    record["behind"] = _bounded(np.hstack([one.parts, best]), _difference)
    return record


def _bounded(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> dict:
    low, high = bounded_interval(values, statistic)
    return Estimate(float(statistic(values.mean(0))), low, high, len(values)).as_dict()


def _difference(means: np.ndarray) -> np.ndarray:
    return harmonic_mean(means[..., :3]) - harmonic_mean(means[..., 3:])


def _within(one: np.ndarray, other: np.ndarray) -> dict:
    """Spearman's ρ over facts in each layer, of (layers, facts), the mean of layers; resampled over facts."""

    def over(facts: np.ndarray, axis: int = -1) -> np.ndarray:
        ranks = [rankdata(rows[:, facts.astype(int)], axis=axis) for rows in (one, other)]
        x, y = (r - r.mean(axis, keepdims=True) for r in ranks)
        return ((x * y).sum(axis) / np.sqrt((x**2).sum(axis) * (y**2).sum(axis))).mean(0)

    return estimate(over, (np.arange(one.shape[1]),)).as_dict()


def _choosing(parts: np.ndarray, n: int) -> dict:
    """The mean Score that is lost, beside the layer that is best on all facts, when the layer is chosen by `n` of them
    and both are judged by the others."""
    rng, lost, best = np.random.default_rng(0), [], harmonic_mean(parts.mean(1)).argmax()
    for _ in range(DRAWN):
        order = rng.permutation(parts.shape[1])
        by, judged = (harmonic_mean(parts[:, part].mean(1)) for part in (order[:n], order[n:]))
        lost.append(judged[best] - judged[by.argmax()])
    return {"facts": n, "lost": float(np.mean(lost)), "draws": DRAWN}


def _correlation(one: Sequence[float], other: Sequence[float]) -> dict:
    """Spearman's ρ with the interval of Fieller et al. 1957; n counts layers."""
    rho, n = float(spearmanr(one, other).statistic), len(one)
    if not np.isfinite(rho) or n < 4 or abs(rho) >= 1:
        return {"value": rho if np.isfinite(rho) else None, "low": None, "high": None, "n": n}
    width = 1.96 * (1.06 / (n - 3)) ** 0.5
    return {"value": rho, "low": float(np.tanh(np.arctanh(rho) - width)),
            "high": float(np.tanh(np.arctanh(rho) + width)), "n": n}  # fmt: skip


SECTIONS = {
    "neurons": _neurons,
    "edges": _edges,
    "sublayers": _sublayers,
    "attributes": _attributes,
    "extraction": _extraction,
    "extraction_normed": partial(_extraction, normed=True),
    "sparsity": _sparsity,
    "exact": _exact,
    "editing": _editing,
}


if __name__ == "__main__":
    main()
