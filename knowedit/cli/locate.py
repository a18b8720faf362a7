"""`knowedit locate`: the neurons of one fact, or of a file of facts, with their proof."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from .shared.facts import choose_facts
from .shared.options import DEFAULT_MODEL, AsJson, Chat, Device, Dtype, ModelName, RemoteCode, layer_list, load
from .shared.output import line, note, percent, print_json, table

SCHEMA = "knowedit.locate/1"

_Texts = list[str]


def locate(
    prompt: Annotated[
        str | None, typer.Argument(help="A prompt that the target continues; {} stands for the subject.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The answer whose neurons are wanted.")] = None,
    subject: Annotated[str | None, typer.Option(help="The subject, as it stands in the prompt.")] = None,
    paraphrase: Annotated[_Texts, typer.Option(help="Another way to ask; refines the neurons. Repeat it.")] = [],  # noqa: B006
    heldout: Annotated[_Texts, typer.Option(help="A way to ask that only proves the neurons. Repeat it.")] = [],  # noqa: B006
    negative: Annotated[_Texts, typer.Option(help="A prompt about something else; its neurons are removed.")] = [],  # noqa: B006
    fact: Annotated[str | None, typer.Option(help="A built-in fact by id, instead of a prompt.")] = None,
    facts: Annotated[
        str | None, typer.Option(help="A JSONL file of facts, or `builtin`: locate them all; needs --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for --facts; a run that was cut off goes on there.")] = None,
    relation: Annotated[str | None, typer.Option(help="With --facts: only this relation.")] = None,
    known: Annotated[bool, typer.Option("--known", help="With --facts: only facts that the model knows.")] = False,
    limit: Annotated[int | None, typer.Option(help="With --facts: at most so many, evenly over the relations.")] = None,
    method: Annotated[str, typer.Option(help="ig, gradient, activation, logit or ablation.")] = "ig",
    of: Annotated[str, typer.Option(help="probability, log_probability, logit or logit_difference.")] = "probability",
    foil: Annotated[str | None, typer.Option(help="The answer that a logit_difference compares with.")] = None,
    nodes: Annotated[str, typer.Option(help="Points on each path, or `auto`.")] = "auto",
    quadrature: Annotated[
        str, typer.Option(help="The rule for the points; `auto` nodes need gauss-legendre.")
    ] = "gauss-legendre",
    tolerance: Annotated[float, typer.Option(help="The completeness gap that `auto` leaves in a layer.")] = 1e-3,
    baseline: Annotated[str, typer.Option(help="Where paths start: zero, or mean (over built-in prompts).")] = "zero",
    position: Annotated[str, typer.Option(help="read, lookup, or a token index.")] = "read",
    t: Annotated[float, typer.Option(help="Coarse: score at least t times the largest.")] = 0.2,
    p: Annotated[float, typer.Option(help="Refined: coarse for at least this share of the prompts.")] = 0.7,
    adjust: Annotated[bool, typer.Option("--adjust", help="Move p towards 2 to 5 neurons.")] = False,
    most: Annotated[int | None, typer.Option(help="Keep at most so many neurons.")] = None,
    layers: Annotated[str | None, typer.Option(help="Locate in these layers only, `2-29` or `20,21,22`.")] = None,
    drop: Annotated[_Texts, typer.Option(help="Leave out a kind: fact, relation, answer or general. Repeat it.")] = [],  # noqa: B006
    draws: Annotated[int, typer.Option(help="Random sets that the neurons are compared with.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the random sets.")] = 0,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    chat: Chat = False,
    as_json: AsJson = False,
) -> None:
    """Locate the neurons that make the model give an answer, and prove it.

    One fact: `knowedit locate PROMPT --target T`, or `--fact ID` for a built-in one. Many: `--facts FILE --out DIR`.
    """
    from ..errors import InputError
    from ..locate.attribution import AttributionConfig
    from ..locate.locate import LocateConfig

    if baseline not in ("zero", "mean"):
        raise InputError(f"baseline {baseline!r} is not zero or mean")
    if sum(x is not None for x in (prompt, fact, facts)) != 1:
        raise InputError("give one of: a PROMPT with --target, --fact ID, or --facts FILE with --out DIR")
    config = LocateConfig(
        method=method,
        attribution=AttributionConfig(
            of=of, foil=foil, nodes=_integer(nodes, "auto"), quadrature=quadrature, tolerance=tolerance,
            position=_integer(position, "read", "lookup"),
        ),
        t=t, p=p, adjust=adjust, most=most, layers=layer_list(layers), drop=tuple(drop), chat=chat,
    )  # fmt: skip
    if facts is not None and out is None:
        raise InputError("--facts needs --out DIR, the folder for its results")
    if facts is not None:
        from .locate_many import locate_many, show

        chosen = choose_facts(facts, relation)
        wrapped = load(model, dtype, device, trust_remote_code)
        config = _with_baseline(wrapped, config, baseline)
        summary = locate_many(wrapped, chosen, out, config, negative, draws, seed, known, limit)
        print_json(summary) if as_json else show(summary, out)
        return
    asked = _asked_fact(fact) if fact is not None else _asked_prompt(prompt, target, subject, paraphrase, heldout)
    started = time.perf_counter()
    wrapped = load(model, dtype, device, trust_remote_code)
    config = _with_baseline(wrapped, config, baseline)
    seconds = {"load": time.perf_counter() - started}
    record = _run(wrapped, asked, negative, config, draws, seed, seconds)
    print_json(record) if as_json else _show(record)


def _integer(text: str, *words: str):
    from ..errors import InputError

    if text in words:
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"found {text!r}, expected a whole number or {' or '.join(words)}") from None


def _with_baseline(wrapped, config, baseline: str):
    """The mean baseline is one of this model's, so it waits until the model is there."""
    from dataclasses import replace

    from ..locate.locate import mean_activation
    from ..sources import builtin_facts

    if baseline == "zero":
        return config
    mean = mean_activation(wrapped, [fact.prompt for fact in builtin_facts()[::10]])
    return replace(config, attribution=replace(config.attribution, baseline=mean))


def _asked_fact(name: str) -> dict:
    from ..facts import fill
    from ..sources import find_fact

    fact = find_fact(name)
    return {
        "prompts": [fill(template, fact.subject) for template in (fact.template, *fact.paraphrases)],
        "heldout": [fill(template, fact.subject) for template in fact.heldout],
        "target": fact.target,
        "subject": fact.subject,
        "relation": fact.relation,
    }


def _asked_prompt(
    prompt: str, target: str | None, subject: str | None, paraphrases: list[str], heldout: list[str]
) -> dict:
    """A fact in the user's own words; with a subject and nothing held out, the last paraphrase is."""
    from ..errors import InputError
    from ..facts import SLOT, fill, templated
    from ..sources import builtin_facts

    if target is None:
        raise InputError("a PROMPT needs --target, the answer whose neurons are wanted")
    if subject is None:
        if any(SLOT in text for text in (prompt, *paraphrases, *heldout)):
            raise InputError(f"a prompt with {SLOT} needs --subject, which takes its place")
        filled = lambda text: text  # noqa: E731
    else:
        filled = lambda text: fill(templated(text, subject), subject)  # noqa: E731
        if paraphrases and not heldout:
            paraphrases, heldout = paraphrases[:-1], paraphrases[-1:]
    same = [f for f in builtin_facts() if subject and f.subject == subject and f.target == target]
    return {
        "prompts": [filled(text) for text in (prompt, *paraphrases)],
        "heldout": [filled(text) for text in heldout],
        "target": target,
        "subject": subject,
        "relation": same[0].relation if same else None,
    }


def _run(wrapped, asked: dict, negatives: list[str], config, draws: int, seed: int, seconds: dict) -> dict:
    from tqdm.auto import tqdm

    from ..locate.locate import locate_prompts
    from ..locate.neuron_kinds import ControlPool
    from ..locate.proof import prove
    from ..sources import builtin_facts

    for text in (*asked["prompts"], *asked["heldout"]):  # a mistyped one is said before anything is computed
        wrapped.query(text, asked["target"], asked["subject"], chat=config.chat)
    for text in negatives:
        wrapped.encode(text, chat=config.chat)
    pool = ControlPool(wrapped, builtin_facts())
    started = time.perf_counter()
    with tqdm(total=len(asked["prompts"]) + len(negatives), desc="attributing", unit="prompt", leave=False) as bar:
        found = locate_prompts(
            wrapped, asked["prompts"], asked["target"], config,
            subject=asked["subject"], relation=asked["relation"], negatives=negatives, pool=pool,
            progress=lambda done: bar.update(done - bar.n),
        )  # fmt: skip
    seconds["attribution"] = time.perf_counter() - started
    started = time.perf_counter()
    proof = None
    if len(found):
        note("proving: suppressing and amplifying, beside random neurons") if sys.stderr.isatty() else None
        on = asked["heldout"] or asked["prompts"][:1]
        queries = [wrapped.query(text, asked["target"], asked["subject"], chat=config.chat) for text in on]
        controls = pool.controls(asked["subject"], asked["target"], asked["relation"])
        others = {"same_relation": controls.relation, "other_relations": controls.general}
        proof = prove(wrapped, found, queries, draws=draws, seed=seed, heldout=bool(asked["heldout"]), others=others)
    seconds["effect"] = time.perf_counter() - started
    return _record(found, proof, asked, seconds)


def _record(found, proof, asked: dict, seconds: dict) -> dict:
    """What `--json` prints."""
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    effect = {"suppress": nothing, "amplify": nothing, "control_suppress": nothing, "control_amplify": nothing}
    neurons = found.as_dict()["neurons"]
    return {
        "schema": SCHEMA,
        "model": found.model,
        "weights_hash": found.weights_hash,
        "prompt": found.prompt,
        "subject": found.subject,
        "target": found.target,
        "probability": found.probability,
        "method": found.method,
        "refined_on": found.refined_on,
        "heldout": asked["heldout"],
        "negatives": found.negatives,
        "note": found.note,
        "neurons": neurons,
        "completeness": {"max_gap": max(found.gap), "by_layer": list(found.gap)} if found.gap else None,
        "effect": effect if proof is None else proof.as_dict(),
        "tests": found.tests,
        "config": found.config,
        "seconds": seconds,
    }


def _show(record: dict) -> None:
    from ..statistics import Estimate

    line(f"{record['prompt']} → {record['target']}   p = {record['probability']:.3f}   ({record['model']})")
    if record["note"]:
        line(f"Note: {record['note']}.")
    line()
    if record["neurons"]:
        table(
            ["neuron", "score", "share", "prompts", "kind", "promotes"],
            [_row(neuron) for neuron in record["neurons"]],
        )
        line()
        _show_effect(record["effect"], Estimate)
    if record["completeness"]:
        line(f"Largest completeness gap of a layer: {record['completeness']['max_gap']:.1e}")
    line("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in record["seconds"].items()))


def _row(neuron: dict) -> tuple:
    site, words = f"{neuron['layer']}/{neuron['index']}", "  ".join(map(repr, neuron["promotes"][:5]))
    rates = percent(neuron["share"]), percent(neuron["prompts"], False)
    return site, f"{neuron['score']:+.4f}", *rates, neuron["kind"], words


def _show_effect(effect: dict, Estimate) -> None:
    on = (
        f"{effect['suppress']['n']} held-out prompts"
        if effect["heldout"]
        else "the prompt that located them (nothing was held out)"
    )
    line(f"Proof on {on}, target's mean probability {effect['probability']:.3f}:")
    rows = []
    for what, factor in (("suppress", "× 0"), ("amplify", "× 2")):
        p = effect[f"p_{what}"]
        cells = [Estimate(**effect[f"{prefix}{what}"]).text("change") for prefix in ("", "control_", "layer_control_")]
        rows.append((f"{what} {factor}", *cells, f"{p:.3f}"))
    table(["", "located", "random, same layer and activation", "random, same layer", "p"], rows)
    for name, changes in effect["specificity"].items():
        suppress, amplify = (Estimate(**changes[w]).text("change") for w in ("suppress", "amplify"))
        n = changes["suppress"]["n"]
        line(f"Other facts, {name.replace('_', ' ')}: suppress {suppress}, amplify {amplify} (n = {n})")
