"""What is read from the rows of a sweep: F and its gradient, without ever holding their logits.

The vocabulary is gone through in blocks, as in flash attention: a running maximum m, the sum of exp(z − m) and the
sum of exp(z − m)·U over all tokens but the target, U the unembedding. With S the full sum,

    log p_t = z_t − m − log S,      ∂ log p_t / ∂x = (1 − p_t) U_t − Σ_{v≠t} p_v U_v.

Leaving the target out of the sums keeps 1 − p_t exact where p_t is close to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapter import Model
from ..arithmetic.split_product import product

KINDS = ("probability", "log_probability", "logit", "logit_difference")
BLOCK = 2048  # tokens of the vocabulary at a time: rows × BLOCK logits stay in the processor's cache
DEVICE_BLOCK = 8192  # on an accelerator, which has no use for such


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
    """F of the rows of `hidden` (rows, suffix, d_model), read at the suffix positions `reads`, one `Objective` each."""
    return read_states(model, hidden[:, list(reads)], objectives, gradient)


def read_states(
    model: Model, states: Tensor, objectives: Sequence[Objective | Sequence[Objective]], gradient: bool = False
) -> Read:
    """F of rows of `states` (rows, reads, d_model), the last block's output where it is read.

    `objectives`: of each read, one for all rows or one a row. Several probabilities are multiplied (a target's
    conditionals make its joint probability), other quantities added.
    """
    normed = model.normed(states)
    parts = [evaluate(model, normed[:, j], objective, gradient) for j, objective in enumerate(objectives)]
    values = torch.stack([value for value, _ in parts], dim=1)
    if _of_rows(objectives[0], 1)[0].kind == "probability":
        value, others = values.prod(1), _products_of_others(values)
    else:
        value, others = values.sum(1), torch.ones_like(values)
    if not gradient:
        return Read(normed, value, None)
    return Read(normed, value, torch.stack([g * others[:, j, None].to(g) for j, (_, g) in enumerate(parts)], dim=1))


def _of_rows(objective: Objective | Sequence[Objective], rows: int) -> Sequence[Objective]:
    return [objective] * rows if isinstance(objective, Objective) else objective


def _products_of_others(values: Tensor) -> Tensor:
    """For each column the product of all other columns, without dividing: a probability may be zero."""
    ones = values.new_ones(len(values), 1)
    before = torch.cat([ones, values[:, :-1]], 1).cumprod(1)
    after = torch.cat([values[:, 1:], ones], 1).flip(1).cumprod(1).flip(1)
    return before * after


@torch.no_grad()
def evaluate(
    model: Model, normed: Tensor, objective: Objective | Sequence[Objective], gradient: bool = False
) -> tuple[Tensor, Tensor | None]:
    """F of each row of `normed` (rows, d_model), in at least float32, and dF/dnormed if `gradient`.

    `objective`: one for all rows, or one a row, of one kind.
    """
    objectives = _of_rows(objective, len(normed))
    head, given = model.unembedding.weight.device, normed
    if head.type != "meta":
        normed = normed.to(head)  # tied to the embeddings, a head may lie on another device than the norm
    kind, targets = objectives[0].kind, [o.target for o in objectives]
    logit, slope = _logit(model, normed, targets)
    if kind == "logit":
        return logit[:, 0], slope.to(given)
    if kind == "logit_difference":
        foil, foils_slope = _logit(model, normed, [o.foil for o in objectives])
        return (logit - foil)[:, 0], (slope - foils_slope).to(given)
    rest = _rest(model, normed, targets, logit, gradient)
    of_target = (logit - rest.peak).exp()
    total = rest.sum + of_target
    log_p = (logit - rest.peak - total.log())[:, 0]
    value = log_p.exp() if kind == "probability" else log_p
    if not gradient:
        return value, None
    slope = (rest.sum / total) * slope - rest.weighted / total
    return value, (slope if kind == "log_probability" else slope * value[:, None]).to(given)


def at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass
class _Rest:
    peak: Tensor  # (rows, 1): m
    sum: Tensor  # (rows, 1): Σ exp(z − m) over all tokens but the target
    weighted: Tensor | None  # (rows, d_model): the same, each term times the token's row of the unembedding


def _rest(model: Model, normed: Tensor, targets: Sequence[int], logit: Tensor, gradient: bool) -> _Rest:
    peak, total = logit, torch.zeros_like(logit)
    weighted = torch.zeros_like(normed, dtype=logit.dtype) if gradient else None
    block = BLOCK if normed.device.type == "cpu" else DEVICE_BLOCK
    of_blocks = _by_block(targets, block)
    for start in range(0, model.vocabulary, block):
        logits, weight = model.logits_of(normed, slice(start, start + block))
        logits = at_least_float(logits)
        slope = model.logits_slope(logits) if gradient else None
        raised = torch.maximum(peak, logits.amax(1, keepdim=True))
        shrink = (peak - raised).exp()
        peak = raised
        terms = logits.sub_(peak).exp_()
        if start in of_blocks:
            rows, columns = of_blocks[start]
            terms[rows, columns] = 0
        total = total * shrink + terms.sum(1, keepdim=True)
        if weighted is not None:
            terms = terms if isinstance(slope, float) else terms.mul_(slope)
            weighted.mul_(shrink).add_(product(terms.to(normed.dtype), weight))
    if weighted is not None and isinstance(slope, float) and slope != 1:
        weighted *= slope
    return _Rest(peak, total, weighted)


def _by_block(targets: Sequence[int], block: int) -> dict[int, tuple[slice | list[int], int | list[int]]]:
    """Rows with a target in each block of the vocabulary, by the block's first token, and the target's column there."""
    if len(set(targets)) == 1:
        return {targets[0] // block * block: (slice(None), targets[0] % block)}
    blocks: dict[int, tuple[Any, Any]] = {}
    for row, target in enumerate(targets):
        rows, columns = blocks.setdefault(target // block * block, ([], []))
        rows.append(row)
        columns.append(target % block)
    return blocks


def _logit(model: Model, normed: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The logit of each row's token, (rows, 1), and its slope with respect to `normed`, (rows, d_model)."""
    unique = sorted(set(tokens))
    logits, weight = model.logits_of(normed, unique)
    logits, weight = at_least_float(logits), at_least_float(weight)
    if len(unique) > 1:
        columns = torch.tensor([unique.index(token) for token in tokens], device=logits.device)
        logits, weight = logits.gather(1, columns[:, None]), weight[columns]
    return logits, (model.logits_slope(logits) * weight).expand(len(logits), -1)
