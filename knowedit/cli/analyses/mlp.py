"""`knowedit mlp`: anatomy, imputation, geometry and accounting of MLPs, and what is left of them at fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...display.result import Table
from ..shared.command import run_command
from ..shared.facts import FactChoice
from ..shared.help import Command, choice
from ..shared.options import SEEDS, DrawnOutput, EditFolders, ModelOptions
from ..shared.progress import progress

BITS = "8,4,2,1"
FACTS = 44  # built-in ones that are asked where none are named


class MlpCommand(Command):
    """`--quantize` may stand alone: it then means all of `BITS`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        args = list(args)
        if "--quantize" in args:
            after = args.index("--quantize") + 1
            if after == len(args) or args[after].startswith("--"):
                args.insert(after, BITS)
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Settings:
    """What the analyses are told."""

    tokens: int
    seed: int
    imputation: Any
    precision: Any
    edits: Sequence


@dataclass(frozen=True)
class MlpReport:
    """The results by name, and the files of their figures; `layer` is shown closely where an analysis has that view."""

    model: str
    facts: Sequence
    layer: int | None
    results: Mapping[str, Any]
    figures: Mapping[str, Path]

    def as_dict(self) -> dict:
        names = ("id", "prompt", "subject", "target")
        record = {"model": self.model, "facts": [{name: getattr(f, name) for name in names} for f in self.facts]}
        record |= {"layer": self.layer} | {name: result.as_dict() for name, result in self.results.items()}
        return record | {"figures": {name: str(path) for name, path in self.figures.items()}}

    def table(self) -> Iterator[str | Table]:
        """One after the other."""
        for i, (name, result) in enumerate(self.results.items()):
            yield from ("",) if i else ()
            yield from result.table(self.layer) if name in BY_LAYER else result.table()

    def figure(self, path: Path) -> list[Path]:
        """A figure each."""
        layer = {name: (self.layer,) if name in BY_LAYER else () for name in self.results}
        return [self.results[name].figure(file, *layer[name]) for name, file in self.figures.items()]


# ---------------------------------------------------------------- the analyses: (model, facts, settings) → result


def _anatomy(model, facts: Sequence, settings: Settings):
    """The anatomy and, where there are several relations, the probe."""
    from ...errors import InputError
    from ...mlp.layer_anatomy import anatomy
    from ...mlp.probing import ProbeConfig, relation_probe, usable_facts

    config = ProbeConfig(seed=settings.seed)
    with progress("anatomy", model.n_layers, "layer") as step:
        result = anatomy(model, [model.encode(fact.prompt) for fact in facts], progress=step)
    try:
        usable = usable_facts(facts, config.folds)
    except InputError:
        return result
    with progress("probing", len(usable) * config.folds, "prompt") as step:
        return replace(result, probe=relation_probe(model, facts, config, progress=step))


def _imputation(model, facts: Sequence, settings: Settings):
    from ...mlp.imputation import impute, impute_facts

    if len(facts) == 1:
        (fact,) = facts
        return impute(model, model.query_of(fact), fact.target, settings.imputation)
    with progress("imputing", len(facts), "fact") as step:
        return impute_facts(model, facts, settings.imputation, progress=step)


def _geometry(model, facts: Sequence, settings: Settings):
    """The geometry and, where a subject has several words, the AND gates."""
    from ...mlp.and_gate import and_gates, parts
    from ...mlp.value_geometry import geometry
    from ...sources import builtin_facts

    result = geometry(model)
    if not any(parts(fact.subject) for fact in facts):
        return result
    with progress("AND gates", 5 * len(facts), "prompt") as step:
        return replace(result, gates=and_gates(model, facts, builtin_facts(), seed=settings.seed, progress=step))


def _accounting(model, facts: Sequence, settings: Settings):
    from ...mlp.accounting import account

    return account(model, settings.tokens)


def _precision(model, facts: Sequence, settings: Settings):
    from ...mlp.quantization import precision

    config = settings.precision
    with progress("rounding", 1 + len(config.bits) * len(config.parts), "level") as step:
        return precision(model, facts, settings.edits, config, progress=step)


ANALYSES: dict[str, Callable] = {
    "anatomy": _anatomy,
    "imputation": _imputation,
    "geometry": _geometry,
    "accounting": _accounting,
    "precision": _precision,
}
WHAT = tuple(ANALYSES)[:-1]  # the last one is chosen by --quantize
BY_LAYER = ("anatomy", "geometry")  # whose tables and figures show one layer closely


def mlp(
    facts: FactChoice,
    what: Annotated[str | None, choice((*WHAT, "all"), "--what", help="Which analysis; by default all.")] = None,
    layer: Annotated[int | None, typer.Option(help="The layer shown closely; by default the middle one.")] = None,
    share: Annotated[float, typer.Option(help="Imputation: the share of the output's dimensions.")] = 0.08,
    draws: Annotated[int, typer.Option(help="Imputation: draws of random dimensions, by layer.")] = 8,
    quantize: Annotated[
        str | None, typer.Option(help=f"Round weights to these numbers of bits, by default {BITS}.")
    ] = None,
    neurons: Annotated[int, typer.Option(help="With --quantize: facts whose neurons are located, at most.", min=0)] = 8,
    edit: EditFolders = [],  # noqa: B006
    config: Annotated[
        str | None, typer.Option(help="Accounting from a config alone: gpt3 and others, a config.json, a Hub id.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Accounting: length of the sequence.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of random dimensions, folds and swapped subjects.", **SEEDS)] = 0,
    *,
    model: ModelOptions,
    output: DrawnOutput,
) -> None:
    """Look into the MLPs: their stages at real tokens, what the answer hangs on, how vectors lie, what they cost.

    Without facts the built-in ones that the model knows are taken, evenly over relations. Several analyses draw several
    figures, NAME-anatomy.png and so on.
    """
    from ...edit.edit import load_edit
    from ...mlp.accounting import account_config
    from ...mlp.imputation import ImputationConfig
    from ...mlp.quantization import PrecisionConfig

    names = _chosen(what, config, quantize)
    _check(names, config, edit, facts)
    settings = Settings(
        tokens=tokens,
        seed=seed,
        imputation=ImputationConfig(share=share, draws=draws, seed=seed),
        precision=PrecisionConfig(bits=_bits(quantize or BITS), neurons=neurons),
        edits=[load_edit(folder) for folder in edit],
    )
    figures = _figures(output.figure, names)

    def run(model):
        if model is None:
            return MlpReport(config, [], None, {"accounting": account_config(config, tokens)}, figures)
        shown = model.n_layers // 2 if layer is None else model.check_layer(layer)
        asked = [] if names == ["accounting"] else _facts(model, facts)
        results = {name: ANALYSES[name](model, asked, settings) for name in names}
        return MlpReport(model.name, asked, shown, results, figures)

    run_command("knowedit.mlp/1", run, None if config else model, output)


def _chosen(what: str | None, config: str | None, quantize: str | None) -> list[str]:
    """The names of the analyses that are run."""
    if what is None:
        what = "accounting" if config else "" if quantize else "all"
    names = list(WHAT) if what == "all" else [what] if what else []
    return names + ["precision"] * (quantize is not None)


def _check(names: list[str], config: str | None, edit: Sequence, facts: FactChoice) -> None:
    """Everything that can be known to be wrong before a model is loaded."""
    from ...errors import InputError

    named = sum(choice is not None for choice in (facts.prompt, facts.fact, facts.facts))
    if config is not None and (names != ["accounting"] or named):
        raise InputError("a config alone has no weights and knows no facts: only its accounting can be shown")
    if named > 1:
        facts.check()
    facts.check_options()
    if edit and "precision" not in names:
        raise InputError("an edit is measured at fewer bits here; give --quantize with --edit")


def _bits(text: str) -> tuple[int, ...]:
    from ...errors import InputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"the bits are {text!r}, expected numbers from 1 to 16 such as {BITS}") from None


def _figures(path: Path | None, names: Sequence[str]) -> dict[str, Path]:
    """The file of each analysis: the given one, or one beside it for each of several."""
    if path is None:
        return {}
    path = path.expanduser()
    if len(names) == 1:
        return {names[0]: path}
    return {name: path.with_name(f"{path.stem}-{name}{path.suffix}") for name in names}


def _facts(model, facts: FactChoice) -> list:
    if facts.prompt is not None or facts.fact is not None:
        return [facts.build(model)]
    return list(facts.known(model, FACTS if facts.facts is None else None))
