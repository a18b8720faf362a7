"""What an edit may do wrong, before it is applied (`preflight`) and after (`outcome`), and where to stop (`Guard`).

An edit of key k* with value δ changes the output at another key k by ΔW k; its *leak* there is ‖ΔW k‖ / ‖ΔW k*‖: 0
where k is left alone, 1 where it is changed as much as k*. Silent failures show in the figures: a subject that is the
first token has a key that resembles every other first token's; ‖ΔW‖ / ‖W‖ grows when k*ᵀC⁻¹k* is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources

import torch
from torch import Tensor

from ..errors import InputError, KnoweditError
from ..facts import Fact
from ..locate.rankings import rank
from ..models.adapter import Model
from ..models.length import positions
from ..models.passes.replay import capture
from ..recall.lens.projection import Aim, logit_lens, parting
from .apply import applied
from .delta import Delta
from .edit import Edit
from .preserved_keys import PreservedKeys, lookup_keys, preserved_keys
from .rewrite_quality import RewriteQuality, rewrite_quality

NEAREST = 5  # subjects
STRONGEST = 5  # neurons of the old answer
_ROW = 128  # tokens of the text that perplexity is measured on, at once, where the model has as many positions


class GuardError(KnoweditError):
    """An edit that a guard does not let through."""


@dataclass(frozen=True)
class Guard:
    """The most that an edit may do; chosen on development facts, well outside of what sound edits do.

    - `relative_norm`: ‖ΔW‖ / ‖W‖; `leak`: at the key of another known subject.
    - `perplexity`: relative rise on a plain text; `neighbours`: share of neighbours that turn to the new target.
    """

    relative_norm: float = 1.0
    leak: float = 0.9
    perplexity: float = 0.02
    neighbours: float = 0.5

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not isinstance(value, int | float) or not value > 0:
                raise InputError(f"the guard's {name} is {value!r}, expected a number above 0")


@dataclass(frozen=True)
class Near:
    """Another subject with a key like k*: their cosine, and the edit's leak there."""

    subject: str
    cosine: float
    leak: float


@dataclass(frozen=True)
class Preflight:
    """What can be known before an edit is applied.

    - `relative_norm`: the largest ‖ΔW‖ / ‖W‖ (Frobenius) of the edit's weights.
    - `k_C_inv_k`: k*ᵀC⁻¹k*, where the method has one: how unusual the key is.
    - `first`: the lookup position is the prompt's first token.
    - `nearest`: known subjects, and those of the fact's neighbours, with the largest leak.
    - `warnings`: what to think of, in words.
    """

    relative_norm: float
    k_C_inv_k: float | None
    first: bool
    nearest: tuple[Near, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class LensRow:
    """Probabilities of the old and the new target after one layer, by logit lens: of the first tokens that differ."""

    layer: int
    before_true: float
    before_new: float
    after_true: float
    after_new: float


@dataclass(frozen=True)
class OldNeuron:
    """One of the neurons that the old answer rested on most: gradient × activation for it, before and after."""

    layer: int
    index: int
    before: float
    after: float


@dataclass(frozen=True)
class Outcome:
    """The edit's own fact before and after, and perplexity on a plain text.

    `lens` and `neurons` tell whether the old answer survives elsewhere: both answers by layer at the read position, and
    the neurons that made the old one.
    """

    before: RewriteQuality
    after: RewriteQuality
    perplexity_before: float | None
    perplexity_after: float | None
    lens: tuple[LensRow, ...] | None = None
    neurons: tuple[OldNeuron, ...] | None = None

    @property
    def perplexity_change(self) -> float:
        """As a fraction; 0 where there is none."""
        return self.perplexity_after / self.perplexity_before - 1 if self.perplexity_before else 0.0

    @property
    def neighbours_lost(self) -> float:
        """The share of neighbours that preferred their own answer before and the new target after."""
        pairs = list(zip(self.before.neighbours, self.after.neighbours, strict=True))
        return sum(b.prefers_true and a.prefers_new for b, a in pairs) / len(pairs) if pairs else 0.0

    def as_dict(self) -> dict:
        return asdict(self)


def preflight(
    model: Model, edit: Edit, *, facts: Sequence[Fact] | None = None, preserved: PreservedKeys | None = None
) -> Preflight:
    """Look at `edit` beside the weights that it changes and the keys of other subjects, those of `facts` (built-in).

    `model` is not changed. `preserved` are those keys, if they are there already.
    """
    fact = _fact(edit)
    layers = model.down_layers()
    norms = [d.norm() / model.down_weight(layers[path]).float().norm().item() for path, d in edit.deltas.items()]
    prompt = model.encode(fact.prompt, fact.subject)
    path, delta = max(edit.deltas.items(), key=lambda item: item[1].norm())
    if preserved is None or preserved.layer != layers[path]:
        preserved = preserved_keys(model, layers[path], facts)
    near = [n for n in fact.neighbours if n.subject and n.subject in n.prompt]
    prompts = [prompt, *(model.encode(n.prompt, n.subject) for n in near)]
    k_star, *others = lookup_keys(model, layers[path], prompts)
    names = [*(n.subject for n in near), *preserved.subjects]
    nearest = _nearest(delta, k_star, names, [*others, *preserved.keys], fact.subject)
    first = prompt.lookup == 0
    return Preflight(
        relative_norm=max(norms),
        k_C_inv_k=edit.notes.get("k_C_inv_k"),
        first=first,
        nearest=nearest,
        warnings=tuple(_warnings(edit, layers[path], max(norms), first, nearest, Guard())),
    )


def outcome(model: Model, edit: Edit, *, lens: bool = False, text: str | None = None) -> Outcome:
    """Ask the edit's own fact, its paraphrases and its neighbours, and read a plain text, without and with `edit`.

    The model is as it was after; other edits that are on it stay on it. A masked model has no perplexity.
    """
    fact = _fact(edit)
    before = _asked(model, fact, lens, text)
    with applied(model, edit):
        after = _asked(model, fact, lens, text)
    if not lens:
        return Outcome(before.contrasts, after.contrasts, before.perplexity, after.perplexity)
    pairs = enumerate(zip(before.lens, after.lens, strict=True))
    strongest = before.scores.flatten().argsort(descending=True)[:STRONGEST].tolist()
    sites = [divmod(i, model.n_neurons) for i in strongest]
    return Outcome(
        before.contrasts,
        after.contrasts,
        before.perplexity,
        after.perplexity,
        tuple(LensRow(layer, *b, *a) for layer, (b, a) in pairs),
        tuple(OldNeuron(*site, before.scores[site].item(), after.scores[site].item()) for site in sites),
    )


def check(found: Preflight, after: Outcome | None, guard: Guard) -> None:
    """Raise `GuardError`, in one line, for an edit that does more than `guard` lets it."""
    if found.relative_norm > guard.relative_norm:
        raise GuardError(
            f"the edit changes its weight by {found.relative_norm:.2f} of its norm, the guard allows "
            f"{guard.relative_norm:g}; try another layer, more contexts or a longer prompt"
        )
    if found.nearest and found.nearest[0].leak > guard.leak:
        near = found.nearest[0]
        raise GuardError(
            f"the edit would change {near.subject!r} by {near.leak:.0%} of what it changes its own subject, the guard "
            f"allows {guard.leak:.0%}; name the subject more fully, or put words before it"
        )
    if after is None:
        return
    if after.perplexity_change > guard.perplexity:
        raise GuardError(
            f"perplexity on a plain text rises by {after.perplexity_change:.1%}, the guard allows "
            f"{guard.perplexity:.1%}; try another layer or prompt"
        )
    if after.neighbours_lost > guard.neighbours:
        raise GuardError(
            f"{after.neighbours_lost:.0%} of the neighbours turn to the new target, the guard allows "
            f"{guard.neighbours:.0%}; try another layer or prompt"
        )


@torch.no_grad()
def perplexity(model: Model, text: str | None = None) -> float:
    """exp(mean negative log-likelihood of a token) on `text`, by default a short plain one that ships with knowedit.

    Raises `InputError` for a masked model, which has none, and for a text of fewer than two tokens.
    """
    if model.masked:
        raise InputError(f"{model.name} is a masked model and has no perplexity; leave the text out")
    if text is None:
        text = resources.files("knowedit").joinpath("data", "plain_text.txt").read_text(encoding="utf-8")
    ids = model.encode(text).ids
    total, count, width = 0.0, 0, min(_ROW, positions(model) or _ROW)
    for start in range(0, len(ids) - 1, width):
        row = torch.tensor([ids[start : start + width + 1]], device=model.device)
        *_, output = capture(model, row[:, :-1])
        log_p = model.logits(model.normed(output)).float().log_softmax(-1)
        total -= log_p.gather(-1, row[:, 1:, None].to(log_p.device)).double().sum().item()
        count += row.shape[1] - 1
    if not count:
        raise InputError("perplexity needs a text of two tokens or more")
    return math.exp(total / count)


def _fact(edit: Edit) -> Fact:
    if len(edit.facts) != 1:
        raise InputError(f"the edit is of {len(edit.facts)} facts, expected one; look at edits one by one")
    return edit.facts[0]


def _nearest(
    delta: Delta, k_star: Tensor, subjects: Sequence[str], keys: Sequence[Tensor], subject: str
) -> tuple[Near, ...]:
    others = [i for i, name in enumerate(subjects) if name.casefold() != subject.casefold()]
    if not others:
        return ()
    keys = torch.stack([keys[i] for i in others])
    own = delta.of(k_star).norm().item()
    leaks = delta.of(keys).norm(dim=1) / max(own, 1e-30)
    cosines = torch.cosine_similarity(keys, k_star[None], dim=1)
    found: dict[str, Near] = {}
    for i in leaks.argsort(descending=True).tolist():
        name = subjects[others[i]]
        found.setdefault(name, Near(name, cosines[i].item(), leaks[i].item()))
        if len(found) == NEAREST:
            break
    return tuple(found.values())


def _warnings(edit: Edit, layer: int, norm: float, first: bool, nearest: Sequence[Near], guard: Guard):
    if first:
        yield (
            "the subject is the prompt's first token: its key resembles that of every other first token, so such edits "
            "are less specific; edit a prompt that has words before it" + (", or in layer 0" if layer else "")
        )
    if norm > guard.relative_norm:
        yield f"the weight changes by {norm:.2f} of its norm; sound edits change it by a few tenths"
    if nearest and nearest[0].leak > 0.5:
        yield f"{nearest[0].subject!r} is changed by {nearest[0].leak:.0%} of what the subject is"
    if edit.notes.get("probability", 1.0) < 0.5:
        yield f"the search ended with a probability of {edit.notes['probability']:.2f} for the new target"


@dataclass(frozen=True)
class _Asked:
    """What one state of the model says: `scores` (n_layers, n_neurons) are for the old answer."""

    contrasts: RewriteQuality
    perplexity: float | None
    lens: list[tuple[float, float]] | None
    scores: Tensor | None


def _asked(model: Model, fact: Fact, lens: bool, text: str | None) -> _Asked:
    (found,) = rewrite_quality(model, [fact])
    plain = None if model.masked else perplexity(model, text)
    if not lens:
        return _Asked(found, plain, None, None)
    return _Asked(found, plain, _lens(model, fact), rank(model, fact.prompt, fact.target, method="gradient"))


def _lens(model: Model, fact: Fact) -> list[tuple[float, float]]:
    """After each layer the probabilities of the two targets' tokens, the first that differ."""
    true, new = (model.query(fact.prompt, target, fact.subject) for target in (fact.target, fact.target_new))
    step = parting(true.target_ids, new.target_ids) or 0
    found = logit_lens(model, Aim(true.steps[step], true.target_ids[step], new.target_ids[step]), top=1)
    return list(zip(found.probability[1:, 0].tolist(), found.foil_probability[1:, 0].tolist(), strict=True))
