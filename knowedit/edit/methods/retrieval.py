"""No edit but the facts in the prompt: what every change of weights has to be compared with.

The weights stay as they are. A prompt that names the subject of facts which are to hold gets these, with their new
answers, written before it (in-context editing: Zheng et al. 2023, arXiv 2305.12740, without its demonstrations). The
subject is looked for as words of its own, so it needs no model to find facts by, and a prompt about anything else is
asked as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model
from ...writing.mentions import mention
from ...writing.separators import separator
from ..edit import Edit, check_request
from .method import Bars, Editor, Method

PLACES = ("{fact}", "{prompt}")


@dataclass(frozen=True)
class RetrievalConfig:
    """How facts stand before a prompt.

    - `template`: the prompt that is asked, with `{fact}` for the facts and `{prompt}` for what was to be asked.
    - `most`: facts at most; those with the longest subjects come first, then the latest.
    """

    template: str = "New fact: {fact}\n{prompt}"
    most: int = 4

    def __post_init__(self):
        if any(self.template.count(place) != 1 for place in PLACES):
            raise InputError(f"the template is {self.template!r}, expected one with {' and '.join(PLACES)}, each once")
        if self.most < 1:
            raise InputError(f"most is {self.most!r}, expected a number of facts from 1 on")


def retrieved(facts: Sequence[Fact], prompt: str, most: int) -> list[Fact]:
    """At most `most` of the facts whose subject `prompt` names: the longest subjects first, then the latest facts."""
    named = [fact for fact in reversed(facts) if fact.subject is not None and _named(prompt, fact.subject)]
    return sorted(named, key=lambda fact: -len(fact.subject or ""))[:most]


def with_facts(facts: Sequence[Fact], prompt: str, config: RetrievalConfig) -> str:
    """`prompt` as it is asked once `facts` hold: behind those that it names the subject of."""
    told = retrieved(facts, prompt, config.most)
    if not told:
        return prompt
    texts = {"{fact}": " ".join(map(_statement, told)), "{prompt}": prompt}
    return re.sub("|".join(map(re.escape, PLACES)), lambda place: texts[place[0]], config.template)


def _named(prompt: str, subject: str) -> bool:
    place = mention(prompt, subject)
    return place is not None and place.whole


def _statement(fact: Fact) -> str:
    new = check_request(fact)
    between = separator(fact.prompt, new) if fact.separator is None else fact.separator
    return f"{fact.prompt}{between}{new}."


def _prepare(model: Model, config: RetrievalConfig, facts: Sequence[Fact], bars: Bars) -> Editor:
    def edit(facts: Sequence[Fact]) -> list[Edit | None]:
        return [None] * len(facts)

    return Editor(edit, asked=lambda prompt, facts: with_facts(facts, prompt, config))


METHOD = Method(RetrievalConfig, _prepare)
