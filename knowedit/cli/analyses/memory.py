"""`knowedit memory`: a model's MLPs as key-value memories: keys and values, sparsity, neurons that relations share."""

from __future__ import annotations

from typing import Annotated

import typer

from ..shared.facts import known_facts
from ..shared.options import (
    DEFAULT_MODEL,
    AsJson,
    CorpusName,
    Device,
    Dtype,
    Facts,
    FigurePath,
    Limit,
    ModelName,
    Relation,
    RemoteCode,
    Seed,
    Tokens,
    layer_list,
    load,
)
from ..shared.output import line, note, print_json, table
from ..shared.progress import progress

SCHEMA = "knowedit.memory/1"
WHAT = ("keys", "sparsity", "polysemanticity")
LIMIT = 110  # facts: ten of each built-in relation


def memory(
    what: Annotated[
        list[str], typer.Option("--what", help="keys, sparsity or polysemanticity; repeat it. By default all.")
    ] = [],  # noqa: B006
    layers: Annotated[str | None, typer.Option(help="A layer, a range such as 0-29 or a list; by default all.")] = None,
    corpus: CorpusName = None,
    tokens: Tokens = None,
    removed: Annotated[int, typer.Option(help="Tokens that are removed from a key's trigger.", min=1)] = 1,
    prefixes: Annotated[int, typer.Option(help="Triggers that are read again.", min=1)] = 128,
    at: Annotated[
        str, typer.Option(help="Where only the strongest neurons are kept: read, or all positions.")
    ] = "read",
    groups: Annotated[
        int | None, typer.Option(help="With sparsity: also the groups of neurons of this layer that go together.")
    ] = None,
    facts: Facts = None,
    relation: Relation = None,
    limit: Limit = None,
    seed: Seed = 0,
    figure: FigurePath = None,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Read a model's MLPs as key-value memories.

    Keys: what in a text makes neurons fire, whether values say what follows, and how often a layer says what no neuron
    of it says. Sparsity: how many neurons are active, and how many a prediction needs. Polysemanticity: how many
    unrelated relations share a neuron.
    """
    from ...memory.shared_neurons import PolysemanticityConfig
    from ...memory.sparsity import SparsityConfig
    from ...memory.triggers import KeysConfig

    wanted = _wanted(what)
    chosen = layer_list(layers)
    configs = {
        "keys": KeysConfig(prefixes=prefixes, removed=removed, seed=seed),
        "sparsity": SparsityConfig(at=at, layers=chosen, seed=seed),
        "polysemanticity": PolysemanticityConfig(layers=chosen, seed=seed),
    }
    if figure is not None:
        from ...report.figures.drawing import check_path

        figure = check_path(figure)
    wrapped = load(model, dtype, device, trust_remote_code)
    if wrapped.masked and not what:
        note(f"{wrapped.name} is a masked model: its keys have no prefixes and are left out")
        wanted = tuple(name for name in wanted if name != "keys")
    _check(wrapped, wanted, chosen, groups)
    found = _Analyses(wrapped, configs, groups, seed)
    if {"keys", "sparsity"} & set(wanted):
        found.read(corpus or "builtin", chosen, tokens)
    if {"sparsity", "polysemanticity"} & set(wanted):
        found.ask(facts or "builtin", relation, LIMIT if limit is None else limit)
    for name in wanted:
        getattr(found, name)()
    if figure is not None:
        from ...report.figures.memory import memory_figure

        memory_figure(figure, title=f"{wrapped.name}: MLPs as key-value memories", **found.drawn)
    print_json(found.record()) if as_json else _show(found)
    if figure is not None:
        note(f"drawn into {figure}")


def _wanted(what: list[str]) -> tuple[str, ...]:
    from ...errors import InputError, did_you_mean

    for name in what:
        if name not in WHAT:
            raise InputError(f"no analysis is called {name!r}{did_you_mean(name, WHAT)}; there are {', '.join(WHAT)}")
    return tuple(name for name in WHAT if name in what or not what)


def _check(wrapped, wanted: tuple[str, ...], layers, groups: int | None) -> None:
    """What can be refused before anything is read."""
    from ...errors import InputError
    from ...memory.corpus_scan import chosen_layers
    from ...memory.values import check_decoder

    if "keys" in wanted:
        check_decoder(wrapped)
    chosen_layers(wrapped, layers)
    if groups is not None:
        wrapped.check_layer(groups)
        if "sparsity" not in wanted:
            raise InputError("--groups is part of sparsity; add --what sparsity")


class _Analyses:
    """What was found so far: as dataclasses for the figure, and as a record."""

    def __init__(self, wrapped, configs: dict, groups: int | None, seed: int):
        self.wrapped, self.configs, self.groups, self.seed = wrapped, configs, groups, seed
        self.scan, self.facts, self.drawn, self.grouped = None, (), {}, None

    def read(self, corpus: str, layers, tokens: int | None) -> None:
        from ...memory.corpus_scan import CORPUS_TOKENS, scan

        tokens = CORPUS_TOKENS if tokens is None else tokens
        with progress("reading", tokens, "token") as step:
            self.scan = scan(self.wrapped, corpus, layers=layers, tokens=tokens, seed=self.seed, progress=step)

    def ask(self, facts: str, relation: str | None, limit: int) -> None:
        self.facts = known_facts(self.wrapped, facts, relation, limit)

    def keys(self) -> None:
        from ...memory.triggers import CUTS, keys
        from ...memory.values import agreement, compositional

        config = self.configs["keys"]
        with progress("keys", len(CUTS) * config.prefixes, "prefix") as step:
            self.drawn["keys"] = keys(self.wrapped, self.scan, config, progress=step)
        layers = len(self.scan.layers)
        with progress("values", layers, "layer") as step:
            self.drawn["agreement"] = agreement(self.wrapped, self.scan, progress=step)
        with progress("values and layers", layers, "layer") as step:
            self.drawn["compositional"] = compositional(self.wrapped, self.scan, seed=self.seed, progress=step)

    def sparsity(self) -> None:
        from ...memory.functional_groups import GroupsConfig, groups
        from ...memory.sparsity import active_by_layer, keep_strongest

        self.drawn["active"] = active_by_layer(self.scan)
        prompts = [self.wrapped.encode(fact.prompt, fact.subject) for fact in self.facts]
        with progress("thinning", len(prompts), "prompt") as step:
            self.drawn["kept"] = keep_strongest(self.wrapped, prompts, self.configs["sparsity"], progress=step)
        if self.groups is not None:
            self.grouped = groups(self.wrapped, self.scan, self.groups, GroupsConfig(seed=self.seed))

    def polysemanticity(self) -> None:
        from ...memory.shared_neurons import polysemanticity

        with progress("relations", len(self.facts), "fact") as step:
            self.drawn["shared"] = polysemanticity(
                self.wrapped, self.facts, self.configs["polysemanticity"], progress=step
            )

    def record(self) -> dict:
        """One JSON object; what was not asked for is null."""
        from ...memory.values import mean_agreement, mean_compositional

        def parts(name: str) -> list[dict]:
            return [part.as_dict() for part in self.drawn[name]]

        scan, drawn = self.scan, self.drawn
        record = {
            "schema": SCHEMA,
            "model": self.wrapped.name,
            "source": scan and scan.source,
            "tokens": scan and scan.tokens,
            "active_is": scan and scan.definition,
            "facts": [fact.id or fact.prompt for fact in self.facts],
            **dict.fromkeys(WHAT),
        }
        if "keys" in drawn:
            record["keys"] = {name: parts(name) for name in ("keys", "agreement", "compositional")}
            record["keys"] |= {
                "removed": self.configs["keys"].removed,
                "mean_agreement": mean_agreement(drawn["agreement"]),
                "mean_compositional": mean_compositional(drawn["compositional"]).as_dict(),
            }
        if "kept" in drawn:
            record["sparsity"] = {
                "layers": parts("active"),
                "kept": parts("kept"),
                "kept_at": self.configs["sparsity"].at,
                "groups": self.grouped and self.grouped.as_dict(),
            }
        if "shared" in drawn:
            record["polysemanticity"] = drawn["shared"].as_dict()
        return record


def _show(found: _Analyses) -> None:
    drawn = found.drawn
    if found.scan is not None:
        kind = found.scan.source.get("kind", "text")
        line(f"{found.wrapped.name} on {found.scan.tokens} tokens of {kind}; active: {found.scan.definition}")
    if "keys" in drawn:
        _show_keys(drawn)
    if "kept" in drawn:
        _show_sparsity(drawn, len(found.facts))
    if found.grouped is not None:
        _show_groups(found.grouped)
    if "shared" in drawn:
        _show_shared(drawn["shared"])


def _show_keys(drawn: dict) -> None:
    columns = ["layer", "die without first", "last", "random", "value says next", "chance", "said by no neuron"]
    rows = []
    for dead, agreement, compositional in zip(drawn["keys"], drawn["agreement"], drawn["compositional"], strict=True):
        without = (dead.dead[cut].text("share") for cut in ("first", "last", "random"))
        agrees = agreement.agree.text("share"), f"{agreement.chance:.2%}"
        rows.append((dead.layer, *without, *agrees, compositional.share.text("share")))
    table(columns, rows, "Keys and values")


def _show_sparsity(drawn: dict, n: int) -> None:
    rows = [(a.layer, a.active.text("share"), a.effective.text("share"), a.never) for a in drawn["active"]]
    table(["layer", "active", "effective", "never active"], rows, "Sparsity")
    rows = [
        (f"{k.share:.0%}", *(e.text("share") for e in (k.top1, k.ratio, k.random_top1, k.random_ratio)))
        for k in drawn["kept"]
    ]
    columns = ["kept", "first choice stays", "p′/p", "random: stays", "random: p′/p"]
    table(columns, rows, f"Only the strongest neurons of every layer, {n} facts")


def _show_groups(found) -> None:
    line(
        f"Layer {found.layer}: {found.grouped} of {found.neurons} neurons in {len(found.groups)} groups "
        f"({found.grouped_control} where their activity is shifted)"
    )
    rows = [
        (len(g.neurons), f"{g.together:.2f}", f"{g.share:.1%}", " ".join(map(str, g.neurons[:6])),
         " ".join(map(repr, g.promotes[:6])))
        for g in found.groups[:10]
    ]  # fmt: skip
    table(["neurons", "φ", "active on", "first of them", "promote"], rows)


def _show_shared(found) -> None:
    rows = [
        (name, f"{part.used:.0f}", f"{part.relations:.2f}" if part.relations else "", part.polysemantic.text("share"),
         part.general.text("share"))
        for name, part in (("neurons", found.neurons), ("rotated basis", found.rotated))
    ]  # fmt: skip
    table(
        ["", "used", "relations each", "by unrelated ones", "by all"],
        rows,
        f"Neurons that {len(found.relations)} relations use",
    )
