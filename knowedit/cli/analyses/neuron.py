"""`knowedit neuron`: what one neuron says, and with --card all that can be said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..shared.command import run_command
from ..shared.options import CorpusName, DrawnOutput, ModelOptions, Seed, Tokens
from ..shared.progress import progress

SCHEMA = "knowedit.neuron/1"


def neuron(
    layer: Annotated[int, typer.Argument(help="Layer, from 0.")],
    index: Annotated[int, typer.Argument(help="Index of the neuron in its layer, from 0.")],
    card: Annotated[
        bool, typer.Option("--card", help="Also its texts, how often it is active, its facts and its effect.")
    ] = False,
    corpus: CorpusName = None,
    tokens: Tokens = None,
    located: Annotated[
        Path | None, typer.Option("--located", help="With --card: a folder of `knowedit locate --facts … --out`.")
    ] = None,
    seed: Seed = 0,
    *,
    model: ModelOptions,
    output: DrawnOutput,
) -> None:
    """What one neuron's value vector promotes and suppresses in the vocabulary; with --card, its whole card."""
    from ...errors import InputError
    from ...memory.neuron_card import CardConfig, card as make_card, neuron_words

    options = {"--corpus": corpus, "--tokens": tokens, "--located": located, "--figure": output.figure}
    for name, value in options.items():
        if value is not None and not card:
            raise InputError(f"{name} is for a neuron's card; add --card")
    if not card:
        run_command(SCHEMA, lambda model: neuron_words(model, layer, index), model, output)
        return
    if located is not None:
        from ...evaluate.neurons.records import read_located

        read_located(located)  # a damaged folder is told before a model is loaded
    config = CardConfig(seed=seed) if tokens is None else CardConfig(seed=seed, tokens=tokens)

    def run(model):
        model.check_neuron(layer, index)
        weights_hash = model.weights_hash()
        sets = () if located is None else read_located(located, weights_hash)
        with progress("reading", config.tokens, "token") as step:
            return make_card(
                model, layer, index, corpus or "builtin", config=config, located=sets, weights_hash=weights_hash,
                progress=step,
            )  # fmt: skip

    run_command(SCHEMA, run, model, output)
