"""`knowedit trace` and `knowedit patch`: which states of a prompt carry the answer."""

from __future__ import annotations

from typing import Annotated

import typer

from ..shared.command import run_command
from ..shared.facts import FactChoice
from ..shared.help import choice
from ..shared.options import SEEDS, Chat, DrawnOutput, ModelOptions
from ..shared.progress import progress

SITES = ("residual", "mlp", "attention", "head")
METRICS = ("probability", "log_probability", "logit", "logit_difference")


def trace(
    facts: FactChoice,
    kind: Annotated[
        str, typer.Option(metavar="state|mlp|attention,…", help="What is restored; several with commas.")
    ] = "state,mlp,attention",
    draws: Annotated[int, typer.Option(help="Samples of noise.")] = 10,
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise, in those of the embeddings.")] = 3.0,
    window: Annotated[
        int | None, typer.Option(help="Layers of an MLP or attention window; by default the paper's share, 10 of 48.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Approximate by gradients.")] = False,
    severed: Annotated[
        str | None,
        typer.Option(metavar="mlp|attention,…", help="Also restore states with these sublayers severed, each alone."),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Of all tokens of the target, not the first alone.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the noise.", **SEEDS)] = 0,
    chat: Chat = False,
    *,
    model: ModelOptions,
    output: DrawnOutput,
) -> None:
    """Trace how a fact is recalled: corrupt the subject, then restore one state after the other.

    One fact: `knowedit trace PROMPT --subject S --target T`, or `--fact ID`. The average over many: `--facts FILE`.
    """
    from ...recall.trace import TraceConfig, average_traces, trace_facts

    facts.check()
    config = TraceConfig(
        kinds=_words(kind),
        draws=draws,
        noise=noise,
        window=window,
        fast=fast,
        severed=_words(severed),
        seed=seed,
        whole=whole,
        chat=chat,
    )

    def run(model):
        if facts.facts is None:
            return trace_facts(model, [facts.build(model)], config)[0]
        known = facts.known(model)
        with progress("tracing", len(known), "fact") as step:
            return average_traces(trace_facts(model, known, config, step))

    run_command("knowedit.trace/1", run, model, output)


def _words(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def patch(
    clean: Annotated[str, typer.Argument(help="The prompt that the values are taken from.")],
    corrupt: Annotated[str, typer.Argument(help="The prompt that they are put into, of as many tokens.")],
    target: Annotated[str, typer.Option(help="The answer to the clean prompt.")],
    foil: Annotated[str | None, typer.Option(help="The answer to the corrupt prompt, for logit_difference.")] = None,
    site: Annotated[
        str, choice(SITES, "--site", help="What is patched: token by layer, or layer by head.")
    ] = "residual",
    metric: Annotated[
        str | None, choice(METRICS, "--metric", help="By default probability, or logit_difference with --foil.")
    ] = None,
    chat: Chat = False,
    *,
    model: ModelOptions,
    output: DrawnOutput,
) -> None:
    """Activation patching: put every site of one prompt's run into another's, and see what the answer becomes."""
    from dataclasses import replace

    from ...recall.trace import patch
    from ...recall.trace.patching import grid

    metric = metric or ("probability" if foil is None else "logit_difference")

    def run(model):
        source, run_on = (model.encode(text, chat=chat) for text in (clean, corrupt))
        length = len(run_on.ids) if model.masked else run_on.read + 1
        patched = patch(model, source, run_on, grid(model, site, range(length)), metric, target=target, foil=foil)
        return replace(patched, prompts=(clean, corrupt))

    run_command("knowedit.patch/1", run, model, output)
