"""Which change of a down-projection's output makes the model give the new answer? ROME's δ, for one or many facts.

Meng et al. 2022 (arXiv 2202.05262), section 3.1, step 2: δ is added to the output of the edited layer's
down-projection at the lookup position, and minimised is, over context prefixes x_j,

    mean_j −log P(target | x_j + prompt) / |target|  +  λ_KL · KL(P_δ ‖ P)(essence)  +  λ_decay · ‖δ‖ / ‖v₀‖²

by Adam, with ‖δ‖ ≤ clamp · ‖v₀‖, where v₀ = W k + b and the essence is "{subject} is a", read at the subject's last
token. As ROME computes it, steps − 1 updates are made at most.

A change at the lookup position in layer l alters nothing before it and nothing below l. So prefixes run once and only
suffixes from the lookup position on, from layer l upwards, are in the loop; logits are made where they are scored.
Facts do not influence each other: δ of many facts is one matrix, and their rows share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model, frozen
from ...progress import Progress, silent
from ...prompts import Row
from .search_rows import Rows, log_probabilities

BATCH_TOKENS = 384  # of suffixes: more neither fills the processor better nor fits its cache
BATCH_COST = 48  # what a batch costs by itself, in tokens: reading the weights


@dataclass(frozen=True)
class VStarSearch:
    """How δ is searched for; the names in ROME's files are in brackets.

    - `steps`: forward passes at most [v_num_grad_steps]; `lr`: Adam's step size [v_lr].
    - `kl`: λ_KL [kl_factor]; `decay`: λ_decay [v_weight_decay]; `clamp`: largest ‖δ‖ / ‖v₀‖ [clamp_norm_factor].
    - `stop_loss`: end when the loss is below it (ROME: 0.05), or None.
    - `stop_probability`: end when the target's mean probability was at least this twice in a row, or None.
    """

    steps: int = 25
    lr: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 4.0
    stop_loss: float | None = 0.05
    stop_probability: float | None = None

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"steps are {self.steps!r}, expected a whole number of at least 1")
        for name in ("lr", "clamp"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a number above 0")
        for name in ("kl", "decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected 0 or more")
        if self.stop_probability is not None and not 0 < self.stop_probability < 1:
            raise InputError(f"stop_probability is {self.stop_probability!r}, expected a number between 0 and 1")


@dataclass(frozen=True)
class Request:
    """The rows of one edit: the plain prompt comes first, then one behind each context; last the essence.

    - `per_prompt`: rows that each prompt makes (a masked model needs one for every token of the target).
    """

    rows: tuple[Row, ...]
    per_prompt: int

    @property
    def suffix(self) -> int:
        """Tokens from the lookup position on, in the longest row."""
        return max(len(row.ids) - row.lookup for row in self.rows)

    @property
    def begins_with_essence(self) -> bool:
        """Whether the plain prompt begins as the essence does: then its row gives the essence's prediction, too."""
        plain = self.rows[0]
        return plain.ids[: plain.lookup + 1] == self.rows[-1].ids


@dataclass(frozen=True)
class Value:
    """The result of one fact's search.

    - `delta` (d_model,): what is to be added to v₀ = W k + b, `v0` (d_model,).
    - `keys` (prompts, n_neurons): k at the lookup position of the plain prompt, then behind each context.
    - `lookup`: the lookup position in the plain prompt.
    - `loss`, `probability`: of the target over all contexts at the end; `steps`: forward passes made.
    - `clamped`: whether δ ended at its largest allowed norm.
    """

    delta: Tensor
    v0: Tensor
    keys: Tensor
    lookup: int
    loss: float
    probability: float
    steps: int
    clamped: bool


def request(model: Model, fact: Fact, target: str, contexts: Sequence[str]) -> Request:
    """The rows for teaching `model` that `fact`'s prompt goes on with `target`, plain and behind each context."""
    subject = fact.subject_for("an edit at the subject's last token")
    texts = [fact.prompt, *(f"{context.rstrip()}. {fact.prompt}" for context in contexts)]
    prompts = [model.query_of(fact, target, text).rows(model.masked) for text in texts]
    essence = model.encode(f"{subject} is a", subject)
    last = Row(essence.ids[: None if model.masked else essence.lookup + 1], (), essence.lookup)
    return Request((*(row for rows in prompts for row in rows), last), len(prompts[0]))


def find_v_star(
    model: Model,
    requests: Sequence[Request],
    layer: int,
    search: VStarSearch,
    progress: Progress = silent,
) -> list[Value]:
    """Find δ for every request; results are in their order. `progress` counts requests.

    Those with suffixes of about one length share a batch, which shrinks as its searches are done.
    """
    order = sorted(range(len(requests)), key=lambda i: requests[i].suffix)
    values: dict[int, Value] = {}
    with frozen(model):
        for part in _chunks([requests[i] for i in order]):
            run = Run.of(model, [requests[i] for i in order[part]], layer)
            going = {i: Going(keys, v0, search) for i, keys, v0 in zip(order[part], run.keys(), run.v0(), strict=True)}
            while going:
                done = until_done(run, list(going.values()), search, share=1 / 4)  # then go on with the others alone
                for i in [i for i, over in zip(going, done, strict=True) if over]:
                    values[i] = going.pop(i).value(requests[i], search)
                if going:
                    run = run.only([j for j, over in enumerate(done) if not over])
                progress(len(values))
    return [values[i] for i in range(len(requests))]


def _chunks(requests: list[Request]) -> list[slice]:
    """Cut requests, sorted by suffix, into the batches that are cheapest in all: `BATCH_COST` and padded tokens."""
    rows = [0, *accumulate(len(request.rows) - 1 for request in requests)]  # essences are short, or have no row at all
    best: list[tuple[int, int]] = [(0, 0)]  # of the first requests: what they cost, and where their last batch starts
    for end in range(1, len(requests) + 1):
        longest = requests[end - 1].suffix
        sizes = {start: (rows[end] - rows[start]) * longest for start in range(end)}
        fitting = [start for start, size in sizes.items() if size <= BATCH_TOKENS] or [end - 1]
        best.append(min((best[start][0] + BATCH_COST + sizes[start], start) for start in fitting))
    cuts = [len(requests)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    return [slice(start, end) for end, start in pairwise(cuts)][::-1]


class Going:
    """One search under way: δ, its Adam, and where it stands."""

    def __init__(self, keys: Tensor, v0: Tensor, search: VStarSearch):
        self.keys, self.v0 = keys, v0
        self.delta = torch.zeros_like(v0, dtype=torch.float32).requires_grad_()
        self.adam = torch.optim.Adam([self.delta], lr=search.lr)
        self.longest = search.clamp * v0.float().norm()
        self.steps = self.confident = 0

    def penalty(self, search: VStarSearch) -> Tensor:
        return search.decay * _norm(self.delta) / self.v0.float().norm() ** 2

    def ends(self, loss: Tensor, probability: Tensor, search: VStarSearch) -> bool:
        """Take the result of one more forward pass; return whether the search is over."""
        self.steps += 1
        self.loss, self.probability = loss.item(), probability.item()
        sure = search.stop_probability is not None and self.probability >= search.stop_probability
        self.confident = self.confident + 1 if sure else 0
        below = search.stop_loss is not None and self.loss < search.stop_loss
        return self.steps == search.steps or self.confident == 2 or below

    def step(self) -> None:
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            self.delta *= (self.longest / _norm(self.delta).clamp(min=1e-12)).clamp(max=1)

    def value(self, request: Request, search: VStarSearch) -> Value:
        delta = self.delta.detach()
        return Value(
            delta=delta,
            v0=self.v0,
            keys=self.keys,
            lookup=request.rows[0].lookup,
            loss=self.loss,
            probability=self.probability,
            steps=self.steps,
            clamped=bool(delta.norm() >= 0.999 * self.longest),
        )


def until_done(run: Run, going: list[Going], search: VStarSearch, share: float) -> list[bool]:
    """Whether each search is over, after steps until this `share` of them is.

    `going` are the searches of the run's first requests; others only fill its rows.
    """
    done = [False] * len(going)
    n = len(going)
    with torch.enable_grad():
        while True:
            deltas = [each.delta for each in going]
            deltas += [torch.zeros_like(deltas[0])] * (len(run.requests) - n)
            nll, kl, probability = run.forward(torch.stack(deltas))
            loss = nll[:n] + search.kl * kl[:n] + torch.stack([each.penalty(search) for each in going])
            for j, each in enumerate(going):
                done[j] = done[j] or each.ends(loss[j], probability[j], search)
            left = [j for j in range(len(going)) if not done[j]]
            if left:
                loss[left].sum().backward()
            for j in left:
                going[j].step()
            if n - len(left) >= share * n:
                return done


def _norm(delta: Tensor) -> Tensor:
    """The norm, with gradient 0, not NaN, where it is zero."""
    return (delta.square().sum() + 1e-30).sqrt()


@dataclass(frozen=True)
class Shape:
    """Sizes that the batches of a run have at least, so that they tell nothing of the requests that share them.

    - `prompts`, `essences`: columns of prefix and suffix; `reads`: positions at which logits are made, of all requests.
    """

    prompts: tuple[int, int] = (0, 0)
    essences: tuple[int, int] = (0, 0)
    reads: int = 0


class Run:
    """The rows of requests: prompts in one batch, and in another the essences that no plain prompt begins with."""

    def __init__(
        self,
        model: Model,
        requests: list[Request],
        layer: int,
        prompts: Rows,
        essences: Rows | None,
        shape: Shape = Shape(),  # noqa: B008 - frozen
    ):
        self.model, self.requests, self.layer = model, requests, layer
        self.prompts, self.essences = prompts, essences
        self.parts = [prompts] if essences is None else [prompts, essences]
        essence = {j: prompts.place(r, row.lookup) for r, (row, j) in reversed([*enumerate(prompts.rows)])}  # plain row
        if essences is not None:
            essence |= {j: prompts.size + essences.place(r, row.lookup) for r, (row, j) in enumerate(essences.rows)}
        device = prompts.owner.device
        at = torch.tensor([essence[j] for j in range(len(requests))], device=device)
        self.at = torch.cat([prompts.at, at, at[:1].expand(max(0, shape.reads - len(prompts.at) - len(at)))])
        share = torch.tensor([1 / len(row.reads) for row, _ in prompts.rows for _ in row.reads], device=device)
        self.weight = share / prompts.owner.bincount()[prompts.read_of]
        with torch.no_grad():
            self.clean = self._log_p([part.batch.output.flatten(0, 1) for part in self.parts])[len(share) :][
                : len(requests)
            ]

    @classmethod
    def of(cls, model: Model, requests: list[Request], layer: int, shape: Shape = Shape()) -> Run:  # noqa: B008
        prompts = [(row, j) for j, request in enumerate(requests) for row in request.rows[:-1]]
        essences = [(request.rows[-1], j) for j, request in enumerate(requests) if not request.begins_with_essence]
        recorded = Rows.of(model, prompts, columns=shape.prompts)
        alone = Rows.of(model, essences, columns=shape.essences) if essences else None
        return cls(model, requests, layer, recorded, alone, shape)

    def only(self, kept: list[int]) -> Run:
        """The run of some of its requests."""
        essences = self.essences and self.essences.only(kept)
        return Run(self.model, [self.requests[j] for j in kept], self.layer, self.prompts.only(kept), essences)

    def keys(self) -> list[Tensor]:
        """Of each request the keys of its prompts, (prompts, n_neurons)."""
        rows = self.prompts
        lookups = rows.batch.neurons[self.layer][torch.arange(len(rows.columns)), rows.batch.columns]
        of = rows.owner.to(lookups.device)
        return [lookups[of == j][:: request.per_prompt] for j, request in enumerate(self.requests)]

    @torch.no_grad()
    def v0(self) -> Tensor:
        """W k + b for the plain prompt of each request, (requests, d_model)."""
        plain = torch.stack([keys[0] for keys in self.keys()])
        return self.model.down(self.layer)(plain)

    def forward(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With δ (requests, d_model), of each: mean NLL of the target's tokens, KL of the essence, mean probability."""
        log_p = self._log_p([part.forward(self.layer, partial(_add, part, delta)) for part in self.parts])
        token, read_of = self.prompts.token, self.prompts.read_of
        n = len(token)
        target_log_p = log_p[:n].gather(1, token[:, None])[:, 0]
        zeros = torch.zeros(len(self.requests), device=target_log_p.device)
        nll = zeros.index_add(0, read_of, -target_log_p * self.weight)
        probability = zeros.index_add(0, read_of, target_log_p.detach().exp() * self.weight)
        essence = log_p[n:][: len(self.requests)]
        kl = (essence.exp() * (essence - self.clean)).sum(1)
        return nll, kl, probability

    def _log_p(self, outputs: list[Tensor]) -> Tensor:
        """Log-probabilities at all reads, then at the essences, (reads + requests, vocabulary)."""
        return log_probabilities(self.model, torch.cat(outputs)[self.at])


def _add(rows: Rows, delta: Tensor, output: Tensor) -> Tensor:
    """`output` of the down-projection with each row's δ at its lookup position."""
    each = torch.arange(len(rows.columns), device=rows.columns.device)
    shift = torch.zeros_like(output.reshape(len(each), -1, output.shape[-1]))
    return output + shift.index_put((each, rows.columns), delta[rows.owner].to(output)).reshape(output.shape)
