"""How one fact is recalled, in three stages (Geva et al. 2023): enrichment, propagation, extraction.

1. *Enrichment*: early MLPs put attributes of the subject into the representation of its last token.
2. *Propagation*: what the prompt asks for, then the subject's attributes, reach the last token by attention.
3. *Extraction*: attention at the last token picks the answer out of what it sees, and MLPs strengthen it.

    found = recall_fact(model, knowedit.find_fact("landmark-city/eiffel-tower"))
    for stage in found.stages:
        print(stage.name, stage.text)

The stages are a hypothesis about larger models. What is told of a model is what was measured in it, whether it fits
the hypothesis or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...display.result import Record, Table, plain
from ...errors import InputError, ModelError
from ...facts import Fact
from ...models.adapter import Model
from ...models.passes.scaled_answers import ScaledAnswers
from ...sources import builtin_facts
from .extraction_events import Extraction, extraction
from .knockout import Knockout, attention_knockout, check_window, source_sets, sublayer_knockout
from .subject_enrichment import Attributes, Enrichment, EnrichmentConfig, Vocabulary, attributes_of, enrichment

_CLEAR = 0.01  # a change of the probability below which nothing is said to be lost


@dataclass(frozen=True)
class RecallConfig(Record):
    """How recall is measured.

    - `window`: layers in a knockout's window; some 18 % of all by default.
    - `top`: first words in which attributes are looked for.
    - `normed`: read updates through the final norm when looking for extraction events; the paper does not.
    """

    window: int | None = None
    top: int = 50
    normed: bool = False

    def __post_init__(self):
        EnrichmentConfig(self.top)


@dataclass(frozen=True)
class Stage:
    """One stage in words: `name` is enrichment, propagation or extraction."""

    name: str
    text: str


@dataclass(frozen=True)
class Recall:
    """The three stages of one fact.

    - `probability`: of the target; `known`: its first token is the model's first choice.
    - `tokens`: of the prompt; `lookup`, `read`: the subject's last token, and where the answer is read.
    - `edges`, `sublayers`: the answer after attention knockouts at the read position, and after sublayer knockouts at
      the lookup position.
    """

    model: str
    fact: str | None
    prompt: str
    subject: str
    target: str
    probability: float
    known: bool
    tokens: tuple[str, ...]
    lookup: int
    read: int
    enrichment: Enrichment
    edges: Knockout
    sublayers: Knockout
    extraction: Extraction
    config: RecallConfig

    @property
    def stages(self) -> tuple[Stage, Stage, Stage]:
        """The three stages, told from the numbers."""
        return (
            Stage("enrichment", _enriched(self)),
            Stage("propagation", _propagated(self)),
            Stage("extraction", _extracted(self.extraction)),
        )

    def as_dict(self) -> dict:
        return {
            "model": self.model,
            "fact": self.fact,
            "prompt": self.prompt,
            "subject": self.subject,
            "target": self.target,
            "probability": self.probability,
            "known": self.known,
            "tokens": list(self.tokens),
            "lookup": self.lookup,
            "read": self.read,
            "stages": plain(self.stages),
            "enrichment": self.enrichment.as_dict(),
            "propagation": self.edges.as_dict(),
            "sublayers": self.sublayers.as_dict(),
            "extraction": self.extraction.as_dict(),
            "config": self.config.as_dict(),
        }

    def table(self) -> Iterator[str | Table]:
        """The stages in words, and what was measured layer by layer."""
        known = "" if self.known else ", not its first choice"
        yield f"{self.prompt} → {self.target}   p = {self.probability:.3f}{known}   ({self.model})"
        for stage in self.stages:
            yield ""
            yield f"{stage.name.capitalize()}: {stage.text}"
        yield ""
        knockouts = {f"hide {name}": self.edges.change(name) for name in self.edges.after}
        knockouts |= {f"no {name}": self.sublayers.change(name) for name in self.sublayers.after}
        rows = []
        for layer, (rate, separation) in enumerate(zip(self.enrichment.rate, self.enrichment.separation, strict=True)):
            changes = ["" if row[layer] is None else f"{row[layer]:+.0%}" for row in knockouts.values()]
            shares = f"{rate:.0%}", "" if separation is None else f"{separation:.0%}"
            rows.append((layer, *shares, *changes, ", ".join(self.extraction.at(layer))))
        title = f"By layer; knockouts take {self.edges.window} around it and change p(answer)"
        yield Table(("layer", "attributes", "separation", *knockouts, "extraction"), rows, title)

    def figure(self, path: str | Path) -> Path:
        """Draw the three stages by layer."""
        from .figure import recall_figure

        return recall_figure(path, self)


def recall_fact(
    model: Model,
    fact: Fact,
    attributes: Attributes | None = None,
    config: RecallConfig | None = None,
    *,
    facts: Sequence[Fact] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Recall:
    """Measure the three stages for one fact, asked by its main prompt.

    `attributes` are those of the subject, by default the answers of `facts` (the built-in ones) about it. `vocabulary`
    is `content_vocabulary(model)`, to be made once for many facts.

    Raises `ModelError` for masked models and where attention cannot be blocked, `InputError` for a prompt in which
    nothing follows the subject, that is too long, or a window that the model has not.
    """
    config = config or RecallConfig()
    check_recall(model)
    window = check_window(model, config.window)
    fact.subject_for("recall")
    query = model.query_of(fact)
    prompt = query.prompt
    if prompt.lookup == prompt.read:
        raise InputError(
            f"nothing follows the subject in {fact.prompt!r}, so nothing has to reach the last token; "
            "ask by a prompt that goes on behind the subject"
        )
    edges = attention_knockout(model, query, sources=source_sets(query), window=window)
    attributes = attributes or attributes_of(fact, builtin_facts() if facts is None else facts)
    return Recall(
        model=model.name,
        fact=fact.id,
        prompt=fact.prompt,
        subject=fact.subject,
        target=fact.target,
        probability=edges.probability,
        known=bool(ScaledAnswers(model, [query]).known[0]),
        tokens=tuple(model.token(i) for i in prompt.ids),
        lookup=prompt.lookup,
        read=prompt.read,
        enrichment=enrichment(model, prompt, attributes, EnrichmentConfig(config.top, window), vocabulary),
        edges=edges,
        sublayers=sublayer_knockout(model, query, window=window),
        extraction=extraction(model, query, normed=config.normed),
        config=config,
    )


def check_recall(model: Model) -> None:
    """Raise `ModelError` for masked models."""
    if model.masked:
        raise ModelError(
            f"{model.name} is a masked model, in which every token sees every other: no stage ends at a last token; "
            "take a decoder, or knock out edges by knowedit.attention_knockout"
        )


# ---------------------------------------------------------------- in words


def _enriched(recall: Recall) -> str:
    enrichment = recall.enrichment
    peak = enrichment.peak
    if enrichment.rate[peak]:
        words = ", ".join(enrichment.found[peak][:5])
        control = enrichment.control[peak]
        others = "" if control is None else f", {control:.1%} are those of others"
        text = f"{enrichment.rate[peak]:.0%} of the first words are attributes after layer {peak} ({words}){others}."
    else:
        text = f"No attribute is among the first words after any layer ({enrichment.attributes} known)."
    if (last := enrichment.separation[-1]) is not None:
        text += f" An attribute beats another subject's with chance {last:.0%} after the last layer"
        text += f" ({enrichment.separation[0]:.0%} after the first)."
    costs = [_cost(recall.sublayers, name, f"the {title} there") for name, title in _SUBLAYERS.items()]
    return f"{text} Silencing {', '.join(costs)}."


_SUBLAYERS = {"mlp": "MLPs", "attention": "attention"}
_SETS = {
    "relation": "the rest of the prompt",
    "subject": "the subject",
    "last": "itself",
    "first": "the first token alone",
}


def _propagated(recall: Recall) -> str:
    parts = [_cost(recall.edges, name, title) for name, title in _SETS.items() if name in recall.edges.after]
    return f"Hiding from the last token {', '.join(parts)}."


def _cost(knockout: Knockout, name: str, title: str) -> str:
    layer, change = knockout.worst(name)
    if change is None or change > -_CLEAR:
        return f"{title} costs nothing"
    return f"{title} costs most around layer {layer} ({change:+.0%})"


def _extracted(extraction: Extraction) -> str:
    events = [
        f"{title} {', '.join(map(str, extraction.layers(name)))}"
        for name, title in (("attention", "attention of layer"), ("mlp", "the MLP of layer"))
        if extraction.layers(name)
    ]
    if extraction.heads:
        events.append("head " + ", ".join(f"{layer}.{head}" for layer, head in extraction.heads))
    answer = repr(extraction.answer)
    if not events:
        return f"Nothing that a layer or a head adds at the last token promotes {answer} most of all tokens."
    return f"{answer} is what is promoted most by {'; by '.join(events)}."
