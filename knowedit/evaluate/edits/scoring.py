"""How likely are targets after prompts, each under an edit of its own? Many edits are asked in one forward pass.

    scores = score_edits(model, [edit, None], [[("The Eiffel Tower is in", "Rome")], [("The Louvre is in", "Paris")]])
    scores[0][0].per_token

Scores are teacher-forced, as `answers` gives them with the edit applied, to 1e-4 in log-likelihood. What makes it fast:

- no weight is changed: each token has its edit's own low-rank update (`row_edits.py`), so edits share a batch;
- what is asked under one edit is one tree of tokens: a prompt is run once for both of its targets, and prompts that
  begin alike share their beginning; each token sees its ancestors only, and trees are packed until rows are full:

      The ─ Eiffel ─ Tower ─ is ─ in            row 0   The Eiffel Tower is in  's city is  │ The Louvre is in
                         └── 's ─ city ─ is

- logits are made at the tokens that are scored, once for all targets that are read there.

Models whose positions or windows do not let trees be masked (ALiBi, short sliding windows, masked models) are run on
plain rows of about one length instead. In bfloat16 figures differ by a rounding, see `row_edits.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count

import torch
from torch import Tensor

from ...answers import Answer
from ...edit.edit import Edit
from ...errors import InputError
from ...hooks import Enough, ending_early, hooked, on_output
from ...models.adapter import Model
from ...models.length import positions
from ...models.passes.batches import batches, fitting_logits, fitting_tokens, halving
from ...prompts import Query
from .row_edits import check_edits, row_edits

BATCH_TOKENS = 512  # about: fills the processor, more is not faster
TREE = 64  # tokens of a tree at most, if it has several sequences: attention is paid for the whole row
WINDOW, SLACK = 8, 1.1  # trees are packed so many batches at a time; a batch may be so much larger than its share
LOGIT_ROWS = 64  # rows of logits at once


@dataclass(eq=False)
class _Tree:
    """Tokens under one edit; `parents[j]` comes before token `j`, or is −1. `reads`: node → what is read there."""

    edit: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    reads: dict[int, list[tuple]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class _Sequence:
    """Tokens that are run together, and (index, token, (edit, pair, step)) of each read."""

    ids: tuple[int, ...]
    reads: list[tuple[int, int, tuple[int, int, int]]]


def score_edits(
    model: Model,
    edits: Sequence[Edit | None],
    pairs: Sequence[Sequence[tuple]],
    *,
    tokens: int | None = None,
) -> list[list[Answer]]:
    """Ask each edit its (prompt, target) pairs; None asks the model as it is. Answers come in the order of the pairs.

    A third member of a pair is its separator. `tokens` is about the size of a batch, by default what suits the device.
    Edits may be of any rank and change any layers. Raises `InputError` where there are not as many lists of pairs as
    edits, for prompts and targets that `query` refuses or that are longer than the model takes, and what `check_edits`
    refuses; the model's weights are not touched.
    """
    if len(edits) != len(pairs):
        raise InputError(f"{len(edits)} edits and {len(pairs)} lists of pairs, expected one list for each edit")
    check_edits(model, edits)
    tokenized = {  # most are asked twice, without an edit and with it
        (prompt, target, *said): model.query(prompt, target, separator=next(iter(said), None))
        for prompt, target, *said in dict.fromkeys(chain.from_iterable(pairs))
    }
    queries = [[tokenized[pair] for pair in edit_pairs] for edit_pairs in pairs]
    owners: dict[Edit | None, list[int]] = {}  # an edit that is given twice is one
    for i, edit in enumerate(edits):
        owners.setdefault(edit, []).append(i)
    answers: dict[tuple, tuple[float, int]] = {}
    tokens = tokens or fitting_tokens(model, BATCH_TOKENS)
    _score(model, list(owners), [_sequences(model, queries, places) for places in owners.values()], tokens, answers)
    return [
        [_collect(answers, i, j, query) for j, query in enumerate(edit_queries)]
        for i, edit_queries in enumerate(queries)
    ]


def _collect(answers: dict, i: int, j: int, query: Query) -> Answer:
    reads = [answers[i, j, step] for step in range(len(query.target_ids))]
    return Answer(tuple(log_p for log_p, _ in reads), tuple(rank for _, rank in reads))


def _sequences(model: Model, queries: list[list[Query]], owners: list[int]) -> list[_Sequence]:
    """What is run for some of the lists of queries, each sequence of tokens once, in the order of their tokens."""
    reads_by_row: dict[tuple[int, ...], list] = {}
    for i in owners:
        for j, query in enumerate(queries[i]):
            steps = count()
            for row in query.rows(model.masked):
                reads_by_row.setdefault(row.ids, []).extend((*read, (i, j, next(steps))) for read in row.reads)
    return [_Sequence(ids, reads_by_row[ids]) for ids in sorted(reads_by_row)]


@torch.no_grad()
def _score(model: Model, edits: list, sequences: list[list[_Sequence]], tokens: int, answers: dict) -> None:
    """Put (log p, rank) of every read into `answers`."""
    longest = max((len(sequence.ids) for edit_sequences in sequences for sequence in edit_sequences), default=0)
    limit = positions(model)
    if limit and longest > limit:
        raise InputError(f"a prompt with its target is {longest} tokens long, {model.name} takes {limit}; shorten it")
    as_trees = _takes_trees(model, longest)
    trees = [
        tree
        for e, edit_sequences in enumerate(sequences)
        for tree in _trees(model, e, edit_sequences, TREE if as_trees else 0)
    ]
    work = partial(_run, model, edits, as_trees, answers)
    for _ in halving(model, (_packed if as_trees else _plain)(trees, tokens), work, "rows of prompts"):
        pass


def _takes_trees(model: Model, longest: int) -> bool:
    config = model.config
    window = getattr(config, "sliding_window", None)
    return (
        not model.masked
        and model.layout.trees
        and config._attn_implementation in ("eager", "sdpa")
        and (not window or longest <= window)
    )


def _trees(model: Model, edit: int, sequences: list[_Sequence], limit: int) -> list[_Tree]:
    """Sequences, sorted by their tokens, as trees of `limit` tokens; a sequence that only begins another joins it."""
    trees: list[_Tree] = []
    path: list[int] = []  # nodes of the sequence before
    for sequence in sequences:
        tree = trees[-1] if trees else None
        shared = 0
        if tree is not None and not model.masked:
            before = [tree.tokens[node] for node in path]
            while shared < min(len(before), len(sequence.ids)) and before[shared] == sequence.ids[shared]:
                shared += 1
        if tree is None or (shared < len(path) and len(tree) + len(sequence.ids) - shared > limit) or not shared:
            tree, path, shared = _Tree(edit), [], 0
            trees.append(tree)
        path = path[:shared]
        for depth in range(shared, len(sequence.ids)):
            tree.parents.append(path[-1] if path else -1)
            tree.depths.append(depth)
            tree.tokens.append(sequence.ids[depth])
            path.append(len(tree.tokens) - 1)
        for position, token, key in sequence.reads:
            tree.reads.setdefault(path[position], []).append((token, key))
    return trees


def _plain(trees: list[_Tree], tokens: int) -> list[list[list[_Tree]]]:
    """Batches of rows with one tree each, those of about one length together."""
    return [[[trees[i]] for i in batch] for batch in batches([len(tree) for tree in trees], tokens=tokens)]


def _packed(trees: list[_Tree], tokens: int) -> list[list[list[_Tree]]]:
    """Batches of about `tokens` tokens, and of about one size; their rows are filled with trees, and as wide as leaves
    the least padding."""
    packed = []
    for window in _windows(sorted(trees, key=len, reverse=True), WINDOW * tokens):
        while window:
            tokens_left = sum(map(len, window))
            share = round(tokens_left / tokens)
            limit = SLACK * tokens_left / share if share > 1 else math.inf
            largest = len(window[0])
            tries = [_fill(window, width, limit) for width in range(largest, max(largest, TREE) + 1, 4)]
            packed.append(max(tries, key=_fullness))
            taken = {id(tree) for row in packed[-1] for tree in row}
            window = [tree for tree in window if id(tree) not in taken]
    return packed


def _windows(trees: list[_Tree], tokens: int) -> list[list[_Tree]]:
    """Consecutive trees with about `tokens` tokens: to pack many at once would take time that grows with its square."""
    windows: list[list[_Tree]] = []
    size = math.inf
    for tree in trees:
        if size >= tokens:
            windows.append([])
            size = 0
        windows[-1].append(tree)
        size += len(tree)
    return windows


def _fill(trees: list[_Tree], width: int, limit: float) -> list[list[_Tree]]:
    """The first row with room takes the next tree."""
    rows: list[list[_Tree]] = []
    room: list[int] = []
    for tree in trees:
        at = next((r for r, free in enumerate(room) if free >= len(tree)), None)
        if at is None:
            if rows and (len(rows) + 1) * width > limit:
                continue
            at = len(rows)
            rows.append([])
            room.append(width)
        rows[at].append(tree)
        room[at] -= len(tree)
    return rows


def _fullness(rows: list[list[_Tree]]) -> float:
    sizes = [sum(map(len, row)) for row in rows]
    return sum(sizes) / (len(rows) * max(sizes))


def _run(model: Model, edits: list, as_trees: bool, answers: dict, rows: list[list[_Tree]]) -> None:
    width = max(sum(map(len, row)) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    seen = torch.zeros(len(rows), width, dtype=torch.long)
    owner = torch.zeros(len(rows), width, dtype=torch.long)
    places, reads = [], []
    for r, row in enumerate(rows):
        start = 0
        for tree in row:
            part = slice(start, start + len(tree))
            ids[r, part] = torch.tensor(tree.tokens)
            seen[r, part] = 1
            owner[r, part] = tree.edit
            for node, node_reads in tree.reads.items():
                places.append((r, start + node))
                reads.append(node_reads)
            start += len(tree)
    arguments = {}
    if as_trees:
        mask, positions = _ancestry(rows, width)
        low = torch.finfo(model.dtype).min
        additive = torch.zeros(mask.shape, dtype=model.dtype).masked_fill(~mask, low)
        arguments = {"attention_mask": additive[:, None].to(model.device), "position_ids": positions.to(model.device)}
    elif model.masked:
        arguments = {"attention_mask": seen.to(model.device)}
    with row_edits(model, edits, owner):
        hidden = _last_hidden(model, ids.to(model.device), **arguments)
    at, columns = torch.tensor(places, device=hidden.device).T
    hidden = hidden[at, columns]
    step = fitting_logits(model, LOGIT_ROWS)
    for start in range(0, len(reads), step):
        _read(model, hidden[start : start + step], reads[start : start + step], answers)


def _ancestry(rows: list[list[_Tree]], width: int) -> tuple[Tensor, Tensor]:
    """Who sees whom (rows, width, width), each token itself and its ancestors, and positions (rows, width)."""
    sees = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    for r, row in enumerate(rows):
        start = 0
        for tree in row:
            part = slice(start, start + len(tree))
            positions[r, part] = torch.tensor(tree.depths)
            own_part = sees[r, part, part]
            for node, parent in enumerate(tree.parents):
                if parent >= 0:
                    own_part[node] |= own_part[parent]
            start += len(tree)
    return sees, positions


def _last_hidden(model: Model, tokens: Tensor, **arguments) -> Tensor:
    """What the last block gives, (rows, width, d_model)."""
    outputs = []

    def keep(output: Tensor) -> None:
        outputs.append(output)
        raise Enough

    if not model.masked:
        arguments["use_cache"] = False
    with hooked(on_output(model.blocks[-1], keep)), ending_early():
        model.run(tokens, **arguments)
    return outputs[-1]


def _read(model: Model, hidden: Tensor, reads: list[list[tuple]], answers: dict) -> None:
    """Log-probability and rank of the tokens that are read at some places, hidden (places, d_model)."""
    logits = model.logits(model.normed(hidden)).float()
    total = logits.logsumexp(-1)
    places = [p for p, row_reads in enumerate(reads) for _ in row_reads]
    at = torch.tensor(places, device=logits.device)
    token = torch.tensor([token for row_reads in reads for token, _ in row_reads], device=logits.device)
    target_logits = logits[at, token]
    log_p = (target_logits - total[at]).tolist()
    above = [(logits[p] > value).sum() for p, value in zip(places, target_logits, strict=True)]
    ranks = (1 + torch.stack(above)).tolist()
    for (_, key), *read in zip((pair for row_reads in reads for pair in row_reads), log_p, ranks, strict=True):
        answers[key] = tuple(read)
