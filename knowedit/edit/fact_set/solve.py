"""Rows of facts as changes of weights: of one layer, or of several by MEMIT's spreading.

With M Kᵀ of the solver (A⁻¹ Kᵀ, or P Kᵀ) every solver's change is, for n facts and ridge λ,

    ΔW = Rᵀ (K M Kᵀ + λ I)⁻¹ K M            n × n, where there are no more facts than neurons
       = Rᵀ K M (Kᵀ K M + λ I)⁻¹            d_ff × d_ff, where there are

in float64 on the model's device. Several layers (Meng et al. 2023, section 4.3): δ at the first edited layer gives a
target for the state above the last one; each layer then takes an equal share of what is still missing, with keys and
states computed anew on the layers below that are changed already. Key and state of a fact are means over its plain
prompt and the prompt behind contexts, as MEMIT takes keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model
from ...models.passes.climb import Climb
from ...prompts import Prompt
from ..delta import LowRank
from ..methods.v_star import plain_and_behind
from ..preserved_keys import Metric
from ..stack import HookedDelta
from .config import Solver
from .rows import Row, row_name


def solved(
    model: Model,
    facts: Sequence[Fact],
    rows: Mapping[str, Row],
    metrics: Mapping[int, Metric],
    solver: Solver,
    contexts: Sequence[str],
) -> dict[int, LowRank]:
    """The change of each layer that gives `facts` their values; `model` has no edits on it, and gets none.

    The order of the facts decides the last bits. `rows` are by `row_name`, `metrics` (A) by layer, `contexts` those
    that the keys of `rows` are means over. Raises `InputError` for several layers of a model whose blocks do not add to
    the residual stream what their down-projections give.
    """
    own = [rows[row_name(fact)] for fact in facts]
    keys, deltas = (torch.stack([getattr(row, name) for row in own]) for name in ("key", "delta"))
    layers = list(metrics)
    if len(layers) == 1:
        return {layers[0]: change(metrics[layers[0]], keys, deltas, solver)}
    prompts = [model.encode(text, fact.subject) for fact in facts for text in plain_and_behind(fact, contexts)]
    first, last = layers[0], layers[-1]
    _check_adds(model, prompts[:1], first, deltas[:1])
    climb = Climb(model, prompts, first, last)
    each = len(prompts) // len(facts)
    state, target = _means(climb.states, each), _means(climb.shifted(deltas.repeat_interleave(each, 0)), each)
    changes: dict[int, LowRank] = {}
    for i, (layer, above) in enumerate(zip(layers, [*layers[1:], None], strict=True)):
        changes[layer] = change(metrics[layer], keys, (target - state) / (len(layers) - i), solver)
        if above is not None:
            keys, state = (_means(found, each) for found in climb.changed(layer, HookedDelta([changes[layer]]), above))
    return changes


def change(A: Metric, keys: Tensor, residuals: Tensor, solver: Solver) -> LowRank:
    """ΔW of one layer for `keys` (n, d_ff) and `residuals` (n, d_model), of rank n or d_model, whichever is less."""
    K, R = (x.to(A.whole.device, torch.float64) for x in (keys, residuals))
    MK = solver.spread(A, K)  # (d_ff, n)
    n, d_ff = K.shape
    ridge = solver.ridge((K.T * MK).sum(0), d_ff)
    try:
        if n <= d_ff:
            G = K @ MK
            G = (G + G.T) / 2
            G.diagonal().add_(ridge)
            U = torch.linalg.solve(G, R)  # (n, d_model)
            if n <= R.shape[1]:
                return _balanced(U.T, MK)
            transposed = MK @ U
        else:
            G = MK @ K
            G.diagonal().add_(ridge)
            transposed = torch.linalg.solve(G, MK @ R)  # (d_ff, d_model)
    except torch.linalg.LinAlgError:
        raise InputError(
            f"the {n} facts have keys in layer {A.layer} that cannot be told apart; list collisions and drop some, or "
            "take a larger ridge"
        ) from None
    return LowRank(torch.eye(R.shape[1]), transposed)


def _check_adds(model: Model, prompts: Sequence[Prompt], layer: int, deltas: Tensor) -> None:
    """Raise `InputError` unless δ at the down-projection of `layer` moves the state above it by δ."""
    climb = Climb(model, prompts, layer, layer)
    before, after = climb.states, climb.shifted(deltas)
    rounding = torch.finfo(model.dtype).eps * max(before.norm(), after.norm())
    if (after - before - deltas).norm() > 0.05 * deltas.norm() + rounding:
        raise InputError(
            f"a block of {model.name} does not add what its down-projection gives as it is (a norm stands behind it), "
            f"so the change cannot be shared over layers; take one, such as layers=[{layer}]"
        )


def _means(of_prompts: Tensor, each: int) -> Tensor:
    """Of each fact, the mean over its prompts, which stand behind one another."""
    return of_prompts.unflatten(0, (-1, each)).mean(1)


def _balanced(u: Tensor, v: Tensor) -> LowRank:
    """u vᵀ with columns that share their norms, which keeps both well inside the range of float32."""
    balance = (v.norm(dim=0) / u.norm(dim=0).clamp(min=1e-300)).sqrt()
    return LowRank(u * balance, v / balance.clamp(min=1e-300))
