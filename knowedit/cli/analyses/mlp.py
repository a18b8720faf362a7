"""`knowedit mlp`: anatomy, imputation, geometry and accounting of MLPs, and what is left of them at fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..shared.facts import build_fact, check_choice, known_facts
from ..shared.options import (
    DEFAULT_MODEL,
    AsJson,
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
from ..shared.output import line, print_json
from ..shared.progress import progress
from .mlp_tables import SHOW

SCHEMA = "knowedit.mlp/1"
WHAT = ("anatomy", "imputation", "geometry", "accounting")
BITS = "8,4,2,1"
FACTS = 44  # built-in ones that are asked where none are named


class MlpCommand(typer.core.TyperCommand):
    """`--quantize` may stand alone: it then means all of `BITS`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        args = list(args)
        if "--quantize" in args:
            after = args.index("--quantize") + 1
            if after == len(args) or args[after].startswith("--"):
                args.insert(after, BITS)
        return super().parse_args(ctx, args)


def mlp(
    prompt: Prompt = None,
    subject: Subject = None,
    target: Target = None,
    fact: FactId = None,
    facts: Facts = None,
    relation: Relation = None,
    limit: Limit = None,
    what: Annotated[str | None, typer.Option(help=f"{', '.join(WHAT)}, or all of them.")] = None,
    layer: Annotated[int | None, typer.Option(help="The layer shown closely; by default the middle one.")] = None,
    share: Annotated[float, typer.Option(help="Imputation: the share of the output's dimensions.")] = 0.08,
    draws: Annotated[int, typer.Option(help="Imputation: draws of random dimensions, by layer.")] = 8,
    quantize: Annotated[
        str | None, typer.Option(help=f"Round weights to so many bits, e.g. {BITS} (all, if nothing follows).")
    ] = None,
    neurons: Annotated[int, typer.Option(help="With --quantize: facts whose neurons are located, at most.")] = 8,
    edit: Annotated[list[Path], typer.Option("--edit", help="With --quantize: a saved edit. Repeat it.")] = [],  # noqa: B006
    config: Annotated[
        str | None, typer.Option(help="Accounting from a config alone: gpt3 and others, a config.json, a Hub id.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Accounting: length of the sequence.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of random dimensions, folds and swapped subjects.")] = 0,
    figure: FigurePath = None,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Look into the MLPs: their stages at real tokens, what the answer hangs on, how vectors lie, what they cost.

    Without facts the built-in ones that the model knows are taken, evenly over relations. Several analyses draw several
    figures, NAME-anatomy.png and so on.
    """
    from ...mlp.imputation import ImputationConfig
    from ...mlp.quantization import PrecisionConfig

    wanted = _wanted(what, config, quantize)
    _check(wanted, config, edit, [prompt, fact, facts], limit)
    imputing = ImputationConfig(share=share, draws=draws, seed=seed)
    rounding = PrecisionConfig(bits=_bits(quantize or BITS), neurons=neurons)
    paths = _paths(figure, wanted)
    if config is not None:
        from ...mlp.accounting import account_config

        made = {"accounting": account_config(config, tokens)}
        _give(made, config, [], None, paths, as_json)
        return
    edits = _edits(edit)
    wrapped = load(model, dtype, device, trust_remote_code)
    chosen = wrapped.n_layers // 2 if layer is None else wrapped.check_layer(layer)
    asked = [] if wanted == ["accounting"] else _asked(wrapped, prompt, subject, target, fact, facts, relation, limit)
    run = {
        "anatomy": lambda: _anatomy(wrapped, asked, seed),
        "imputation": lambda: _imputation(wrapped, asked, imputing),
        "geometry": lambda: _geometry(wrapped, asked, seed),
        "accounting": lambda: _accounting(wrapped, tokens),
        "precision": lambda: _precision(wrapped, asked, edits, rounding),
    }
    _give({name: run[name]() for name in wanted}, wrapped.name, asked, chosen, paths, as_json)


def _wanted(what: str | None, config: str | None, quantize: str | None) -> list[str]:
    from ...errors import InputError, did_you_mean

    known = (*WHAT, "all")
    if what is not None and what not in known:
        raise InputError(f"what is shown is {what!r}{did_you_mean(what, known)}, expected {', '.join(WHAT)} or all")
    if what is None:
        what = "accounting" if config else "" if quantize else "all"
    wanted = list(WHAT) if what == "all" else [what] if what else []
    return wanted + ["precision"] * (quantize is not None)


def _check(wanted: list[str], config: str | None, edit: list[Path], asked: Sequence, limit: int | None) -> None:
    """Everything that can be known to be wrong before a model is loaded."""
    from ...errors import InputError

    given = [one for one in asked if one is not None]
    if config is not None and (wanted != ["accounting"] or given):
        raise InputError("a config alone has no weights and knows no facts: only its accounting can be shown")
    if len(given) > 1:
        check_choice(*asked, many=True)
    if edit and "precision" not in wanted:
        raise InputError("an edit is measured at fewer bits here; give --quantize with --edit")
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit}, expected 1 or more")


def _bits(text: str) -> tuple[int, ...]:
    from ...errors import InputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"the bits are {text!r}, expected numbers from 1 to 16 such as {BITS}") from None


def _paths(figure: Path | None, wanted: list[str]) -> dict[str, Path]:
    from ...report.figures.drawing import check_path

    if figure is None:
        return {}
    path = check_path(figure)
    if len(wanted) == 1:
        return {wanted[0]: path}
    return {name: path.with_name(f"{path.stem}-{name}{path.suffix}") for name in wanted}


def _edits(folders: Sequence[Path]) -> list:
    from ...edit.edit import load_edit

    return [load_edit(folder) for folder in folders]


def _asked(wrapped, prompt, subject, target, fact, facts, relation, limit) -> list:
    if prompt is not None or fact is not None:
        return [build_fact(wrapped, prompt, subject, target, fact)]
    if facts is None:
        limit = FACTS if limit is None else limit
    return list(known_facts(wrapped, facts or "builtin", relation, limit))


def _anatomy(wrapped, asked: list, seed: int) -> tuple:
    """The anatomy and, where there are several relations, the probe."""
    from ...errors import InputError
    from ...mlp.layer_anatomy import anatomy
    from ...mlp.probing import ProbeConfig, relation_probe, usable_facts

    config = ProbeConfig(seed=seed)
    with progress("anatomy", wrapped.n_layers, "layer") as step:
        found = anatomy(wrapped, [wrapped.encode(f.prompt) for f in asked], progress=step)
    try:
        usable = usable_facts(asked, config.folds)
    except InputError:
        return found, None
    with progress("probing", len(usable) * config.folds, "prompt") as step:
        return found, relation_probe(wrapped, asked, config, progress=step)


def _imputation(wrapped, asked: list, config) -> tuple:
    from ...mlp.imputation import impute, impute_facts

    if len(asked) == 1:
        (fact,) = asked
        return (impute(wrapped, wrapped.query(fact.prompt, fact.target, fact.subject), fact.target, config),)
    with progress("imputing", len(asked), "fact") as step:
        return (impute_facts(wrapped, asked, config, progress=step),)


def _geometry(wrapped, asked: list, seed: int) -> tuple:
    """The geometry and, where a subject has several words, the AND gates."""
    from ...mlp.and_gate import and_gates, parts
    from ...mlp.value_geometry import geometry
    from ...sources import builtin_facts

    found = geometry(wrapped)
    if not any(parts(fact.subject) for fact in asked):
        return found, None
    with progress("AND gates", 5 * len(asked), "prompt") as step:
        return found, and_gates(wrapped, asked, builtin_facts(), seed=seed, progress=step)


def _accounting(wrapped, tokens: int) -> tuple:
    from ...mlp.accounting import account

    return (account(wrapped, tokens),)


def _precision(wrapped, asked: list, edits: list, config) -> tuple:
    from ...mlp.quantization import precision

    with progress("rounding", 1 + len(config.bits) * len(config.parts), "level") as step:
        return (precision(wrapped, asked, edits, config, progress=step),)


def _give(made: dict, name: str, asked: list, layer: int | None, paths: dict[str, Path], as_json: bool) -> None:
    """Draw, and print JSON or tables."""
    made = {what: found if isinstance(found, tuple) else (found,) for what, found in made.items()}
    drawn = {what: str(_draw(what, path, made[what], layer)) for what, path in paths.items()}
    if as_json:
        record = {"schema": SCHEMA, "model": name, "facts": [_fact(f) for f in asked], "layer": layer}
        for what, found in made.items():
            record[what] = found[0].as_dict()
        if "anatomy" in made:
            probe = made["anatomy"][1]
            record["anatomy"]["probe"] = None if probe is None else probe.as_dict()
        if "geometry" in made:
            gates = made["geometry"][1]
            record["geometry"]["gates"] = None if gates is None else gates.as_dict()
        print_json(record | {"figures": drawn})
        return
    for i, (what, found) in enumerate(made.items()):
        line() if i else None
        SHOW[what](*found, layer)
    for path in drawn.values():
        line(f"Figure: {path}")


def _fact(fact) -> dict:
    return {"id": fact.id, "prompt": fact.prompt, "subject": fact.subject, "target": fact.target}


def _draw(what: str, path: Path, found: tuple, layer: int | None) -> Path:
    from ...report.figures import mlp as figures

    if what == "anatomy":
        return figures.anatomy_figure(path, found[0], layer, found[1])
    if what == "geometry":
        return figures.geometry_figure(path, found[0], found[1], layer)
    return getattr(figures, f"{what}_figure")(path, *found)
