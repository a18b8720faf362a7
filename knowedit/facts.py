"""Facts: what a model is asked, what it should answer, and what must not change with it.

A template is text with exactly one `{}`, which stands for the subject. It is filled by replacement: nothing in
text from outside is ever interpreted by `str.format`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from .errors import InputError, KnoweditWarning, did_you_mean
from .writing.mentions import mention
from .writing.separators import check_separator

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


def fill(template: str, subject: str | None) -> str:
    """The prompt that `template` makes for `subject`; without one the template is the prompt."""
    if subject is not None:
        return check_template(template).replace(SLOT, subject)
    if not isinstance(template, str) or not template.strip() or SLOT in template:
        raise InputError(f"the prompt is {template!r}, expected text, and --subject to be named for a {SLOT} in it")
    return template


def templated(text: str, subject: str | None) -> str:
    """The template that `text` is for `subject`: a text without a slot gets one at the subject's last mention."""
    if subject is None:
        return fill(text, None)
    if not isinstance(text, str) or not isinstance(subject, str):
        raise InputError(f"the prompt is {text!r} and the subject {subject!r}, expected texts")
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

    Without a subject (None) templates are prompts without a slot. Such a fact can be asked, located and fine-tuned;
    what looks at the subject's last token says that it cannot.

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
    - `extra`: fields of its record that a fact has not, each with its value as JSON; they are kept and not used.
    - `separator`: the white space, or nothing, before the targets of all its prompts; by default what fits each.

    Raises `InputError` where a text is empty or a template does not have exactly one slot.
    """

    template: str
    subject: str | None
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
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        for name in ("target",) if self.subject is None else ("subject", "target"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise InputError(f"the {name} of a fact is {getattr(self, name)!r}, expected text that is not empty")
        for name in ("target_new", "relation", "relation_name", "id", "target_new_id"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(f"the {name} of a fact is {getattr(self, name)!r}, expected text")
        check_separator(self.separator)
        for template in (self.template, *self.paraphrases, *self.heldout):
            fill(template, self.subject)

    @property
    def prompt(self) -> str:
        """The main prompt, filled."""
        return fill(self.template, self.subject)

    def subject_for(self, what: str) -> str:
        """The subject. Raises `InputError` where there is none, which says that `what` needs one."""
        if self.subject is None:
            raise InputError(f"{what} needs the subject of {self.prompt!r}, and the fact has none; name it (--subject)")
        return self.subject

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Fact:
        """Read one JSON object with the fields above; numbers are read as text.

        In place of a template it may have a `prompt`, which names the subject or has a slot for it.

        Raises `InputError` for missing fields and wrong ones. Warns of fields that a fact has not, and keeps them.
        """
        if not isinstance(record, Mapping):
            raise InputError(
                f"a fact is a JSON object with template, subject and target; found {type(record).__name__}"
            )
        if "prompt" in record and "template" not in record:
            others = {name: value for name, value in record.items() if name != "prompt"}
            record = {"template": templated(record["prompt"], number_as_text(record.get("subject"))), **others}
        known = {f.name for f in fields(cls)}
        for name in ("template", "target"):
            if name not in record:
                near = did_you_mean(name, set(record) - known)
                raise InputError(f"the fact {record.get('id', dict(record))!r} has no {name!r}{near}")
        unknown = [name for name in record if name not in known]
        for name in unknown:
            hint = did_you_mean(str(name), known)
            warnings.warn(f"a fact has no field {name!r}{hint}; it is kept and not used", KnoweditWarning, stacklevel=2)
        values = {name: number_as_text(record[name]) for name in record if name in known}
        values.setdefault("subject", None)
        kept = [(str(name), json.dumps(record[name], sort_keys=True, default=str)) for name in unknown]
        values["extra"] = (*_pairs(values.get("extra", ())), *kept)
        for name in ("aliases", "paraphrases", "heldout", "rephrasings", "generation"):
            values[name] = _texts(name, values.get(name, ()))
        values["neighbours"] = tuple(_neighbour(n) for n in _list("neighbours", values.get("neighbours", ())))
        values["probes"] = tuple(_probe(p) for p in _list("probes", values.get("probes", ())))
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, without what is not set: new fields leave hashes of old facts alone."""
        blank = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != blank[name]}


def number_as_text(value: Any) -> Any:
    """A number as it is written: data sets have years and counts as answers."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = tuple(_texts("extra", pair) for pair in _list("extra", value))
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"extra of a fact is {value!r}, expected pairs of a name and its value as JSON")
    return cast(tuple[tuple[str, str], ...], pairs)


def _list(name: str, value: Any) -> Sequence:
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} of a fact is {value!r}, expected a list")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = tuple(map(number_as_text, _list(name, value)))
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} of a fact is {value!r}, expected a list of texts")
    return texts


def _made(kind: type, record: Any, expected: str) -> Any:
    """A neighbour or a probe of the fields that it has; warns of the others."""
    known = {f.name for f in fields(kind)}
    what = kind.__name__.lower()
    try:
        made = kind(**{name: number_as_text(value) for name, value in record.items() if name in known})
    except (TypeError, AttributeError):
        raise InputError(f"a {what} is an object with {expected}, found {record!r}") from None
    for name in record:
        if name not in known:
            message = f"a {what} has no field {name!r}{did_you_mean(str(name), known)}; it is not used"
            warnings.warn(message, KnoweditWarning, stacklevel=2)
    return made


def _neighbour(record: Any) -> Neighbour:
    neighbour = _made(Neighbour, record, "prompt and target")
    for name in ("prompt", "target"):
        value = getattr(neighbour, name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"the {name} of a neighbour is {value!r}, expected text that is not empty")
    if not isinstance(neighbour.subject, str | None):
        raise InputError(f"the subject of a neighbour is {neighbour.subject!r}, expected text")
    return neighbour


def _probe(record: Any) -> Probe:
    return _made(Probe, record, "kind, prompt and answers")
