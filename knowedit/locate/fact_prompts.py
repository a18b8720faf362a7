"""Which prompts of a fact locate its neurons, and which only prove them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import InputError
from ..facts import SLOT, Fact, fill, templated
from ..models.adapter import Model
from ..prompts import Query
from ..sources import builtin_facts

# Neutral openings make paraphrases of a prompt where none are given: the first three locate, the others prove.
OPENINGS = ("As everyone knows: ", "Here is a fact. ", "Let me tell you something. ")
HELDOUT_OPENINGS = ("Yes, of course. ", "It is well known. ", "This is what the book says: ")


@dataclass(frozen=True)
class FactPrompts:
    """The prompts of one fact, which `target` answers.

    `locating` ones come first, of which the first is the fact's own; `heldout` ones only prove. `fact` is its id.
    `remark` says which prompts were made because none were given.
    """

    locating: tuple[str, ...]
    target: str
    heldout: tuple[str, ...] = ()
    subject: str | None = None
    relation: str | None = None
    fact: str | None = None
    separator: str | None = None
    remark: str | None = None

    @classmethod
    def all_of(cls, fact: Fact) -> FactPrompts:
        """The template and all paraphrases locate; the held-out templates prove, if there are any."""
        locating, heldout = (
            tuple(fill(template, fact.subject) for template in templates)
            for templates in ((fact.template, *fact.paraphrases), fact.heldout)
        )
        return cls(locating, fact.target, heldout, fact.subject, fact.relation, fact.id, fact.separator)

    @classmethod
    def split(cls, fact: Fact) -> FactPrompts:
        """As `all_of`, but something always proves: without held-out templates every second paraphrase."""
        prompts = cls.all_of(fact)
        heldout = prompts.heldout or (*prompts.locating[1::2], *fact.rephrasings)
        locating = [prompt for prompt in prompts.locating if prompt not in heldout]
        return replace(prompts, locating=tuple(locating), heldout=heldout)

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
        """A fact in the user's own words.

        Where nothing is held out, the last paraphrase is. What is still missing is made: from the templates of the
        built-in fact that this is, else by neutral openings before the prompt (of prompts in Latin letters); `remark`
        says so. Raises `InputError` for a `{}` without a subject, and for a prompt that does not hold its subject.
        """
        texts = (prompt, *paraphrases, *heldout)
        if subject is not None:
            texts = tuple(fill(templated(text, subject), subject) for text in texts)
        elif any(SLOT in text for text in texts):
            raise InputError(f"a prompt with {SLOT} needs --subject, which takes its place")
        n = 1 + len(paraphrases)
        locating, proving = texts[:n], texts[n:]
        if paraphrases and not proving:
            locating, proving = locating[:-1], locating[-1:]
        builtin = _builtin(texts, target, subject)
        if builtin is not None:
            known = cls.all_of(builtin)
            more, more_heldout, what = known.locating, known.heldout, "templates of its relation"
            subject, relation = builtin.subject, builtin.relation
        else:
            latin = all(unicodedata.name(c, "").startswith("LATIN") for c in prompt if c.isalpha())
            openings = (OPENINGS, HELDOUT_OPENINGS) if latin else ((), ())
            more, more_heldout = (tuple(opening + locating[0] for opening in group) for group in openings)
            what, relation = "the prompt after neutral openings", None
        added = tuple(text for text in more if text not in texts) if len(locating) == 1 else ()
        added_heldout = tuple(text for text in more_heldout if text not in texts) if not proving else ()
        made = [f"{len(group)} {way}" for group, way in ((added, "locate"), (added_heldout, "prove")) if group]
        remark = f"no other ways to ask were given: of {what} {' and '.join(made)}" if made else None
        return cls(
            (*locating, *added),
            target,
            (*proving, *added_heldout),
            subject,
            relation,
            separator=separator,
            remark=remark,
        )

    def check(self, model: Model, chat: bool = False) -> None:
        """Raise `InputError` for a prompt or target that `model` cannot be asked, before anything is computed."""
        for prompt in (*self.locating, *self.heldout):
            self.query(model, prompt, chat=chat)

    def query(self, model: Model, prompt: str, *, chat: bool = False) -> Query:
        """One of the prompts with the target, as tokens."""
        return model.query(prompt, self.target, self.subject, chat=chat, separator=self.separator)


def _builtin(texts: Sequence[str], target: str, subject: str | None) -> Fact | None:
    """The built-in fact that texts are about: one with this target, whose subject they all name."""
    facts = [
        fact
        for fact in builtin_facts()
        if fact.target == target
        and (fact.subject == subject if subject else all(fact.subject in text for text in texts))
    ]
    return facts[0] if facts else None
