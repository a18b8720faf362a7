"""`knowedit trace` and `knowedit patch`: which states of a prompt carry the answer."""

from __future__ import annotations

from typing import Annotated

import typer

from ..shared.facts import build_fact, check_choice, known_facts
from ..shared.options import (
    DEFAULT_MODEL,
    AsJson,
    Chat,
    Device,
    Dtype,
    FactId,
    Facts,
    FigurePath,
    Limit,
    ModelName,
    Prompt,
    Relation,
    RemoteCode,
    Subject,
    Target,
    load,
)
from ..shared.output import line, print_json, table
from ..shared.progress import progress

SCHEMA, PATCH_SCHEMA = "knowedit.trace/1", "knowedit.patch/1"
_SHOWN = 10


def trace(
    prompt: Prompt = None,
    subject: Subject = None,
    target: Target = None,
    fact: FactId = None,
    facts: Facts = None,
    limit: Limit = None,
    relation: Relation = None,
    kind: Annotated[str, typer.Option(help="What is restored: state, mlp, attention, or several of them.")] = (
        "state,mlp,attention"
    ),
    draws: Annotated[int, typer.Option(help="Samples of noise.")] = 10,
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise, in those of the embeddings.")] = 3.0,
    window: Annotated[
        int | None, typer.Option(help="Layers of an MLP or attention window; 10 of 48, as in the paper, by default.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Approximate by gradients.")] = False,
    severed: Annotated[
        str | None, typer.Option(help="Also restore states with mlp, attention (or both, each for itself) severed.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Of all tokens of the target, not the first alone.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    figure: FigurePath = None,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    chat: Chat = False,
    as_json: AsJson = False,
) -> None:
    """Trace how a fact is recalled: corrupt the subject, then restore one state after the other.

    One fact: `knowedit trace PROMPT --subject S --target T`, or `--fact ID`. The average over many: `--facts FILE`.
    """
    from ...recall.trace.exact import TraceConfig

    check_choice(prompt, fact, facts, many=True)
    config = TraceConfig(
        kinds=_words(kind), draws=draws, noise=noise, window=window, fast=fast, severed=_words(severed), seed=seed,
        whole=whole, chat=chat,
    )  # fmt: skip
    figure = _checked(figure)
    if facts is None:
        _one(prompt, subject, target, fact, config, figure, (model, dtype, device, trust_remote_code), as_json)
    else:
        _many(facts, relation, limit, config, figure, (model, dtype, device, trust_remote_code), as_json)


def _words(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _checked(figure):
    from ...report.figures.drawing import check_path

    return None if figure is None else check_path(figure)


def _one(prompt, subject, target, fact, config, figure, chosen: tuple, as_json: bool) -> None:
    from ...recall.trace.exact import trace as run

    wrapped = load(*chosen)
    asked = build_fact(wrapped, prompt, subject, target, fact)
    found = run(wrapped, asked.prompt, asked.target, asked.subject, config, fact=asked.id)
    if figure is not None:
        from ...report.figures.trace import trace_figure

        trace_figure(figure, found)
    print_json({"schema": SCHEMA} | found.as_dict()) if as_json else _show(found)


def _many(facts, relation, limit, config, figure, chosen: tuple, as_json: bool) -> None:
    from ...recall.trace.average import average_traces
    from ...recall.trace.exact import trace_facts

    wrapped = load(*chosen)
    known = known_facts(wrapped, facts, relation, limit)
    with progress("tracing", len(known), "fact") as step:
        found = average_traces(trace_facts(wrapped, known, config, step))
    if figure is not None:
        from ...report.figures.trace import average_figure

        average_figure(figure, found)
    print_json({"schema": SCHEMA} | found.as_dict()) if as_json else _show_average(found)


def _show(found) -> None:
    import numpy as np

    line(f"{found.prompt} → {found.target}   p = {found.high:.3f}, corrupted {found.low:.3f}   ({found.model})")
    how = "approximated by gradients" if found.config.fast else f"{found.config.draws} draws"
    line(f"noise of {found.config.noise:g} σ = {found.level:.4f} in {found.subject!r}, {how}")
    start, end = found.subject_tokens
    for kind in found.effects:
        token, layer, effect = found.peak(kind)
        of = f"layer {layer}" if kind.startswith("state") else f"{found.window} layers around {layer}"
        line()
        line(f"{kind}: most is restored at {found.tokens[token]!r}, {of}: {effect.text('signed')}")
        scores = found.scores(kind)
        shown = np.unique(np.linspace(0, scores.shape[1] - 1, _SHOWN).round().astype(int))
        rows = [
            (repr(word) + ("*" if start <= i < end else ""), *(f"{scores[i, layer]:.3f}" for layer in shown))
            for i, word in enumerate(found.tokens)
        ]
        table(["token", *map(str, shown)], rows)


def _show_average(found) -> None:
    line(
        f"{len(found.facts)} facts, {found.model}: p = {found.high.value:.3f}, "
        f"total effect {found.total_effect.text('signed')}"
    )
    for kind, classes in found.effects.items():
        line()
        line(f"{kind}: largest average indirect effect at each kind of token")
        rows = []
        for name, row in classes.items():
            layer = max(range(len(row)), key=lambda i: row[i].value)
            rows.append((name, row[layer].n, layer, row[layer].text("signed")))
        table(["token", "n", "layer", "effect"], rows)


def patch(
    clean: Annotated[str, typer.Argument(help="The prompt that the values are taken from.")],
    corrupt: Annotated[str, typer.Argument(help="The prompt that they are put into, of as many tokens.")],
    target: Annotated[str, typer.Option(help="The answer to the clean prompt.")],
    foil: Annotated[str | None, typer.Option(help="The answer to the corrupt prompt, for logit_difference.")] = None,
    site: Annotated[str, typer.Option(help="residual, mlp, attention (token by layer), or head (layer by head).")] = (
        "residual"
    ),
    metric: Annotated[
        str | None, typer.Option(help="probability, log_probability, logit or logit_difference; the last with --foil.")
    ] = None,
    figure: FigurePath = None,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    chat: Chat = False,
    as_json: AsJson = False,
) -> None:
    """Activation patching: put every site of one prompt's run into another's, and see what the answer becomes."""
    from ...errors import InputError, did_you_mean
    from ...recall.trace.patching import grid, patch as run

    known = ("residual", "mlp", "attention", "head")
    if site not in known:
        raise InputError(f"site {site!r} is unknown{did_you_mean(site, known)}; expected one of {', '.join(known)}")
    figure = _checked(figure)
    metric = metric or ("probability" if foil is None else "logit_difference")
    wrapped = load(model, dtype, device, trust_remote_code)
    prompts = [wrapped.encode(text, chat=chat) for text in (clean, corrupt)]
    length = len(prompts[1].ids) if wrapped.masked else prompts[1].read + 1
    found = run(wrapped, *prompts, grid(wrapped, site, range(length)), metric, target=target, foil=foil)
    if figure is not None:
        from ...report.figures.trace import patch_figure

        patch_figure(figure, found, f"{clean} → {target}")
    if as_json:
        print_json({"schema": PATCH_SCHEMA, "model": wrapped.name, "prompts": [clean, corrupt]} | found.as_dict())
        return
    line(f"{found.metric} of {target!r}: {found.clean:.3f} clean, {found.corrupt:.3f} corrupt   ({wrapped.name})")
    best = sorted(range(len(found.values)), key=lambda i: -abs(found.values[i] - found.corrupt))[:_SHOWN]
    rows = []
    for i in best:
        ((one,), value, share) = found.sites[i], found.values[i], found.recovered[i]
        where = f"head {one.index}" if one.kind == "head" else repr(found.tokens[one.position][0])
        rows.append((where, one.layer, f"{value:.3f}", "" if share is None else f"{share:+.1%}"))
    table(["site", "layer", found.metric, "recovered"], rows)
