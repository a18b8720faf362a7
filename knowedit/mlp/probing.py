"""Does expansion help? How well a linear probe tells relations apart at each stage of an MLP.

A fact's prompts are read at one position (the read position by default) and a ridge classifier is trained to name the
fact's relation from the stage's vector there. What is tested is never what was trained on: in fold k the tested facts
are those of the k-th part of the subjects, asked by their k-th template, and the probe is trained on the other
subjects with the other templates. Without that a template's own words would give the relation away.

Ridge on one-hot classes y, with standardised features X (n, d) and K = X Xᵀ, in closed form:

    ŷ = K (K + λ)⁻¹ y,        leave-one-out residual (y − ŷ)_i / (1 − h_ii),        h = K (K + λ)⁻¹

λ is the one of `RIDGES` (times the mean eigenvalue) with the least leave-one-out error on the training part. More
dimensions alone can help a linear probe, so a *random* expansion stands beside the learned one: the same input through
Gaussian projections of the same row norms and the same nonlinearity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from ..display.result import Record, Table
from ..errors import InputError
from ..facts import Fact, fill
from ..models.adapter import Model
from ..models.expansion import Expansion, expansion, expansions
from ..progress import Progress, silent
from ..statistics import Estimate, rate
from .activations import collect

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
RANDOM = "random"


@dataclass(frozen=True)
class ProbeConfig:
    """`folds` of subjects and templates; `position` is `read` or `lookup`; `random`: the control; `seed` of both."""

    folds: int = 3
    position: str = "read"
    random: bool = True
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.folds, int) or self.folds < 2:
            raise InputError(f"the probe has {self.folds!r} folds, expected 2 or more")
        if self.position not in ("read", "lookup"):
            raise InputError(f"the probe reads position {self.position!r}, expected 'read' or 'lookup'")


@dataclass(frozen=True)
class RelationProbe(Record):
    """Accuracy on held-out subjects and templates.

    - `accuracy`: layer → stage → share of facts whose relation is named, with Wilson's interval over facts.
    - `relations`: how many facts of each were tested; `chance`: the share of the most frequent one.
    """

    position: str
    relations: dict[str, int]
    chance: float
    accuracy: dict[int, dict[str, Estimate]]

    def table(self, layer: int) -> Iterator[str | Table]:
        """The accuracy at the stages of one layer."""
        relations, n = len(self.relations), sum(self.relations.values())
        yield f"Linear probe of {relations} relations at layer {layer} (n = {n}, chance {self.chance:.1%}):"
        yield Table(("stage", "right"), [(stage, share.text("share")) for stage, share in self.accuracy[layer].items()])


def relation_probe(
    model: Model,
    facts: Sequence[Fact],
    config: ProbeConfig | None = None,
    layers: Sequence[int] | None = None,
    progress: Progress = silent,
) -> RelationProbe:
    """Probe the stages of `layers` (all by default) for the relation of `facts`.

    Facts without a relation or with fewer templates than folds do not count, and neither do relations with fewer facts
    than folds. Raises `InputError` where fewer than two relations are left. `progress` counts prompts.
    """
    config = config or ProbeConfig()
    chosen = [model.check_layer(layer) for layer in (range(model.n_layers) if layers is None else layers)]
    usable = usable_facts(facts, config.folds)
    names = sorted({f.relation for f in usable})
    fold = _folds(usable, config)
    prompts = [
        model.encode(fill(template, fact.subject), fact.subject)
        for fact in usable
        for template in templates(fact)[: config.folds]
    ]
    how_made = expansions(model) if layers is None else {layer: expansion(model, layer) for layer in chosen}
    values = collect(model, prompts, lambda p: [p.position(config.position)], how_made, progress=progress)
    labels = np.array([names.index(f.relation) for f in usable])
    accuracy = {}
    for layer in chosen:
        stages = values.pop(layer)
        if config.random:
            stages[RANDOM] = random_neurons(model, layer, how_made[layer], stages["input"], config.seed)
        accuracy[layer] = {stage: _accuracy(v.double().numpy(), labels, fold, config) for stage, v in stages.items()}
    counts = Counter(f.relation for f in usable)
    return RelationProbe(config.position, dict(sorted(counts.items())), max(counts.values()) / len(usable), accuracy)


def templates(fact: Fact) -> tuple[str, ...]:
    """The fact's templates, each once."""
    return tuple(dict.fromkeys((fact.template, *fact.paraphrases, *fact.heldout)))


def usable_facts(facts: Sequence[Fact], folds: int) -> list[Fact]:
    """The facts that a probe with `folds` folds is made of. Raises `InputError` where fewer than two relations are."""
    with_templates = [f for f in facts if f.relation and len(templates(f)) >= folds]
    subjects: dict[str, set[str]] = {}
    for fact in with_templates:
        subjects.setdefault(fact.relation, set()).add(fact.subject)
    kept = [f for f in with_templates if len(subjects[f.relation]) >= folds]
    if len({f.relation for f in kept}) < 2:
        raise InputError(
            f"a probe for relations needs facts of two relations or more, each with {folds} subjects and {folds} "
            f"templates; found {len({f.relation for f in kept})} among {len(facts)} facts"
        )
    return kept


def _folds(facts: Sequence[Fact], config: ProbeConfig) -> np.ndarray:
    """The fold of each fact. A subject is in one fold whatever its relation; each relation is spread over all folds."""
    rng = np.random.default_rng(config.seed)
    fold: dict[str, int] = {}
    for relation in sorted({f.relation for f in facts}):
        subjects = sorted({f.subject for f in facts if f.relation == relation})
        taken = Counter(fold[s] for s in subjects if s in fold)
        for subject in rng.permutation([s for s in subjects if s not in fold]).tolist():
            fold[subject] = min(range(config.folds), key=lambda k: taken[k])
            taken[fold[subject]] += 1
    return np.array([fold[f.subject] for f in facts])


@torch.no_grad()
def random_neurons(model: Model, layer: int, learned: Expansion, inputs: Tensor, seed: int) -> Tensor:
    """What a random expansion with the row norms of the learned one makes of `inputs` (values, d_model)."""
    generator = torch.Generator().manual_seed(seed + layer)
    block = model.blocks[layer]

    def drawn(path: str, half: int | None = None) -> Tensor:
        module = block.get_submodule(path)
        weight = module.weight if module.weight.shape[-1] == model.d_model else module.weight.T
        norms = weight.detach().float().norm(dim=1).cpu()
        norms = norms if half is None else norms.chunk(2)[half]
        directions = torch.randn(model.n_neurons, model.d_model, generator=generator)
        return inputs.float() @ (directions / directions.norm(dim=1, keepdim=True) * norms[:, None]).T

    if not learned.gated:
        return learned.neurons(drawn(learned.up), None)
    up = drawn(learned.up, 1 if learned.fused else None)
    return learned.neurons(up, drawn(learned.gate, 0 if learned.fused else None))


def _accuracy(features: np.ndarray, labels: np.ndarray, fold: np.ndarray, config: ProbeConfig) -> Estimate:
    """Over all folds; `features` are (facts × folds, width), a fact's templates one after the other."""
    features = features.reshape(len(labels), config.folds, -1)
    right: list[bool] = []
    for k in range(config.folds):
        test, train = fold == k, fold != k
        others = [t for t in range(config.folds) if t != k]
        x = features[train][:, others].reshape(-1, features.shape[-1])
        predicted = classify(x, np.repeat(labels[train], len(others)), features[test][:, k])
        right += (predicted == labels[test]).tolist()
    return rate(right)


def classify(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The classes of `new` (m, d) by ridge on `x` (n, d) with classes `y` (n,), its strength by leave-one-out."""
    mean, spread = x.mean(0), x.std(0)
    # what does not vary in training says nothing, and its rounding must not be blown up
    scale = np.where(spread > 1e-6 * (np.abs(mean) + 1e-12), spread, np.inf)
    x, new = (x - mean) / scale, (new - mean) / scale
    classes = np.unique(y)
    target = (y[:, None] == classes).astype(np.float64)
    offset = target.mean(0)
    eigenvalues, vectors = linalg.eigh(x @ x.T)
    eigenvalues = np.clip(eigenvalues, 0, None)
    inside = vectors.T @ (target - offset)
    best = None
    for ridge in RIDGES:
        shrink = eigenvalues / (eigenvalues + ridge * (eigenvalues.mean() or 1.0))
        fitted = vectors @ (shrink[:, None] * inside) + offset
        leverage = np.minimum((vectors**2) @ shrink + 1 / len(y), 1 - 1e-9)
        error = (((target - fitted) / (1 - leverage)[:, None]) ** 2).mean()
        if best is None or error < best[0]:
            best = error, inside / (eigenvalues + ridge * (eigenvalues.mean() or 1.0))[:, None]
    return classes[(new @ x.T @ vectors @ best[1] + offset).argmax(1)]
