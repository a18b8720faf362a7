"""Which layer to edit? The one whose edits do best on a few facts that the model knows.

Causal tracing does not tell (Hase et al. 2023, arXiv 2301.04213), so every candidate layer is tried: each development
fact is edited there and asked again, and the layer with the largest Score wins, the harmonic mean of efficacy,
paraphrase and neighbourhood success (Meng et al. 2022). Scores are kept in the cache under the model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from ...errors import InputError
from ...facts import Fact
from ...hooks import unaltered
from ...models.adapter import Model
from ...models.cache import key_of, read_json, write_json
from ...progress import Progress, silent
from ...selection import by_relation, choose, known
from ...sources import builtin_facts
from ...statistics import harmonic_mean
from ..apply import applied, edits_on
from ..covariance import Covariance, covariance
from ..preserved_keys import PreservedKeys, preserved_keys
from ..rewrite_quality import PARTS, paraphrases_of, rates, rewrite_quality
from .rome import RomeConfig, rome_many, with_contexts
from .v_star import OutOfReachError

FACTS = 6
CANDIDATES = 8


@dataclass(frozen=True)
class LayerScore:
    """What the edits of one layer reach: `ES`, `PS` and `NS` fact by fact, each from 0 to 1, in the facts' order."""

    layer: int
    ES: tuple[float, ...]
    PS: tuple[float, ...]
    NS: tuple[float, ...]

    @property
    def parts(self) -> np.ndarray:
        """(facts, 3)."""
        return np.array([self.ES, self.PS, self.NS]).T

    @property
    def score(self) -> float:
        """The harmonic mean of the three means over facts, ROME's Score; 0 where one of these is."""
        return float(harmonic_mean(self.parts.mean(0)))


def best_layer(
    model: Model,
    layers: Sequence[int] | None = None,
    *,
    facts: Sequence[Fact] | None = None,
    config: RomeConfig | None = None,
    progress: Progress = silent,
) -> int:
    """The layer that is best to edit. `layers`, `facts` and `config` are as `layer_scores` takes them."""
    scores = layer_scores(model, layers, facts=facts, config=config, progress=progress)
    return max(scores, key=lambda s: (s.score, -s.layer)).layer


def layer_scores(
    model: Model,
    layers: Sequence[int] | None = None,
    *,
    facts: Sequence[Fact] | None = None,
    config: RomeConfig | None = None,
    covariances: dict[int, Covariance] | None = None,
    progress: Progress = silent,
) -> list[LayerScore]:
    """Score candidate `layers`, by default eight in the lower two thirds of the model.

    `facts` have a `target_new`, paraphrases and neighbours; by default the first built-in ones that the model knows,
    one of each relation in turn. A layer from which nothing reaches the answer of one of them scores 0.
    `progress` counts layers. Raises `InputError` where there are no facts, and for a model that has edits on it.
    """
    if layers is None:
        top = max(1, 2 * model.n_layers // 3)
        layers = sorted({round(i * (top - 1) / (CANDIDATES - 1)) for i in range(CANDIDATES)})
    layers = [model.check_layer(layer) for layer in layers]
    config = config or RomeConfig(contexts=2)
    if edits_on(model):
        raise InputError(f"{model.name} has edits on it, expected none while layers are tried; revert them first")
    chosen = tuple(facts) if facts is not None else tuple(_development(model))
    if not chosen:
        raise InputError(f"{model.name} knows none of the facts that layers are tried on; give a layer, or facts")
    for fact in chosen:
        if not paraphrases_of(fact, heldout=False) or not fact.neighbours:
            raise InputError(
                f"{fact.id or fact.prompt!r} has no paraphrase or no neighbour, expected both to try layers on it"
            )
    weights_hash = model.weights_hash()
    key = key_of({"weights": weights_hash, "config": config.as_dict(), "facts": [f.as_dict() for f in chosen]})
    keeps = unaltered(model.hf, weights_hash) is not None
    kept = _kept(key) if keeps else {}
    missing = [layer for layer in layers if layer not in kept]
    if missing:
        covariances = covariances or covariance(model, missing, weights_hash=weights_hash)
        config = with_contexts(model, config, weights_hash)
    for done, layer in enumerate(missing, len(layers) - len(missing) + 1):
        preserved = preserved_keys(model, layer, None if config.preserve else (), weights_hash=weights_hash)
        kept[layer] = _score(model, chosen, replace(config, layer=layer), covariances[layer], preserved)
        progress(done)
        if keeps:
            write_json("layers", key, [asdict(score) for score in kept.values()])
    return [kept[layer] for layer in layers]


def _score(
    model: Model, facts: Sequence[Fact], config: RomeConfig, C: Covariance, preserved: PreservedKeys
) -> LayerScore:
    qualities = []
    try:
        edits = rome_many(model, facts, config, covariance=C, preserved=preserved)
    except OutOfReachError:
        return LayerScore(config.layer, *[(0.0,) * len(facts)] * len(PARTS))
    for fact, edit in zip(facts, edits, strict=True):
        with applied(model, edit):
            qualities += rewrite_quality(model, [fact], heldout=False)
    by_name = rates(qualities)
    return LayerScore(config.layer, *(tuple(by_name[name]) for name in PARTS))


def _development(model: Model) -> list[Fact]:
    """The first built-in facts that the model knows, one of each relation in turn."""
    groups = [group[:: max(1, len(group) // 24)] for group in by_relation(builtin_facts()).values()]
    in_turn = [fact for one_of_each in zip(*groups, strict=False) for fact in one_of_each if _can_be_asked(model, fact)]
    return choose(in_turn, limit=FACTS, keep=partial(known, model))


def _can_be_asked(model: Model, fact: Fact) -> bool:
    try:
        model.query_of(fact)
    except InputError:  # a subject or target that this tokenizer leaves nothing of
        return False
    return True


def _kept(key: str) -> dict[int, LayerScore]:
    """Scores of an earlier run, by layer."""
    records = read_json("layers", key) or []
    return {
        record["layer"]: LayerScore(record["layer"], *(tuple(record[name]) for name in PARTS)) for record in records
    }
