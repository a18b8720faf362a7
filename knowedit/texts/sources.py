"""Text that is there already as rows of token ids: a local file, the built-in facts, or a data set of the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, InputError
from ..facts import Fact, fill
from ..models.adapter import Model
from ..models.cache import sha256_file
from ..models.checks import one_line
from ..selection import by_relation
from ..sources import builtin_facts
from .rows import BATCH_ROWS, PER_ROW, check_per_row, fitting, framed, tokenization

_CHUNK = 1 << 16  # characters of a text file that are tokenized at once
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class RowsOfText:
    """Texts one after the other, cut into rows; the last row may be shorter and is a batch of its own."""

    per_row: int = PER_ROW

    def __post_init__(self):
        check_per_row(self.per_row)

    def identity(self, model: Model) -> dict:
        return {**self.what(), "per_row": fitting(model, self.per_row), "rows": BATCH_ROWS, **tokenization(model)}

    def what(self) -> dict:
        raise NotImplementedError

    def texts(self) -> Iterator[str]:
        raise NotImplementedError

    def batches(self, model: Model, tokens: int, done: int = 0) -> Iterator[Tensor]:
        per_row = fitting(model, self.per_row)
        stream = islice(_token_stream(model, self.texts()), done, max(done, tokens))
        while ids := list(islice(stream, BATCH_ROWS * per_row)):
            whole = len(ids) // per_row * per_row
            if whole:
                yield framed(model, torch.tensor(ids[:whole]).view(-1, per_row))
            if ids[whole:]:
                yield framed(model, torch.tensor([ids[whole:]]))


@dataclass(frozen=True)
class TextFile(RowsOfText):
    """A local file in UTF-8: .txt, or .jsonl with one object a line that has its text in the field "text"."""

    path: Path

    def what(self) -> dict:
        path = Path(self.path)
        try:
            return {"kind": path.suffix.lower()[1:], "sha256": sha256_file(path)}
        except OSError as error:
            raise InputError(
                f"cannot read the text file {str(path)!r}: {error.strerror}; give one that exists"
            ) from None

    def texts(self) -> Iterator[str]:
        path = Path(self.path)
        try:
            with open(path, encoding="utf-8-sig") as file:
                if path.suffix.lower() == ".jsonl":
                    yield from _jsonl_texts(file, path)
                else:
                    while chunk := file.read(_CHUNK):
                        yield chunk + file.readline()  # up to the end of a line, where no word is cut
        except OSError as error:
            raise InputError(
                f"cannot read the text file {str(path)!r}: {error.strerror}; give one that exists"
            ) from None
        except UnicodeDecodeError:
            raise DataError(f"{str(path)!r} is not UTF-8 text; save it as UTF-8") from None


def _jsonl_texts(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{str(path)!r}, line {number}: not JSON, expected one object a line") from None
        yield _text_field(record, f"{str(path)!r}, line {number}")


@dataclass(frozen=True)
class BuiltinText(RowsOfText):
    """The built-in facts as sentences: every prompt with its answer, the main ones first, then the paraphrases.

    Relation after relation, or with `mixed` evenly from all, so that a part of the text is like the whole.
    """

    mixed: bool = False

    def what(self) -> dict:
        text = "".join(self.texts())
        return {"kind": "builtin", "sha256": hashlib.sha256(text.encode()).hexdigest()}

    def texts(self) -> Iterator[str]:
        facts = _mixed(builtin_facts()) if self.mixed else builtin_facts()
        for i in range(1 + max(len(fact.paraphrases) for fact in facts)):
            for fact in facts:
                for template in (fact.template, *fact.paraphrases)[i : i + 1]:
                    yield f"{fill(template, fact.subject)} {fact.target}.\n"


def _mixed(facts: Sequence[Fact]) -> list[Fact]:
    """Facts in an order in which each relation is spread over the whole."""
    groups = by_relation(facts).values()
    placed = [((i + 0.5) / len(group), fact) for group in groups for i, fact in enumerate(group)]
    return [fact for _, fact in sorted(placed, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class HubText(RowsOfText):
    """A data set of the Hub, streamed; where no commit is given, the revision's present one is asked for."""

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    def what(self) -> dict:
        return {
            "kind": "dataset",
            "name": self.name,
            "config": self.config,
            "split": self.split,
            "revision": self._commit(),
        }

    def texts(self) -> Iterator[str]:
        import datasets  # here and not above: it costs a second

        try:
            stream = iter(
                datasets.load_dataset(self.name, self.config, split=self.split, revision=self._commit(), streaming=True)
            )
        except Exception as error:
            raise self._unreadable(error) from None
        while True:
            try:
                record = next(stream)
            except StopIteration:
                return
            except Exception as error:  # of any of the libraries below: sockets, HTTP, parquet, JSON
                raise self._unreadable(error) from None
            yield _text_field(record, f"the data set {self.name!r}")

    def _commit(self) -> str:
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        import huggingface_hub

        try:
            return huggingface_hub.HfApi().dataset_info(self.name, revision=self.revision).sha
        except Exception as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(
            f"cannot read the data set {self.name!r} ({type(error).__name__}: {one_line(error, 160)}); check its name "
            "and the network, or give a local .txt or .jsonl file"
        )


def _text_field(record, where: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        fields = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
        raise InputError(f'{where}: found {fields or "nothing"}, expected text in the field "text"')
    return record["text"] + "\n\n"


def _token_stream(model: Model, texts: Iterable[str]) -> Iterator[int]:
    for text in texts:
        text = text.encode(errors="replace").decode()  # JSON can hold halves of characters
        yield from model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
