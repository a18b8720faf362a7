"""What a terminal shows. Text from outside (prompts, tokens, file names) is inert there: control characters, and so
ANSI escapes, are spelled out, and nothing is read as markup."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import typer

from ...display.result import Table, plain
from ...errors import KnoweditWarning
from ...writing.inert import inert

NOTES = 8  # warnings that a command shows


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table; a column whose cells are all numbers is aligned right."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    rows = [[("" if cell is None else cell) for cell in row] for row in rows]
    grid = Grid(title=None if title is None else Text(inert(title)), title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        numbers = rows and all(_numeric(row[i]) for row in rows)
        grid.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*[Text(inert(cell)) for cell in row])
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:  # a pipe has no width: do not fold for one
        console = Console(highlight=False, markup=False, emoji=False, width=200)
    console.print(grid)


def show(parts: Iterable[str | Table]) -> None:
    """Print lines of text and tables."""
    for part in parts:
        line(part) if isinstance(part, str) else table(part.columns, part.rows, part.title)


def _numeric(cell: object) -> bool:
    return isinstance(cell, int | float) or str(cell).strip("+-% ").replace(".", "", 1).isdigit()


def line(text: str = "") -> None:
    """Print one line of our own words with inert text in it."""
    typer.echo(inert(text) if text else "")


def note(text: str) -> None:
    """Print one line on stderr."""
    typer.echo(inert(text), err=True)


def log_to_stderr() -> None:
    """Show the library's log there."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("knowedit").setLevel(logging.INFO)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Warnings of ours are lines on stderr while the context lasts, each once, the first `NOTES` of them."""
    said: set[str] = set()
    others = warnings.showwarning

    def show(message, category, *rest, **named) -> None:
        if not issubclass(category, KnoweditWarning):
            return others(message, category, *rest, **named)
        if (text := str(message)) not in said:
            said.add(text)
            if len(said) <= NOTES:
                note(f"note: {text}")
            elif len(said) == NOTES + 1:
                note("note: there are more like these")

    with warnings.catch_warnings():
        warnings.simplefilter("always", KnoweditWarning)
        warnings.showwarning = show
        yield


def print_json(record: dict) -> None:
    """Print one JSON object on one line; a number that is not finite is null there."""
    typer.echo(json.dumps(plain(record), ensure_ascii=True, allow_nan=False))


def percent(value: float | None, signed: bool = True) -> str:
    """A fraction in percent, or nothing for None."""
    return "" if value is None else f"{value:+.1%}" if signed else f"{value:.1%}"
