"""The tables of numbers in benchmarks/README.md, made from the committed result files; a test compares the two.

python -m benchmarks.table            prints it
python -m benchmarks.table --write    puts it into that page
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from knowedit.edit.rewrite_quality import PARTS

from .results import FOLDER

README = Path(__file__).parent / "README.md"
START, END = "<!-- numbers -->\n", "<!-- end -->"


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    """Markdown, a table for each part of the package: what was measured, what came out, the command."""
    parts = []
    for title, makers in _PARTS.items():
        lines = [f"**{title}**", "", "| measured | result | command |", "|---|---|---|"]
        lines += [f"| {what} | {result} | `{command}` |" for make in makers for what, result, command in make()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _speed():
    run, package = load("speed/locate"), load("speed/locate_package")
    loop = f"{min(run['loop_seconds']):.0f}–{max(run['loop_seconds']):.0f} s"
    for name, sweep in run["sweeps"].items():
        result = (
            f"**{sweep['ratio_median']:.1f}×** the field's loop ({loop}); gap {sweep['gap_layer_0']:.1e} in layer 0"
        )
        yield (
            f"all neurons of 30 layers: {name}",
            f"{result}, {sweep['gap_other_layers']:.1e} elsewhere",
            run["command"],
        )
    result = f"**{package['ratio_median']:.1f}×** the PyPI package `knowledge-neurons`"
    yield "GPT-2 small (random weights), 20 nodes", result, package["command"]


def _memory():
    run = load("robustness/memory")
    peaks = ", ".join(f"{name}: {value:.2f}" for name, value in run["peak_over_weights"].items())
    yield "peak memory over the fp32 weights", peaks, run["command"]


def _proof():
    for path in sorted(FOLDER.glob("quality/proof_*.json")):
        run = load(f"quality/{path.stem}")
        proof, method = run["proof"], run["config"]["method"]
        which = (
            "5 strongest" if path.stem.endswith("_strongest") else "p adjusted" if run["config"]["adjust"] else "all"
        )
        result = (
            f"{proof['neurons']:.1f} neurons a fact, p before {proof['probability']:.2f}: "
            f"suppress **{_change(proof['suppress'])}**, amplify **{_change(proof['amplify'])}**; "
            f"random {_change(proof['control_suppress'])}, {_change(proof['control_amplify'])} (layer and activation), "
            f"{_change(proof['layer_control_suppress'])}, {_change(proof['layer_control_amplify'])} (layer)"
        )
        yield f"proof on {proof['facts']} known facts, held-out prompts: `{method}`, {which}", result, run["command"]


def _calibration():
    run = load("robustness/calibration")
    rates = [f"{s} {run[s]['significant']} of {run[s]['n']}" for s in ("suppress", "amplify")]
    yield "random sets called significant (p ≤ 0.05 and a change of a tenth)", ", ".join(rates), run["command"]
    run = load("robustness/calibration_random_weights")
    rates = [
        f"{s} {run['significant'][s]} of {run['with_neurons']} (largest change {run['largest_change'][s]:+.1%})"
        for s in ("suppress", "amplify")
    ]
    yield "located on random weights, called significant", ", ".join(rates), run["command"]


def _rankings():
    run = load("quality/rankings")
    rates = [
        f"{name} {r['spearman']['value']:.2f} / {r['precision_at_10']['value']:.2f}"
        for name, r in run["rankings"].items()
    ]
    what = f"rankings against ablation on {len(run['facts'])} facts: rank correlation / precision at 10"
    yield what, ", ".join(rates), run["command"]


def _edits():
    for name, what in (
        ("quality/edits", "built-in facts"),
        ("quality/edits_counterfact_lite", "CounterFact-lite records"),
    ):
        run = load(name)
        for method, found in run["methods"].items():
            rates = found["rates"]
            figures = ", ".join(f"{n} {100 * rates[n]['mean']:.1f}" for n in PARTS)
            harm = found.get("perplexity")
            tail = "" if harm is None else f"; perplexity within 1 % in {harm['within_1_percent']:.0%}"
            result = f"{figures}, Score {100 * rates['score']:.1f}{tail}"
            yield f"{method} on {rates['n']} {what}", result, run["command"]
    run = load("speed/edit")
    for key, what in (("equal_steps", "equal steps"), ("by_default", "each by its own settings")):
        ratios = ", ".join(f"{prompts}: **{found['ratio_median']:.1f}×**" for prompts, found in run[key].items())
        yield f"one edit against ROME written plainly, {what}", ratios, run["command"]
    run = load("speed/edit_batch")
    ratios = f"equal steps **{run['equal_steps']['ratio']:.1f}×**, by default **{run['by_default']['ratio']:.1f}×**"
    yield f"{run['batch']} edits made together, a fact", ratios, run["command"]
    run = load("speed/covariance")
    ratios = run["ratio_median"]
    result = f"**{ratios['one at a time']:.1f}×** whole passes, {ratios['one at a time, stopped']:.1f}× ended early"
    yield "covariance of all layers in one pass against one layer at a time", result, run["command"]


def _recall():
    run = load("speed/trace")
    by_kind = ", ".join(f"{kind} {ratio:.1f}×" for kind, ratio in run["exact_ratio_by_kind"].items())
    gap = max(run["largest_difference"].values())
    yield (
        f"causal trace, three maps, {run['tokens']} tokens, {run['draws']} draws, against the paper's loop",
        f"exact **{run['exact_ratio']:.1f}×** ({by_kind}), largest difference {gap:.0e}; by gradients "
        f"**{run['fast_ratio']:.0f}×**",
        run["command"],
    )
    run = load("quality/trace_ranks")
    ranks = ", ".join(f"{name} {found['median']:.2f} (n = {found['n']})" for name, found in run["spearman"].items())
    yield (
        "trace by gradients against the exact one, rank correlation, median over facts",
        ranks,
        run["command"],
    )
    run = load("speed/knockout")
    gap = run["largest_difference_of_probability"]
    result = f"**{run['ratio_median']:.1f}×** the plain loop, largest difference {gap:.0e}"
    yield f"attention knockout, {run['knockouts']} windows and sets", result, run["command"]
    run = load("speed/imputation")
    ratios = ", ".join(
        f"**{found['times_as_fast']:.1f}×** with {draws} random sets" for draws, found in run["by_draws"].items()
    )
    yield "imputation experiment, all layers of a fact, against the plain loop", ratios, run["command"]


def _studies():
    for part, what in (("equal_steps", "equal steps"), ("by_default", "by default")):
        run = load(f"speed/records_{part}")
        seconds = run["seconds_a_record"]
        yield (
            f"edit, measure, restore: {run['records']} CounterFact-lite records against the plain loop, {what}",
            f"**{run['ratio']:.1f}×** ({seconds['ours']:.1f} against {seconds['plain']:.1f} s a record)",
            run["command"],
        )
    run = load("speed/records_evaluation")
    alone, gap = run["ratio"], run["largest_gap_of_a_log_likelihood"]
    yield (
        f"evaluation alone of {run['records']} edited records",
        f"**{alone['batched']:.1f}×** a padded batch a record, **{alone['one by one']:.1f}×** each sequence by itself; "
        f"log-likelihoods within {gap:.0e}",
        run["command"],
    )
    run = load("robustness/kills")
    harm = {what: sum(found[what] for found in run["runs"].values()) for what in ("lost", "doubled", "changed")}
    result = ", ".join(f"{n} {what}" for what, n in harm.items())
    yield f"{run['kills']} kills of runs of edits (small model), single and sequential: records", result, run["command"]


def _reports():
    """Studies whose reports (`knowedit report`) are kept as folders."""
    for name, facts, source in (
        ("neurons_builtin", "known facts", ""),
        ("neurons_relations", "known facts of the relations data set", " --source FOLDER"),
    ):
        (run,), where = report(name)
        metrics, relations = run["metrics"], len(run["by_relation"])
        found = {metric: f"{100 * figure['value']:+.1f}%" for metric, figure in metrics.items()}
        kinds = {"located": "gradient", "as many by activation": "activation", "random": "random"}
        effects = "; ".join(f"{what} {found[f'suppress:{by}']}, {found[f'amplify:{by}']}" for what, by in kinds.items())
        yield (
            f"[neurons]({where}) of {metrics['neurons']['n']} {facts}, {relations} relations, set to zero and doubled, "
            "held-out prompts",
            f"{metrics['neurons']['value']:.1f} neurons a fact; {effects}",
            f"knowedit bench neurons --config benchmarks/configs/{name.replace('_', '_smollm2_')}.yaml{source}",
        )
    for name, facts, source in (
        ("counterfact-lite", "CounterFact-lite records", "FILE"),
        ("builtin", "built-in facts", "reported.jsonl"),
        ("relations", "known facts of the relations data set", "FOLDER"),
    ):
        runs, where = report(name.replace("-", "_"))
        for run in runs:
            method = run["name"].partition("_")[0]
            figures = ", ".join(
                f"{metric} {100 * run['metrics'][metric]['value']:.1f} "
                f"(unedited {100 * run['before'][metric]['value']:.1f})"
                for metric in ("ES", "PS", "NS", "Score")
            )
            config = f"rome_smollm2_{name}" if method == "rome" else f"{method}_smollm2"
            sample = f" --sample {run['config']['sample']}" if run["config"]["sample"] else ""
            yield (
                f"[{method}]({where}) on {run['metrics']['ES']['n']:,} {facts}",
                figures,
                f"knowedit bench edit --config benchmarks/configs/{config}.yaml --source {source}{sample}",
            )


def _first_token():
    run = load("quality/first_token")
    clean = {form: 100 * run["unedited"][form]["NS"]["value"] for form in ("first", "later")}
    forms = {"first": "asked so", "later": "asked with words before it"}
    for name, way in run["ways"].items():
        asked = "; ".join(
            f"{what}: "
            + ", ".join(f"{metric} {100 * way[form][metric]['value']:.0f}" for metric in PARTS)
            + f" (unedited {clean[form]:.0f})"
            for form, what in forms.items()
        )
        yield (
            f"{run['n']} edits of a subject that is the prompt's first token, {name}",
            f"{asked}; worst perplexity {way['perplexity_rise']['worst']:+.1%}",
            run["command"],
        )


def report(name: str) -> tuple[list[dict], str]:
    """The runs of a kept report, and where it is to be read."""
    record = json.loads((FOLDER / "reports" / name / "report.json").read_text(encoding="utf-8"))
    return record["runs"], f"results/reports/{name}/report.md"


def _change(estimate: dict) -> str:
    return f"{estimate['value']:+.1%}"


def write() -> None:
    text = README.read_text(encoding="utf-8")
    head, tail = text[: text.index(START) + len(START)], text[text.index(END) :]
    README.write_text(f"{head}{table()}\n{tail}", encoding="utf-8")


_PARTS = {
    "Locating": (_speed, _memory, _proof, _calibration, _rankings),
    "Editing": (_edits, _first_token),
    "Recall": (_recall,),
    "Benchmarks": (_studies, _reports),
}


if __name__ == "__main__":
    write() if sys.argv[1:] == ["--write"] else print(table())
