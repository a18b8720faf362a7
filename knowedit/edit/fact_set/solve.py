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
from functools import partial

import torch
from torch import Tensor

from ...errors import InputError
from ...facts import Fact
from ...hooks import Enough, ending_early, hooked, on_input, on_output, on_pass
from ...models.adapter import Model
from ...models.passes.batches import batches
from ...prompts import Prompt
from ..delta import LowRank
from ..methods.v_star import plain_and_behind
from ..preserved_keys import Metric
from ..stack import HookedDelta
from .config import Solver
from .rows import Row, row_name

BATCH_ROWS = 64


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
    prompts = [[model.encode(text, fact.subject) for text in plain_and_behind(fact, contexts)] for fact in facts]
    first, last = layers[0], layers[-1]
    _check_adds(model, prompts[0][:1], first, deltas[:1])
    _, target = _mean_states(model, prompts, first, last, {}, deltas)
    changes: dict[int, LowRank] = {}
    for i, layer in enumerate(layers):
        found, state = _mean_states(model, prompts, layer, last, changes)
        missing = (target - state) / (len(layers) - i)
        changes[layer] = change(metrics[layer], keys if not i else found, missing, solver)
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
    before, after = (_states(model, prompts, layer, layer, {}, shift)[1] for shift in (None, deltas))
    rounding = torch.finfo(model.dtype).eps * max(before.norm(), after.norm())
    if (after - before - deltas).norm() > 0.05 * deltas.norm() + rounding:
        raise InputError(
            f"a block of {model.name} does not add what its down-projection gives as it is (a norm stands behind it), "
            f"so the change cannot be shared over layers; take one, such as layers=[{layer}]"
        )


def _balanced(u: Tensor, v: Tensor) -> LowRank:
    """u vᵀ with columns that share their norms, which keeps both well inside the range of float32."""
    balance = (v.norm(dim=0) / u.norm(dim=0).clamp(min=1e-300)).sqrt()
    return LowRank(u * balance, v / balance.clamp(min=1e-300))


def _mean_states(
    model: Model,
    prompts: Sequence[Sequence[Prompt]],
    layer: int,
    last: int,
    changes: Mapping[int, LowRank],
    deltas: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `_states` gives, as means over the prompts of each fact."""
    n = len(prompts)
    together = [prompt for of_fact in prompts for prompt in of_fact]
    each = len(together) // n
    if deltas is not None:
        deltas = deltas.repeat_interleave(each, 0)
    keys, states = _states(model, together, layer, last, changes, deltas)
    return keys.unflatten(0, (n, each)).mean(1), states.unflatten(0, (n, each)).mean(1)


@torch.no_grad()
def _states(
    model: Model,
    prompts: Sequence[Prompt],
    layer: int,
    last: int,
    changes: Mapping[int, LowRank],
    deltas: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Keys of `layer` (n, d_ff) and states above block `last` (n, d_model) at the lookup positions, float64 on the CPU.

    `changes` are added to down-projections, `deltas` (n, d_model) to the output of `layer`'s at the lookup positions.
    """
    keys = torch.zeros(len(prompts), model.n_neurons, dtype=torch.float64)
    states = torch.zeros(len(prompts), model.d_model, dtype=torch.float64)
    whole = any(hasattr(module, "_hf_hook") for module in model.hf.modules())  # offloaded weights must be given back
    lookups = [prompt.position("lookup") for prompt in prompts]
    rows = [prompt.ids[: None if model.masked else at + 1] for prompt, at in zip(prompts, lookups, strict=True)]
    for batch in batches([len(row) for row in rows], rows=BATCH_ROWS, equal=True):
        ids = torch.tensor([rows[i] for i in batch], device=model.device)
        at = torch.arange(len(batch)) * ids.shape[1] + torch.tensor([lookups[i] for i in batch])
        hooks = [on_pass(model.down(below), HookedDelta([delta])) for below, delta in changes.items()]
        hooks += [on_input(model.down(layer), partial(_keep, keys, batch, at, False))]
        if deltas is not None:
            hooks += [on_output(model.down(layer), partial(_shifted, at, deltas[batch]))]
        hooks += [on_output(model.blocks[last], partial(_keep, states, batch, at, not whole))]
        with ending_early(), hooked(*hooks):
            model.run(ids, attention_mask=torch.ones_like(ids))
    return keys, states


def _keep(store: Tensor, rows: list[int], at: Tensor, enough: bool, x: Tensor) -> None:
    flat = x.reshape(-1, x.shape[-1])
    store[rows] = flat[at.to(x.device)].double().cpu()
    if enough:
        raise Enough


def _shifted(at: Tensor, deltas: Tensor, output: Tensor) -> Tensor:
    flat = output.reshape(-1, output.shape[-1])
    return flat.index_add(0, at.to(output.device), deltas.to(output)).reshape(output.shape)
