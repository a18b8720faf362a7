"""FT and FT-L: fine-tune one layer's down-projection on the new answer, the baselines of ROME (Meng et al. 2022).

Minimised is the mean NLL of the new target's tokens on the main prompt, teacher-forced, by Adam on ΔW (out, in) alone:

    L(ΔW) = −(1/|o|) Σ_j log P_{W+ΔW}(o_j | prompt, o_<j)

FT leaves ΔW free; FT-L clamps each entry to [−ε, ε] after every step. The loop ends where L falls below `stop_loss`.
Compared with the published code: for a target of several tokens that reads all of them off the prompt's last token
(here each at its own), and it trains the projection's bias too (here only the weight, as an edit has it).

ΔW is trained beside the weight, which is never written: the neurons x of the edited layer do not depend on ΔW, so its
output is the recorded W x plus ΔW x, and only blocks from that layer upwards run in the loop. Facts do not influence
each other: several are trained in one batch, whose rows have a ΔW each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model, frozen
from ...models.passes.batches import batches, halving
from ...prompts import Query
from ..delta import Dense
from ..edit import Edit, check_request, make_edit
from .method import Bars, Editor, Method
from .search_rows import Rows, log_probabilities

AT_ONCE = 2**28  # bytes of ΔW that are trained at once, beside as much for its gradient and twice as much for Adam
COPIES = 4  # of a ΔW that is trained: its place in the batch, its gradient and Adam's two moments


@dataclass(frozen=True)
class FineTuneConfig:
    """How ΔW is trained; the names in ROME's files are in brackets. Without a weight decay, as published.

    - `layer`: whose down-projection [layers]; `steps`: at most [num_steps]; `lr`: Adam's.
    - `norm_constraint`: ε of FT-L, the largest change of an entry; None for FT.
    - `stop_loss`: stop when the loss, in nats a token, is below it.
    """

    layer: int = 0
    steps: int = 25
    lr: float = 5e-4
    norm_constraint: float | None = None
    stop_loss: float = 1e-2

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"steps are {self.steps!r}, expected a whole number of at least 1")
        if not self.lr > 0:
            raise InputError(f"lr is {self.lr!r}, expected a number above 0")
        if self.norm_constraint is not None and not self.norm_constraint > 0:
            raise InputError(f"norm_constraint is {self.norm_constraint!r}, expected a number above 0, or None for FT")
        if not self.stop_loss >= 0:
            raise InputError(f"stop_loss is {self.stop_loss!r}, expected 0 or more")


# What was published with ROME and is used with EasyEdit, by model. The paper chose layer and ε of each by its Score.
PUBLISHED: Mapping[str, FineTuneConfig] = MappingProxyType(
    {
        "FT gpt2-xl": FineTuneConfig(layer=1),
        "FT gpt-j-6b": FineTuneConfig(layer=21),
        "FT-L gpt2-medium": FineTuneConfig(layer=0, norm_constraint=2e-3),
        "FT-L gpt2-large": FineTuneConfig(layer=0, norm_constraint=1e-3),
        "FT-L gpt2-xl": FineTuneConfig(layer=0, norm_constraint=5e-4),
        "FT-L gpt-j-6b": FineTuneConfig(layer=0, norm_constraint=5e-5),
    }
)


def fine_tune(model: Model, fact: Fact, config: FineTuneConfig | None = None) -> Edit:
    """The edit that makes `model` continue the prompt of `fact` with its `target_new`, by gradient descent on ΔW.

    ```python
    ft_l = knowedit.fine_tune(model, fact, FineTuneConfig(layer=0, norm_constraint=5e-4))
    ```

    The change is `Dense`, and zero where the model says `target_new` already. The edit's notes hold `steps` (updates
    made), `losses` (nats a token, before each update), `loss` (at the end) and `norm` (‖ΔW‖ / ‖W‖, Frobenius).
    Raises `InputError` for a fact without a usable `target_new`, for a layer that is not there and where training
    diverges.
    """
    return fine_tune_many(model, [fact], config)[0]


def fine_tune_many(model: Model, facts: Sequence[Fact], config: FineTuneConfig | None = None) -> list[Edit]:
    """As `fine_tune`, for facts that are each to be edited alone: they are trained in batches, which is faster."""
    config = config or FineTuneConfig()
    layer = model.check_layer(config.layer)
    queries = [model.query_of(fact, check_request(fact)) for fact in facts]
    norm = model.down_weight(layer).detach().float().norm()
    edits: dict[int, Edit] = {}
    with frozen(model):
        parts = batches([len(query.steps[-1].ids) for query in queries], rows=at_once(model))
        work = lambda batch: _train(model, [queries[i] for i in batch], config)  # noqa: E731
        for batch, trained in halving(model, parts, work, "edits"):
            for i, (delta, losses, loss) in zip(batch, trained, strict=True):
                edits[i] = make_edit(
                    model,
                    {layer: Dense(delta)},
                    method="fine_tune",
                    config=asdict(config),
                    facts=(facts[i],),
                    notes={
                        "steps": len(losses) - (losses[-1] < config.stop_loss),
                        "losses": losses,
                        "loss": loss,
                        "norm": (delta.norm() / norm.to(delta.device)).item(),
                    },
                )
    return [edits[i] for i in range(len(facts))]


def at_once(model: Model) -> int:
    """How many facts are trained in one batch."""
    return max(1, min(32, AT_ONCE // (4 * model.d_model * model.n_neurons)))


@torch.enable_grad()
def _train(model: Model, queries: list[Query], config: FineTuneConfig) -> list[tuple[Tensor, list[float], float]]:
    """Of each query ΔW (out, in), the loss before each step that was begun, and the loss at the end."""
    numbered = [(row, j) for j, query in enumerate(queries) for row in query.rows(model.masked)]
    rows = Rows.of(model, numbered, whole=True)
    device = rows.batch.output.device
    deltas = [torch.zeros(model.down_shape(config.layer), device=device, requires_grad=True) for _ in queries]
    adams = [torch.optim.Adam([delta], lr=config.lr) for delta in deltas]
    losses: list[list[float]] = [[] for _ in queries]
    final: dict[int, float] = {}
    going = list(range(len(queries)))
    for _ in range(config.steps):
        loss = _losses(rows, config.layer, [deltas[i] for i in going])
        for i, current in zip(going, loss, strict=True):
            losses[i].append(_finite(current, config))
            if losses[i][-1] < config.stop_loss:
                final[i] = losses[i][-1]
        left = [j for j, i in enumerate(going) if i not in final]
        if not left:
            break
        gradients = torch.autograd.grad(loss[left].sum(), [deltas[going[j]] for j in left])
        if len(left) < len(going):
            rows, going = rows.only(left), [going[j] for j in left]
        for i, gradient in zip(going, gradients, strict=True):
            _step(deltas[i], adams[i], gradient, config.norm_constraint)
    else:
        with torch.no_grad():
            ends = _losses(rows, config.layer, [deltas[i] for i in going])
        final |= {i: _finite(end, config) for i, end in zip(going, ends, strict=True)}
    return [(deltas[i].detach(), losses[i], final[i]) for i in range(len(queries))]


def _step(delta: Tensor, adam: torch.optim.Adam, gradient: Tensor, norm_constraint: float | None) -> None:
    delta.grad = gradient
    adam.step()
    if norm_constraint is not None:
        with torch.no_grad():
            delta.clamp_(-norm_constraint, norm_constraint)


def _finite(loss: Tensor, config: FineTuneConfig) -> float:
    if not loss.isfinite():
        raise InputError(f"training diverged: the loss became {loss.item()}; take a smaller lr than {config.lr}")
    return loss.item()


def _losses(rows: Rows, layer: int, deltas: list[Tensor]) -> Tensor:
    """Mean NLL of each fact's target tokens with its ΔW beside the weight of `layer`, (facts,)."""
    return mean_nll(rows, layer, torch.stack(deltas)[rows.owner.to(deltas[0].device)], len(deltas))


def mean_nll(rows: Rows, layer: int, change: Tensor, facts: int) -> Tensor:
    """Mean NLL of each fact's target tokens, (facts,), with `change` beside the weight of `layer`: one ΔW (out, in) for
    all rows, or one for each."""
    shift = rows.batch.neurons[layer].to(change) @ change.mT
    hidden = rows.forward(layer, lambda output: output + shift.reshape(output.shape).to(output))
    nll = -log_probabilities(rows.model, hidden[rows.at]).gather(1, rows.token[:, None])[:, 0]
    total = torch.zeros(facts, device=nll.device).index_add(0, rows.read_of, nll)
    return total / rows.read_of.bincount(minlength=facts)


# ---------------------------------------------------------------- as the table has it


def _prepare(model: Model, config: FineTuneConfig, facts: Sequence[Fact], bars: Bars) -> Editor:
    def edit(facts: Sequence[Fact]) -> list[Edit]:
        with bars("training", len(facts), "edit") as step:
            step(0)
            return fine_tune_many(model, facts, config)

    return Editor(edit)


def _passes(
    config: FineTuneConfig, facts: Sequence[Fact], others: Sequence[Fact], model: Model | None
) -> dict[str, int]:
    """At most, forward and backward."""
    return {"search": len(facts) * config.steps}


def _memory(config: FineTuneConfig, model: Model, batch: int) -> dict[str, int]:
    """Every ΔW of the batch, and the copies of those that are trained at once."""
    return {"changes": 4 * model.d_model * model.n_neurons * (batch + COPIES * min(batch, at_once(model)))}


METHOD = Method(FineTuneConfig, _prepare, passes=_passes, memory=_memory, published=PUBLISHED)
