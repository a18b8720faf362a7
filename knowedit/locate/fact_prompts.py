"""Which prompts of a fact locate its neurons, and which only prove them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import InputError
from ..facts import SLOT, Fact, fill, templated
from ..models.adapter import Model
from ..prompts import Query
from ..sources import builtin_facts


@dataclass(frozen=True)
class FactPrompts:
    """The prompts of one fact, which `target` answers.

    `locating` ones come first, of which the first is the fact's own; `heldout` ones only prove. `fact` is its id.
    """

    locating: tuple[str, ...]
    target: str
    heldout: tuple[str, ...] = ()
    subject: str | None = None
    relation: str | None = None
    fact: str | None = None
    separator: str | None = None

    @classmethod
    def all_of(cls, fact: Fact) -> FactPrompts:
        """The template and all paraphrases locate; the held-out templates prove, if there are any."""
        locating, heldout = (
            tuple(fill(template, fact.subject) for template in templates)
            for templates in ((fact.template, *fact.paraphrases), fact.heldout)
        )
        return cls(locating, fact.target, heldout, fact.subject, fact.relation, fact.id, fact.separator)

    @classmethod
    def split(cls, fact: Fact, most: int | None = None) -> FactPrompts:
        """As `all_of`, but something always proves: without held-out templates every second paraphrase.

        At most `most` prompts locate.
        """
        prompts = cls.all_of(fact)
        heldout = prompts.heldout or (*prompts.locating[1::2], *fact.rephrasings)
        locating = [prompt for prompt in prompts.locating if prompt not in heldout]
        return replace(prompts, locating=tuple(locating[:most]), heldout=heldout)

    @classmethod
    def in_words(
        cls,
        prompt: str,
        target: str,
        subject: str | None = None,
        paraphrases: Sequence[str] = (),
        heldout: Sequence[str] = (),
        separator: str | None = None,
    ) -> FactPrompts:
        """A fact in the user's own words; with a subject and nothing held out, the last paraphrase is.

        Where a built-in fact has this subject and target, its relation is theirs. Raises `InputError` for a `{}`
        without a subject, and for a prompt that does not hold its subject.
        """
        if subject is None:
            if any(SLOT in text for text in (prompt, *paraphrases, *heldout)):
                raise InputError(f"a prompt with {SLOT} needs --subject, which takes its place")
            return cls((prompt, *paraphrases), target, tuple(heldout), separator=separator)
        if paraphrases and not heldout:
            paraphrases, heldout = paraphrases[:-1], paraphrases[-1:]
        locating, proving = (
            tuple(fill(templated(text, subject), subject) for text in texts)
            for texts in ((prompt, *paraphrases), heldout)
        )
        same = [fact for fact in builtin_facts() if (fact.subject, fact.target) == (subject, target)]
        relation = same[0].relation if same else None
        return cls(locating, target, proving, subject, relation, separator=separator)

    def check(self, model: Model, chat: bool = False) -> None:
        """Raise `InputError` for a prompt or target that `model` cannot be asked, before anything is computed."""
        for prompt in (*self.locating, *self.heldout):
            self.query(model, prompt, chat=chat)

    def query(self, model: Model, prompt: str, *, chat: bool = False) -> Query:
        """One of the prompts with the target, as tokens."""
        return model.query(prompt, self.target, self.subject, chat=chat, separator=self.separator)
