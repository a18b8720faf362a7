"""What an analysis returns: a record for programs, a table for people, a figure for papers.

@dataclass(frozen=True)
class Lengths(Record):
    model: str
    tokens: dict[str, int]

    def table(self):
        yield f"{self.model}: tokens of each prompt"
        yield Table(("prompt", "tokens"), list(self.tokens.items()))

    def figure(self, path):
        with drawing.figure(7, 3) as (fig, axes):
            axes.bar(list(self.tokens), list(self.tokens.values()))
            return drawing.save(fig, path)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol


class Record:
    """A dataclass whose record is its fields."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Table:
    """Rows of cells, numbers or text, under `columns`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str | None = None


class Result(Protocol):
    """What `knowedit` commands print and draw."""

    def as_dict(self) -> dict[str, Any]:
        """The record: JSON values."""

    def table(self) -> Iterable[str | Table]:
        """Lines of text and tables, in the order in which people read them."""

    def figure(self, path: str | Path) -> Path:
        """Draw the result into a file: .png, .svg or .pdf."""


def plain(value: Any) -> Any:
    """`value` as JSON has it: objects, lists, text and numbers; None for infinities and NaN."""
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
