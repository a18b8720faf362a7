"""Tables as people paste them: Markdown, LaTeX and CSV. What came from outside is inert in each.

    table = Table("metrics", "Metrics, in %", ("metric", "after", "n"), [("ES", Value(1.0, 0.98, 1.0), 200)])
    WRITERS["latex"](table)

A `Value` is a figure with its interval: `100.0 [98.0, 100.0]` to be read, and three columns of plain fractions as CSV.
For terminals, `cells(table)` are the texts of a table.
"""

from __future__ import annotations

import csv as csv_format
import io
from collections.abc import Sequence
from dataclasses import dataclass

from ...writing.inert import for_markdown, inert


@dataclass(frozen=True)
class Value:
    """A figure with its 95 % interval, shown times `scale` with `digits` decimals, and with its sign where `signed`."""

    value: float | None
    low: float | None = None
    high: float | None = None
    scale: float = 100
    digits: int = 1
    signed: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return ""
        if self.low is None or self.high is None:
            return self._number(self.value)
        return f"{self._number(self.value)} [{self._number(self.low)}, {self._number(self.high)}]"

    def _number(self, value: float) -> str:
        shown = self.scale * value
        form = f".{self.digits}f" if abs(shown) < 1e6 else ".2e"  # of an edit that breaks the model
        text = f"{shown:{'+' if self.signed else ''}{form}}"
        return text.replace("-", "+" if self.signed else "") if float(text) == 0 else text


Cell = str | int | float | Value | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`. `name` is that of its files, `note` a sentence that belongs below it.

    `best`: (row, column) of the cells that papers set in bold.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()

    def as_dict(self) -> dict:
        """For JSON: a value as {value, low, high}."""
        plain = [
            [{"value": c.value, "low": c.low, "high": c.high} if isinstance(c, Value) else c for c in row]
            for row in self.rows
        ]
        return {"name": self.name, "title": self.title, "columns": list(self.columns), "rows": plain, "note": self.note}


def cells(table: Table) -> list[list[str]]:
    """The rows as people read them, not yet inert."""
    return [[_text(cell) for cell in row] for row in table.rows]


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1 else f"{cell:.1f}"
    return str(cell)


def _numeric(table: Table, column: int) -> bool:
    return all(not isinstance(row[column], str) for row in table.rows)


# ---------------------------------------------------------------- Markdown


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown under its title."""
    lines = [
        f"**{for_markdown(table.title)}**",
        "",
        _markdown_row(table.columns),
        _markdown_row_of("---:" if _numeric(table, i) else "---" for i in range(len(table.columns))),
        *(
            _markdown_row_of(_bold(table, i, j, for_markdown(text), "**{}**") for j, text in enumerate(row))
            for i, row in enumerate(cells(table))
        ),
    ]
    if table.note:
        lines += ["", for_markdown(table.note)]
    return "\n".join(lines) + "\n"


def _bold(table: Table, i: int, j: int, text: str, form: str) -> str:
    return form.format(text) if (i, j) in table.best else text


def _markdown_row(texts: Sequence[str]) -> str:
    return _markdown_row_of(for_markdown(text) for text in texts)


def _markdown_row_of(texts) -> str:
    return f"| {' | '.join(texts)} |"


# ---------------------------------------------------------------- LaTeX

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "{}$&#%_"}
    | {c: f"{{{c}}}" for c in "[]*"}  # at a row's start they would be an argument of the line end before
    | {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "`": r"\textasciigrave{}",
        "⏎": r"\textdownarrow{}",
    }
)


def latex(table: Table) -> str:
    """A `table` environment with its caption, for the package booktabs."""
    columns = "".join("r" if _numeric(table, i) else "l" for i in range(len(table.columns)))
    caption = _for_latex(f"{table.title}. {table.note}" if table.note else table.title)
    lines = [
        r"% \usepackage{booktabs} \usepackage[T1]{fontenc}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(map(_for_latex, table.columns)),
        r"\midrule",
        *(
            _latex_row(_bold(table, i, j, _latex_cell(cell), r"\textbf{{{}}}") for j, cell in enumerate(row))
            for i, row in enumerate(table.rows)
        ),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(texts) -> str:
    return " & ".join(texts) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = _text(cell)
    return _for_latex(text) if isinstance(cell, str) else text.replace("-", "$-$")


def _for_latex(text: str) -> str:
    return inert(text).translate(_LATEX)


# ---------------------------------------------------------------- CSV

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def csv(table: Table) -> str:
    """Lines for spreadsheets and programs: plain fractions, a value's interval in columns of its own.

    Text that a spreadsheet would take as a formula begins with an apostrophe; all text stands in quotes.
    """
    wide = [any(isinstance(row[i], Value) for row in table.rows) for i in range(len(table.columns))]
    file = io.StringIO()
    writer = csv_format.writer(file, quoting=csv_format.QUOTE_NONNUMERIC, lineterminator="\n")
    heads = [
        [name, f"{name} low", f"{name} high"] if w else [name] for name, w in zip(table.columns, wide, strict=True)
    ]
    writer.writerow([_for_csv(name) for some in heads for name in some])
    for row in table.rows:
        writer.writerow([part for cell, w in zip(row, wide, strict=True) for part in _csv_cells(cell, w)])
    return file.getvalue()


def _csv_cells(cell: Cell, wide: bool) -> list[str | float | None]:
    parts = [cell.value, cell.low, cell.high] if isinstance(cell, Value) else [cell, *([None, None] if wide else [])]
    return [_for_csv(part) if isinstance(part, str) else part for part in parts]


def _for_csv(text: str) -> str:
    shown = inert(text)
    formula = text[:1] in ("\t", "\r", "\n") or shown.lstrip().startswith(_FORMULA)
    return f"'{shown}" if formula else shown


WRITERS = {"markdown": markdown, "latex": latex, "csv": csv}
SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv"}
