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

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ...errors import InputError, ModelError
from ...facts import Fact
from ...locate.scaled_answers import ScaledAnswers
from ...models.adapter import Model
from ...sources import builtin_facts
from .extraction_events import Extraction, extraction
from .knockout import Knockout, attention_knockout, check_window, source_sets, sublayer_knockout
from .subject_enrichment import Attributes, Enrichment, EnrichmentConfig, Vocabulary, attributes_of, enrichment

_CLEAR = 0.01  # a change of the probability below which nothing is said to be lost


@dataclass(frozen=True)
class RecallConfig:
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

    def as_dict(self) -> dict:
        return asdict(self)


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
            "stages": [asdict(stage) for stage in self.stages],
            "enrichment": self.enrichment.as_dict(),
            "propagation": self.edges.as_dict(),
            "sublayers": self.sublayers.as_dict(),
            "extraction": self.extraction.as_dict(),
            "config": self.config.as_dict(),
        }


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
    query = model.query(fact.prompt, fact.target, fact.subject)
    prompt = query.prompt
    if prompt.lookup == prompt.read:
        raise InputError(
            f"nothing follows the subject in {fact.prompt!r}, so nothing has to reach the last token; "
            "ask by a prompt that goes on behind the subject"
        )
    edges = attention_knockout(model, query, sources=source_sets(query), window=window)
    own = attributes or attributes_of(fact, builtin_facts() if facts is None else facts)
    return Recall(
        model=model.name,
        fact=fact.id,
        prompt=fact.prompt,
        subject=fact.subject,
        target=fact.target,
        probability=edges.probability,
        known=ScaledAnswers(model, query).known,
        tokens=tuple(model.tokenizer.decode([i]) for i in prompt.ids),
        lookup=prompt.lookup,
        read=prompt.read,
        enrichment=enrichment(model, prompt, own, EnrichmentConfig(config.top, window), vocabulary),
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


def _enriched(found: Recall) -> str:
    rich = found.enrichment
    peak = rich.peak
    if rich.rate[peak]:
        words = ", ".join(rich.found[peak][:5])
        control = "" if rich.control[peak] is None else f", {rich.control[peak]:.1%} are those of others"
        text = f"{rich.rate[peak]:.0%} of the first words are attributes after layer {peak} ({words}){control}."
    else:
        text = f"None of the {rich.attributes} attributes is among the first words after any layer."
    if (last := rich.separation[-1]) is not None:
        text += f" An attribute beats another subject's with chance {last:.0%} after the last layer"
        text += f" ({rich.separation[0]:.0%} after the first)."
    costs = [_cost(found.sublayers, name, f"the {title} there") for name, title in _SUBLAYERS.items()]
    return f"{text} Silencing {', '.join(costs)}."


_SUBLAYERS = {"mlp": "MLPs", "attention": "attention"}
_SETS = {
    "relation": "the rest of the prompt",
    "subject": "the subject",
    "last": "itself",
    "first": "the first token alone",
}


def _propagated(found: Recall) -> str:
    parts = [_cost(found.edges, name, title) for name, title in _SETS.items() if name in found.edges.after]
    return f"Hiding from the last token {', '.join(parts)}."


def _cost(knockout: Knockout, name: str, title: str) -> str:
    layer, change = knockout.worst(name)
    if change is None or change > -_CLEAR:
        return f"{title} costs nothing"
    return f"{title} costs most around layer {layer} ({change:+.0%})"


def _extracted(found: Extraction) -> str:
    told = [
        f"{title} {', '.join(map(str, found.layers(name)))}"
        for name, title in (("attention", "attention of layer"), ("mlp", "the MLP of layer"))
        if found.layers(name)
    ]
    if found.heads:
        told.append("head " + ", ".join(f"{layer}.{head}" for layer, head in found.heads))
    if not told:
        return f"Nothing that a layer or a head adds at the last token promotes {found.answer!r} most of all tokens."
    return f"{found.answer!r} is what is promoted most by {'; by '.join(told)}."
