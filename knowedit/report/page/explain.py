"""The story of one fact, as one record: what `knowedit explain` prints as JSON and what its page is made of.

Prediction, logit lens, causal trace, stages of recall, located neurons with their cards and their proof and, with an
edit, before and after and where the old fact survives. A chapter that a model cannot have (a masked model has no recall
pipeline) is None, and `notes` says why in a sentence.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from ...display.result import plain
from ...edit.edit import Edit
from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model
from ...progress import Progress, counted, silent
from ...version import __version__
from .story import CHAPTERS, Chapter, ExplainConfig, Story

SCHEMA = "knowedit.explain/1"


def explain(
    model: Model,
    fact: Fact | None,
    edit: Edit | None = None,
    config: ExplainConfig | None = None,
    *,
    progress: Progress = silent,
) -> dict:
    """The record of one fact: plain JSON values, no NaN. The model is as it was after.

    With `edit`, `fact` may be left out: it is the edit's own then. What was told of the same fact and weights before
    is read from the cache. `progress` counts `CHAPTERS`.

    Raises `InputError` for a fact that cannot be asked and an edit that does not fit it, `ModelError` for an edit of
    another model.
    """
    config = config or ExplainConfig()
    if fact is None and edit is None:
        raise InputError("there is no fact to explain; give one, or an edit")
    if edit is not None:
        fact = edited_fact(fact, edit)
    for layer in config.layers or ():
        model.check_layer(layer)
    story = Story(model, fact, edit, config, keeps=True)
    for chapter in counted(in_order(), progress):
        story.tell(chapter)
    return record_of(story)


def record_of(story: Story) -> dict:
    """The record of a story, as far as it is told."""
    model, fact = story.model, story.fact
    prompt = model.query_of(fact).prompt
    first, after = prompt.subject or (0, 0)
    return plain(
        {
            "schema": SCHEMA,
            "version": __version__,
            "model": {
                "name": model.name,
                "weights_hash": story.weights_hash,
                "layers": model.n_layers,
                "width": model.d_model,
                "neurons": model.n_neurons,
                "masked": model.masked,
            },
            "fact": {**asdict(fact), "prompt": fact.prompt},
            "tokens": [
                {
                    "text": model.token(token),
                    "subject": first <= i < after,
                    "read": i == prompt.read,
                }
                for i, token in enumerate(prompt.ids)
            ],
            **dict.fromkeys(chapter.name for chapter in CHAPTERS),
            **story.told,
            "notes": story.notes,
            "config": asdict(story.config),
            "seconds": {**story.seconds, "all": sum(story.seconds.values())},
        }
    )


def in_order() -> list[Chapter]:
    """The chapters as they are computed: first those that must be told."""
    return sorted(CHAPTERS, key=lambda chapter: not chapter.needed)


def edited_fact(fact: Fact | None, edit: Edit) -> Fact:
    """`fact` with the new answer of `edit`, and with the edit's other prompts where it asks for the same fact.

    Raises `InputError` for an edit of several facts or without a new answer.
    """
    if len(edit.facts) != 1:
        raise InputError(f"the edit is of {len(edit.facts)} facts, expected one; look at edits one by one")
    (edited,) = edit.facts
    if edited.target_new is None:
        raise InputError(f"the edit of {edited.subject!r} has no new answer to look for; leave --edit out")
    if fact is None:
        return edited
    fact = replace(fact, target_new=edited.target_new)
    if (fact.template, fact.subject, fact.target) != (edited.template, edited.subject, edited.target):
        return fact
    more = ("paraphrases", "heldout", "rephrasings", "neighbours")
    return replace(fact, **{name: getattr(fact, name) or getattr(edited, name) for name in more})
