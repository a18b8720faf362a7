"""The field's data sets as facts: for each format, one function from a JSON record to a `Fact`.

A reader looks records up by `Fields`, which says what is missing or of another type, and raises `Skip` for a record
that is sound but no fact that can be asked (or yields it, where
a record has many facts): these are counted, not refused.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from ..errors import InputError
from ..facts import Fact, Neighbour, Probe, templated

NEIGHBOURS = 10  # of a fact, where they are made out of the other records of a relation


class Skip(Exception):
    """Why a record cannot be used."""


class Fields:
    """A JSON object whose fields are asked for by name and type. Raises `InputError` that names the field."""

    def __init__(self, record: object, name: str = ""):
        if not isinstance(record, Mapping):
            raise InputError(f"{name or 'it'} is {_shown(record)}, expected an object")
        self.record, self.name = record, name

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self._path(name)} is {_shown(value)}, expected text that is not empty")
        return value

    def texts(self, name: str, default: Sequence | None = None) -> tuple[str, ...]:
        value = self._get(name, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise InputError(f"{self._path(name)} is {_shown(value)}, expected a list of texts")
        return tuple(v for v in value if v.strip())

    def object(self, name: str) -> Fields:
        return Fields(self._get(name, None), self._path(name))

    def objects(self, name: str, default: Sequence | None = None) -> list[Fields]:
        value = self._get(name, default)
        if not isinstance(value, list | tuple):
            raise InputError(f"{self._path(name)} is {_shown(value)}, expected a list of objects")
        return [Fields(v, f"{self._path(name)}[{i}]") for i, v in enumerate(value)]

    def _get(self, name: str, default):
        """`default` where the field is missing or null: tables of the Hub have null for a field that a record lacks."""
        value = self.record.get(name)
        if name not in self.record and default is None:
            raise InputError(f"there is no field {self._path(name)!r}")
        return default if value is None else value

    def _path(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


@dataclass(frozen=True)
class Format:
    """A format: `known_by` are fields that only its records have; `read` makes facts of record `index`."""

    known_by: tuple[str, ...]
    read: Callable[[Fields, int], Iterator[Fact]]


# ---------------------------------------------------------------- single edits with neighbours


def _counterfact(r: Fields, index: int) -> Iterator[Fact]:
    asked = r.object("requested_rewrite")
    old, new = asked.object("target_true").text("str"), asked.object("target_new").text("str")
    subject = asked.text("subject")
    yield Fact(
        template=_template(asked.text("prompt"), subject),
        subject=subject,
        target=old,
        target_new=new,
        rephrasings=r.texts("paraphrase_prompts"),
        neighbours=tuple(Neighbour(prompt, old) for prompt in r.texts("neighborhood_prompts")),
        generation=r.texts("generation_prompts", ()),
        relation=asked.text("relation_id", "") if asked.record.get("relation_id") else None,
        id=f"counterfact/{r.record.get('case_id', index)}",
    )


def _counterfact_lite(r: Fields, index: int) -> Iterator[Fact]:
    yield Fact(
        template=_template(r.text("prompt"), r.text("subject")),
        subject=r.text("subject"),
        target=r.text("ground_truth"),
        target_new=r.text("target_new"),
        rephrasings=(r.text("rephrase_prompt"),),
        neighbours=(Neighbour(r.text("locality_prompt"), r.text("locality_ground_truth")),),
        id=f"counterfact-lite/{r.record.get('case_id', index)}",
    )


def _zsre(r: Fields, index: int) -> Iterator[Fact]:
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
        template=_template(r.text("src"), subject),
        subject=subject,
        target=old,
        target_new=answers[0],
        rephrasings=(r.text("rephrase"),),
        probes=(Probe("locality", f"{r.text('loc').rstrip('?')}?", (r.text("loc_ans"),)),),
        id=f"zsre/{index}",
    )


# ---------------------------------------------------------------- edits with consequences


def _knowedit(r: Fields, index: int) -> Iterator[Fact]:
    truth = _first(r.record.get("ground_truth"))
    if not truth:
        raise Skip("it has no ground truth")
    subject = r.text("subject")
    yield Fact(
        template=_template(r.text("prompt"), subject),
        subject=subject,
        target=truth,
        target_new=r.text("target_new"),
        rephrasings=tuple(_flat(r.record.get("rephrase_prompt") or r.record.get("rephrase"))),
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
            prompt, answers = _first(asked.record.get("prompt")), tuple(_flat(asked.record.get("ground_truth")))
            if prompt and answers:
                yield Probe(as_kind or kind, prompt, answers)


def _mquake(r: Fields, index: int) -> Iterator[Fact]:
    """Records of one edit: their questions need the new fact and others, as many as `new_single_hops` says."""
    edits = r.objects("requested_rewrite")
    if len(edits) != 1:
        raise Skip(f"its questions need {len(edits)} edits at once")
    (asked,) = edits
    answers = (r.text("new_answer"), *r.texts("new_answer_alias", ()))
    subject, hops = asked.text("subject"), len(r.objects("new_single_hops", ()))
    kind = {3: "three-hop", 4: "four-hop"}.get(hops, "two-hop")
    yield Fact(
        template=_template(asked.text("prompt"), subject),
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


def _rippleedits(r: Fields, index: int) -> Iterator[Fact]:
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
        template=_template(prompt, found[1]),
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
                for text in _flat([answer.record.get("value"), answer.record.get("aliases")])
            ]
            if answers:
                yield Probe(kind, query.text("prompt"), tuple(answers))


# ---------------------------------------------------------------- relations


def _relations(r: Fields, index: int) -> Iterator[Fact]:
    """One file of the relations data set: a relation with its prompts and its pairs of subject and object."""
    name = r.text("name")
    templates = list(dict.fromkeys((*r.texts("prompt_templates"), *r.texts("prompt_templates_zs", ()))))
    pairs = [(s.text("subject"), s.text("object")) for s in r.objects("samples")]
    stem = str(r.record.get("file", name))
    if not templates:
        raise Skip("it has no prompts")
    yield from of_relation(f"relations/{stem}", stem, name, templates, pairs)


def bags(r: Fields, index: int) -> Iterator[Fact | Skip]:
    """ParaRel as Dai et al. give it out: each relation has bags of prompts that ask for one fact with a mask."""
    for relation, bags in r.record.items():
        for i, bag in enumerate(bags if isinstance(bags, list) else ()):
            texts = [(p[0], p[1]) for p in bag if isinstance(p, list) and len(p) >= 2]
            yield _bag_fact(f"pararel/{relation}/{i}", relation, texts)


def _bag_fact(id: str, relation: str, texts: list[tuple[str, str]]) -> Fact | Skip:
    prompts = [cut for text, _ in texts if (cut := _cut(text, "[MASK]"))]
    subject = _shared([text for text, _ in texts]) if texts else None
    templates = [templated(p, subject) for p in prompts if subject and subject in p]
    if not templates:
        return Skip(f"{id}: none of its prompts ends in the mask")
    return Fact(templates[0], subject, texts[0][1], paraphrases=tuple(templates[1:]), relation=relation, id=id)


def of_relation(
    stem: str, relation: str | None, name: str | None, templates: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> Iterator[Fact]:
    """Facts out of a relation's templates and pairs. A subject with several objects has them as aliases; the new target
    is the next other object of the list, neighbours are the next subjects with another object."""
    objects: dict[str, list[str]] = {}
    for subject, target in pairs:
        objects.setdefault(subject, []).append(target)
    subjects = list(objects)
    for i, subject in enumerate(subjects):
        target, *others = objects[subject]
        after = (subjects[(i + 1 + k) % len(subjects)] for k in range(len(subjects) - 1))
        later = list(islice((s for s in after if not set(objects[s]) & {target, *others}), NEIGHBOURS))
        near = [Neighbour(t.replace("{}", s), objects[s][0], s) for s, t in zip(later, cycle(templates), strict=False)]
        yield Fact(
            template=templates[0],
            subject=subject,
            target=target,
            target_new=objects[later[0]][0] if later else None,
            aliases=tuple(dict.fromkeys(others)),
            paraphrases=tuple(templates[1:]),
            neighbours=tuple(near),
            relation=relation,
            relation_name=name,
            id=f"{stem}/{i}",
        )


def pararel_templates(patterns: Sequence[str]) -> list[str]:
    """ParaRel's patterns as templates: those that end in the object, cut before it."""
    cut = [c for p in patterns if p.count("[X]") == 1 and (c := _cut(p, "[Y]")) and "[X]" in c]
    return list(dict.fromkeys(c.replace("[X]", "{}") for c in cut))


FORMATS = {
    "counterfact": Format(("requested_rewrite", "neighborhood_prompts"), _counterfact),
    "counterfact-lite": Format(("rephrase_prompt", "locality_prompt", "locality_ground_truth"), _counterfact_lite),
    "zsre": Format(("src", "rephrase", "loc"), _zsre),
    "mquake": Format(("requested_rewrite", "questions", "new_answer"), _mquake),
    "rippleedits": Format(("edit", "Logical_Generalization"), _rippleedits),
    "relations": Format(("prompt_templates", "samples"), _relations),
    "knowedit": Format(("subject", "prompt", "target_new"), _knowedit),
    "pararel": Format((), bags),
}


def _template(prompt: str, subject: str) -> str:
    """Raises `Skip` where the subject is not in the prompt."""
    if subject not in prompt and "{}" not in prompt:
        raise Skip(f"its subject {subject!r} is not in its prompt {prompt!r}")
    try:
        return templated(prompt, subject)
    except InputError as error:
        raise Skip(str(error)) from None


def _cut(text: str, mark: str) -> str | None:
    """`text` before `mark` where nothing but a full stop follows it."""
    head, found, tail = text.partition(mark)
    return head.strip() if found and not tail.strip(" .") and head.strip() else None


def _shared(texts: Sequence[str]) -> str | None:
    """The subject of a bag of prompts: the longest words that all hold, if possible such that begin like a name."""
    words = texts[0].split()
    runs = [" ".join(words[i:j]).strip(" .,?") for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    shared = [run for run in runs if run and "[MASK]" not in run and all(run in text for text in texts)]
    return max(shared, key=lambda run: (not run[0].islower(), len(run)), default=None)


def _flat(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _flat(item)


def _first(value: object) -> str | None:
    return next(_flat(value), None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
