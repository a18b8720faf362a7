"""`knowedit recall`: how a fact is recalled, in three stages."""

from __future__ import annotations

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
from ..shared.output import line, note, print_json, table
from ..shared.progress import progress

SCHEMA = "knowedit.recall/1"


def recall(
    prompt: Prompt = None,
    subject: Subject = None,
    target: Target = None,
    fact: FactId = None,
    facts: Facts = None,
    limit: Limit = None,
    relation: Relation = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="A text about the subject; its words are the attributes.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Layers that a knockout takes at once; some 18 % of all.")] = None,
    normed: Annotated[
        bool, typer.Option("--normed", help="Look for extraction events through the final norm.")
    ] = False,
    figure: FigurePath = None,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """How is a fact recalled? Enrichment of the subject, propagation to the last token, extraction of the answer.

    One fact: `knowedit recall PROMPT --subject S --target T`, or `--fact ID`. Means over many: `--facts FILE`.
    """
    from ...errors import InputError

    check_choice(prompt, fact, facts, many=True)
    if text is not None and facts is not None:
        raise InputError("--text is about one subject; give a PROMPT with --subject or --fact ID with it")
    if window is not None and window < 1:
        raise InputError(f"--window is {window}, expected a number of layers from 1 on")
    if figure is not None:
        from ...report.figures.drawing import check_path

        figure = check_path(figure)
    about = None if text is None else _attributes(text)
    wrapped = load(model, dtype, device, trust_remote_code)
    from ...recall.flow.pipeline import RecallConfig, check_recall, recall_fact

    check_recall(wrapped)
    config = RecallConfig(window=window, normed=normed)
    if facts is None:
        found = recall_fact(wrapped, build_fact(wrapped, prompt, subject, target, fact), about, config)
    else:
        found = _many(wrapped, known_facts(wrapped, facts, relation, limit), config)
    if figure is not None:
        from ...report.figures.recall import recall_figure

        recall_figure(figure, found)
    if as_json:
        print_json({"schema": SCHEMA, **found.as_dict()})
    else:
        _show_one(found) if facts is None else _show_many(found)


def _attributes(path: Path):
    """The attributes in a text file."""
    from ...errors import InputError
    from ...recall.flow.subject_enrichment import attributes_in

    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read the text {str(path)!r}: {error.strerror}; give a text file about the subject"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is not UTF-8 text; give a text file about the subject") from None
    return attributes_in(text)


def _many(wrapped, chosen: list, config):
    from ...errors import InputError
    from ...recall.flow.average import average_recall
    from ...recall.flow.knockout import check_window
    from ...recall.flow.pipeline import recall_fact
    from ...recall.flow.subject_enrichment import content_vocabulary
    from ...sources import builtin_facts

    facts = tuple(dict.fromkeys([*chosen, *builtin_facts()]))
    words = content_vocabulary(wrapped)
    check_window(wrapped, config.window)  # which is wrong for all of them, or for none
    found = []
    with progress("recalling", len(chosen), "fact") as step:
        for done, fact in enumerate(chosen, 1):
            try:
                found.append(recall_fact(wrapped, fact, config=config, facts=facts, vocabulary=words))
            except InputError as error:
                note(f"left out: {error}")
            step(done)
    if not found:
        raise InputError("none of the facts can be measured; choose others")
    return average_recall(found)


# ---------------------------------------------------------------- for people


def _show_one(found) -> None:
    known = "" if found.known else ", not its first choice"
    line(f"{found.prompt} → {found.target}   p = {found.probability:.3f}{known}   ({found.model})")
    for stage in found.stages:
        line()
        line(f"{stage.name.capitalize()}: {stage.text}")
    line()
    knockouts = {
        **{f"hide {name}": found.edges.change(name) for name in found.edges.after},
        **{f"no {name}": found.sublayers.change(name) for name in found.sublayers.after},
    }
    rows = []
    for layer, rate in enumerate(found.enrichment.rate):
        events = [name for name in ("attention", "mlp") if getattr(found.extraction, name)[layer]]
        events += [f"head {head}" for at, head in found.extraction.heads if at == layer]
        changes = ["" if row[layer] is None else f"{row[layer]:+.0%}" for row in knockouts.values()]
        separation = found.enrichment.separation[layer]
        rows.append(
            (layer, f"{rate:.0%}", "" if separation is None else f"{separation:.0%}", *changes, ", ".join(events))
        )
    table(
        ["layer", "attributes", "separation", *knockouts, "extraction"],
        rows,
        title=f"By layer; knockouts take {found.edges.window} around it and change p(answer)",
    )


def _show_many(found) -> None:
    probability = found.probability
    line(f"{len(found.facts)} facts that {found.model} knows, mean p = {probability.value:.3f}")
    line()
    rows = [("attributes among the first words", layer, best.text("share")) for layer, best in [_highest(found.rate)]]
    rows += [("separation from other subjects'", *_told(_highest(found.separation), "share"))]
    for name, curve in found.sublayers.items():
        rows.append((f"no {name} at the subject's last token", *_told(found.worst(curve), "change")))
    for name, curve in found.edges.items():
        rows.append((f"{name} hidden from the last token", *_told(found.worst(curve), "change")))
    for name, one in found.any_event.items():
        rows.append((f"extraction event of {name}, any layer", "", one.text("share")))
    table(["", "layer", "mean over facts [95 %]"], rows)
    if found.heads:
        told = ", ".join(f"{layer}.{head} ({n})" for layer, head, n in found.heads)
        line()
        line(f"Extraction heads (facts): {told}")


def _highest(curve) -> tuple:
    layer = max(range(len(curve)), key=lambda i: -1.0 if curve[i].value is None else curve[i].value)
    return layer, curve[layer]


def _told(best: tuple, kind: str) -> tuple:
    layer, estimate = best
    return layer, estimate.text(kind)
