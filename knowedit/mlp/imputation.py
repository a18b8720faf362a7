"""The imputation experiment: does the answer hang on the highest dimensions of one MLP's output at the last token?

In one layer at a time, let y (d_model) be what the down-projection puts out at the read position. The share s of
dimensions with the highest values, signed and not by magnitude, is set to the mean of all dimensions of that y:

    y_i ← (1/d) Σ_j y_j    for i in the round(s·d) highest,        s = 8 %

and the target's log-probability is read. Control: as many random dimensions set to the same mean. A target of several
tokens is altered at each position where one of its tokens is predicted, and their log-probabilities are added.

Highest dimensions are also the largest changes: `moved` is the norm of the change over the norm of y, so that it can
be seen how much of an effect is just that. Families that normalise the MLP's output (Gemma 2 and 3, OLMo 2, BERT) do
so after this.

The rows of a layer (one with its highest dimensions, one for each random draw) join a growing sweep at that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..display.result import Record, Table, plain
from ..errors import InputError
from ..facts import Fact
from ..hooks import on_output
from ..models.adapter import Model
from ..models.length import check_length
from ..models.passes.batches import fitting_tokens
from ..models.passes.objective import Objective, read_rows
from ..models.passes.replay import Recording, recordings
from ..models.passes.sweep import sweep
from ..progress import Progress, counted, silent
from ..prompts import Query
from ..statistics import Estimate, mean
from ..writing.counts import number_of

SWEEP_TOKENS = 512  # in a layer: large enough for full speed, small enough for any memory


@dataclass(frozen=True)
class ImputationConfig:
    """`share` of the output's dimensions that is set to their mean; `draws` of random dimensions a layer; `seed`."""

    share: float = 0.08
    draws: int = 8
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise InputError(f"the imputed share is {self.share!r}, expected a fraction of the dimensions such as 0.08")
        if not isinstance(self.draws, int) or isinstance(self.draws, bool) or self.draws < 0:
            raise InputError(f"{self.draws!r} random draws are wanted, expected 0 or more")

    def dimensions(self, d_model: int) -> int:
        return max(1, round(self.share * d_model))


@dataclass(frozen=True)
class Imputation(Record):
    """One prompt. Lists go by layer.

    - `log_probability`: of the target, nothing altered.
    - `highest`: with the layer's highest dimensions imputed; `random`: with random ones, one value a draw.
    - `moved`, `moved_random`: norm of the change over norm of the output, the latter averaged over draws.
    """

    prompt: str
    target: str
    dimensions: int
    log_probability: float
    highest: tuple[float, ...]
    random: tuple[tuple[float, ...], ...]
    moved: tuple[float, ...]
    moved_random: tuple[float | None, ...]

    def control(self) -> list[Estimate]:
        """By layer, the mean of the random draws with its interval over draws."""
        return [mean(draws) for draws in self.random]

    def as_dict(self) -> dict:
        return super().as_dict() | {"control": plain(self.control())}

    def table(self) -> Iterator[str | Table]:
        """The target's log-probability by layer, beside the random draws'."""
        yield f"Imputation: {self.dimensions} dimensions of an MLP's output set to their mean, by layer"
        yield f"{self.prompt} → {self.target}   log p = {self.log_probability:.3f}"
        columns = zip(self.highest, self.control(), self.moved, self.moved_random, strict=True)
        rows = [
            (layer, f"{highest:.3f}", random.text(".3f"), f"{moved:.2f}", "" if other is None else f"{other:.2f}")
            for layer, (highest, random, moved, other) in enumerate(columns)
        ]
        yield Table(("layer", "highest", "random", "change of highest", "of random"), rows)

    def figure(self, path: str | Path) -> Path:
        """Draw the log-probability by layer."""
        from .figure import imputation_figure

        return imputation_figure(path, self)


@dataclass(frozen=True)
class Imputations(Record):
    """Many prompts: by layer, the mean change of the target's log-probability with its interval over prompts.

    - `highest`, `random`: under imputation of the highest and of random dimensions; `difference`: highest − random, in
      pairs. Without draws the latter two are not measured.
    """

    each: tuple[Imputation, ...]
    highest: tuple[Estimate, ...]
    random: tuple[Estimate, ...]
    difference: tuple[Estimate, ...]

    def table(self) -> Iterator[str | Table]:
        """The change of log-probability by layer."""
        facts, dimensions = number_of(len(self.each), "fact"), number_of(self.each[0].dimensions, "dimension")
        yield f"Imputation on {facts}: change of log p, {dimensions} set to the mean, by layer"
        estimates = zip(self.highest, self.random, self.difference, strict=True)
        rows = [(layer, *(estimate.text() for estimate in row)) for layer, row in enumerate(estimates)]
        yield Table(("layer", "highest", "random", "difference"), rows)

    def figure(self, path: str | Path) -> Path:
        """Draw the change by layer, with its intervals."""
        from .figure import imputations_figure

        return imputations_figure(path, self)


@torch.no_grad()
def impute(model: Model, query: Query, target: str = "", config: ImputationConfig | None = None) -> Imputation:
    """The experiment on one prompt, for all layers. `target` is how the query's target is called in the result."""
    config = config or ImputationConfig()
    check_length(model, query.steps[-1].ids)
    n = config.dimensions(model.d_model)
    clean, highest, moved = 0.0, np.zeros(model.n_layers), []
    random, moved_random = np.zeros((model.n_layers, config.draws)), []
    chosen = _random(model, n, config)
    for recording, reads, targets in recordings(model, query):
        objectives = [Objective("log_probability", t) for t in targets]
        clean += read_rows(model, recording.output, reads, objectives).value.item()
        rows, changes = _imputed(recording, reads, objectives, lambda layer, y: y.topk(n, -1).indices, 1)
        highest += rows[:, 0]
        moved.append(changes[:, 0])
        step = max(1, fitting_tokens(model, SWEEP_TOKENS) // (model.n_layers * recording.length))
        for start in range(0, config.draws, step):
            part = slice(start, min(start + step, config.draws))
            pick = lambda layer, y, part=part: chosen[layer][part, None].expand(-1, y.shape[1], -1)  # noqa: E731
            rows, changes = _imputed(recording, reads, objectives, pick, part.stop - part.start)
            random[:, part] += rows
            moved_random.append(changes)
    return Imputation(
        prompt=query.prompt.text,
        target=target,
        dimensions=n,
        log_probability=clean,
        highest=tuple(highest.tolist()),
        random=tuple(map(tuple, random.tolist())),
        moved=tuple(np.mean(moved, 0).tolist()),
        moved_random=tuple(np.concatenate(moved_random, 1).mean(1).tolist() if config.draws else [None] * len(random)),
    )


def impute_facts(
    model: Model,
    facts: Sequence[Fact],
    config: ImputationConfig | None = None,
    progress: Progress = silent,
) -> Imputations:
    """The experiment on the main prompts of `facts`. `progress` counts facts.

    Raises `InputError` without facts.
    """
    if not facts:
        raise InputError("there is no fact to impute; give at least one")
    each = []
    for fact in counted(facts, progress):
        each.append(impute(model, model.query_of(fact), fact.target, config))
    clean = np.array([imputation.log_probability for imputation in each])[:, None]
    highest = np.array([imputation.highest for imputation in each]) - clean  # (facts, layers)
    drawn = np.array([imputation.random for imputation in each])  # (facts, layers, draws)
    random = drawn.mean(-1) - clean if drawn.shape[-1] else np.empty((0, model.n_layers))
    difference = highest - random if len(random) else random
    return Imputations(tuple(each), *(tuple(mean(layer) for layer in v.T) for v in (highest, random, difference)))


def _random(model: Model, n: int, config: ImputationConfig) -> Tensor:
    """Random dimensions, (layers, draws, n)."""
    generator = torch.Generator().manual_seed(config.seed)
    ranks = torch.rand(model.n_layers, config.draws, model.d_model, generator=generator)
    return ranks.topk(n, -1).indices if config.draws else ranks.long()


def _imputed(
    recording: Recording,
    reads: list[int],
    objectives: list[Objective],
    choose: Callable[[int, Tensor], Tensor],
    rows: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and relative size of the change, both (layers, rows); all layers in one sweep.

    `choose` gives the dimensions (rows, reads, n) for a layer's outputs (rows, reads, d_model).
    """
    model = recording.model
    at = torch.tensor(reads)
    moved = np.zeros((model.n_layers, rows))

    def patch(layer: int, outputs: Tensor) -> Tensor:
        outputs = outputs.clone()
        imputed_rows = outputs[-rows:]
        y = imputed_rows[:, at.to(imputed_rows.device)]  # (rows, reads, d_model)
        dimensions = choose(layer, y).to(y.device)
        new = y.scatter(-1, dimensions, y.mean(-1, keepdim=True).expand(dimensions.shape))
        size = (new - y).double().norm(dim=-1) / y.double().norm(dim=-1).clamp(min=1e-30)
        moved[layer] = size.mean(1).cpu().numpy()
        imputed_rows[:, at.to(imputed_rows.device)] = new
        return outputs

    hidden = sweep(recording, [rows] * model.n_layers, patch, on_output)
    values = read_rows(model, hidden, reads, objectives).value
    return values.double().cpu().numpy().reshape(model.n_layers, rows), moved
