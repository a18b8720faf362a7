"""`knowedit explain`: the story of one fact as a page that needs nothing else, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..writing.counts import number_of
from .shared.command import Printout, run_command
from .shared.facts import OneFact
from .shared.options import SEEDS, ModelOptions, Output, Texts, layer_list
from .shared.output import percent
from .shared.progress import progress


def explain(
    fact: OneFact,
    paraphrase: Annotated[
        Texts, typer.Option(metavar="TEXT", help="Another way to ask, to locate by. Repeat it.")
    ] = [],  # noqa: B006
    heldout: Annotated[
        Texts, typer.Option(metavar="TEXT", help="A way to ask that only proves the neurons. Repeat it.")
    ] = [],  # noqa: B006
    edit: Annotated[
        Path | None, typer.Option(help="A saved edit: before and after. It brings its own fact if none is given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page, a file that ends in .html or .pdf.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less thorough: fewer ways to ask and draws, an approximate trace.")
    ] = False,
    layers: Annotated[str | None, typer.Option(help="Locate neurons in these layers only; by default in all.")] = None,
    draws: Annotated[int, typer.Option(help="Random sets that the neurons are compared with.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of noise and random sets.", **SEEDS)] = 0,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Tell how a model recalls one fact: a self-contained HTML page with every analysis, and what an edit does to it.

    `knowedit explain PROMPT --subject S --target T -o page.html`, or `--fact ID`, or `--edit DIR`.
    """
    from ..edit.edit import load_edit
    from ..errors import InputError
    from ..report.page.explain import explain, in_order
    from ..report.page.html import check_page_path, save_page
    from ..report.page.story import ExplainConfig

    named = fact.prompt is not None or fact.fact is not None
    if out is None and not output.as_json:
        raise InputError("where is the page to go? Name a file with -o page.html, or ask for --json")
    if named or edit is None:
        fact.check()
    elif paraphrase or heldout or fact.subject or fact.target:
        raise InputError("--edit brings its own fact and prompts; give a PROMPT or --fact to ask about another")
    config = ExplainConfig(quick=quick, layers=layer_list(layers), draws=draws, seed=seed)
    page = None if out is None else check_page_path(out)
    saved = None if edit is None else load_edit(edit)

    def run(model):
        about = _with_other_ways(fact.build(model), paraphrase, heldout) if named else None
        doing = [*(chapter.name for chapter in in_order()), "done"]
        with progress("explaining", len(doing) - 1, "chapter") as step:
            step(0, doing[0])
            record = explain(model, about, saved, config, progress=lambda done: step(done, doing[done]))
        if page is not None:
            save_page(record, page)
        return Printout(record, _summary(record, page))

    run_command("knowedit.explain/1", run, model, output)


def _summary(record: dict, page: Path | None) -> Iterator[str]:
    """What the page says, in a few lines."""
    fact, answer = record["fact"], record["prediction"]
    yield f"{fact['prompt']} → {fact['target']}   p = {answer['probability']:.3f}, rank {answer['rank']}"
    if not answer["known"]:
        word, chance = answer["top"][0]
        yield f"the model does not say this: it says {word!r} (p of its first token = {chance:.3f})"
    if record["proof"] and record["proof"]["recalled"]:
        change = percent(record["proof"]["suppress"]["value"])
        yield f"{number_of(len(record['neurons']['neurons']), 'neuron')}, switched off: {change}"
    if record["edit"]:
        after = record["edit"]["after"]["prompt"]
        yield f"with the edit: {fact['target']} {after['p_true']:.3f}, {fact['target_new']} {after['p_new']:.3f}"
    for chapter, reason in record["notes"].items():
        yield f"no chapter {chapter}: {reason}"
    yield f"The page: {page} ({page.stat().st_size / 1000:.0f} kB, {record['seconds']['all']:.0f} s)"


def _with_other_ways(fact, paraphrases: list[str], heldout: list[str]):
    """The fact with more ways to ask; with paraphrases and nothing held out, the last paraphrase is held out."""
    from ..facts import templated

    locating, proving = ([templated(text, fact.subject) for text in texts] for texts in (paraphrases, heldout))
    if locating and not proving and not fact.heldout:
        locating, proving = locating[:-1], locating[-1:]
    return replace(fact, paraphrases=(*fact.paraphrases, *locating), heldout=(*fact.heldout, *proving))
