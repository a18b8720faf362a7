"""`knowedit neuron`: what one neuron says, and with --card all that can be said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..shared.options import (
    DEFAULT_MODEL,
    AsJson,
    CorpusName,
    Device,
    Dtype,
    FigurePath,
    ModelName,
    RemoteCode,
    Seed,
    Tokens,
    load,
)
from ..shared.output import line, note, print_json, table
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
    figure: FigurePath = None,
    seed: Seed = 0,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """What one neuron's value vector promotes and suppresses in the vocabulary; with --card, its whole card."""
    from ...errors import InputError

    if not card:
        given = {"--corpus": corpus, "--tokens": tokens, "--located": located, "--figure": figure}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} is for a neuron's card; add --card")
        _say(load(model, dtype, device, trust_remote_code), layer, index, as_json)
        return
    if figure is not None:
        from ...report.figures.drawing import check_path

        figure = check_path(figure)
    sets = _located(located)
    wrapped = load(model, dtype, device, trust_remote_code)
    wrapped.check_neuron(layer, index)
    _check_located(wrapped, sets, located)
    found = _card(wrapped, layer, index, corpus or "builtin", tokens, sets, seed)
    if figure is not None:
        from ...report.figures.memory import draw_card

        draw_card(found, figure)
    print_json({"schema": SCHEMA, **found.as_dict()}) if as_json else _show(found)
    if figure is not None:
        note(f"drawn into {figure}")


def _say(wrapped, layer: int, index: int, as_json: bool) -> None:
    from ...locate.neurons import vocabulary

    wrapped.check_neuron(layer, index)
    promotes, suppresses = vocabulary(wrapped, layer, index, n=12)
    norm = wrapped.down_weight(layer)[:, index].float().norm().item()
    if as_json:
        record = {"schema": SCHEMA, "model": wrapped.name, "layer": layer, "index": index, "value_norm": norm}
        print_json(record | {"promotes": promotes, "suppresses": suppresses})
        return
    line(f"neuron {layer}/{index} of {wrapped.name}: value vector of norm {norm:.3f}")
    _words(promotes, suppresses)
    line("A negative activation swaps the two.")


def _words(promotes, suppresses) -> None:
    line(f"promotes   {'  '.join(map(repr, promotes))}")
    line(f"suppresses {'  '.join(map(repr, suppresses))}")


def _located(folder: Path | None) -> tuple:
    from ...evaluate.neurons.records import read_located

    return () if folder is None else read_located(folder)


def _check_located(wrapped, sets: tuple, folder: Path | None) -> None:
    """Raise `DataError` where the folder's neurons are those of other weights."""
    from ...errors import DataError

    if sets and {one.weights_hash for one in sets} != {wrapped.weights_hash()}:
        raise DataError(f"{str(folder)!r} was located on other weights than those of {wrapped.name}; locate again")


def _card(wrapped, layer: int, index: int, corpus: str, tokens: int | None, sets: tuple, seed: int):
    from ...memory.neuron_card import CardConfig, card

    config = CardConfig(seed=seed) if tokens is None else CardConfig(seed=seed, tokens=tokens)
    with progress("reading", config.tokens, "token") as step:
        return card(wrapped, layer, index, corpus, config=config, located=sets, progress=step)


def _show(card) -> None:
    line(
        f"neuron {card.layer}/{card.index} of {card.model}: active on {card.active:.1%} of {card.tokens} tokens, "
        f"value {card.mean:+.3f} ± {card.deviation:.3f}, value vector of norm {card.value_norm:.3f}"
    )
    line(f"Active: {card.definition}.")
    _words(card.promotes, card.suppresses)
    line(f"where its activation is {'negative' if card.sign < 0 else 'positive'}, as on these texts:")
    shown = [
        (f"{t.activation:+.2f}", f"{t.before[-60:]}⟦{t.token}⟧{t.after[:30]}".replace("\n", "⏎")) for t in card.triggers
    ]
    table(["activation", "text"], shown)
    for name, effect in (("what follows these texts", card.on_texts), ("the facts that share it", card.on_facts)):
        if effect is not None:
            line(f"set to 0: {name}, n = {effect.suppressed.n}: {effect.suppressed.text('change')}")
            line(f"  other neurons of the layer: {effect.control.text('change')}")
    if card.located:
        table(
            ["fact", "target", "score", "kind"],
            [(one.fact, one.target, f"{one.score:.4f}", one.kind) for one in card.located],
        )
