"""What is read from the rows of a sweep: F and its gradient, without ever holding their logits.

The vocabulary is gone through in blocks, as in flash attention: a running maximum m, the sum of exp(z − m) and the
sum of exp(z − m)·U over all tokens but the target, U the unembedding. With S the full sum,

    log p_t = z_t − m − log S,      ∂ log p_t / ∂x = (1 − p_t) U_t − Σ_{v≠t} p_v U_v.

Leaving the target out of the sums keeps 1 − p_t exact where p_t is close to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter import Model

KINDS = ("probability", "log_probability", "logit", "logit_difference")
BLOCK = 2048  # tokens of the vocabulary at a time: rows × BLOCK logits stay in the processor's cache


@dataclass(frozen=True)
class Objective:
    """The quantity F: `probability`, `log_probability` or `logit` of `target`, or `logit_difference` to `foil`."""

    kind: str
    target: int
    foil: int | None = None


@dataclass(frozen=True)
class Read:
    """What `read_rows` returns: `normed` (rows, reads, d_model), F as `value` (rows,), dF/dnormed as `gradient`."""

    normed: Tensor
    value: Tensor
    gradient: Tensor | None


def read_rows(
    model: Model, hidden: Tensor, reads: Sequence[int], objectives: Sequence[Objective], gradient: bool = False
) -> Read:
    """F of the rows of `hidden` (rows, suffix, d_model), read at the suffix positions `reads`, one `Objective` each.

    Several probabilities are multiplied (a target's conditionals make its joint probability), other quantities added.
    """
    normed = model.normed(hidden[:, list(reads)])
    parts = [evaluate(model, normed[:, j], objective, gradient) for j, objective in enumerate(objectives)]
    values = torch.stack([value for value, _ in parts], dim=1)
    if objectives[0].kind == "probability":
        value, others = values.prod(1), _products_of_others(values)
    else:
        value, others = values.sum(1), torch.ones_like(values)
    if not gradient:
        return Read(normed, value, None)
    return Read(normed, value, torch.stack([g * others[:, j, None].to(g) for j, (_, g) in enumerate(parts)], dim=1))


def _products_of_others(values: Tensor) -> Tensor:
    """For each column the product of all other columns, without dividing: a probability may be zero."""
    ones = values.new_ones(len(values), 1)
    before = torch.cat([ones, values[:, :-1]], 1).cumprod(1)
    after = torch.cat([values[:, 1:], ones], 1).flip(1).cumprod(1).flip(1)
    return before * after


@torch.no_grad()
def evaluate(
    model: Model, normed: Tensor, objective: Objective, gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """F of each row of `normed` (rows, d_model), in at least float32, and dF/dnormed if `gradient`."""
    if objective.kind in ("logit", "logit_difference"):
        return _logit(model, normed, objective)
    logit, weight = model.logits_of(normed, [objective.target])
    logit = at_least_float(logit)
    rest = _rest(model, normed, objective.target, logit, gradient)
    of_target = (logit - rest.peak).exp()
    total = rest.sum + of_target
    log_p = (logit - rest.peak - total.log())[:, 0]
    value = log_p.exp() if objective.kind == "probability" else log_p
    if not gradient:
        return value, None
    slope = (rest.sum / total) * model.logits_slope(logit) * at_least_float(weight) - rest.weighted / total
    return value, (slope if objective.kind == "log_probability" else slope * value[:, None]).to(normed)


def at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass
class _Rest:
    peak: Tensor  # (rows, 1): m
    sum: Tensor  # (rows, 1): Σ exp(z − m) over all tokens but the target
    weighted: Tensor | None  # (rows, d_model): the same, each term times the token's row of the unembedding


def _rest(model: Model, normed: Tensor, target: int, logit: Tensor, gradient: bool) -> _Rest:
    peak, total = logit, torch.zeros_like(logit)
    weighted = torch.zeros_like(normed, dtype=logit.dtype) if gradient else None
    for start in range(0, model.vocabulary, BLOCK):
        logits, weight = model.logits_of(normed, slice(start, start + BLOCK))
        logits = at_least_float(logits)
        slope = model.logits_slope(logits) if gradient else None
        raised = torch.maximum(peak, logits.amax(1, keepdim=True))
        shrink = (peak - raised).exp()
        peak = raised
        terms = logits.sub_(peak).exp_()
        if start <= target < start + BLOCK:
            terms[:, target - start] = 0
        total = total * shrink + terms.sum(1, keepdim=True)
        if weighted is not None:
            terms = terms if isinstance(slope, float) else terms.mul_(slope)
            weighted.mul_(shrink).add_(terms.to(weight.dtype) @ weight)
    if weighted is not None and isinstance(slope, float) and slope != 1:
        weighted *= slope
    return _Rest(peak, total, weighted)


def _logit(model: Model, normed: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    tokens = [objective.target] if objective.foil is None else [objective.target, objective.foil]
    logits, weight = model.logits_of(normed, tokens)
    logits = at_least_float(logits)
    slopes = model.logits_slope(logits) * at_least_float(weight).new_ones(logits.shape)
    if len(tokens) == 1:
        return logits[:, 0], (slopes * at_least_float(weight)).to(normed)
    value = logits[:, 0] - logits[:, 1]
    return value, (slopes[:, :1] * weight[0] - slopes[:, 1:] * weight[1]).to(normed)
