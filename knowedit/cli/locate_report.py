"""What `knowedit locate` prints: the neurons of one fact and their proof, or the summary of many facts."""

from __future__ import annotations

from ..writing.counts import number_of
from .shared.output import line, percent, print_json, table

SCHEMA = "knowedit.locate/1"


def record_of(located, proof, prompts, seconds: dict) -> dict:
    """What `--json` prints."""
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    effect = {"suppress": nothing, "amplify": nothing, "control_suppress": nothing, "control_amplify": nothing}
    return {
        "schema": SCHEMA,
        "model": located.model,
        "weights_hash": located.weights_hash,
        "prompt": located.prompt,
        "subject": located.subject,
        "target": located.target,
        "probability": located.probability,
        "rank": located.rank,
        "method": located.method,
        "refined_on": located.refined_on,
        "heldout": list(prompts.heldout),
        "remark": prompts.remark,
        "negatives": located.negatives,
        "note": located.note,
        "neurons": located.as_dict()["neurons"],
        "completeness": _completeness(located) if located.gap else None,
        "effect": effect if proof is None else proof.as_dict(),
        "tests": located.tests,
        "untried": located.untried,
        "config": located.config,
        "seconds": seconds,
    }


def _completeness(located) -> dict:
    gap = {"max_gap": max(located.gap), "by_layer": list(located.gap)}
    return {**gap, "missing": located.missing, "ended": located.ended, "warning": located.warning}


def show(record: dict) -> None:
    from ..statistics import Estimate

    chance = f"p = {record['probability']:.3f}" + (f", rank {record['rank']}" if record["rank"] != 1 else "")
    line(f"{record['prompt']} → {record['target']}   {chance}   ({record['model']})")
    if record["note"]:
        line(f"Note: {record['note']}.")
    if record["remark"]:
        line(f"Prompts: {record['remark']}.")
    line()
    if record["neurons"]:
        given = record["effect"]["recalled"] > 0
        rows = [_row(neuron, given) for neuron in record["neurons"]]
        table(list(rows[0]), [tuple(row.values()) for row in rows])
        if given and record["untried"]:
            line(f"Kinds: {record['untried']}.")
        line()
        if given:
            _show_effect(record["effect"], Estimate)
        else:
            on = _proved_on(record["effect"])
            line(f"No neuron is claimed to make this answer: the model does not give it on {on}.")
    if record["completeness"]:
        line(f"Largest completeness gap of a layer: {record['completeness']['max_gap']:.1e}")
        if record["completeness"]["warning"]:
            line(f"Warning: {record['completeness']['warning']}.")
    line("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in record["seconds"].items()))


def _row(neuron: dict, given: bool) -> dict[str, str | None]:
    """A neuron's cells by column. Nothing is told of how it makes an answer that the model does not give."""
    joint = [what for what in ("suppress", "amplify") if neuron[what] is not None]
    cells = {
        "neuron": f"{neuron['layer']}/{neuron['index']}",
        "score": f"{neuron['score']:+.4f}",
        "share": percent(neuron["share"]),
        "prompts": percent(neuron["prompts"], False),
        **{f"{what}, joint": percent(neuron[what]) for what in joint},
        "kind": neuron["kind"],
        "promotes": "  ".join(map(repr, neuron["promotes"][:5])),
    }
    told = cells if given else ("neuron", "score", "prompts", "promotes")
    return {name: cells[name] for name in told}


def _proved_on(effect: dict) -> str:
    if effect["heldout"]:
        n = effect["suppress"]["n"]
        return number_of(n, "held-out prompt")
    return "the prompt that located them (nothing was held out)"


def _show_effect(effect: dict, Estimate) -> None:
    line(f"Proof on {_proved_on(effect)}, target's mean probability {effect['probability']:.3f}:")
    rows = []
    for what, factor in (("suppress", "× 0"), ("amplify", "× 2")):
        p = effect[f"p_{what}"]
        cells = [Estimate(**effect[f"{prefix}{what}"]).text("change") for prefix in ("", "control_", "layer_control_")]
        rows.append((f"{what} {factor}", *cells, f"{p:.3f}"))
    restored = [Estimate(**effect[f"{prefix}sufficient"]) for prefix in ("", "control_")]
    alone = ["nothing to restore" if share.value is None else share.text("share") for share in restored]
    rows.append(("alone", *alone, "", ""))
    table(["", "located", "random, same layer and activation", "random, same layer", "p"], rows)
    for name, changes in effect["specificity"].items():
        suppress, amplify = (Estimate(**changes[w]).text("change") for w in ("suppress", "amplify"))
        n = changes["suppress"]["n"]
        line(f"Other facts, {name.replace('_', ' ')}: suppress {suppress}, amplify {amplify} (n = {n})")


def show_run(run, as_json: bool) -> None:
    """The summary of many facts."""
    from ..statistics import Estimate

    summary = run.summary
    if as_json:
        print_json({"schema": "knowedit.bench/1", "out": str(run.folder), **summary})
        return
    with_neurons = summary["records"] - summary["failed"] - summary["empty"]
    facts = number_of(summary["records"], "fact")
    line(f"{facts}, {with_neurons} with neurons, {summary['failed']} failed; results in {run.folder}")
    if warning := summary["completeness"]["warning"]:
        line(f"Warning: {warning}.")
    proof = summary["proof"]
    if proof is None:
        line("No fact has both neurons and a prompt to prove them on.")
        return
    line(f"{proof['neurons']:.1f} neurons a fact; mean probability on held-out prompts {proof['probability']:.3f}")
    for what in ("suppress", "amplify"):
        located, matched, by_layer = (
            Estimate(**proof[f"{kind}{what}"]).text("change") for kind in ("", "control_", "layer_control_")
        )
        line(f"{what}: located {located}, p = {proof[f'p_{what}']:.3f}")
        line(f"  random by layer and activation {matched}")
        line(f"  random by layer {by_layer}")
