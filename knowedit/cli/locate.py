"""`knowedit locate`: the neurons of one fact, or of a file of facts, with their proof."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from .benchmarks import bench
from .locate_report import record_of, show, show_run
from .shared.facts import refuse
from .shared.help import choice
from .shared.options import (
    RANKINGS,
    SEEDS,
    SELECTIONS,
    Chat,
    DrawnOutput,
    FactId,
    Limit,
    ModelOptions,
    Prompt,
    Separator,
    Subject,
    Texts,
    layer_list,
)
from .shared.output import note, print_json
from .shared.progress import Clock, progress

OBJECTIVES = ("probability", "log_probability", "logit", "logit_difference")
QUADRATURES = ("auto", "gauss-legendre", "midpoint", "trapezoid", "left", "right", "dai", "eleuther")
BASELINES = ("zero", "mean", "patch")
POSITIONS = ("read", "lookup", "both")
KINDS = ("fact", "relation", "answer", "general")


@dataclass(frozen=True)
class WordedFact:
    """One fact in the user's words, or by id; many by a file."""

    panel: ClassVar[str] = "Facts"

    prompt: Prompt = None
    target: Annotated[str | None, typer.Option("--target", help="The answer whose neurons are located.")] = None
    subject: Subject = None
    paraphrase: Annotated[
        Texts, typer.Option("--paraphrase", metavar="TEXT", help="Another way to ask, to locate by. Repeat it.")
    ] = field(default_factory=list)
    heldout: Annotated[
        Texts, typer.Option("--heldout", metavar="TEXT", help="A way to ask that only proves the neurons. Repeat it.")
    ] = field(default_factory=list)
    negative: Annotated[
        Texts,
        typer.Option("--negative", metavar="TEXT", help="A prompt about something else; its neurons are removed."),
    ] = field(default_factory=list)
    separator: Separator = None
    fact: FactId = None
    facts: Annotated[
        str | None, typer.Option("--facts", help="A file of facts, or `builtin`: locate them all; needs --out.")
    ] = None
    relation: Annotated[str | None, typer.Option("--relation", help="With --facts: only this relation.")] = None
    known: Annotated[bool, typer.Option("--known", help="With --facts: only facts that the model knows.")] = False
    limit: Limit = None


@dataclass(frozen=True)
class ScoreOptions:
    """How neurons are scored."""

    panel: ClassVar[str] = "Scores"

    method: Annotated[str, choice(RANKINGS, "--method", help="How neurons are scored.")] = "ig"
    of: Annotated[str, choice(OBJECTIVES, "--of", help="What is attributed.")] = "probability"
    foil: Annotated[str | None, typer.Option("--foil", help="The answer that a logit_difference compares with.")] = None
    nodes: Annotated[str, typer.Option("--nodes", metavar="N|auto", help="Points on each path.")] = "auto"
    quadrature: Annotated[str, choice(QUADRATURES, "--quadrature", help="The rule for the points.")] = "auto"
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="The completeness gap that `auto` leaves in a layer.")
    ] = 1e-2
    budget: Annotated[
        int, typer.Option("--budget", help="The gradients that `auto` may spend, a layer on average.")
    ] = 512
    baseline: Annotated[str, choice(BASELINES, "--baseline", help="Where paths start, by --ablation's words.")] = "zero"
    position: Annotated[
        str, choice(POSITIONS, "--position", help="Where neurons are scored and altered; lookup is the subject's end.")
    ] = "read"


@dataclass(frozen=True)
class SelectionOptions:
    """Which neurons are kept."""

    panel: ClassVar[str] = "Selection"

    select: Annotated[
        str,
        choice(
            SELECTIONS,
            "--select",
            help="causal: the neurons that do most together when set to zero and doubled; refined: those that the "
            "prompts share.",
        ),
    ] = "causal"
    specific: Annotated[
        bool, typer.Option("--specific", help="Causal: neurons that leave other facts of the relation alone.")
    ] = False
    ablation: Annotated[
        str,
        choice(
            BASELINES,
            "--ablation",
            help="What neurons are set to that are taken away: zero, their mean over built-in prompts, or patch: what "
            "they are for another subject of the relation.",
        ),
    ] = "zero"
    candidates: Annotated[
        int | None,
        typer.Option("--candidates", help="Causal: of so many neurons with the largest scores, by default 64."),
    ] = None
    prompts: Annotated[
        int, typer.Option("--prompts", help="Score neurons for at most so many ways to ask, the prompt first.")
    ] = 4
    select_on: Annotated[
        int | None, typer.Option("--select-on", help="Causal: ask at most so many ways what neurons do, by default 8.")
    ] = None
    t: Annotated[float, typer.Option("--t", help="Coarse: score at least t times the largest.")] = 0.2
    p: Annotated[
        float | None,
        typer.Option("--p", help="Refined: coarse for at least this share of the prompts, by default 0.7."),
    ] = None
    adjust: Annotated[bool, typer.Option("--adjust", help="Refined: move p towards 2 to 5 neurons.")] = False
    most: Annotated[
        int | None,
        typer.Option("--most", help="The largest number of neurons; by default 10 causal or all refined ones."),
    ] = None
    layers: Annotated[
        str | None, typer.Option("--layers", help="Locate in these layers only, `2-29` or `20,21,22`.")
    ] = None
    drop: Annotated[Texts, choice(KINDS, "--drop", help="Leave out a kind of neurons. Repeat it.")] = field(
        default_factory=list
    )


def locate(
    about: WordedFact,
    scores: ScoreOptions,
    selection: SelectionOptions,
    draws: Annotated[int, typer.Option(help="Random sets that the neurons are compared with.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the random sets.", **SEEDS)] = 0,
    chat: Chat = False,
    *,
    run: bench.EngineOptions,
    model: ModelOptions,
    output: DrawnOutput,
) -> None:
    """Locate the neurons that make the model give an answer, and prove it.

    One fact: `knowedit locate PROMPT --target T`, or `--fact ID` for a built-in one. Many: `--facts FILE --out DIR`.
    """
    from ..errors import InputError
    from ..locate.attribution import AttributionConfig
    from ..locate.config import LocateConfig
    from ..locate.fact_prompts import FactPrompts
    from ..sources import find_fact
    from ..writing.separators import check_separator

    if sum(named is not None for named in (about.prompt, about.fact, about.facts)) != 1:
        raise InputError("give one of: a PROMPT with --target, --fact ID, or --facts FILE with --out DIR")
    check_separator(about.separator)
    one = about.facts is None
    refuse("many facts (--facts)", one, relation=about.relation, limit=about.limit, known=about.known)
    defaults = vars(bench.EngineOptions())
    refuse("many facts (--facts)", one, **{name: v for name, v in vars(run).items() if v != defaults[name]})
    refuse("one fact", not one, target=about.target, heldout=about.heldout, separator=about.separator)
    refuse("a PROMPT", about.prompt is None, subject=about.subject, paraphrase=about.paraphrase)
    config = LocateConfig(
        method=scores.method,
        attribution=AttributionConfig(
            of=scores.of,
            foil=scores.foil,
            nodes=_integer(scores.nodes, "auto"),
            quadrature=scores.quadrature,
            tolerance=scores.tolerance,
            budget=scores.budget,
            baseline=scores.baseline,
            position=scores.position,
        ),
        select=selection.select,
        specific=selection.specific,
        ablation=selection.ablation,
        candidates=selection.candidates,
        prompts=selection.prompts,
        select_on=selection.select_on,
        t=selection.t,
        p=selection.p,
        adjust=selection.adjust,
        most=selection.most,
        layers=layer_list(selection.layers),
        drop=tuple(selection.drop),
        chat=chat,
    )
    if about.facts is None:
        if about.fact is not None:
            prompts = FactPrompts.all_of(replace(find_fact(about.fact), separator=about.separator))
        elif about.target is not None:
            prompts = FactPrompts.in_words(
                about.prompt, about.target, about.subject, about.paraphrase, about.heldout, about.separator
            )
        else:
            raise InputError("a PROMPT needs --target, the answer whose neurons are located")
        record = _locate_one(prompts, about.negative, config, draws, seed, model, output.figure)
        print_json(record) if output.as_json else show(record)
        return
    if output.figure is not None:
        raise InputError("--figure draws one fact; `knowedit report` draws the run of a file of facts")
    from ..evaluate.neurons.study import NeuronStudy, NeuronStudyConfig

    study_config = NeuronStudyConfig(
        source=about.facts,
        model=model.model,
        dtype=model.dtype,
        relations=() if about.relation is None else (about.relation,),
        known_only=about.known,
        locate=config,
        negatives=tuple(about.negative),
        draws=draws,
        activation=False,
        batch=1,
        limit=about.limit,
        evenly=True,
        seed=seed,
    )
    build = partial(
        NeuronStudy.from_config, study_config, device=model.device, trust_remote_code=model.trust_remote_code
    )
    bench.execute("neurons", study_config, build, run, model.device, output.as_json, show=show_run)


def _integer(text: str, *words: str):
    from ..errors import InputError

    if text in words:
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"found {text!r}, expected a whole number or {' or '.join(words)}") from None


def _locate_one(
    prompts, negatives: list[str], config, draws: int, seed: int, options: ModelOptions, path: Path | None
) -> dict:
    from ..answers import ask
    from ..locate.locate import locate_prompts
    from ..locate.proof.neuron_kinds import ControlPool
    from ..locate.proof.proof import prove_located
    from ..locate.rankings import scoring_passes
    from ..sources import builtin_facts

    if path is not None:
        from ..display.drawing import check_path

        path = check_path(path)  # at once, what could not be drawn after minutes of work
    clock = Clock()
    model = options.load()
    seconds = {"load": clock.lap()}
    prompts.check(model, config.chat)  # a mistyped one is said before anything is computed
    for text in negatives:
        model.encode(text, chat=config.chat)
    queries = [prompts.query(model, text, chat=config.chat) for text in prompts.locating[: config.prompts]]
    targets = sum(len(query.target_ids) for query in queries) + len(negatives)  # each token is scored by itself
    passes = targets * scoring_passes(config.method, config.attribution.nodes, model)
    proving = f"{len(prompts.heldout)} held-out prompts" if prompts.heldout else "the prompt itself"
    note(
        f"locating by {len(queries) + len(negatives)} prompts takes at least {passes} passes through the model; then "
        f"{draws} random sets are tried on {proving}"
    )
    (answer,) = ask(model, queries[:1], top=0)
    weights_hash = model.weights_hash()
    pool = ControlPool(model, builtin_facts(), weights_hash=weights_hash)
    with progress("attributing", len(prompts.locating[: config.prompts]) + len(negatives), "prompt") as step:
        located = locate_prompts(
            model, prompts, config, negatives=negatives, pool=pool, weights_hash=weights_hash, progress=step,
        )  # fmt: skip
    seconds["attribution"] = clock.lap()
    proof = None
    if len(located):
        note("proving: suppressing and amplifying, beside random neurons") if sys.stderr.isatty() else None
        proof = prove_located(model, located, prompts.heldout, pool=pool, draws=draws, seed=seed)
    seconds["effect"] = clock.lap()
    if path is not None:
        from ..locate.figure import located_figure

        note(f"drawn into {located_figure(path, located, proof)}")
    return {**record_of(located, proof, prompts, seconds), "tokens": answer.tokens}
