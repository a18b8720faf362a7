"""A neuron card: all that can be said of one neuron as a key and a value (Geva et al. 2021, 2022).

    key       the texts on whose tokens it is largest, and how often it is active at all
    value     the tokens that its value vector promotes and suppresses, under the sign that it has on these texts
    company   the located facts that share it
    effect    what setting it to 0 does to what follows its own texts and to those facts, against other neurons of its
              layer that are as often active

One pass over the corpus answers for any number of neurons: `cards` is no dearer than `card`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..display.result import Record, Table
from ..errors import InputError
from ..locate.neurons import Neuron, NeuronSet, vocabulary
from ..models.adapter import Model
from ..models.passes.scaled_answers import ScaledAnswers
from ..progress import Progress, silent
from ..prompts import Prompt, with_target_ids
from ..statistics import Estimate, ratio_of_means
from ..texts.corpus import Corpus
from .corpus_scan import CORPUS_TOKENS, TOP, ActivationScan, scan

WINDOW = 12  # tokens shown on either side


@dataclass(frozen=True)
class CardConfig:
    """How many `texts` and `words` a card shows, how many `controls` its effect is compared with, drawn by `seed`, and
    how many `tokens` of the corpus are read."""

    texts: int = TOP
    words: int = 12
    controls: int = 10
    tokens: int = CORPUS_TOKENS
    seed: int = 0

    def __post_init__(self):
        for name in ("texts", "words", "controls", "tokens"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a number from 1 on")


@dataclass(frozen=True)
class Trigger:
    """A text: `token`, where the neuron has the value `activation`, what stands `before` and `after` it, and the token
    that comes `next` (None at the end)."""

    before: str
    token: str
    after: str
    next: str | None
    activation: float


@dataclass(frozen=True)
class Company:
    """A located fact that has the neuron: its id or prompt, and the neuron's score and kind in it."""

    fact: str
    prompt: str
    target: str
    subject: str | None
    score: float
    kind: str | None
    separator: str | None = None


@dataclass(frozen=True)
class Effect:
    """How mean probabilities change when the neuron is 0 (`suppressed`) and when others of its layer are (`control`); n
    counts prompts."""

    suppressed: Estimate
    control: Estimate


@dataclass(frozen=True)
class Card(Record):
    """One neuron.

    - `sign`: 1 or −1, that of its largest values; `promotes`, `suppresses` are for it.
    - `active`: the share of `tokens` on which it is active, in the sense of `definition`; `mean`, `deviation` of its
      values; `value_norm`: ‖v‖.
    - `on_texts`: the effect on the tokens that follow its triggers (None in a masked model, where none follows);
      `on_facts`: on the targets of the facts that share it (None where there are none).
    """

    model: str
    layer: int
    index: int
    value_norm: float
    sign: int
    promotes: tuple[str, ...]
    suppresses: tuple[str, ...]
    source: dict
    tokens: int
    definition: str
    active: float
    mean: float
    deviation: float
    triggers: tuple[Trigger, ...]
    located: tuple[Company, ...]
    on_texts: Effect | None
    on_facts: Effect | None

    def table(self) -> Iterator[str | Table]:
        """What the neuron says, where it is largest, what it does, and the located facts that share it."""
        yield (
            f"neuron {self.layer}/{self.index} of {self.model}: active on {self.active:.1%} of {self.tokens} tokens, "
            f"value {self.mean:+.3f} ± {self.deviation:.3f}, value vector of norm {self.value_norm:.3f}"
        )
        yield f"Active: {self.definition}."
        yield from vocabulary_lines(self.promotes, self.suppresses)
        yield f"where its activation is {'negative' if self.sign < 0 else 'positive'}, as on these texts:"
        rows = [(f"{t.activation:+.2f}", f"{t.before[-60:]}⟦{t.token}⟧{t.after[:30]}") for t in self.triggers]
        yield Table(("activation", "text"), rows)
        for name, effect in (("what follows these texts", self.on_texts), ("the facts that share it", self.on_facts)):
            if effect is not None:
                yield f"set to 0: {name}, n = {effect.suppressed.n}: {effect.suppressed.text('change')}"
                yield f"  other neurons of the layer: {effect.control.text('change')}"
        if self.located:
            facts = [(fact.fact, fact.target, f"{fact.score:.4f}", fact.kind) for fact in self.located]
            yield Table(("fact", "target", "score", "kind"), facts)

    def figure(self, path: str | Path) -> Path:
        """Draw the texts, the words and the effects."""
        from .figure import card_figure

        return card_figure(path, self)


@dataclass(frozen=True)
class NeuronWords(Record):
    """What a neuron's value vector alone says: the tokens it promotes and suppresses where the neuron is positive."""

    model: str
    layer: int
    index: int
    value_norm: float
    promotes: tuple[str, ...]
    suppresses: tuple[str, ...]

    def table(self) -> Iterator[str]:
        """Both lists of words."""
        yield f"neuron {self.layer}/{self.index} of {self.model}: value vector of norm {self.value_norm:.3f}"
        yield from vocabulary_lines(self.promotes, self.suppresses)
        yield "A negative activation swaps the two."


def vocabulary_lines(promotes: Sequence[str], suppresses: Sequence[str]) -> Iterator[str]:
    """The words that a value vector promotes and suppresses, a line each."""
    yield f"promotes   {'  '.join(map(repr, promotes))}"
    yield f"suppresses {'  '.join(map(repr, suppresses))}"


def neuron_words(model: Model, layer: int, index: int, n: int = 12) -> NeuronWords:
    """The `n` tokens that a neuron's value vector promotes and suppresses most. Needs no corpus."""
    promotes, suppresses = vocabulary(model, layer, index, n=n)
    return NeuronWords(model.name, layer, index, _value_norm(model, layer, index), promotes, suppresses)


def _value_norm(model: Model, layer: int, index: int) -> float:
    return model.down_weight(layer)[:, index].float().norm().item()


def card(model: Model, layer: int, index: int, source: str | Corpus = "builtin", **more) -> Card:
    """The card of one neuron; arguments are those of `cards`."""
    return cards(model, [(layer, index)], source, **more)[0]


def cards(
    model: Model,
    neurons: Sequence[tuple[int, int]],
    source: str | Corpus | ActivationScan = "builtin",
    config: CardConfig | None = None,
    *,
    located: Sequence[NeuronSet] = (),
    weights_hash: str | None = None,
    progress: Progress = silent,
) -> tuple[Card, ...]:
    """The cards of some neurons, by one pass over a corpus.

    `source` is that of `scan`, or a scan that is there already; `located` are the neurons of facts, as `locate_fact`
    returns them. `weights_hash` and `progress` are those of `scan`. Raises `InputError` for neurons that are not there
    and what `scan` raises.
    """
    config = config or CardConfig()
    neurons = [model.check_neuron(*site) for site in neurons]
    if not neurons:
        return ()
    if not isinstance(source, ActivationScan):
        layers = sorted({layer for layer, _ in neurons})
        source = scan(
            model, source, layers=layers, tokens=config.tokens, top=max(TOP, config.texts), seed=config.seed,
            weights_hash=weights_hash, progress=progress,
        )  # fmt: skip
    return tuple(_card(model, layer, index, source, config, located) for layer, index in neurons)


def _card(model: Model, layer: int, index: int, scan: ActivationScan, config: CardConfig, located) -> Card:
    at = scan.at(layer)
    triggers = scan.triggers(layer, index)[: config.texts]
    sign = -1 if sum(value for *_, value in triggers) < 0 else 1
    promotes, suppresses = vocabulary(model, layer, index, sign, config.words)
    company = _company(located, layer, index)
    controls = _controls(scan, layer, index, config)
    on_texts = [] if model.masked else [q for row, position, _ in triggers if (q := _following(scan, row, position))]
    on_facts = [model.query(c.prompt, c.target, c.subject, separator=c.separator) for c in company]
    return Card(
        model=model.name,
        layer=layer,
        index=index,
        value_norm=_value_norm(model, layer, index),
        sign=sign,
        promotes=promotes,
        suppresses=suppresses,
        source=scan.source,
        tokens=scan.tokens,
        definition=scan.definition,
        active=scan.share(layer, index),
        mean=scan.mean[at, index].item(),
        deviation=scan.deviation[at, index].item(),
        triggers=tuple(_trigger(model, scan, *place) for place in triggers),
        located=company,
        on_texts=_effect(model, (layer, index), controls, on_texts),
        on_facts=_effect(model, (layer, index), controls, on_facts),
    )


def _trigger(model: Model, scan: ActivationScan, row: int, position: int, activation: float) -> Trigger:
    ids, last = scan.rows[row], len(scan.rows[row]) - (1 if model.masked else 0)
    first = max(1, position - WINDOW)
    before = _text(model, ids[first:position])
    upto = _text(model, ids[first : position + 1])
    whole = _text(model, ids[first : min(last, position + 1 + WINDOW)])
    if not (upto.startswith(before) and whole.startswith(upto)):  # a character that is cut in the middle
        upto = before + _text(model, [ids[position]])
        whole = upto + _text(model, ids[position + 1 : min(last, position + 1 + WINDOW)])
    after = _text(model, [ids[position + 1]]) if position + 1 < last else None
    return Trigger(before, upto[len(before) :], whole[len(upto) :], after, activation)


def _text(model: Model, ids) -> str:
    return model.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def _company(located: Sequence[NeuronSet], layer: int, index: int) -> tuple[Company, ...]:
    """The facts that have the neuron, those first in which it scores highest."""
    shared: list[tuple[NeuronSet, Neuron]] = [
        (neurons, neuron) for neurons in located for neuron in neurons.neurons if neuron.site == (layer, index)
    ]
    shared.sort(key=lambda pair: -pair[1].score)
    return tuple(
        Company(
            fact.fact or fact.prompt, fact.prompt, fact.target, fact.subject, neuron.score, neuron.kind, fact.separator
        )
        for fact, neuron in shared
    )


def _controls(scan: ActivationScan, layer: int, index: int, config: CardConfig) -> list[tuple[int, int]]:
    """Neurons of the layer that are about as often active, at random among the nearest fifth."""
    active = scan.active[scan.at(layer)]
    distance = (active - active[index]).abs().double()
    distance[index] = torch.inf
    near = distance.argsort(stable=True)[: max(1, len(distance) // 5)]
    near = near[distance[near] < torch.inf].tolist()
    rng = np.random.default_rng(config.seed)
    chosen = rng.choice(near, min(config.controls, len(near)), replace=False).tolist() if near else []
    return [(layer, other) for other in chosen]


def _following(scan: ActivationScan, row: int, position: int):
    """What follows a trigger, asked as a target; None at the end of its row."""
    ids = scan.rows[row]
    if position + 1 >= len(ids):
        return None
    return with_target_ids(Prompt("", ids[: position + 1], position), (ids[position + 1],))


def _effect(model: Model, site: tuple[int, int], controls: list[tuple[int, int]], queries: list) -> Effect | None:
    if not queries:
        return None
    answers = ScaledAnswers(model, queries)
    scaled = answers.scaled([[site], *([other] for other in controls)], 0.0)
    before, after = answers.probability, scaled[:, 0]
    others = scaled[:, 1:].mean(1) if controls else before
    return Effect(ratio_of_means(before, after), ratio_of_means(before, others))
