"""What the residual stream already predicts after each layer: the logit lens (nostalgebraist 2020, Geva et al. 2022).

The state h of any layer and position is read as if it were the last one,

    p = softmax(head(norm(h))),

with the model's own final norm and unembedding, scaled and capped as the family does. After the last layer these are
the model's own predictions. Masked models are read through their whole head, its dense transform included; that head
was only ever trained on the last layer, so its reading of earlier ones is rougher.

A lens shows what could be read, not what is used: early layers keep information in directions that the final norm and
the unembedding do not show, and a token that is visible early need not be there for the prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...display.result import Table
from ...errors import InputError
from ...models.adapter import Model
from ...models.length import check_length
from ...models.passes.batches import fitting_logits
from ...models.passes.objective import at_least_float
from ...models.passes.replay import capture
from ...prompts import Prompt, with_target_ids

LOGIT_ROWS = 64  # states whose logits are held at once
_COLUMNS = 6  # layers in the table of all positions

Choices = tuple[tuple[str, float], ...]
"""The first choices for one state: tokens with their probabilities."""


@dataclass(frozen=True)
class Aim:
    """What is asked: the `target` token predicted at the read position of `prompt`, and a `foil` to compare with.

    Where target and foil begin with the same tokens, these stand in `prompt` already, and the first two that differ
    are compared.
    """

    prompt: Prompt
    target: int
    foil: int | None = None


@dataclass(frozen=True)
class Lens:
    """What each state predicts; row 0 is the embeddings, row l + 1 the residual stream after layer l.

    - `positions` of the prompt that were looked at, `tokens` what stands there.
    - `target`, `foil`: one token each, as text.
    - `probability`, `rank` of the target, and `foil_probability`, `foil_rank`: (n_layers + 1, positions); the first
      choice has rank 1.
    - `top[row][j]`: the first choices at `positions[j]`.
    """

    model: str
    read: int
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    target: str
    foil: str | None
    probability: Tensor
    rank: Tensor
    foil_probability: Tensor | None
    foil_rank: Tensor | None
    top: tuple[tuple[Choices, ...], ...]

    @property
    def n_layers(self) -> int:
        return len(self.top) - 1

    def column(self, position: int) -> int:
        """Where `position` is among `positions`. Raises `InputError` where it was not looked at."""
        if position not in self.positions:
            raise InputError(f"position {position} was not looked at; there are {list(self.positions)}")
        return self.positions.index(position)

    def settled(self, position: int | None = None) -> int | None:
        """The layer from which on the target stays the first choice (−1: the embeddings); None where it is not in the
        end. By default at the read position."""
        ranks = self.rank[:, self.column(self.read if position is None else position)].tolist()
        behind = [row for row, rank in enumerate(ranks) if rank != 1]
        last = behind[-1] if behind else -1
        return None if last == self.n_layers else last

    def as_dict(self) -> dict:
        """JSON values; layer −1 is the embeddings."""
        return {
            "target": self.target,
            "foil": self.foil,
            "read": self.read,
            "positions": [
                {
                    "position": position,
                    "token": self.tokens[j],
                    "settled": self.settled(position),
                    "layers": [self._state(row, j) for row in range(len(self.top))],
                }
                for j, position in enumerate(self.positions)
            ],
        }

    def _state(self, row: int, j: int) -> dict:
        state = {"layer": row - 1, "probability": self.probability[row, j].item(), "rank": int(self.rank[row, j])}
        if self.foil is not None:
            state |= {
                "foil_probability": self.foil_probability[row, j].item(),
                "foil_rank": int(self.foil_rank[row, j]),
            }
        return state | {"top": [list(choice) for choice in self.top[row][j]]}

    def table(self) -> Iterator[str | Table]:
        """The read position by layer and, where more were looked at, the first choices of all positions."""
        record = self.as_dict()
        yield settled(record)
        yield ""
        yield by_layer([record])
        if len(self.positions) > 1:
            yield ""
            yield by_position(record)

    def figure(self, path: str | Path) -> Path:
        """Draw probability and rank of the target, and the first choices, by layer."""
        from .figure import lens_figure

        return lens_figure(path, self)


def logit_lens(
    model: Model,
    prompt: str | Aim,
    target: str | None = None,
    foil: str | None = None,
    *,
    subject: str | None = None,
    positions: str | int | Sequence[str | int] = "read",
    top: int = 5,
    chat: bool = False,
    separator: str | None = None,
) -> Lens:
    """Read the residual stream of `prompt` after every layer.

    **Arguments:**

    - `target`: by default the model's own first choice; of several tokens the first (after what it shares with the
      foil). `foil`: another answer to compare with.
    - `positions`: `"read"`, `"lookup"`, a token index, several of them, or `"all"`.
    - `top`: how many first choices are kept.

    Raises `InputError` for a prompt, target or position that cannot be used.
    """
    if not isinstance(top, int) or top < 1:
        raise InputError(f"top is {top!r}, expected 1 or more first choices")
    aimed = (
        prompt
        if isinstance(prompt, Aim)
        else aim(model, prompt, target, foil, subject=subject, chat=chat, separator=separator)
    )
    places = _places(aimed.prompt, positions)
    hidden = states(model, aimed.prompt.ids)[:, list(places)]  # (n_layers + 1, positions, d_model)
    tokens = [aimed.target] if aimed.foil is None else [aimed.target, aimed.foil]
    p, ranks, choices = read_states(model, hidden.flatten(0, 1), tokens, top)
    p, ranks = (values.reshape(*hidden.shape[:2], len(tokens)) for values in (p, ranks))
    words = [model.token(token) for token in (*tokens, *(aimed.prompt.ids[i] for i in places))]
    n, compared = len(places), aimed.foil is not None
    return Lens(
        model=model.name,
        read=aimed.prompt.read,
        positions=places,
        tokens=tuple(words[len(tokens) :]),
        target=words[0],
        foil=words[1] if compared else None,
        probability=p[..., 0],
        rank=ranks[..., 0],
        foil_probability=p[..., 1] if compared else None,
        foil_rank=ranks[..., 1] if compared else None,
        top=tuple(tuple(choices[row * n : (row + 1) * n]) for row in range(len(hidden))),
    )


def aim(
    model: Model,
    prompt: str,
    target: str | None = None,
    foil: str | None = None,
    *,
    subject: str | None = None,
    chat: bool = False,
    separator: str | None = None,
) -> Aim:
    """Which token is looked for, and where. Errors are those of `model.query`, and for prompts that do not fit."""
    encoded = model.encode(prompt, subject, chat=chat)
    check_length(model, encoded.ids)
    if target is None:
        mask = model.tokenizer.mask_token_id if model.masked else None
        query = with_target_ids(encoded, (_first_choice(model, encoded),), mask)
        target = model.tokenizer.decode(list(query.target_ids))
    else:
        query = model.query(prompt, target, subject, chat=chat, separator=separator)
    if foil is None:
        step, other = 0, None
    else:
        foil_ids = model.query(prompt, foil, subject, chat=chat, separator=separator).target_ids
        step = parting(query.target_ids, foil_ids)
        if step is None:
            raise InputError(
                f"the foil {foil!r} is the same token as the target {target!r} or goes on from it; choose another foil"
            )
        other = foil_ids[step]
    check_length(model, query.steps[step].ids)
    return Aim(query.steps[step], query.target_ids[step], other)


def parting(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Where two answers' tokens first differ; None where the shorter one is the beginning of the longer."""
    return next((j for j, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)


@torch.no_grad()
def states(model: Model, ids: Sequence[int]) -> Tensor:
    """The residual stream of a prompt, (n_layers + 1, tokens, d_model): the embeddings, then each layer's output."""
    _, inputs, _, output = capture(model, torch.tensor([list(ids)], device=model.device))
    return torch.stack([hidden[0].to(output.device) for hidden in (*inputs, output)])


@torch.no_grad()
def read_states(
    model: Model, hidden: Tensor, tokens: Sequence[int], top: int = 0
) -> tuple[Tensor, Tensor, list[Choices]]:
    """Probabilities and ranks of `tokens` in states (rows, d_model), (rows, tokens), and each state's first choices."""
    columns = torch.tensor(list(tokens), device=hidden.device)
    probabilities, ranks, choices = [], [], []
    for rows in hidden.split(fitting_logits(model, LOGIT_ROWS)):
        logits = at_least_float(model.logits(model.normed(rows)))
        p = logits.softmax(-1)
        of_tokens = logits[:, columns]
        probabilities.append(p[:, columns].cpu())
        ranks.append(torch.stack([1 + (logits > of_tokens[:, j, None]).sum(1) for j in range(len(tokens))], 1).cpu())
        best, best_tokens = p.topk(min(top, p.shape[1]))
        words = [[model.token(token) for token in row] for row in best_tokens.tolist()]
        choices += [tuple(zip(*row, strict=True)) for row in zip(words, best.tolist(), strict=True)]
    return torch.cat(probabilities), torch.cat(ranks), choices


def _first_choice(model: Model, prompt: Prompt) -> int:
    hidden = states(model, prompt.ids)[-1, prompt.read]
    with torch.no_grad():
        return int(model.logits(model.normed(hidden[None])).argmax())


def _places(prompt: Prompt, positions: str | int | Sequence[str | int]) -> tuple[int, ...]:
    """The positions that are asked for, in the order of the prompt."""
    if isinstance(positions, str) and positions == "all":
        return tuple(range(len(prompt.ids)))
    places = [positions] if isinstance(positions, str | int) else list(positions)
    if not places:
        raise InputError("no position is named, expected read, lookup, all or token indices")
    return tuple(sorted({prompt.position(place) for place in places}))


# ---------------------------------------------------------------- for people, from the records


def settled(record: dict) -> str:
    """Where the target ends, and from which layer on it is the first choice."""
    place = _at_read(record)
    last = place["layers"][-1]
    text = (
        f"{record['target']!r} has probability {last['probability']:.3f} and rank {last['rank']} after the last layer"
    )
    if place["settled"] is None:
        return text
    layer = "the embeddings" if place["settled"] < 0 else f"layer {place['settled']}"
    return f"{text}; it is the first choice from {layer} on"


def by_layer(records: Sequence[dict]) -> Table:
    """The read position after every layer; a second record, with edits, stands beside the first."""
    first = records[0]
    names = [first["target"], *([] if first["foil"] is None else [first["foil"]])]
    columns = ["after"]
    for when in ("", " edited")[: len(records)]:
        columns += [column for name in names for column in (f"p {name.strip()}{when}", "rank")]
        columns.append(f"first choices{when}")
    rows = []
    for states in zip(*(_at_read(record)["layers"] for record in records), strict=True):
        row = ["embeddings" if states[0]["layer"] < 0 else states[0]["layer"]]
        for state in states:
            row += [f"{state['probability']:.4f}", state["rank"]]
            if len(names) == 2:
                row += [f"{state['foil_probability']:.4f}", state["foil_rank"]]
            row.append("  ".join(f"{token!r} {p:.2f}" for token, p in state["top"][: 5 if len(records) == 1 else 2]))
        rows.append(row)
    return Table(columns, rows, "Logit lens at the read position")


def by_position(record: dict, when: str = "") -> Table:
    """The first choice at every position, after some of the layers; `when` says of which model."""
    layers = record["positions"][0]["layers"]
    shown = sorted({round(i * (len(layers) - 1) / _COLUMNS) for i in range(1, _COLUMNS + 1)})
    rows = [
        (place["position"], repr(place["token"]), *(f"{place['layers'][i]['top'][0][0]!r}" for i in shown))
        for place in record["positions"]
    ]
    columns = ("position", "token", *(f"after {layers[i]['layer']}" for i in shown))
    return Table(columns, rows, f"First choices by position{when}")


def _at_read(record: dict) -> dict:
    return next(place for place in record["positions"] if place["position"] == record["read"])
