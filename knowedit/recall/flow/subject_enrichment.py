"""Enrichment: how many attributes of a subject its representation shows, layer by layer (Geva et al. 2023, section 6).

The *attributes rate* of a layer reads the residual stream at the subject's last token through the lens and takes its
first 50 tokens, leaving out what is no word, words of at most two characters and words that are in every text:

    rate = |first 50 words ∩ attributes| / 50.

The attributes are the words of a text about the subject, or those of the answers and aliases of the facts about it. As
control the same words are compared with the attributes of other subjects of the relation. The *separation* compares
all attributes that are one token, however far down they stand: how often one of the subject's has a larger logit than
one of another's (one half where the representation does not tell them apart).

    found = enrichment(model, model.encode("The capital of France is", "France"), attributes_in(text))
    found.rate                                   # by layer

What makes it is asked by knockouts: the MLPs, or the attention, of a window of layers write nothing at the subject's
last token, and the rate is read again at one later layer that is fixed beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...display.result import Record
from ...errors import InputError
from ...facts import Fact
from ...hooks import on_output
from ...models.adapter import Model
from ...models.length import check_length
from ...models.passes.objective import at_least_float
from ...models.passes.replay import Recording, record
from ...prompts import Prompt
from .knockout import SUBLAYERS, SublayerKnockout, check_window, swept, windows

_SHORT = 2  # characters of a token that says nothing
_DEPTH = 0.8  # of the layers, where knockouts are read
_COMMON = frozenset(
    """the and for are was were been being have has had having does did doing done this that these those they them their
    theirs themselves you your yours yourself she her hers herself him his himself its itself our ours ourselves
    who whom whose which what when where why how all any both each few more most other others some such nor not
    only own same than too very can could will would shall should may might must just about above after again
    against along also although among another around because before below between but down during either else
    ever every from further here into least less many much neither never now off often once onto out over per
    rather since still then there therefore though through thus together toward towards under until unless upon
    use used using via well while with within without yet one two three first second last new say said says like
    get got make made""".split()
)


@dataclass(frozen=True)
class Attributes:
    """Words that belong to a subject, in lower case; `controls` are those of other subjects of its relation.

    `source` says where they come from: `text` or `facts`.
    """

    words: frozenset[str]
    controls: tuple[frozenset[str], ...] = ()
    source: str = "facts"


@dataclass(frozen=True)
class Vocabulary:
    """What a model's tokens are as words: `words[i]` in lower case, None where token `i` says nothing of a subject."""

    words: tuple[str | None, ...]

    def tokens(self, words: Iterable[str]) -> list[int]:
        """The tokens that are one of `words`, in any spelling."""
        words = set(words)
        return [i for i, word in enumerate(self.words) if word in words]


@dataclass(frozen=True)
class EnrichmentConfig:
    """How enrichment is measured.

    - `top`: first words that count (all, where the vocabulary has fewer).
    - `window`: layers in a knockout's window; some 18 % of all by default.
    - `layer`: where knockouts are read; four fifths up by default.
    """

    top: int = 50
    window: int | None = None
    layer: int | None = None

    def __post_init__(self):
        if not isinstance(self.top, int) or self.top < 1:
            raise InputError(f"top is {self.top!r}, expected 1 or more first words")


@dataclass(frozen=True)
class Enrichment(Record):
    """The attributes rate at the lookup position.

    - `attributes`: how many words count; `source`: where they come from.
    - `rate[l]`: after layer `l`; `control[l]`: the mean over the controls' attributes, None without controls.
    - `separation[l]`: how often an attribute has a larger logit than a control's; None where there are none to compare.
    - `found[l]`: the attributes among the first words.
    - `without[name][l]`: the rate at layer `read`, the sublayers `mlp` or `attention` silent in the window around `l`.
    """

    attributes: int
    source: str
    rate: tuple[float, ...]
    control: tuple[float | None, ...]
    separation: tuple[float | None, ...]
    found: tuple[tuple[str, ...], ...]
    window: int
    read: int
    without: dict[str, tuple[float, ...]]

    @property
    def peak(self) -> int:
        """The layer with the highest rate, the first of several."""
        return max(range(len(self.rate)), key=lambda layer: (self.rate[layer], -layer))

    def as_dict(self) -> dict:
        return super().as_dict() | {"peak": self.peak}


def attributes_in(text: str, controls: Sequence[str] = ()) -> Attributes:
    """The words of a text about the subject; `controls` are texts about others.

    Raises `InputError` where the text has none.
    """
    words = content_words(text)
    if not words:
        raise InputError("the text about the subject has no words of three letters or more; give a text about it")
    return Attributes(words, tuple(content_words(control) for control in controls), "text")


def attributes_of(fact: Fact, facts: Sequence[Fact]) -> Attributes:
    """The answers and aliases of the facts about this subject, and those of other subjects of the same relation."""
    by_subject: dict[str, set[str]] = {fact.subject: set()}
    for other in (fact, *facts):
        by_subject.setdefault(other.subject, set()).update(content_words(" ".join((other.target, *other.aliases))))
    others = {f.subject for f in facts if f.relation == fact.relation is not None} - {fact.subject}
    words = frozenset(by_subject[fact.subject])
    return Attributes(words, tuple(frozenset(by_subject[name]) for name in sorted(others)), "facts")


def content_words(text: str) -> frozenset[str]:
    """The words of `text` in lower case, without those that are short or in every text."""
    return frozenset(w for w in re.findall(r"\w+", text.casefold()) if len(w) > _SHORT and w not in _COMMON)


def content_vocabulary(model: Model) -> Vocabulary:
    """The tokens of a model that are words which may say something of a subject."""
    words = [w.strip().casefold() for w in model.tokenizer.batch_decode([[i] for i in range(model.vocabulary)])]
    return Vocabulary(tuple(word if content_words(word) == {word} else None for word in words))


@torch.no_grad()
def enrichment(
    model: Model,
    prompt: Prompt,
    attributes: Attributes,
    config: EnrichmentConfig | None = None,
    vocabulary: Vocabulary | None = None,
) -> Enrichment:
    """The attributes rate at the subject's last token after every layer, and after knockouts of what makes it.

    `vocabulary` is `content_vocabulary(model)`, to be made once for many prompts.

    Raises `InputError` for a prompt without subject or too long, and for a window or layer that the model has not.
    """
    config, vocabulary = config or EnrichmentConfig(), vocabulary or content_vocabulary(model)
    width = check_window(model, config.window)
    read = int(_DEPTH * (model.n_layers - 1)) if config.layer is None else model.check_layer(config.layer)
    lookup = prompt.position("lookup")
    check_length(model, prompt.ids)
    recording = record(model, prompt.ids if model.masked else prompt.ids[: lookup + 1], lookup)
    at = lookup - recording.start
    logits = _logits(
        model, torch.cat([h.to(recording.output) for h in (*recording.inputs[1:], recording.output)])[:, at]
    )
    first_words = _first_words(logits, vocabulary, config.top)
    cuts = [
        SublayerKnockout(layers, name, (lookup,)) for name in SUBLAYERS for layers in windows(model.n_layers, width)
    ]
    changed = _states_at(model, recording, cuts, read, at)
    reread = _first_words(_logits(model, torch.stack([*changed.values()])), vocabulary, config.top)
    after = dict.fromkeys(range(len(cuts)), first_words[read]) | dict(zip(changed, reread, strict=True))
    rates = [_rate(after[i], attributes.words) for i in range(len(cuts))]
    return Enrichment(
        attributes=len(attributes.words),
        source=attributes.source,
        rate=tuple(_rate(words, attributes.words) for words in first_words),
        control=tuple(_mean([_rate(words, control) for control in attributes.controls]) for words in first_words),
        separation=_separation(logits, attributes, vocabulary),
        found=tuple(tuple(dict.fromkeys(w for w in words if w in attributes.words)) for words in first_words),
        window=width,
        read=read,
        without={name: tuple(rates[i * model.n_layers :][: model.n_layers]) for i, name in enumerate(SUBLAYERS)},
    )


def _logits(model: Model, hidden: Tensor) -> Tensor:
    return at_least_float(model.logits(model.normed(hidden)))


def _first_words(logits: Tensor, vocabulary: Vocabulary, top: int) -> list[list[str]]:
    """The first words of each row of logits."""
    nothing = torch.tensor([word is None for word in vocabulary.words], device=logits.device)
    count = min(top, len(nothing) - int(nothing.sum()))
    best = logits.masked_fill(nothing, -torch.inf).topk(count).indices
    return [[vocabulary.words[i] for i in row] for row in best.tolist()]


def _states_at(
    model: Model, recording: Recording, cuts: Sequence[SublayerKnockout], layer: int, at: int
) -> dict[int, Tensor]:
    """The residual stream (d_model,) after `layer` at suffix position `at` for every cut that begins at or below it."""
    kept: list[Tensor] = []
    chosen = [i for i, cut in enumerate(cuts) if min(cut.layers) <= layer]
    states: dict[int, Tensor] = {}
    keep = on_output(model.blocks[layer], kept.append)
    for part, kept_states in swept(recording, cuts, chosen, lambda _: kept.pop()[:, at], [keep]):
        states.update(zip(part, kept_states, strict=True))
    return states


def _rate(words: Sequence[str], attributes: frozenset[str]) -> float:
    return sum(word in attributes for word in words) / max(1, len(words))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _separation(logits: Tensor, attributes: Attributes, vocabulary: Vocabulary) -> tuple[float | None, ...]:
    tokens = vocabulary.tokens(attributes.words)
    control_tokens = vocabulary.tokens(frozenset().union(*attributes.controls) - attributes.words)
    if not tokens or not control_tokens:
        return (None,) * len(logits)
    of_subject, of_others = logits[:, tokens, None], logits[:, None, control_tokens]
    ahead = (of_subject > of_others).float() + 0.5 * (of_subject == of_others).float()
    return tuple(ahead.mean((1, 2)).tolist())
