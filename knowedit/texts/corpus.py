"""Text that keys are collected from: rows of token ids, the same ones at every reading.

    for rows in corpus("samples").batches(model, tokens=8192):      # (rows, row) token ids, as rows.py describes
        ...

By default a decoder says the text itself; `sources.py` has the files, built-in sentences and data sets of the Hub that
can be read instead. Each corpus says what it is in a dict for JSON, which the cache's key is made of, and can go on
where another reading of it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError, ModelError, did_you_mean
from ..hooks import unaltered
from ..models.adapter import Model
from ..models.cache import cache_root
from ..models.passes.decoding import decoding
from ..models.tensor_cache import TensorCache
from .rows import BATCH_ROWS, PER_ROW, check_per_row, fitting, frame, special, tokenization
from .sources import BuiltinText, HubText, TextFile

SOURCES = ("samples", "builtin")


class Corpus(Protocol):
    """A source of rows."""

    def identity(self, model: Model) -> dict:
        """What decides the rows for this model, as JSON values."""

    def batches(self, model: Model, tokens: int, done: int = 0) -> Iterator[Tensor]:
        """Batches of rows (rows, row) that hold `tokens` tokens of text or somewhat more, or all that there are;
        without those of the first batches, which held the `done` first tokens."""


def corpus(source: str | Corpus, *, seed: int = 0) -> Corpus:
    """The corpus that `source` names: `samples`, `builtin`, a file (.txt, or .jsonl with the field "text"), or a data
    set of the Hub as owner/name, owner/name:config or owner/name:config@revision. `seed` is for samples.

    Raises `InputError` for anything else.
    """
    if not isinstance(source, str):
        if not hasattr(source, "batches"):
            raise InputError(f"the text source is {source!r}, expected its name, such as 'samples'")
        return source
    if source == "samples":
        return Samples(seed=seed)
    if source == "builtin":
        return BuiltinText()
    if Path(source).suffix.lower() in (".txt", ".jsonl"):
        return TextFile(Path(source))
    name, _, revision = source.partition("@")
    name, _, config = name.partition(":")
    if name.count("/") == 1 and all(name.split("/")) and not Path(source).exists():
        return HubText(name, config or None, revision=revision or None)
    raise InputError(
        f"no text source is called {source!r}{did_you_mean(source, SOURCES)}; expected samples, builtin, a .txt or "
        ".jsonl file, or a data set as owner/name:config"
    )


def kept_for(text: Corpus, weights_hash: str | None) -> Corpus:
    """The corpus, whose samples the cache keeps for the model with that hash."""
    return replace(text, weights_hash=weights_hash) if isinstance(text, Samples) else text


@dataclass(frozen=True)
class Samples:
    """Text that a decoder says by itself: drawn from its distribution as it is (temperature 1, no cut-off), without
    special tokens. Each batch has its own seed; torch's random state is not touched. With `weights_hash`, that of the
    model, the cache keeps what was said."""

    seed: int = 0
    per_row: int = PER_ROW
    weights_hash: str | None = None

    def __post_init__(self):
        _check_seed(self.seed)
        check_per_row(self.per_row)

    def identity(self, model: Model) -> dict:
        _check_samples(model)
        per_row = fitting(model, self.per_row)
        return {"kind": "samples", "seed": self.seed, "per_row": per_row, "rows": BATCH_ROWS, **tokenization(model)}

    def batches(self, model: Model, tokens: int, done: int = 0) -> Iterator[Tensor]:
        _check_samples(model)
        per_row = fitting(model, self.per_row)
        said = self._sampled if unaltered(model.hf, self.weights_hash) is None else self._kept(model)
        while done < tokens:
            batch = done // (BATCH_ROWS * per_row)
            yield said(model, batch, min(BATCH_ROWS, -(-(tokens - done) // per_row)), per_row)
            done += BATCH_ROWS * per_row

    def _sampled(self, model: Model, batch: int, rows: int, per_row: int) -> Tensor:
        return _sampled(model, rows, per_row, f"{self.seed} {batch}")

    def _kept(self, model: Model) -> Callable[[Model, int, int, int], Tensor]:
        """As `_sampled`, from the cache where it is there."""
        of_model = {"weights": self.weights_hash, "dtype": str(model.dtype), "samples": self.identity(model)}
        cache = TensorCache(cache_root() / "samples")

        def said(model: Model, batch: int, rows: int, per_row: int) -> Tensor:
            request = {**of_model, "batch": batch, "rows": rows}
            sampled = partial(self._sampled, model, batch, rows, per_row)
            return cache.remembered(request, (rows, 1 + per_row), torch.long, lambda: sampled().cpu()).to(model.device)

        return said


def contexts(model: Model, n: int, lengths: Sequence[int] = (5, 10), *, seed: int = 0) -> tuple[str, ...]:
    """`n` short texts that the model says by itself, to stand before a prompt as `f"{context}. {prompt}"`.

    They have `lengths` tokens in turn and no special ones, white space between words only, and are never empty. A
    masked model cannot say anything by itself: (). Raises `InputError` for a count or length that is none.
    """
    lengths = tuple(lengths)
    if not isinstance(n, int) or n < 0:
        raise InputError(f"{n!r} contexts are wanted, expected a number from 0 on")
    if not lengths or not all(isinstance(length, int) and length > 0 for length in lengths):
        raise InputError(f"contexts of {lengths!r} tokens are wanted, expected one or more lengths from 1 on")
    _check_seed(seed)
    if model.masked or not n:
        return ()
    in_turn = [lengths[i % len(lengths)] for i in range(n)]
    of_length = {length: iter(_contexts(model, in_turn.count(length), length, seed)) for length in set(in_turn)}
    return tuple(next(of_length[length]) for length in in_turn)


def _contexts(model: Model, n: int, length: int, seed: int) -> list[str]:
    texts: list[str] = []
    for attempt in range(8):
        # a few more than are needed: some are nothing but white space
        ids = _sampled(model, n + 4, fitting(model, length), f"contexts {seed} {length} {attempt}")
        for row in ids[:, 1:].tolist():
            text = model.tokenizer.decode(row, skip_special_tokens=True).replace("\ufffd", " ")
            if text := " ".join(text.split()):
                texts.append(text)
        if len(texts) >= n:
            return texts[:n]
    raise ModelError(f"{model.name} says next to nothing but white space by itself; give contexts as texts")


@torch.no_grad()
def _sampled(model: Model, rows: int, tokens: int, seed: str) -> Tensor:
    """(rows, 1 + tokens): a first token and what the model says after it.

    Not by `generate`: that follows whatever penalties and cut-offs a model's generation config has, draws from the
    global random state, and takes ten times as long for drawing.
    """
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator(model.device).manual_seed(number)
    first, _ = frame(model)
    banned = torch.tensor(special(model), device=model.device)
    ids = torch.full((rows, 1), first, device=model.device)
    following = decoding(model, rows, tokens)
    for _ in range(tokens):
        logits = following(ids[:, -1:]).float().index_fill(1, banned, -torch.inf)
        cumulated = logits.softmax(-1).cumsum(-1)
        # in (0, 1], so that the first token whose sum reaches it has a probability above 0
        drawn = 1 - torch.rand(rows, 1, generator=generator, device=model.device, dtype=cumulated.dtype)
        ids = torch.cat([ids, torch.searchsorted(cumulated, drawn * cumulated[:, -1:])], dim=1)
    return ids


def _check_samples(model: Model) -> None:
    if model.masked:
        raise InputError(
            f"{model.name} is a masked model, which cannot sample text; give 'builtin', a text file or a data set"
        )


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"the seed is {seed!r}, expected a whole number")
