"""The report of `knowedit edit` for people: each prompt before and after, and what to look out for."""

from __future__ import annotations

from ..shared.output import line, table


def show(report: dict) -> None:
    from ...edit.rewrite_quality import stayed, won

    fact, before, after = report["fact"], report["before"], report["after"]
    if report["did_not_take"]:
        line(f"The edit did not take: {report['did_not_take']}.")
    layers = report["layers"]
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))} of {report['model']}"
    line(f"{before['prompt']['prompt']}: {fact['target']} → {fact['target_new']}   ({report['method']}, {where})")
    if report["target_true_is_first_choice"]:
        whose = "first choice" if before["prompt"]["says_true"] else "likeliest answer"
        line(f"The old answer {fact['target']!r} is the model's own {whose}; name another with --target-true.")
    line()
    rows = [_row("prompt", before["prompt"], after["prompt"])]
    for what in ("paraphrases", "neighbours"):
        pairs = zip(before[what], after[what], strict=True)
        rows += [_row(what[:-1], *pair) for pair in pairs]
    table(["", "prompt", "p old", "p new", "first choice"], rows)
    if any(len(tokens) > 1 for tokens in report["tokens"].values()):
        line("p of several tokens: their geometric mean.")
    line()
    if after["paraphrases"]:
        won_by_edit = won(before["paraphrases"], after["paraphrases"])
        line(f"paraphrases won, which prefer the new answer and more than before: {won_by_edit}")
    if after["neighbours"]:
        line(f"neighbours that keep their own answer: {stayed(before['neighbours'])} → {stayed(after['neighbours'])}")
    if report["lens"]:
        line()
        names = ("before_true", "before_new", "after_true", "after_new")
        rows = [(row["layer"], *(f"{row[name]:.3f}" for name in names)) for row in report["lens"]]
        table(["layer", "before: old", "before: new", "after: old", "after: new"], rows, title="By logit lens")
        line()
        rows = [(f"{n['layer']}/{n['index']}", f"{n['before']:+.4f}", f"{n['after']:+.4f}") for n in report["neurons"]]
        title = "Neurons of the old answer: gradient × activation for it"
        table(["neuron", "before", "after"], rows, title=title)
        line()
    _show_checks(report)
    line(
        f"Saved to {report['out']}" if report["out"] else "Not saved; --out DIR keeps the edit. The model is unchanged."
    )
    line("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in report["seconds"].items()))


def _row(what: str, before: dict, after: dict) -> tuple:
    chances = (f"{before[p]:.3f} → {after[p]:.3f}" for p in ("p_true", "p_new"))
    return what, before["prompt"], *chances, f"{before['top'][0][0]!r} → {after['top'][0][0]!r}"


def _show_checks(report: dict) -> None:
    checks, perplexity = report["preflight"], report["perplexity"]
    key = "" if checks["k_C_inv_k"] is None else f", kᵀC⁻¹k = {checks['k_C_inv_k']:.3g}"
    line(f"Pre-flight: ‖ΔW‖/‖W‖ = {checks['relative_norm']:.2%}{key}")
    if checks["nearest"]:
        near = "; ".join(f"{n['subject']} {n['leak']:.0%} ({n['cosine']:.2f})" for n in checks["nearest"])
        line(f"Other subjects that move most, by share of the edit's own (cosine of their keys): {near}")
    for warning in checks["warnings"]:
        line(f"Warning: {warning}")
    if report["refused"] and not report["did_not_take"]:
        line(f"Warning: --guard would refuse it: {report['refused']}")
    if perplexity["before"] is not None:
        rise = perplexity["after"] / perplexity["before"] - 1
        line(f"Perplexity of a plain text: {perplexity['before']:.2f} → {perplexity['after']:.2f} ({rise:+.1%})")
