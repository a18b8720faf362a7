"""`knowedit memory`: a model's MLPs as key-value memories: keys and values, sparsity, neurons that relations share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ...display.result import Record, Table
from ..shared.command import run_command
from ..shared.facts import ManyFacts
from ..shared.help import choice
from ..shared.options import CorpusName, DrawnOutput, ModelOptions, Seed, Tokens, layer_list
from ..shared.output import note
from ..shared.progress import progress

WHAT = ("keys", "sparsity", "polysemanticity")
LIMIT = 110  # facts: ten of each built-in relation


@dataclass(frozen=True)
class Memory(Record):
    """What was looked at of a model's memories; what was not asked for is None."""

    model: str
    source: dict | None
    tokens: int | None
    active_is: str | None
    facts: Sequence[str]
    keys: Any = None
    sparsity: Any = None
    polysemanticity: Any = None

    def table(self) -> Iterator[str | Table]:
        """One after the other."""
        if self.source is not None:
            kind = self.source.get("kind", "text")
            yield f"{self.model} on {self.tokens} tokens of {kind}; active: {self.active_is}"
        for part in (self.keys, self.sparsity, self.polysemanticity):
            if part is not None:
                yield from part.table()

    def figure(self, path: Path) -> Path:
        """All in one picture."""
        from ...memory.figure import memory_figure

        parts = {name: getattr(self, name) for name in WHAT}
        return memory_figure(path, title=f"{self.model}: MLPs as key-value memories", **parts)


def memory(
    what: Annotated[list[str], choice(WHAT, "--what", help="Which analysis; by default all. Repeat it.")] = [],  # noqa: B006
    layers: Annotated[str | None, typer.Option(help="A layer, a range such as 0-29 or a list; by default all.")] = None,
    corpus: CorpusName = None,
    tokens: Tokens = None,
    removed: Annotated[int, typer.Option(help="Tokens that are removed from a key's trigger.", min=1)] = 1,
    prefixes: Annotated[int, typer.Option(help="Triggers that are read again.", min=1)] = 128,
    at: Annotated[
        str, choice(("read", "all"), "--at", help="The positions where only the strongest neurons are kept.")
    ] = "read",
    groups: Annotated[
        int | None, typer.Option(help="With sparsity: also the groups of neurons of this layer that go together.")
    ] = None,
    seed: Seed = 0,
    *,
    facts: ManyFacts,
    model: ModelOptions,
    output: DrawnOutput,
) -> None:
    """Read a model's MLPs as key-value memories.

    Keys: what in a text makes neurons fire, whether values say what follows, and how often a layer says what no neuron
    of it says. Sparsity: how many neurons are active, and how many a prediction needs. Polysemanticity: how many
    unrelated relations share a neuron.
    """
    from ...errors import InputError
    from ...memory.corpus_scan import CORPUS_TOKENS, chosen_layers, scan
    from ...memory.shared_neurons import PolysemanticityConfig, polysemanticity
    from ...memory.sparsity import SparsityConfig
    from ...memory.triggers import KeysConfig
    from ...memory.values import check_decoder

    chosen = layer_list(layers)
    keys = KeysConfig(prefixes=prefixes, removed=removed, seed=seed)
    sparsity = SparsityConfig(at=at, layers=chosen, seed=seed)
    shared = PolysemanticityConfig(layers=chosen, seed=seed)

    def run(model):
        parts: Sequence[str] = what or WHAT
        if model.masked and not what:
            note(f"{model.name} is a masked model: its keys have no prefixes and are left out")
            parts = ("sparsity", "polysemanticity")
        if "keys" in parts:
            check_decoder(model)
        chosen_layers(model, chosen)
        if groups is not None:
            model.check_layer(groups)
            if "sparsity" not in parts:
                raise InputError("--groups is part of sparsity; add --what sparsity")
        text, known, results = None, [], {}
        if "keys" in parts or "sparsity" in parts:
            n = CORPUS_TOKENS if tokens is None else tokens
            with progress("reading", n, "token") as step:
                text = scan(
                    model, corpus or "builtin", layers=chosen, tokens=n, seed=seed, weights_hash=model.weights_hash(),
                    progress=step,
                )  # fmt: skip
        if "sparsity" in parts or "polysemanticity" in parts:
            known = facts.known(model, LIMIT)
        if "keys" in parts:
            results["keys"] = _keys(model, text, keys, seed)
        if "sparsity" in parts:
            results["sparsity"] = _sparsity(model, text, known, sparsity, groups)
        if "polysemanticity" in parts:
            with progress("relations", len(known), "fact") as step:
                results["polysemanticity"] = polysemanticity(model, known, shared, progress=step)
        of_text = (None, None, None) if text is None else (text.source, text.tokens, text.definition)
        return Memory(model.name, *of_text, [fact.id or fact.prompt for fact in known], **results)

    run_command("knowedit.memory/1", run, model, output)


def _keys(model, scan, config, seed: int):
    from ...memory.triggers import CUTS, KeysAndValues, keys
    from ...memory.values import agreement, compositional

    n_layers = len(scan.layers)
    with progress("keys", len(CUTS) * config.prefixes, "prefix") as step:
        by_layer = keys(model, scan, config, progress=step)
    with progress("values", n_layers, "layer") as step:
        agreements = agreement(model, scan, progress=step)
    with progress("values and layers", n_layers, "layer") as step:
        return KeysAndValues(by_layer, agreements, compositional(model, scan, seed=seed, progress=step), config.removed)


def _sparsity(model, scan, facts: Sequence, config, layer: int | None):
    from ...memory.functional_groups import GroupsConfig, groups
    from ...memory.sparsity import Sparsity, active_by_layer, keep_strongest

    prompts = [model.encode(fact.prompt, fact.subject) for fact in facts]
    with progress("thinning", len(prompts), "prompt") as step:
        kept = keep_strongest(model, prompts, config, progress=step)
    grouped = None if layer is None else groups(model, scan, layer, GroupsConfig(seed=config.seed))
    return Sparsity(active_by_layer(scan), kept, config.at, grouped)
