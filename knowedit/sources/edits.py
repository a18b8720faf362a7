"""Data sets of single edits: CounterFact, CounterFact-lite, zsRE and WikiBigEdit."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Fact, Neighbour, Probe
from .fields import Fields, Skip, template_of


def counterfact(r: Fields, index: int) -> Iterator[Fact]:
    asked = r.object("requested_rewrite")
    target = asked.object("target_new")
    old, new = asked.object("target_true").text("str"), target.text("str")
    subject = asked.text("subject")
    yield Fact(
        template=template_of(asked.text("prompt"), subject),
        subject=subject,
        target=old,
        target_new=new,
        rephrasings=r.texts("paraphrase_prompts", ()),
        neighbours=tuple(Neighbour(prompt, old) for prompt in r.texts("neighborhood_prompts", ())),
        generation=r.texts("generation_prompts", ()),
        relation=asked.text("relation_id", "") if asked.record.get("relation_id") else None,
        id=f"counterfact/{r.record.get('case_id', index)}",
        target_new_id=target.text("id") if target.record.get("id") else None,
    )


def counterfact_lite(r: Fields, index: int) -> Iterator[Fact]:
    yield Fact(
        template=template_of(r.text("prompt"), r.text("subject")),
        subject=r.text("subject"),
        target=r.text("ground_truth"),
        target_new=r.text("target_new"),
        rephrasings=(r.text("rephrase_prompt"),),
        neighbours=(Neighbour(r.text("locality_prompt"), r.text("locality_ground_truth")),),
        id=f"counterfact-lite/{r.record.get('case_id', index)}",
    )


def zsre(r: Fields, index: int) -> Iterator[Fact]:
    """As ROME reads it: the first answer is what the model is to say; a question of Natural Questions is the locality.

    ROME gives these records no old answer and its zsRE metrics need none: here it is MEND's prediction or alternative.
    """
    subject, answers = r.text("subject"), r.texts("answers")
    if not answers:
        raise Skip("it has no answer")
    guesses = [guess.strip() for name in ("pred", "alt") if isinstance(guess := r.record.get(name), str)]
    old = next((guess for guess in guesses if guess not in ("", answers[0])), None)
    if old is None:
        raise Skip("it has no old answer but the new one")
    yield Fact(
        template=template_of(r.text("src"), subject),
        subject=subject,
        target=old,
        target_new=answers[0],
        rephrasings=(r.text("rephrase"),),
        probes=(Probe("locality", f"{r.text('loc').rstrip('?')}?", (r.text("loc_ans"),)),),
        id=f"zsre/{index}",
    )


def wikibigedit(r: Fields, index: int) -> Iterator[Fact]:
    """Changes between two states of Wikidata, as LocFT's repository has them; the locality asks about another subject.

    These records have no old answer. Here it is that of the locality, which is an answer of the same relation, so that
    ES and PS say whether the new answer beats one that is as fitting.
    """
    subject, new, other = r.text("subject"), r.text("target_new"), r.text("locality_ground_truth")
    if other.strip() == new.strip():
        raise Skip("its locality has the new answer")
    yield Fact(
        template=template_of(r.text("prompt"), subject),
        subject=subject,
        target=other,
        target_new=new,
        rephrasings=(r.text("rephrase_prompt"),),
        neighbours=(Neighbour(r.text("locality_prompt"), other),),
        probes=(Probe("locality", r.text("locality_prompt"), (other,)),),
        id=f"wikibigedit/{index}",
    )
