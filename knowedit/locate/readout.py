"""What is read from the rows of a sweep: F and its gradient, without ever holding their logits.

The vocabulary is gone through in blocks, as in flash attention: a running maximum m, the sum of exp(z − m) and the
sum of exp(z − m)·U over all tokens but the target, U the unembedding. With S the full sum,

    log p_t = z_t − m − log S,      ∂ log p_t / ∂x = (1 − p_t) U_t − Σ_{v≠t} p_v U_v.

Leaving the target out of the sums keeps 1 − p_t exact where p_t is close to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.adapter import Model

KINDS = ("probability", "log_probability", "logit", "logit_difference")
BLOCK = 2048  # tokens of the vocabulary at a time: rows × BLOCK logits stay in the processor's cache


@dataclass(frozen=True)
class Readout:
    """The quantity F: `probability`, `log_probability` or `logit` of `target`, or `logit_difference` to `foil`."""

    kind: str
    target: int
    foil: int | None = None


@torch.no_grad()
def read_out(model: Model, normed: Tensor, readout: Readout, gradient: bool = False) -> tuple[Tensor, Tensor | None]:
    """F of each row of `normed` (rows, d_model), in at least float32, and dF/dnormed if `gradient`."""
    if readout.kind in ("logit", "logit_difference"):
        return _logit(model, normed, readout)
    logit, weight = model.logits_of(normed, [readout.target])
    logit = at_least_float(logit)
    rest = _rest(model, normed, readout.target, logit, gradient)
    own = (logit - rest.peak).exp()
    total = rest.sum + own
    log_p = (logit - rest.peak - total.log())[:, 0]
    value = log_p.exp() if readout.kind == "probability" else log_p
    if not gradient:
        return value, None
    slope = (rest.sum / total) * model.logits_slope(logit) * at_least_float(weight) - rest.weighted / total
    return value, (slope if readout.kind == "log_probability" else slope * value[:, None]).to(normed)


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


def _logit(model: Model, normed: Tensor, readout: Readout) -> tuple[Tensor, Tensor]:
    tokens = [readout.target] if readout.foil is None else [readout.target, readout.foil]
    logits, weight = model.logits_of(normed, tokens)
    logits = at_least_float(logits)
    slopes = model.logits_slope(logits) * at_least_float(weight).new_ones(logits.shape)
    if len(tokens) == 1:
        return logits[:, 0], (slopes * at_least_float(weight)).to(normed)
    value = logits[:, 0] - logits[:, 1]
    return value, (slopes[:, :1] * weight[0] - slopes[:, 1:] * weight[1]).to(normed)
