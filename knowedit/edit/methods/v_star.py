"""Which change of a down-projection's output makes the model give the new answer? ROME's δ, for one or many facts.

Meng et al. 2022 (arXiv 2202.05262), section 3.1, step 2: δ is added to the output of the edited layer's
down-projection at the lookup position, and minimised is, over context prefixes x_j,

    mean_j −log P(target | x_j + prompt) / |target|  +  λ_KL · KL(P_δ ‖ P)(essence)  +  λ_decay · ‖δ‖ / ‖v₀‖²

by Adam, with ‖δ‖ ≤ clamp · ‖v₀‖, where v₀ = W k + b and the essence is "{subject} is a", read at the subject's last
token. As ROME computes it, steps − 1 updates are made at most.

A change at the lookup position in layer l alters nothing before it and nothing below l. So prefixes run once and only
suffixes from the lookup position on, from layer l upwards, are in the loop; logits are made where they are scored.
Facts do not influence each other: δ of many facts is one matrix, and their rows share a batch.

δ reaches the answer by attention above layer l alone: not from the last layer, nor from behind windows of attention
that are shorter than the way. The first gradient, which is exactly zero then, tells, and such a search ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise

import torch
from torch import Tensor

from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model, frozen
from ...models.passes.batches import bytes_per_token, fitting_tokens, halving, of_device
from ...models.passes.captured import captured, capturing
from ...progress import Progress, silent
from ...prompts import Row
from .search_rows import Request, Run

BATCH_TOKENS = 384  # of suffixes: more neither fills the processor better nor fits its cache
BATCH_COST = {"cpu": 48, "cuda": 2048}  # what a batch costs by itself, in tokens: reading the weights, launches
READ_EVERY = {"cpu": 1}  # steps between two reads of what has ended; other devices work ahead of the program
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


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
        if self.stop_loss is not None and not self.stop_loss >= 0:
            raise InputError(f"stop_loss is {self.stop_loss!r}, expected 0 or more")
        if self.stop_probability is not None and not 0 < self.stop_probability < 1:
            raise InputError(f"stop_probability is {self.stop_probability!r}, expected a number between 0 and 1")


@dataclass(frozen=True)
class Value:
    """The result of one fact's search.

    - `delta` (d_model,): what is to be added to v₀ = W k + b, `v0` (d_model,).
    - `keys` (prompts, n_neurons): k at the lookup position of the plain prompt, then behind each context.
    - `lookup`: the lookup position in the plain prompt.
    - `loss`, `probability`: of the target over all contexts at the end; `steps`: forward passes made.
    - `clamped`: whether δ ended at its largest allowed norm.
    - `reaches`: whether the target's probability depends on δ at all. Where it does not, δ is 0.
    """

    delta: Tensor
    v0: Tensor
    keys: Tensor
    lookup: int
    loss: float
    probability: float
    steps: int
    clamped: bool
    reaches: bool = True


class OutOfReachError(InputError):
    """The answer to a prompt does not depend on what the edited layer makes of the subject."""

    def __init__(self, fact: Fact, layer: int):
        below = f"edit a layer below {layer}, or ask" if layer else "ask"
        super().__init__(
            f"the answer to {fact.prompt!r} does not depend on what layer {layer} puts out at the subject's last token "
            "(its gradient is exactly zero), expected attention above that layer that reaches back to it; "
            f"{below} in words that have the subject nearer to the end"
        )


def request(model: Model, fact: Fact, target: str, contexts: Sequence[str]) -> Request:
    """The rows for teaching `model` that `fact`'s prompt goes on with `target`, plain and behind each context."""
    subject = fact.subject_for("an edit at the subject's last token")
    prompts = [model.query_of(fact, target, text).rows(model.masked) for text in plain_and_behind(fact, contexts)]
    essence = model.encode(f"{subject} is a", subject)
    last = Row(essence.ids[: None if model.masked else essence.lookup + 1], (), essence.lookup)
    return Request((*(row for rows in prompts for row in rows), last), len(prompts[0]))


def plain_and_behind(fact: Fact, contexts: Sequence[str]) -> list[str]:
    """The prompt of `fact`, then the prompt behind each context."""
    return [fact.prompt, *(f"{context.rstrip()}. {fact.prompt}" for context in contexts)]


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
    tokens = fitting_tokens(model, BATCH_TOKENS, _bytes_per_token(model, layer))
    cost = of_device(model, BATCH_COST)
    parts = [order[part] for part in _chunks([requests[i] for i in order], tokens, cost)]
    values: dict[int, Value] = {}

    def keep(found: dict[int, Value]) -> None:
        values.update(found)
        progress(len(values))

    def work(part: list[int]) -> None:
        _search(model, {i: requests[i] for i in part if i not in values}, layer, search, keep)

    with frozen(model):
        for _ in halving(model, parts, work, "searches"):
            pass
    return [values[i] for i in range(len(requests))]


def _search(
    model: Model,
    requests: dict[int, Request],
    layer: int,
    search: VStarSearch,
    keep: Callable[[dict[int, Value]], None],
) -> None:
    """Search for all requests in one batch; `keep` gets the values that are found, by the number of their request."""
    going = list(requests)
    run = Run.of(model, list(requests.values()), layer)
    searches = Searches(run, search)
    part = 1 / 2 if capturing(model) else 3 / 4  # to capture a step takes as long as many of them
    while going:
        ended = until_done(run, searches, int(len(going) * part))  # then go on with the others alone
        keep({going[j]: value for j, value in ended.items()})
        left = [j for j in range(len(going)) if j not in ended]
        going = [going[j] for j in left]
        if going:
            run = run.only(left)
            searches = Searches(run, search).continuing(searches, left)


def _bytes_per_token(model: Model, layer: int) -> int:
    """About what a suffix token keeps alive: in each layer above, and as logits if it is read."""
    return (model.n_layers - layer) * bytes_per_token(model) + 3 * 4 * model.vocabulary


def _chunks(requests: list[Request], tokens: int, cost: int) -> list[slice]:
    """Cut requests, sorted by suffix, into the batches of at most so many tokens that are cheapest in all.

    A batch costs `cost` and its tokens, padding included.
    """
    rows = [0, *accumulate(len(request.batched) for request in requests)]
    best: list[tuple[int, int]] = [(0, 0)]  # of the first requests: what they cost, and where their last batch starts
    for end in range(1, len(requests) + 1):
        longest = requests[end - 1].suffix
        sizes = {start: (rows[end] - rows[start]) * longest for start in range(end)}
        fitting = [start for start, size in sizes.items() if size <= tokens] or [end - 1]
        best.append(min((best[start][0] + cost + sizes[start], start) for start in fitting))
    cuts = [len(requests)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    return [slice(start, end) for end, start in pairwise(cuts)][::-1]


class Searches:
    """Searches under way, a row each: all δ are one matrix, and one Adam is on it.

    What a step decides stays on the device: a search that is over keeps its δ by a mask, whatever the others do. All
    tensors are changed in place, so that a step can be captured.

    - `keys`: of each the keys of its prompts; `v0`, `delta` and Adam's `first`, `second` moments (searches, d_model).
    - `longest`: of each the largest norm of δ; `decay`: what the penalty of ‖δ‖ is multiplied by.
    - `going`, `steps`, `confident` (so many steps in a row), `loss`, `probability`, `reaches` (searches,): where each
      stands.
    - `begun`: steps that each has begun, or would have if it were not over. This is known without a look at the device.
    - `n`: how many there are; rows behind them only fill the batch.
    """

    _ROWS = (
        *("v0", "longest", "decay", "delta", "first", "second"),
        *("going", "steps", "confident", "loss", "probability", "reaches"),
    )

    def __init__(self, run: Run, search: VStarSearch, n: int | None = None):
        self.search, self.keys, self.v0 = search, run.keys(), run.v0()
        self.n = len(self.keys) if n is None else n
        self.begun = [0] * self.n
        self.delta, self.first, self.second = (torch.zeros_like(self.v0, dtype=torch.float32) for _ in range(3))
        self.loss, self.probability = (torch.zeros_like(self.delta[:, 0]) for _ in range(2))
        self.steps, self.confident = (torch.zeros_like(self.loss, dtype=torch.long) for _ in range(2))
        self.going = torch.arange(len(self.keys), device=self.loss.device) < self.n
        self.reaches = torch.ones_like(self.going)
        norm = self.v0.float().norm(dim=1)
        self.longest, self.decay = search.clamp * norm, search.decay / norm**2
        rates = [(0.0, 1.0), *(_adam_rates(search.lr, t) for t in range(1, search.steps + 1))]
        self.rates = torch.tensor(rates, device=self.loss.device).T[:, :, None]  # (2, steps + 1, 1)

    @torch.no_grad()
    def continuing(self, before: Searches, rows: list[int]) -> Searches:
        """These searches, the first of which go on from where `rows` of `before` stand."""
        for name in self._ROWS:
            getattr(self, name)[: len(rows)] = getattr(before, name)[rows]
        self.keys[: len(rows)] = [before.keys[j] for j in rows]
        self.begun[: len(rows)] = [before.begun[j] for j in rows]
        return self

    @property
    def starting(self) -> bool:
        """Whether some are in their first step."""
        return 1 in self.begun

    def kl(self) -> float | Tensor:
        """λ_KL, of each where some begin: at δ = 0, KL and its gradient are zero, and what is computed is rounding."""
        if not self.starting:
            return self.search.kl
        begun = torch.tensor([*self.begun, *[0] * (len(self.keys) - self.n)], device=self.loss.device)
        return self.search.kl * (begun > 1)

    def judged(self, run: Run) -> Tensor:
        """The loss of each (searches,), of one more forward pass, after which some are over."""
        self.leaf = delta = self.delta.detach().requires_grad_()  # of this pass alone
        nll, kl, probability = run.forward(delta)
        loss = nll.to(delta.device) + self.kl() * kl.to(delta.device) + self.decay * _norms(delta)
        self._judge(loss.detach(), probability.to(loss))
        return loss

    @torch.no_grad()
    def _judge(self, loss: Tensor, probability: Tensor) -> None:
        search, going = self.search, self.going
        self.steps += going
        torch.where(going, loss, self.loss, out=self.loss)
        torch.where(going, probability, self.probability, out=self.probability)
        over = self.steps == search.steps
        if search.stop_loss is not None:
            over = over | (loss < search.stop_loss)
        if search.stop_probability is not None:
            self.confident += 1
            self.confident *= probability >= search.stop_probability
            over = over | (self.confident == 2)
        going &= ~over

    @property
    def may_end(self) -> bool:
        """Whether a search may be over before its last step."""
        return self.search.stop_loss is not None or self.search.stop_probability is not None

    def ended(self, requests: Sequence[Request]) -> dict[int, Value]:
        """The values of the searches that are over, by row: one read from the device."""
        clamped = _norms(self.delta) >= 0.999 * self.longest
        columns = (self.going, self.loss, self.probability, self.steps, clamped, self.reaches)
        rows = torch.stack([column.to(self.loss) for column in columns], 1).tolist()[: self.n]
        return {
            j: Value(
                delta=self.delta[j].detach().clone(),
                v0=self.v0[j],
                keys=self.keys[j],
                lookup=requests[j].rows[0].lookup,
                loss=loss,
                probability=probability,
                steps=int(steps),
                clamped=bool(at_limit),
                reaches=bool(reaches),
            )
            for j, (going, loss, probability, steps, at_limit, reaches) in enumerate(rows)
            if not going
        }

    def step(self, loss: Tensor) -> None:
        """Adam's step of the δ of those that go on (Kingma & Ba 2015), and back to the largest norm allowed.

        A search that has no gradient in its first step is over. (A target that is certain has none either.)
        """
        (gradient,) = torch.autograd.grad(loss.sum(), self.leaf)
        with torch.no_grad():
            if self.starting:
                first = self.going & (self.steps == 1) & (self.probability < 1)
                self.reaches &= ~(first & (gradient == 0).all(1))
                self.going &= self.reaches
            self.first.lerp_(gradient, 1 - BETAS[0])
            self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            size, root = self.rates[:, self.steps]
            delta = self.delta - size * self.first / (self.second.sqrt() / root + EPSILON)
            delta *= (self.longest / _norms(delta).clamp(min=1e-12)).clamp(max=1)[:, None]
            torch.where(self.going[:, None], delta, self.delta, out=self.delta)


@torch.enable_grad()
def until_done(run: Run, searches: Searches, most: int) -> dict[int, Value]:
    """Take steps until at most `most` searches go on; return the values of the others by row.

    The device is waited for every few steps only (`READ_EVERY`); searches end all the same where they end. On a CUDA
    device whole steps are captured once all searches have taken their first, and replayed.
    """
    every = READ_EVERY.get(searches.delta.device.type, 5)
    whole = capturing(run.model)
    replay: Callable[[], None] | None = None
    for taken in count(1):
        searches.begun = [begun + 1 for begun in searches.begun]
        if whole and replay is None and not searches.starting:
            replay = captured(lambda: searches.step(searches.judged(run)))
        if replay:
            replay()
        else:
            loss = searches.judged(run)
        ended: dict[int, Value] = {}
        if (searches.may_end and taken % every == 0) or searches.search.steps in searches.begun:
            ended = searches.ended(run.requests)
        if not replay and len(ended) < searches.n:
            searches.step(loss)
        if searches.n - len(ended) <= most:
            return ended
    raise AssertionError("a search has a last step")


def _adam_rates(lr: float, t: int) -> tuple[float, float]:
    """In step t the step's size, and what the root of the second moment is divided by: both are corrected for bias."""
    return lr / (1 - BETAS[0] ** t), (1 - BETAS[1] ** t) ** 0.5


def _norms(delta: Tensor) -> Tensor:
    """The norm of each row, with gradient 0, not NaN, where it is zero."""
    return (delta.square().sum(1) + 1e-30).sqrt()
