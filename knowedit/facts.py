"""Facts: what a model is asked, what it should answer, and what must not change with it.

A template is text with exactly one `{}`, which stands for the subject. It is filled by replacement: nothing in
text from outside is ever interpreted by `str.format`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import InputError, did_you_mean
from .writing.mentions import mention

SLOT = "{}"


def check_template(template: str) -> str:
    """Return `template` if it holds exactly one `{}`; raise `InputError` otherwise."""
    found = template.count(SLOT) if isinstance(template, str) else 0
    if found != 1:
        raise InputError(
            f"template {template!r} has {found} slots, expected exactly one {SLOT}: "
            f"put {SLOT} where the subject stands, once"
        )
    return template


def fill(template: str, subject: str) -> str:
    """The prompt that `template` makes for `subject`."""
    return check_template(template).replace(SLOT, subject)


def templated(text: str, subject: str) -> str:
    """The template that `text` is for `subject`: a text without a slot gets one at the subject's last mention."""
    if SLOT in text:
        return check_template(text)
    place = mention(text, subject)
    if place is None:
        raise InputError(
            f"subject {subject!r} is not in the prompt {text!r}: write it as it stands there, or use {SLOT}"
        )
    return text[: place.start] + SLOT + text[place.end :]


@dataclass(frozen=True)
class Neighbour:
    """A prompt about another subject, with its own right answer: what an edit must leave alone."""

    prompt: str
    target: str
    subject: str | None = None


@dataclass(frozen=True)
class Probe:
    """A question with its accepted answers, which should hold once the fact was edited.

    `kind` names what it is about: `two-hop` (MQuAKE), `Logical_Generalization` (RippleEdits), `locality` and so on.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]

    def __post_init__(self):
        for name in ("kind", "prompt"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise InputError(f"the {name} of a probe is {getattr(self, name)!r}, expected text that is not empty")
        object.__setattr__(self, "answers", _texts("answers", self.answers))
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise InputError(f"the answers of the probe {self.prompt!r} are {list(self.answers)!r}, expected texts")


@dataclass(frozen=True)
class Fact:
    """One fact: `template` filled with `subject` should be continued by `target`.

    **Arguments:**

    - `template`: the main prompt, with exactly one `{}`.
    - `subject`, `target`: plain text; the tokenizer decides about a leading space.
    - `target_new`: a plausible false answer, for editing.
    - `aliases`: other accepted answers.
    - `paraphrases`: templates that refine the located neurons.
    - `heldout`: templates that only prove them; never used to refine.
    - `rephrasings`: prompts, complete as they stand, that ask for the fact in other words, with or without the subject.
    - `neighbours`: prompts about other subjects, each with its own target.
    - `generation`: prompts, complete as they stand, that a model is to write on from.
    - `probes`: questions that should be answered so after the edit.
    - `relation`, `relation_name`: a property id such as `P36`, and its name.
    - `target_new_id`: what a data set calls the new target, such as `Q90`; reference texts are found by it.
    - `id`: unique in its file.
    - `separator`: the white space, or nothing, before the targets of all its prompts; by default what fits each.

    Raises `InputError` where a text is empty or a template does not have exactly one slot.
    """

    template: str
    subject: str
    target: str
    target_new: str | None = None
    aliases: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()
    rephrasings: tuple[str, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    generation: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()
    relation: str | None = None
    relation_name: str | None = None
    id: str | None = None
    target_new_id: str | None = None
    separator: str | None = None

    def __post_init__(self):
        for name in ("subject", "target"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise InputError(f"the {name} of a fact is {getattr(self, name)!r}, expected text that is not empty")
        for name in ("target_new", "relation", "relation_name", "id", "target_new_id"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(f"the {name} of a fact is {getattr(self, name)!r}, expected text")
        if self.separator is not None and (not isinstance(self.separator, str) or self.separator.strip()):
            raise InputError(f"the separator of a fact is {self.separator!r}, expected white space or nothing")
        for template in (self.template, *self.paraphrases, *self.heldout):
            check_template(template)

    @property
    def prompt(self) -> str:
        """The main prompt, filled."""
        return fill(self.template, self.subject)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Fact:
        """Read one JSON object with the fields above; unknown or missing fields raise `InputError`."""
        if not isinstance(record, Mapping):
            raise InputError(
                f"a fact is a JSON object with template, subject and target; found {type(record).__name__}"
            )
        known = {f.name for f in fields(cls)}
        for name in record:
            if name not in known:
                raise InputError(f"a fact has no field {name!r}{did_you_mean(name, known)}")
        for name in ("template", "subject", "target"):
            if name not in record:
                raise InputError(f"the fact {record.get('id', dict(record))!r} has no {name!r}")
        values = dict(record)
        for name in ("aliases", "paraphrases", "heldout", "rephrasings", "generation"):
            values[name] = _texts(name, values.get(name, ()))
        values["neighbours"] = tuple(_neighbour(n) for n in _list("neighbours", values.get("neighbours", ())))
        values["probes"] = tuple(_probe(p) for p in _list("probes", values.get("probes", ())))
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, without what is not set: new fields leave hashes of old facts alone."""
        blank = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != blank[name]}


def _list(name: str, value: Any) -> Sequence:
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} of a fact is {value!r}, expected a list")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not all(isinstance(v, str) for v in _list(name, value)):
        raise InputError(f"{name} of a fact is {value!r}, expected a list of texts")
    return tuple(value)


def _neighbour(record: Any) -> Neighbour:
    try:
        neighbour = Neighbour(**record)
    except TypeError:
        raise InputError(f"a neighbour is an object with prompt and target, found {record!r}") from None
    for name in ("prompt", "target"):
        value = getattr(neighbour, name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"the {name} of a neighbour is {value!r}, expected text that is not empty")
    if not isinstance(neighbour.subject, str | None):
        raise InputError(f"the subject of a neighbour is {neighbour.subject!r}, expected text")
    return neighbour


def _probe(record: Any) -> Probe:
    try:
        return Probe(**record)
    except TypeError:
        raise InputError(f"a probe is an object with kind, prompt and answers, found {record!r}") from None
