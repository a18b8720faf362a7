"""`knowedit explain`: the story of one fact as a page that needs nothing else, or as JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .shared.facts import build_fact, check_choice
from .shared.options import (
    DEFAULT_MODEL,
    AsJson,
    Device,
    Dtype,
    FactId,
    ModelName,
    Prompt,
    RemoteCode,
    Subject,
    Target,
    layer_list,
    load,
)
from .shared.output import line, percent, print_json
from .shared.progress import progress

_Texts = list[str]


def explain(
    template: Prompt = None,
    subject: Subject = None,
    target: Target = None,
    fact: FactId = None,
    paraphrase: Annotated[_Texts, typer.Option(help="Another way to ask; refines the neurons. Repeat it.")] = [],  # noqa: B006
    heldout: Annotated[_Texts, typer.Option(help="A way to ask that only proves the neurons. Repeat it.")] = [],  # noqa: B006
    edit: Annotated[
        Path | None, typer.Option(help="A saved edit: before and after. It brings its own fact if none is given.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page, a file that ends in .html.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less thorough: fewer points, ways to ask and draws, an approximate trace.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option(help="Locate neurons in these layers only; by default all but the first twelfth.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Random sets that the neurons are compared with.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of noise and random sets.")] = 0,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Tell how a model recalls one fact: a self-contained HTML page with every analysis, and what an edit does to it.

    `knowedit explain TEMPLATE --subject S --target T -o page.html`, or `--fact ID`, or `--edit DIR`.
    """
    from ..edit.edit import load_edit
    from ..errors import InputError
    from ..report.page.html import check_page_path, save_page
    from ..report.page.story import ExplainConfig

    if out is None and not as_json:
        raise InputError("where is the page to go? Name a file with -o page.html, or ask for --json")
    if edit is None or template is not None or fact is not None:
        check_choice(template, fact)
    elif paraphrase or heldout or subject or target:
        raise InputError("--edit brings its own fact and prompts; give a TEMPLATE or --fact to ask about another")
    config = ExplainConfig(quick=quick, layers=layer_list(layers), draws=draws, seed=seed)
    if out is not None:
        out = check_page_path(out)
    saved = None if edit is None else load_edit(edit)
    wrapped = load(model, dtype, device, trust_remote_code)
    asked = None
    if template is not None or fact is not None:
        asked = _with_other_ways(build_fact(wrapped, template, subject, target, fact), paraphrase, heldout)
    record = _told(wrapped, asked, saved, config)
    if out is not None:
        save_page(record, out)
    print_json(record) if as_json else _show(record, out)


def _with_other_ways(fact, paraphrases: list[str], heldout: list[str]):
    """With paraphrases and nothing held out, the last of them is."""
    from ..facts import templated

    more, kept = ([templated(text, fact.subject) for text in texts] for texts in (paraphrases, heldout))
    if more and not kept and not fact.heldout:
        more, kept = more[:-1], more[-1:]
    return replace(fact, paraphrases=(*fact.paraphrases, *more), heldout=(*fact.heldout, *kept))


def _told(wrapped, asked, saved, config) -> dict:
    from ..report.page.explain import explain, in_order

    doing = [*(chapter.name for chapter in in_order()), "done"]
    with progress("explaining", len(doing) - 1, "chapter") as step:
        step(0, doing[0])
        return explain(wrapped, asked, saved, config, progress=lambda done: step(done, doing[done]))


def _show(record: dict, out: Path) -> None:
    fact, said = record["fact"], record["prediction"]
    line(f"{fact['prompt']} → {fact['target']}   p = {said['probability']:.3f}, rank {said['rank']}")
    if record["proof"]:
        change = percent(record["proof"]["suppress"]["value"])
        line(f"{len(record['neurons']['neurons'])} neurons; switched off they change it by {change}")
    if record["edit"]:
        after = record["edit"]["after"]["prompt"]
        line(f"with the edit: {fact['target']} {after['p_true']:.3f}, {fact['target_new']} {after['p_new']:.3f}")
    for chapter, reason in record["notes"].items():
        line(f"not told, {chapter}: {reason}")
    line(f"The page: {out} ({out.stat().st_size / 1000:.0f} kB, {record['seconds']['all']:.0f} s)")
