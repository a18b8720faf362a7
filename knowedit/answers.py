"""What a model answers: the probability and rank of a target, and the model's own first choices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError, KnoweditWarning
from .facts import Fact
from .models.adapter import Model
from .models.length import check_length, positions
from .models.passes.batches import batches, fitting_tokens, halving, padded
from .models.passes.replay import capture
from .progress import Progress, silent
from .prompts import Query, with_target_ids
from .writing.scripts import goes_on

BATCH_TOKENS = 768
LIKELIER, LIKELY = 10, 0.1  # with the other separator: so many times, and at least so probable, to be said
LONGEST = 6  # tokens of a first choice at most; a character has four bytes


@dataclass(frozen=True)
class Answer:
    """A target after a prompt: the log-probability of each of its tokens given those before it (nats), and their ranks,
    1 for the model's first choice.

    - `tokens`: what was scored, token by token.
    - `top`: the model's first choices, if they were asked for, with the probabilities of their first tokens. Each is
      read on greedily to the end of its character; the first one, and others where few are asked for, to the end of
      its word. `top_ids` are the tokens of each.
    """

    log_p: tuple[float, ...]
    ranks: tuple[int, ...]
    tokens: tuple[str, ...] = ()
    top: tuple[tuple[str, float], ...] = ()
    top_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def probability(self) -> float:
        """Of the whole target."""
        return exp(sum(self.log_p))

    @property
    def nll(self) -> float:
        """The mean negative log-likelihood of the target's tokens."""
        return -sum(self.log_p) / len(self.log_p)

    @property
    def per_token(self) -> float:
        """p̃, the geometric mean of the probabilities of the target's tokens."""
        return exp(-self.nll)

    @property
    def rank(self) -> int:
        """Of the target's first token."""
        return self.ranks[0]

    @property
    def greedy(self) -> bool:
        """Every token of the target is the first choice."""
        return all(rank == 1 for rank in self.ranks)

    @property
    def known(self) -> bool:
        return self.rank == 1

    def as_dict(self) -> dict:
        """For JSON."""
        names = ("probability", "per_token", "rank", "greedy", "tokens", "top")
        return {name: getattr(self, name) for name in names}


def ask(model: Model, queries: Sequence[Query], top: int = 5, progress: Progress = silent) -> list[Answer]:
    """The answer to each of the queries, teacher-forced, in their order. `progress` counts queries.

    Prompts of about one length share a batch, and queries that read the same tokens share a row. Warns where a target
    would be far likelier with the other separator before it. Raises `InputError` for more tokens than the model takes.
    """
    for query in queries:
        check_length(model, query.steps[-1].ids)
    reads: dict[tuple[int, ...], list[_Read]] = {}  # by the row of token ids that they are read in
    for i, query in enumerate(queries):
        for row in query.rows(model.masked):
            reads.setdefault(row.ids, []).extend(_Read(i, *read) for read in row.reads)
    rows = list(reads)
    parts: list[dict[int, _Part]] = [{} for _ in queries]  # by the index of the read

    def work(batch: list[int]) -> list[tuple[_Read, _Part]]:
        chosen = [(r, read) for r, i in enumerate(batch) for read in reads[rows[i]]]
        others = [queries[read.query].other_start for _, read in chosen]
        found = _read(model, [rows[i] for i in batch], chosen, others, top)
        return [(read, part) for (_, read), part in zip(chosen, found, strict=True)]

    fitting = fitting_tokens(model, BATCH_TOKENS)
    for _, found in halving(model, batches([len(ids) for ids in rows], tokens=fitting), work, "prompts"):
        for read, part in found:
            parts[read.query][read.at] = part
        progress(sum(len(part) == len(query.target_ids) for part, query in zip(parts, queries, strict=True)))
    for query, of_query in zip(queries, parts, strict=True):
        _check_separator(query, of_query[query.prompt.read])
    choices = _read_on(model, [(query, parts[i][query.prompt.read]) for i, query in enumerate(queries)])
    return [_answer(model, query, parts[i], choices) for i, query in enumerate(queries)]


def ask_facts(model: Model, facts: Sequence[Fact], chat: bool = False, top: int = 5) -> list[Answer]:
    """The answer to the main prompt of each of the facts, in their order."""
    return ask(model, [model.query_of(fact, chat=chat) for fact in facts], top)


def says(model: Model, query: Query) -> tuple[str, float]:
    """The model's first choice where `query` has its target, and the probability of its first token."""
    (answer,) = ask(model, [replace(query, other_start=None)], top=1)
    return answer.top[0]


def first_choice(model: Model, fact: Fact) -> str:
    """What the model says to a fact's prompt: the likeliest text, as a target that has the very tokens.

    It begins with its white space where another separator would stand before it. Warns where the model goes on with
    what no answer begins with, such as the rest of a word. Raises `InputError` where none of the twenty likeliest
    tokens begins a text.
    """
    mask = model.tokenizer.mask_token_id if model.masked else None
    query = with_target_ids(model.encode(fact.prompt, fact.subject), (0,), mask)  # any token: only choices count
    (answer,) = ask(model, [query], top=min(20, model.vocabulary))
    for (text, _), ids in zip(answer.top, answer.top_ids, strict=True):
        for target, expected in ((text, ids), (model.token(ids[0]), ids[:1])):
            for spelled in (target.strip(), target):
                try:
                    fits = spelled.strip() and model.query_of(fact, spelled).target_ids == expected
                except InputError:  # the tokenizer does not know it
                    continue
                if fits:
                    if ids != answer.top_ids[0]:
                        _warn_of_rest(fact, answer.top[0][0], spelled)
                    return spelled
    raise InputError(f"the model has no word as an answer to {fact.prompt!r}; say the answer")


def _warn_of_rest(fact: Fact, rest: str, taken: str) -> None:
    message = (
        f"the model goes on with {rest!r} behind {fact.prompt!r}, with which no answer begins there; its likeliest "
        f"answer is {taken.strip()!r}"
    )
    warnings.warn(message, KnoweditWarning, stacklevel=3)


class _Read(NamedTuple):
    """A token of a query's target that is read `at` an index of a row."""

    query: int
    at: int
    token: int


class _Part(NamedTuple):
    """What was read of one token.

    - `choices`: the first ones, as (token, probability); `other_log_p`: of what the other separator would put there.
    """

    log_p: float
    rank: int
    choices: list[tuple[int, float]]
    other_log_p: float | None


@torch.no_grad()
def _read(
    model: Model, rows: list[tuple[int, ...]], reads: list[tuple[int, _Read]], others: list[int | None], top: int
) -> list[_Part]:
    """For each read, given with the number of its row, and the token that the other separator would put there."""
    log_p = _log_p(model, rows, [(r, read.at) for r, read in reads])
    tokens = [
        [read.token, read.token if other is None else other] for (_, read), other in zip(reads, others, strict=True)
    ]
    of_tokens = log_p.gather(1, torch.tensor(tokens, device=log_p.device))
    ranks = (1 + (log_p > of_tokens[:, :1]).sum(1)).tolist()
    best, choices = log_p.topk(min(top, log_p.shape[1]))
    chosen = [list(zip(*row, strict=True)) for row in zip(choices.tolist(), best.exp().tolist(), strict=True)]
    return [
        _Part(own, rank, choice, None if token is None else other)
        for (own, other), rank, choice, token in zip(of_tokens.tolist(), ranks, chosen, others, strict=True)
    ]


def _log_p(model: Model, rows: list[tuple[int, ...]], places: list[tuple[int, int]]) -> Tensor:
    """Log-probabilities at (row, index) places, (places, vocabulary)."""
    tokens, seen = padded(rows)
    *_, output = capture(model, tokens.to(model.device), mask=seen.to(model.device) if model.masked else None)
    row, index = torch.tensor(places, device=output.device).T
    return model.logits(model.normed(output[row, index])).float().log_softmax(-1)


def _answer(model: Model, query: Query, parts: dict[int, _Part], choices: dict[tuple, _Choice]) -> Answer:
    """The reads of a target by their position."""
    log_p, ranks, first, _ = zip(*(parts[position] for position in sorted(parts)), strict=True)
    said = [(*choices[_behind(query), token].said, p) for token, p in first[0]]
    top = tuple((text, p) for text, _, p in said)
    return Answer(log_p, ranks, tuple(map(model.token, query.target_ids)), top, tuple(ids for _, ids, _ in said))


def _behind(query: Query) -> tuple[int, ...]:
    """The tokens that a first choice stands behind."""
    return query.prompt.ids[: query.prompt.read + 1]


class _Choice:
    """A first choice that is read on greedily, token by token.

    - `whole`: how many of its tokens end where a character ends and, of a `word`, go on with that word.
    - `open`: whether the next token may belong to it, too.
    """

    def __init__(self, model: Model, token: int, word: bool):
        self.model, self.word, self.whole, self.open = model, word, 0, True
        self.ids: list[int] = []
        self.read(token)

    def read(self, token: int) -> None:
        self.ids.append(token)
        text = self._text(len(self.ids))
        if "\ufffd" in text:
            return
        self.open = not self.whole or goes_on(self._text(self.whole), text)
        if self.open:
            self.whole = len(self.ids)
            self.open = self.word and (not text.strip(" ") or goes_on("", text[-1]))

    def _text(self, n: int) -> str:
        return self.model.tokenizer.decode(self.ids[:n])

    @property
    def said(self) -> tuple[str, tuple[int, ...]]:
        """Its text and its tokens."""
        ids = self.ids[: max(1, self.whole)]
        text = self.model.token(ids[0]) if len(ids) == 1 else self.model.tokenizer.decode(ids)
        return text, tuple(ids)


@torch.no_grad()
def _read_on(model: Model, seen: list[tuple[Query, _Part]]) -> dict[tuple, _Choice]:
    """The first choices by (tokens before, token), read on to the end of their character, and of their word.

    The word is read for each query's first choice, and for all others where these fit into one batch.
    """
    few = sum(len(_behind(query)) + 1 for query, part in seen for _ in part.choices) <= BATCH_TOKENS
    words: dict[tuple, bool] = {}  # by place, whether its word is read
    for query, part in seen:
        for i, (token, _) in enumerate(part.choices):
            place = (_behind(query), token)
            words[place] = words.get(place, False) or i == 0 or few
    choices = {place: _Choice(model, place[1], word) for place, word in words.items()}
    room = positions(model) or inf
    for _ in range(0 if model.masked else LONGEST - 1):
        rows = [((*before, *choice.ids), choice) for (before, _), choice in choices.items() if choice.open]
        rows = [row for row in rows if len(row[0]) <= room]
        for batch in batches([len(ids) for ids, _ in rows], tokens=fitting_tokens(model, BATCH_TOKENS)):
            log_p = _log_p(model, [rows[i][0] for i in batch], [(r, len(rows[i][0]) - 1) for r, i in enumerate(batch)])
            for i, token in zip(batch, log_p.argmax(1).tolist(), strict=True):
                rows[i][1].read(token)
    return choices


def _check_separator(query: Query, first: _Part) -> None:
    """Warn where the target begins otherwise than the model would begin it by far."""
    other = first.other_log_p
    if other is None or exp(other) < LIKELY or exp(other - first.log_p) < LIKELIER:
        return
    between = {"": "no space", " ": "a space"}.get(str(query.separator), repr(query.separator))
    instead = '" "' if query.separator == "" else '""'
    message = (
        f"behind {query.prompt.text!r} the target stands with {between}: its first token has p {exp(first.log_p):.2g}, "
        f"and {exp(other):.2g} with separator {instead}; say which is meant"
    )
    warnings.warn(message, KnoweditWarning, stacklevel=3)
