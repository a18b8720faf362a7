"""What neurons' value vectors say, against what follows their triggers and what their layer says (Geva et al. 2021).

A neuron's value vector v, read by the unembedding under the sign of its activation, has a first token. Two questions:

- *Agreement* (section 4 there): how often is it the token that follows the neuron's strongest trigger? By chance it
  would be as often as if the layer's triggers were dealt out anew, Σ_t (share of values with first token t) · (share
  of triggers followed by t).
- *Compositional* (section 5): for how many tokens of text does the layer's output, Σ a v, have a first token that is
  the first token of none of its active neurons?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..display.result import Record
from ..errors import ModelError
from ..locate.neurons import read_outputs
from ..models.adapter import Model
from ..models.expansion import expansions
from ..models.passes.objective import BLOCK
from ..progress import Progress, counted, silent
from ..statistics import Estimate, proportion
from ..texts.rows import text_of
from .corpus_scan import ActivationScan, LayerActivations, watch

SAMPLES = 256  # tokens of text on which a layer's output is read
_A_ROW = 8  # of them from one row


@dataclass(frozen=True)
class Agreement(Record):
    """A layer's values against the tokens after their triggers.

    - `agree`: the share of neurons whose value's first token is the next token of their strongest trigger; `chance`:
      the same with triggers dealt out anew.
    - `rank`: the median place of that token among all tokens that the value promotes, 1 is first.
    """

    layer: int
    agree: Estimate
    chance: float
    rank: float


@dataclass(frozen=True, eq=False)
class Compositional:
    """The share of tokens on which the output of `layer` says what none of its active neurons says, in each text."""

    layer: int
    by_text: np.ndarray
    tokens: int

    @property
    def share(self) -> Estimate:
        """The mean over texts."""
        return proportion(self.by_text)

    def as_dict(self) -> dict:
        return {"layer": self.layer, "share": self.share.as_dict(), "tokens": self.tokens}


@torch.no_grad()
def agreement(model: Model, scan: ActivationScan, *, progress: Progress = silent) -> list[Agreement]:
    """How often values say what follows their neurons' strongest triggers, layer by layer.

    Triggers at the end of a row, after which nothing is known, do not count. `progress` counts layers.

    Raises `ModelError` for masked models.
    """
    check_decoder(model)
    return [_agreement(model, scan, layer) for layer in counted(scan.layers, progress)]


def check_decoder(model: Model) -> None:
    """Raise `ModelError` for masked models, in which a trigger is no prefix and no token is next."""
    if model.masked:
        raise ModelError(
            f"{model.name} is a masked model, whose neurons see both sides of a token: their triggers are no prefixes "
            "and predict no next token; take a decoder"
        )


def _agreement(model: Model, scan: ActivationScan, layer: int) -> Agreement:
    at = scan.at(layer)
    places = scan.places[at, :, 0]
    after = torch.tensor([_next(scan, code) for code in places.tolist()])
    known = after >= 0
    sign = torch.where(scan.values[at, :, 0] < 0, -1.0, 1.0)
    firsts, ranks = _first_tokens(model, layer, sign, after.clamp(min=0))
    firsts, after, ranks = firsts[known], after[known], ranks[known]
    n = len(after)
    counts = [torch.bincount(t, minlength=model.vocabulary).double() for t in (firsts, after)]
    return Agreement(
        layer=layer,
        agree=proportion((firsts == after).double().numpy()),
        chance=(counts[0] @ counts[1]).item() / n**2 if n else 0.0,
        rank=ranks.double().median().item() if n else 0.0,
    )


def _next(scan: ActivationScan, code: int) -> int:
    row, position = scan.place(code)
    ids = scan.rows[row]
    return ids[position + 1] if position + 1 < len(ids) else -1


@torch.no_grad()
def compositional(
    model: Model,
    scan: ActivationScan,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Compositional]:
    """How often a layer says what none of its active neurons says, on some `samples` tokens of the scanned text.

    `progress` counts the layers whose values are read out.
    """
    rows = _sampled(model, scan, samples, seed)
    tops = {layer: _both_tops(model, layer) for layer in counted(scan.layers, progress)}
    how_made = expansions(model)
    apart: dict[int, list[np.ndarray]] = {layer: [] for layer in scan.layers}
    for row, positions in rows:
        seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

        def take(layer: int, activations: LayerActivations, positions=positions, seen=seen) -> None:
            found = activations.neurons, activations.active, activations.output
            seen[layer] = found[0][0, positions], found[1][0, positions], found[2][0, positions]

        watch(model, row, {layer: how_made[layer] for layer in scan.layers}, take)
        for layer, (neurons, active, output) in seen.items():  # no longer under hooks: the model may be run to read
            said, _ = _first_of(model, read_outputs(model, layer, output))
            up, down = (tokens.to(said.device) for tokens in tops[layer])
            of_neurons = torch.where(neurons < 0, down, up)
            alone = ((of_neurons == said[:, None]) & active).any(1)
            apart[layer].append((~alone).double().cpu().numpy())
    return [
        Compositional(layer, np.array([part.mean() for part in parts]), sum(map(len, parts)))
        for layer, parts in apart.items()
    ]


def _sampled(model: Model, scan: ActivationScan, samples: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Rows of the scan and positions in their text, at random."""
    rng = np.random.default_rng(seed)
    n = min(len(scan.rows), max(1, -(-samples // _A_ROW)))
    chosen = []
    for row in sorted(rng.choice(len(scan.rows), n, replace=False).tolist()):
        ids = torch.tensor([scan.rows[row]], device=model.device)
        length = ids[0, text_of(model)].numel()
        positions = sorted(rng.choice(length, min(length, _A_ROW), replace=False).tolist())
        chosen.append((ids, torch.tensor(positions, device=model.device)))
    return chosen


# ---------------------------------------------------------------- the vocabulary, in blocks


def _values(model: Model, layer: int) -> Tensor:
    """What the unembedding reads of each value vector of a layer, (n_neurons, d_model)."""
    return read_outputs(model, layer, model.down_weight(layer).detach().T.to(model.device))


def _first_tokens(model: Model, layer: int, sign: Tensor, ranked: Tensor) -> tuple[Tensor, Tensor]:
    """Of each value vector times `sign`: its first token, and the rank of its token in `ranked`, (n_neurons,)."""
    directions = _values(model, layer)
    return _first_of(model, directions * sign.to(directions)[:, None], ranked)


def _both_tops(model: Model, layer: int) -> tuple[Tensor, Tensor]:
    """The first tokens of a layer's value vectors, and of the same with the other sign."""
    directions = _values(model, layer)
    best = directions.new_full((2, len(directions)), -torch.inf)
    tokens = torch.zeros(2, len(directions), dtype=torch.long, device=directions.device)
    for start, logits in _blocks(model, directions):
        least, at_least = logits.min(1)
        for side, (value, index) in enumerate((logits.max(1), (-least, at_least))):
            best[side], tokens[side] = _higher(best[side], tokens[side], value, index + start)
    return tokens[0].cpu(), tokens[1].cpu()


def _first_of(model: Model, directions: Tensor, ranked: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The token that each direction (rows, d_model) promotes most, (rows,), and the rank of its token in `ranked`."""
    best = directions.new_full((len(directions),), -torch.inf)
    tokens = torch.zeros(len(directions), dtype=torch.long, device=directions.device)
    logits_of_ranked = None if ranked is None else _logits_of(model, directions, ranked.to(directions.device))
    ranks = None if ranked is None else torch.ones_like(tokens)
    for start, logits in _blocks(model, directions):
        value, index = logits.max(1)
        best, tokens = _higher(best, tokens, value, index + start)
        if ranked is not None:
            other = torch.arange(start, start + logits.shape[1], device=tokens.device) != ranked.to(tokens)[:, None]
            ranks += ((logits > logits_of_ranked[:, None]) & other).sum(1)
    return tokens.cpu(), None if ranks is None else ranks.cpu()


def _higher(best: Tensor, tokens: Tensor, value: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The higher of the best and another block's value, and the token it belongs to; the earlier one where they tie."""
    better = value > best
    return torch.where(better, value, best), torch.where(better, others, tokens)


def _blocks(model: Model, directions: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The first token of each block of the vocabulary, and what directions (rows, d_model) add to its logits."""
    for start in range(0, model.vocabulary, BLOCK):
        _, weight = model.logits_of(directions[:1], slice(start, start + BLOCK))
        yield start, directions @ weight.to(directions).T


def _logits_of(model: Model, directions: Tensor, tokens: Tensor) -> Tensor:
    """What each direction adds to the logit of its token, (rows,)."""
    _, weight = model.logits_of(directions[:1], tokens.tolist())
    return (directions * weight.to(directions)).sum(1)


def mean_agreement(parts: Sequence[Agreement]) -> float | None:
    """The mean over layers that have triggers, each counted once."""
    values = [part.agree.value for part in parts if part.agree.value is not None]
    return float(np.mean(values)) if values else None


def mean_compositional(parts: Sequence[Compositional]) -> Estimate:
    """The mean over layers, each counted once; its interval is over texts."""
    return proportion(np.mean([part.by_text for part in parts], axis=0) if parts else [])
