"""How much of an answer the strongest k neurons carry: faithfulness curves and their areas (Mueller et al. 2025, MIB).

All neurons of all layers are ranked, where they are scaled. The curve is

    f(k) = (P(target | only the first k as they come) − P(none)) / (P − P(none)),

all others taken away (`ablation.py`). CPR, the area under f over the share of neurons that are kept, ranked by score,
rewards neurons that raise the answer, and may exceed 1: neurons that speak against the answer are left out. CMD, the
area of |1 − f| where they are ranked by |score|, is 0 for neurons that together are the model. Beside the curve stands
its reverse, P with the first k taken away. MIB takes a difference of logits where this takes the target's probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...display.result import Record
from ...models.passes.scaled_answers import ScaledAnswers

SHARES = (0.0, 0.0002, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of all neurons: MIB's, and 0.0002


@dataclass(frozen=True)
class Faithfulness(Record):
    """Probabilities of the target, averaged over prompts, with `sizes` neurons kept, and with as many taken away.

    `kept_by_size`: ranked by |score| instead. `cpr`, `cmd`: None where nothing lies between all neurons and none.
    """

    sizes: tuple[int, ...]
    neurons: int
    kept: tuple[float, ...]
    removed: tuple[float, ...]
    kept_by_size: tuple[float, ...]
    cpr: float | None
    cmd: float | None


@torch.no_grad()
def faithfulness(answers: ScaledAnswers, scores: Tensor) -> Faithfulness:
    """The curves of neurons ranked by `scores` (n_layers, n_neurons) on prompts that should not have given the scores.

    It takes three rows a size and prompt, from the lowest layer up.
    """
    layers, neurons = range(len(scores)), scores.numel()
    sizes = sorted({round(share * neurons) for share in SHARES})
    ranked, by_size = (_first(values.flatten(), sizes).view(-1, *scores.shape) for values in (scores, scores.abs()))
    kept, removed, kept_by_size = (answers.kept(masks, layers).mean(0) for masks in (ranked, ~ranked, by_size))
    shares = np.array(sizes) / neurons
    return Faithfulness(
        sizes=tuple(sizes),
        neurons=neurons,
        kept=tuple(kept.tolist()),
        removed=tuple(removed.tolist()),
        kept_by_size=tuple(kept_by_size.tolist()),
        cpr=_area(_faithful(kept), shares),
        cmd=_area(_distance(_faithful(kept_by_size)), shares),
    )


def _first(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Masks of the neurons with the largest scores, (sizes, neurons)."""
    rank = torch.empty_like(scores, dtype=torch.long)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(len(scores))
    return rank[None] < torch.tensor(sizes)[:, None]


def _faithful(kept: np.ndarray) -> np.ndarray | None:
    span = kept[-1] - kept[0]
    return None if span == 0 else (kept - kept[0]) / span


def _distance(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else abs(1 - values)


def _area(values: np.ndarray | None, shares: np.ndarray) -> float | None:
    return None if values is None else float(np.trapezoid(values, shares))
