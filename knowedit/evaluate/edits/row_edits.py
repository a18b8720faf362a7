"""Many edits in one forward pass: each row of a batch has an edit of its own, and no weight is touched.

    with row_edits(model, edits, rows=(0, 0, 1)):   # two rows with the first edit, one with the second
        model.hf(input_ids=tokens)                  # (3, length)

An edit adds ΔW x to what a down-projection gives out, and that needs only the token's own x. For ΔW = u vᵀ the factors
of a row's edits are put side by side, so all updates of a batch are two small batched products. An edit of several
facts, whose factors are wide, and a dense one are held once and run on all rows that have them.

The sum is made in float32 (float64 in float64 models) and rounded once to the model's type. In float32 a row gives what
the model with the edit in its weights gives, but for the order of additions; in bfloat16 the edited weight would be
rounded before the product and here the output is after it, so figures differ by about that rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ...edit.apply import apply
from ...edit.delta import Delta, LowRank
from ...edit.edit import Edit
from ...errors import InputError
from ...hooks import hooked, on_pass
from ...models.adapter import Model


def check_edits(model: Model, edits: Sequence[Edit | None]) -> None:
    """Refuse what `apply(mode="hook")` refuses: modules, shapes or weights that an edit was not made for, compiled
    models. A weight is hashed once for all edits that were made for it."""
    checked = set()
    for edit in edits:
        if edit is not None:
            key = tuple(sorted((path, edit.bases[path], delta.shape) for path, delta in edit.deltas.items()))
            if key not in checked:
                apply(model, edit, mode="hook").revert()
                checked.add(key)


@contextmanager
def row_edits(model: Model, edits: Sequence[Edit | None], rows: Sequence[int] | Tensor | None = None) -> Iterator[None]:
    """Row `r` of a batch is run with `edits[rows[r]]` (None: as the model is) while the context lasts.

    `rows` may also say the edit of each token, (rows, length); without it row `r` has `edits[r]`. Whatever passes
    through the model meanwhile must have as many rows. Edits may change several layers, and come on top of edits that
    are applied to the model. Raises `InputError` for an edit of a module that is no down-projection of `model`;
    whether its weights are those that the edit was made for, `check_edits` tells.
    """
    owner = torch.as_tensor(range(len(edits)) if rows is None else rows)
    owner = owner[:, None] if owner.dim() == 1 else owner
    first: dict[Edit | None, int] = {}  # facts that are changed together have one edit
    owner = torch.tensor([first.setdefault(edit, i) for i, edit in enumerate(edits)])[owner]
    layers = model.down_layers()
    hooks = []
    used = [edits[i] for i in owner.unique().tolist()]
    for path in sorted({path for edit in used if edit is not None for path in edit.deltas}):
        if path not in layers:
            raise InputError(f"an edit is for {path!r}, which is no down-projection of {model.name}: use its own model")
        changing = {i: edit for edit, i in first.items() if edit is not None and path in edit.deltas}
        deltas = {i: edit.deltas[path] for i, edit in changing.items()}
        shared = {i for i, edit in changing.items() if len(edit.facts) > 1}
        hooks.append(on_pass(model.down(layers[path]), _RowDeltas(deltas, owner, shared)))
    with hooked(*hooks):
        yield


class _RowDeltas:
    """Adds to a module's output what each token's own edit adds.

    - `u` (rows, k, out), `v` (rows, in, k): the factors of a row's edits side by side, zeros where it has fewer;
      `mine` (rows, length or 1, k): which of them are a token's.
    - `whole`: (rows that have it, change, which tokens of these rows are its own), of dense changes and of `shared`
      ones, which many facts have.
    """

    def __init__(self, deltas: dict[int, Delta], owner: Tensor, shared: set[int]):
        narrow = {i: delta for i, delta in deltas.items() if isinstance(delta, LowRank) and i not in shared}
        self.rows = len(owner)
        self.whole = []
        for i in sorted(set(owner.unique().tolist()) & (deltas.keys() - narrow.keys())):
            having = (owner == i).any(1).nonzero()[:, 0]
            self.whole.append((having, deltas[i], (owner[having] == i)[..., None]))
        columns = [[i for i in row.unique().tolist() if i in narrow for _ in range(narrow[i].rank)] for row in owner]
        rank = max(map(len, columns))
        out, width = next(iter(deltas.values())).shape
        self.u = torch.zeros(self.rows, rank, out)
        self.v = torch.zeros(self.rows, width, rank)
        self.mine = torch.zeros(*owner.shape, rank)
        for r, ids in enumerate(columns):
            if ids:
                own = [narrow[i] for i in dict.fromkeys(ids)]
                self.u[r, : len(ids)] = torch.cat([delta.u for delta in own], 1).T
                self.v[r, :, : len(ids)] = torch.cat([delta.v for delta in own], 1)
                self.mine[r, :, : len(ids)] = (owner[r, :, None] == torch.tensor(ids)).float()

    @torch.no_grad()
    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        if x.numel() % (self.rows * x.shape[-1]) or (x.dim() > 2 and x.shape[0] != self.rows):
            raise InputError(f"a batch of {x.shape[0]} rows, expected {self.rows}: each has its own edit")
        wide = torch.promote_types(output.dtype, torch.float32)
        self.u, self.v, self.mine = (factor.to(x.device, wide) for factor in (self.u, self.v, self.mine))
        x = x.reshape(self.rows, -1, x.shape[-1]).to(wide)  # some families flatten rows and tokens
        added = torch.bmm(torch.bmm(x, self.v) * self.mine, self.u)
        for having, delta, mine in self.whole:
            having = having.to(x.device)
            added[having] += _product(delta, x[having]) * mine.to(x.device)
        return (output.to(wide) + added.reshape(output.shape)).to(output.dtype)


def _product(delta: Delta, x: Tensor) -> Tensor:
    """ΔW x in the type of `x`."""
    if isinstance(delta, LowRank):
        return (x @ delta.v.to(x)) @ delta.u.to(x).T
    return delta.of(x).to(x)
