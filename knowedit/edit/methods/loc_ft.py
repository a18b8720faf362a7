"""LocFT-BF: one layer's down-projection fine-tuned on all facts together (Yang et al. 2025, arXiv 2509.22072).

What fine-tuning is as an editor where it is done as elsewhere. Instead of one fact until it is learned and then the
next (depth first), which forgets the ones before, every fact is seen once before any is seen again (breadth first):
batches of facts, `passes` times over all of them, Adam on one ΔW (out, in), which is not held small otherwise:

    L(ΔW) = −(1/n) Σ_facts (1/|o|) Σ_j log P_{W+ΔW}(o_j | prompt, o_<j)

The end-of-text token stands behind each target and is learned with it: else a model runs on after the answer.

The weight is never written. The neurons x of the edited layer do not depend on ΔW, so each batch is recorded once and
only blocks from that layer upwards run in the loop, as in `fine_tune.py`. All facts that are given have one edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model, frozen
from ...progress import Progress, silent
from ...prompts import Query, with_target_ids
from ..delta import Dense
from ..edit import Edit, check_request, make_edit
from .fine_tune import mean_nll
from .method import Bars, Editor, Method
from .search_rows import Rows


@dataclass(frozen=True)
class LocFTConfig:
    """How ΔW is trained; the defaults but the layer are the paper's, which chose a layer for each model.

    - `layer`: whose down-projection; `passes`: over all facts; `batch`: facts a step; `lr`: Adam's.
    - `ends`: whether the end-of-text token is learned behind each target.
    """

    layer: int = 0
    passes: int = 25
    batch: int = 100
    lr: float = 5e-4
    ends: bool = True

    def __post_init__(self):
        for name in ("passes", "batch"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a whole number of at least 1")
        if not self.lr > 0:
            raise InputError(f"lr is {self.lr!r}, expected a number above 0")


def loc_ft(
    model: Model, facts: Sequence[Fact], config: LocFTConfig | None = None, *, progress: Progress = silent
) -> Edit:
    """One edit that makes `model` continue the prompt of each of `facts` with its `target_new`.

    The change is `Dense`. The edit's notes hold `losses` (nats a token, of each pass, the mean over batches as each is
    met). `progress` counts passes. Raises `InputError` without facts, for one without a usable `target_new`, for a
    layer that is not there and where training diverges.
    """
    config = config or LocFTConfig()
    if not facts:
        raise InputError("there are no facts to fine-tune on; give some")
    layer = model.check_layer(config.layer)
    queries = [_query(model, fact, config.ends) for fact in facts]
    losses = []
    with frozen(model), torch.enable_grad():
        delta = torch.zeros(model.down_shape(layer), device=model.down_weight(layer).device, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=config.lr)
        parts = [queries[start : start + config.batch] for start in range(0, len(queries), config.batch)]
        batches = [(_rows(model, part), len(part)) for part in parts]
        for done in range(config.passes):
            total = 0.0
            for rows, n in batches:
                loss = mean_nll(rows, layer, delta, n).mean()
                (delta.grad,) = torch.autograd.grad(loss, [delta])
                adam.step()
                total += loss.item() * n
            losses.append(total / len(queries))
            if not losses[-1] < float("inf"):
                raise InputError(f"training diverged: the loss became {losses[-1]}; take a smaller lr than {config.lr}")
            progress(done + 1)
    return make_edit(
        model,
        {layer: Dense(delta.detach())},
        method="loc_ft",
        config=asdict(config),
        facts=tuple(facts),
        notes={"losses": losses},
    )


def _query(model: Model, fact: Fact, ends: bool) -> Query:
    query = model.query_of(fact, check_request(fact))
    end = model.tokenizer.eos_token_id
    if not ends or end is None or model.masked:  # a masked model does not go on
        return query
    return with_target_ids(query.prompt, (*query.target_ids, end))


def _rows(model: Model, queries: Sequence[Query]) -> Rows:
    numbered = [(row, j) for j, query in enumerate(queries) for row in query.rows(model.masked)]
    return Rows.of(model, numbered, whole=True)


# ---------------------------------------------------------------- as the table has it


def _prepare(model: Model, config: LocFTConfig, facts: Sequence[Fact], bars: Bars) -> Editor:
    def edit(facts: Sequence[Fact]) -> list[Edit | None]:
        with bars("training", config.passes, "pass") as step:
            return [loc_ft(model, facts, config, progress=step)] * len(facts)

    return Editor(edit)


def _passes(config: LocFTConfig, facts: Sequence[Fact], others: Sequence[Fact], model: Model | None) -> dict[str, int]:
    """Forward and backward."""
    return {"training": len(facts) * config.passes}


def _memory(config: LocFTConfig, model: Model, batch: int) -> dict[str, int]:
    """ΔW, its gradient and Adam's two moments."""
    return {"change": 4 * 4 * model.d_model * model.n_neurons}


METHOD = Method(LocFTConfig, _prepare, passes=_passes, memory=_memory, together=True)
