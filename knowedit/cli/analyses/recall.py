"""`knowedit recall`: how a fact is recalled, in three stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..shared.command import run_command
from ..shared.facts import FactChoice
from ..shared.options import DrawnOutput, ModelOptions
from ..shared.output import note
from ..shared.progress import progress


def recall(
    facts: FactChoice,
    text: Annotated[
        Path | None, typer.Option("--text", help="A text about the subject; its words are the attributes.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Layers that a knockout takes at once; some 18 % of all.")] = None,
    normed: Annotated[
        bool, typer.Option("--normed", help="Look for extraction events through the final norm.")
    ] = False,
    *,
    model: ModelOptions,
    output: DrawnOutput,
) -> None:
    """How is a fact recalled? Enrichment of the subject, propagation to the last token, extraction of the answer.

    One fact: `knowedit recall PROMPT --subject S --target T`, or `--fact ID`. Means over many: `--facts FILE`.
    """
    from ...errors import InputError
    from ...recall.flow.pipeline import RecallConfig, check_recall, recall_fact

    facts.check()
    if text is not None and facts.facts is not None:
        raise InputError("--text is about one subject; give a PROMPT with --subject or --fact ID with it")
    if window is not None and window < 1:
        raise InputError(f"--window is {window}, expected a number of layers from 1 on")
    attributes = None if text is None else _attributes(text)
    config = RecallConfig(window=window, normed=normed)

    def run(model):
        check_recall(model)
        if facts.facts is None:
            return recall_fact(model, facts.build(model), attributes, config)
        return _average(model, facts.known(model), config)

    run_command("knowedit.recall/1", run, model, output)


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


def _average(model, known: list, config):
    """The average over the facts that can be measured; the others are noted."""
    from ...errors import InputError
    from ...recall.flow.average import average_recall
    from ...recall.flow.knockout import check_window
    from ...recall.flow.pipeline import recall_fact
    from ...recall.flow.subject_enrichment import content_vocabulary
    from ...sources import builtin_facts

    facts = tuple(dict.fromkeys([*known, *builtin_facts()]))
    vocabulary = content_vocabulary(model)
    check_window(model, config.window)  # which is wrong for all of them, or for none
    recalls = []
    with progress("recalling", len(known), "fact") as step:
        for done, fact in enumerate(known, 1):
            try:
                recalls.append(recall_fact(model, fact, config=config, facts=facts, vocabulary=vocabulary))
            except InputError as error:
                note(f"left out: {error}")
            step(done)
    if not recalls:
        raise InputError("none of the facts can be measured; choose others")
    return average_recall(recalls)
