"""Data sets that ask for what follows from an edit: KnowEdit, MQuAKE and RippleEdits. Their questions become probes."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator

from ..facts import Fact, Probe
from .fields import Fields, Skip, first, flat, template_of


def knowedit(r: Fields, index: int) -> Iterator[Fact]:
    truth = first(r.record.get("ground_truth"))
    if not truth:
        raise Skip("it has no ground truth")
    subject = r.text("subject")
    yield Fact(
        template=template_of(r.text("prompt"), subject),
        subject=subject,
        target=truth,
        target_new=r.text("target_new"),
        rephrasings=tuple(flat(r.record.get("rephrase_prompt") or r.record.get("rephrase"))),
        probes=(*_knowedit_probes(r, "portability"), *_knowedit_probes(r, "locality", "locality")),
        id=f"knowedit/{r.record.get('case_id', index)}",
    )


def _knowedit_probes(r: Fields, name: str, as_kind: str | None = None) -> Iterator[Probe]:
    """Portability by its kinds; locality as one kind. A prompt may stand alone in a list, answers in lists of lists."""
    if not r.record.get(name):
        return
    kinds = r.object(name)
    for kind in kinds.record:
        for asked in kinds.objects(kind, ()):
            prompt, answers = first(asked.record.get("prompt")), tuple(flat(asked.record.get("ground_truth")))
            if prompt and answers:
                yield Probe(as_kind or kind, prompt, answers)


def mquake(r: Fields, index: int) -> Iterator[Fact]:
    """Records of one edit: their questions need the new fact and others, as many as `new_single_hops` says."""
    edits = r.objects("requested_rewrite")
    if len(edits) != 1:
        raise Skip(f"its questions need {len(edits)} edits at once")
    (asked,) = edits
    answers = (r.text("new_answer"), *r.texts("new_answer_alias", ()))
    subject, hops = asked.text("subject"), len(r.objects("new_single_hops", ()))
    kind = {3: "three-hop", 4: "four-hop"}.get(hops, "two-hop")
    yield Fact(
        template=template_of(asked.text("prompt"), subject),
        subject=subject,
        target=asked.object("target_true").text("str"),
        target_new=asked.object("target_new").text("str"),
        rephrasings=(asked.text("question"),) if asked.record.get("question") else (),
        probes=tuple(Probe(kind, question, answers) for question in r.texts("questions")),
        relation=asked.record.get("relation_id"),
        id=f"mquake/{r.record.get('case_id', index)}",
    )


_CRITERIA = {  # kind: as it is spelled in some of the files
    "Relation_Specificity": "Relation_Specifity", "Logical_Generalization": None, "Subject_Aliasing": None,
    "Compositionality_I": None, "Compositionality_II": None, "Forgetfulness": None,
}  # fmt: skip
_VERBS = re.compile(r"^.+ (?:is followed by|is|are|follows)(?= )")  # between a sentence's subject and its target
_SUBJECTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"^(.+) follows$",
        r"^(.+) is followed by$",
        r"^The name of the .+? which (.+) (?:is (?:associated with|a member of|part of|the capital of)|plays in) is$",
        r"^The number of children (.+) has is$",
        r"^The name of the award (.+) won is$",
        r"^The name of the currency in (.+) is$",
        r"^The name of the position held by (.+) is$",
        r"^The (?:names? of the )?(?:country of citizenship|(?:place|date) of (?:birth|death|burial)"
        r"|head of (?:state|government)|field of work) of (.+) (?:is|are)$",
        r"^The (?:names? of the )?[\w ]+? of (.+) (?:is|are)$",
    )
)


def rippleedits(r: Fields, index: int) -> Iterator[Fact]:
    """The edit is a sentence: it and the original fact's are alike up to the verb before the target."""
    edit = r.object("edit")
    name = next((name for name in ("original_fact", "previous_fact") if edit.record.get(name)), None)
    if name is None:
        raise Skip("it has no original fact, so no old answer")
    new, old = edit.text("prompt"), edit.object(name).text("prompt")
    verb = _VERBS.match(os.path.commonprefix([new, old]))
    prompt = verb[0] if verb else ""
    targets = [text[len(prompt) :].strip().removesuffix(".") for text in (old, new)]
    found = next((m for pattern in _SUBJECTS if (m := pattern.match(prompt))), None)
    if found is None or not all(targets):
        raise Skip(f"its subject cannot be told from its sentence {new!r}")
    relation = edit.text("relation", "?")
    probes = [probe for kind, other in _CRITERIA.items() for probe in _ripple_probes(r, kind, other)]
    yield Fact(
        template=template_of(prompt, found[1]),
        subject=found[1],
        target=targets[0],
        target_new=targets[1],
        probes=tuple(probes),
        relation=relation,
        relation_name=relation.lower().replace("_", " "),
        id=f"rippleedits/{index}",
    )


def _ripple_probes(r: Fields, kind: str, other: str | None) -> Iterator[Probe]:
    for test in r.objects(other if other in r.record else kind, ()):
        for query in test.objects("test_queries", ()):
            answers = [
                text
                for answer in query.objects("answers", ())
                for text in flat([answer.record.get("value"), answer.record.get("aliases")])
            ]
            if answers:
                yield Probe(kind, query.text("prompt"), tuple(answers))
