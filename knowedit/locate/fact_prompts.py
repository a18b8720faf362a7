"""Which prompts of a fact locate its neurons, and which only prove them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..facts import SLOT, Fact, fill, templated
from ..models.adapter import Model
from ..sources import builtin_facts


@dataclass(frozen=True)
class FactPrompts:
    """The prompts of one fact: `locating` ones, of which the first is the fact's own, and `heldout` ones."""

    locating: tuple[str, ...]
    heldout: tuple[str, ...]
    target: str
    subject: str | None = None
    relation: str | None = None

    @classmethod
    def of_fact(cls, fact: Fact, most: int | None = None) -> FactPrompts:
        """At most `most` prompts that locate, and the others: held-out ones, or else every second paraphrase."""
        prompts = [fill(template, fact.subject) for template in (fact.template, *fact.paraphrases)]
        heldout = [fill(template, fact.subject) for template in fact.heldout] or [*prompts[1::2], *fact.rephrasings]
        locating = [prompt for prompt in prompts if prompt not in heldout][:most]
        return cls(tuple(locating), tuple(heldout), fact.target, fact.subject, fact.relation)

    @classmethod
    def in_words(
        cls,
        prompt: str,
        target: str,
        subject: str | None = None,
        paraphrases: Sequence[str] = (),
        heldout: Sequence[str] = (),
    ) -> FactPrompts:
        """A fact in the user's own words; with a subject and nothing held out, the last paraphrase is.

        Where a built-in fact has this subject and target, its relation is theirs. Raises `InputError` for a `{}`
        without a subject, and for a prompt that does not hold its subject.
        """
        if subject is None:
            if any(SLOT in text for text in (prompt, *paraphrases, *heldout)):
                raise InputError(f"a prompt with {SLOT} needs --subject, which takes its place")
            return cls((prompt, *paraphrases), tuple(heldout), target)
        if paraphrases and not heldout:
            paraphrases, heldout = paraphrases[:-1], paraphrases[-1:]
        locating = tuple(fill(templated(text, subject), subject) for text in (prompt, *paraphrases))
        proving = tuple(fill(templated(text, subject), subject) for text in heldout)
        same = [fact for fact in builtin_facts() if (fact.subject, fact.target) == (subject, target)]
        return cls(locating, proving, target, subject, same[0].relation if same else None)

    def check(self, model: Model, chat: bool = False) -> None:
        """Raise `InputError` for a prompt or target that `model` cannot be asked, before anything is computed."""
        for prompt in (*self.locating, *self.heldout):
            model.query(prompt, self.target, self.subject, chat=chat)
