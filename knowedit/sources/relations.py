"""Data sets of relations, each with prompts and pairs: the relations format, and ParaRel in its two forms.

They hold no edits: a fact's new target and its neighbours are taken from the other pairs of its relation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from ..facts import Fact, Neighbour, templated
from .fields import Fields, Skip

NEIGHBOURS = 10  # of a fact


def relations(r: Fields, index: int) -> Iterator[Fact]:
    """One file of the relations data set: a relation with its prompts and its pairs of subject and object."""
    name = r.text("name")
    templates = list(dict.fromkeys((*r.texts("prompt_templates"), *r.texts("prompt_templates_zs", ()))))
    pairs = [(s.text("subject"), s.text("object")) for s in r.objects("samples")]
    stem = str(r.record.get("file", name))
    if not templates:
        raise Skip("it has no prompts")
    yield from of_relation(f"relations/{stem}", stem, name, templates, pairs)


def pararel_bags(r: Fields, index: int) -> Iterator[Fact | Skip]:
    """ParaRel as Dai et al. give it out: each relation has bags of prompts that ask for one fact with a mask."""
    for relation, bags in r.record.items():
        for i, bag in enumerate(bags if isinstance(bags, list) else ()):
            pairs = [p[:2] for p in bag if isinstance(p, list) and len(p) >= 2] if isinstance(bag, list) else []
            texts = [(text, answer) for text, answer in pairs if isinstance(text, str) and isinstance(answer, str)]
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
            aliases=tuple(dict.fromkeys(other for other in others if other != target)),
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
