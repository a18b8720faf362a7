"""What an edit may do wrong, before it is applied (`preflight`), and what it did (`outcome`).

An edit of key k* with value δ changes the output at another key k by ΔW k; its *leak* there is ‖ΔW k‖ / ‖ΔW k*‖: 0
where k is left alone, 1 where it is changed as much as k*. Silent failures show in the figures: a subject that is the
first token has a key that resembles every other first token's; ‖ΔW‖ / ‖W‖ grows when k*ᵀC⁻¹k* is small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources

import torch
from torch import Tensor

from ..errors import InputError
from ..facts import Fact
from ..locate.rankings import rank
from ..models.adapter import Model
from ..models.length import positions
from ..models.passes.replay import capture
from ..recall.lens.projection import Aim, logit_lens, parting
from ..writing.mentions import mention
from .apply import applied
from .delta import Delta
from .edit import Edit
from .preserved_keys import PreservedKeys, lookup_keys, preserved_keys
from .rewrite_quality import RewriteQuality, is_won, rewrite_quality

NEAREST = 5  # subjects
STRONGEST = 5  # neurons of the old answer
LARGE = 1.0  # ‖ΔW‖ / ‖W‖ beyond what sound edits do
_ROW = 128  # tokens of the text that perplexity is measured on, at once, where the model has as many positions


@dataclass(frozen=True)
class Near:
    """Another subject, the cosine of its key with k*, and the edit's leak there."""

    subject: str
    cosine: float
    leak: float


@dataclass(frozen=True)
class KeyCheck:
    """What an edit does at the keys of one of its facts, and of others like it.

    - `k_C_inv_k`: k*ᵀC⁻¹k*, where the method has one: how unusual the key is.
    - `first`: the lookup position is the prompt's first token.
    - `nearest`: the subjects with the largest leak, of known subjects and those of the fact's neighbours.
    """

    k_C_inv_k: float | None
    first: bool
    nearest: tuple[Near, ...]


@dataclass(frozen=True)
class Preflight:
    """What can be known before an edit is applied.

    - `relative_norm`: the largest ‖ΔW‖ / ‖W‖ (Frobenius) of the edit's weights.
    - `facts`: of each of the edit's facts what happens at its key.
    - `warnings`: what to think of, in words.
    """

    relative_norm: float
    facts: tuple[KeyCheck, ...]
    warnings: tuple[str, ...]

    @property
    def worst(self) -> Near | None:
        """The subject with the largest leak of all."""
        return max((near for fact in self.facts for near in fact.nearest), key=lambda near: near.leak, default=None)

    def as_dict(self) -> dict:
        return asdict(self)

    def fact_dict(self, i: int = 0) -> dict:
        """What concerns one of the facts, for JSON."""
        return {"relative_norm": self.relative_norm, **asdict(self.facts[i]), "warnings": self.warnings}


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
class FactOutcome:
    """One of an edit's facts before and after.

    `lens` and `neurons` tell whether the old answer survives elsewhere: both answers by layer at the read position, and
    the neurons that made the old one.
    """

    before: RewriteQuality
    after: RewriteQuality
    lens: tuple[LensRow, ...] | None = None
    neurons: tuple[OldNeuron, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """Each of an edit's facts before and after, and perplexity on a plain text."""

    facts: tuple[FactOutcome, ...]
    perplexity_before: float | None
    perplexity_after: float | None

    @property
    def perplexity_change(self) -> float:
        """As a fraction; 0 where there is none."""
        return self.perplexity_after / self.perplexity_before - 1 if self.perplexity_before else 0.0

    @property
    def efficacy(self) -> float:
        """The share of facts whose new answer is, token by token, the model's first choice after."""
        return sum(fact.after.prompt.says_new for fact in self.facts) / len(self.facts)

    @property
    def paraphrases_won(self) -> float:
        """The share of paraphrases that prefer the new answer after, and give it more than before; 1 of none."""
        pairs = [pair for f in self.facts for pair in zip(f.before.paraphrases, f.after.paraphrases, strict=True)]
        return sum(is_won(b.p_new, a.p_new, a.p_true) for b, a in pairs) / len(pairs) if pairs else 1.0

    @property
    def neighbours_lost(self) -> float:
        """The share of neighbours that preferred their own answer before and the new target after."""
        pairs = [pair for f in self.facts for pair in zip(f.before.neighbours, f.after.neighbours, strict=True)]
        return sum(before.prefers_true and after.prefers_new for before, after in pairs) / len(pairs) if pairs else 0.0

    def as_dict(self) -> dict:
        return asdict(self)


def preflight(
    model: Model, edit: Edit, *, facts: Sequence[Fact] | None = None, preserved: PreservedKeys | None = None
) -> Preflight:
    """Look at `edit` beside the weights that it changes and the keys of other subjects, those of `facts` (built-in).

    `model` is not changed. `preserved` are those keys, if they are there already. An edit of several layers is looked
    at where it changes most. Raises `InputError` for an edit without facts.
    """
    _check_facts(edit)
    layers = model.down_layers()
    norms = [d.norm() / model.down_weight(layers[path]).float().norm().item() for path, d in edit.deltas.items()]
    path, delta = max(edit.deltas.items(), key=lambda item: item[1].norm())
    layer = layers[path]
    if preserved is None or preserved.layer != layer:
        preserved = preserved_keys(model, layer, facts)
    checks = _key_checks(model, layer, edit, delta, preserved)
    return Preflight(max(norms), checks, tuple(_warnings(edit, layer, max(norms), checks)))


def outcome(model: Model, edit: Edit, *, lens: bool = False, text: str | None = None) -> Outcome:
    """Ask the edit's own facts, their paraphrases and neighbours, and read a plain text, without and with `edit`.

    The model is as it was after; other edits that are on it stay on it. A masked model has no perplexity. Raises
    `InputError` for an edit without facts.
    """
    _check_facts(edit)
    before = _state(model, edit.facts, lens, text)
    with applied(model, edit):
        after = _state(model, edit.facts, lens, text)
    facts = zip(before.facts, after.facts, strict=True)
    return Outcome(tuple(_fact_outcome(model, *pair) for pair in facts), before.perplexity, after.perplexity)


@torch.no_grad()
def perplexity(model: Model, text: str | None = None) -> float:
    """exp(mean negative log-likelihood of a token) on `text`, by default a short plain one that ships with knowedit.

    A long text is cut into rows. Where texts begin with a special token every row does: without it Gemma is lost.

    Raises `InputError` for a masked model, which has none, and for a text of fewer than two tokens.
    """
    if model.masked:
        raise InputError(f"{model.name} is a masked model and has no perplexity; leave the text out")
    if text is None:
        text = resources.files("knowedit").joinpath("data", "plain_text.txt").read_text(encoding="utf-8")
    ids = model.encode(text).ids
    total, count, width = 0.0, 0, min(_ROW, positions(model) or _ROW)
    for start in range(0, len(ids) - 1, width):
        begins = ids[0] if ids[0] in model.tokenizer.all_special_ids else ids[start]
        row = torch.tensor([[begins, *ids[start + 1 : start + width + 1]]], device=model.device)
        *_, output = capture(model, row[:, :-1])
        log_p = model.logits(model.normed(output)).float().log_softmax(-1)
        total -= log_p.gather(-1, row[:, 1:, None].to(log_p.device)).double().sum().item()
        count += row.shape[1] - 1
    if not count:
        raise InputError("perplexity needs a text of two tokens or more")
    return math.exp(total / count)


def _check_facts(edit: Edit) -> None:
    if not edit.facts:
        raise InputError("the edit names no fact, expected one or more to ask; give it those that it was made for")


def _key_checks(model: Model, layer: int, edit: Edit, delta: Delta, preserved: PreservedKeys) -> tuple[KeyCheck, ...]:
    """What `delta` does at the key of each fact, its neighbours and the preserved keys, all in one product."""
    named = [i for i, fact in enumerate(edit.facts) if fact.subject is not None]  # others have no key
    prompts = [model.encode(edit.facts[i].prompt, edit.facts[i].subject) for i in named]
    near = [(i, n) for i in named for n in edit.facts[i].neighbours if n.subject and mention(n.prompt, n.subject)]
    keys = lookup_keys(model, layer, [*prompts, *(model.encode(n.prompt, n.subject) for _, n in near)])
    edited = {edit.facts[i].subject.casefold() for i in named}  # which are meant to change
    subjects = [(i, n.subject) for i, n in near] + [(None, subject) for subject in preserved.subjects]
    kept = [row for row, (_, subject) in enumerate(subjects) if subject.casefold() not in edited]
    subjects = [subjects[row] for row in kept]
    others = torch.cat([keys[len(prompts) :], preserved.keys])[kept]
    moved = delta.of(others).norm(dim=1)
    k_C_inv_k = edit.notes.get("k_C_inv_k")  # of an edit of several facts, one for each
    k_C_inv_k = k_C_inv_k if isinstance(k_C_inv_k, list | tuple) else [k_C_inv_k] * len(edit.facts)
    checks = [KeyCheck(value, False, ()) for value in k_C_inv_k]
    for i, prompt, k_star in zip(named, prompts, keys, strict=False):
        rows = [row for row, (owner, _) in enumerate(subjects) if owner in (None, i)]
        leaks = moved[rows] / max(delta.of(k_star).norm().item(), 1e-30)
        cosines = torch.cosine_similarity(others[rows], k_star[None], dim=1)
        nearest = _nearest([subjects[row][1] for row in rows], leaks, cosines)
        checks[i] = KeyCheck(checks[i].k_C_inv_k, prompt.lookup == 0, nearest)
    return tuple(checks)


def _nearest(subjects: Sequence[str], leaks: Tensor, cosines: Tensor) -> tuple[Near, ...]:
    """The subjects with the largest leaks, each once."""
    nearest: dict[str, Near] = {}
    for i in leaks.argsort(descending=True).tolist():
        nearest.setdefault(subjects[i], Near(subjects[i], cosines[i].item(), leaks[i].item()))
        if len(nearest) == NEAREST:
            break
    return tuple(nearest.values())


def _warnings(edit: Edit, layer: int, norm: float, checks: Sequence[KeyCheck]) -> Iterator[str]:
    several = len(checks) > 1
    for fact, key in zip(edit.facts, checks, strict=True):
        what = f"{fact.subject!r}" if several else "the subject"
        if key.first:
            yield (
                f"{what} is the prompt's first token: its key resembles that of every other first token, so such edits "
                "are less specific; edit a prompt that has words before it" + (", or in layer 0" if layer else "")
            )
    if norm > LARGE:
        yield f"the weight changes by {norm:.2f} of its norm; sound edits change it by a few tenths"
    for fact, key in zip(edit.facts, checks, strict=True):
        if key.nearest and key.nearest[0].leak > 0.5:
            own = f"{fact.subject!r}" if several else "its own subject"
            yield f"the edit moves {key.nearest[0].subject!r} {key.nearest[0].leak:.0%} as much as {own}"
    probability = edit.notes.get("probability", 1.0)
    if isinstance(probability, float) and probability < 0.5:
        yield f"the search ended with a probability of {probability:.2f} for the new target"


@dataclass(frozen=True)
class _FactState:
    """What one state of the model says of one fact: `scores` (n_layers, n_neurons) are for the old answer."""

    quality: RewriteQuality
    lens: list[tuple[float, float]] | None
    scores: Tensor | None


@dataclass(frozen=True)
class _State:
    """What one state of the model says."""

    facts: tuple[_FactState, ...]
    perplexity: float | None


def _state(model: Model, facts: Sequence[Fact], lens: bool, text: str | None) -> _State:
    plain = None if model.masked else perplexity(model, text)
    states = tuple(
        _FactState(
            quality,
            _lens(model, fact) if lens else None,
            rank(model, fact.prompt, fact.target, method="gradient") if lens else None,
        )
        for fact, quality in zip(facts, rewrite_quality(model, facts), strict=True)
    )
    return _State(states, plain)


def _fact_outcome(model: Model, before: _FactState, after: _FactState) -> FactOutcome:
    if before.lens is None:
        return FactOutcome(before.quality, after.quality)
    strongest = before.scores.flatten().argsort(descending=True)[:STRONGEST].tolist()
    sites = [divmod(i, model.n_neurons) for i in strongest]
    return FactOutcome(
        before.quality,
        after.quality,
        tuple(LensRow(layer, *b, *a) for layer, (b, a) in enumerate(zip(before.lens, after.lens, strict=True))),
        tuple(OldNeuron(site[0], site[1], before.scores[site].item(), after.scores[site].item()) for site in sites),
    )


def _lens(model: Model, fact: Fact) -> list[tuple[float, float]]:
    """After each layer the probabilities of the two targets' tokens, the first that differ."""
    true, new = (model.query_of(fact, target) for target in (fact.target, fact.target_new))
    step = parting(true.target_ids, new.target_ids) or 0
    aim = Aim(true.steps[step], true.target_ids[step], new.target_ids[step])
    projection = logit_lens(model, aim, top=1)
    pairs = zip(projection.probability[1:, 0].tolist(), projection.foil_probability[1:, 0].tolist(), strict=True)
    return list(pairs)
