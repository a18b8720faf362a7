"""The records of a file, whatever it is written as.

JSON (a list, one object, or {"data": [...]}), one JSON object a line, CSV and TSV with a header; any of them gzipped,
in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Each record comes with its place ("line 3", "record 3").
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import warnings
import zlib
from pathlib import Path
from typing import Any

from ..errors import DataError, InputError, KnoweditError, KnoweditWarning

MOST = 1 << 30  # bytes of a file that was gzipped: a small one can hold far more than fits in memory
_MARKS = {  # of encodings; UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip

Placed = tuple[str, Any]
"""A record behind its place in the file."""
Bad = list[tuple[str, str]]
"""Places of records that cannot be used, and why."""


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, as they are on the disk."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}; give a file that can be read") from None


def records(path: Path, data: bytes, bad: Bad | None = None) -> list[Placed]:
    """The records in `data`, which `path` holds. Raises `DataError` for what cannot be read, naming the line.

    With `bad` given, a line that cannot be read goes there, and the others are read.
    """
    text = _text(path, _unpacked(path, data))
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        return _table(path, text, "\t" if name.endswith(".tsv") else None, bad)
    try:
        whole = json.loads(text)
    except RecursionError:
        raise DataError(f"{str(path)!r} is not JSON (nested too deeply)") from None
    except ValueError as error:
        if text.lstrip().startswith("["):
            place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(f"{str(path)!r}{place}: not JSON ({_why(error)}); is the file whole?") from None
        return _lines(path, text, bad)
    inner = whole.get("data") if isinstance(whole, dict) else None
    if isinstance(inner, list) and inner and isinstance(inner[0], dict):
        whole = inner
    if isinstance(whole, list):
        return [(f"record {number}", record) for number, record in enumerate(whole, 1)]
    return [("line 1", whole)]


def _unpacked(path: Path, data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} is not sound gzip ({error}); get a good copy") from None
    if len(unpacked) > MOST:
        raise DataError(f"{str(path)!r} unpacks to more than {MOST >> 20} MiB; unpack it and give a part of it")
    return unpacked


def _text(path: Path, data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    if encoding != "utf-8-sig":
        message = f"{str(path)!r} is {encoding.upper()} text, expected UTF-8; it was read as what it is"
        warnings.warn(message, KnoweditWarning, stacklevel=2)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise DataError(f"{str(path)!r} is not UTF-8 text; save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{str(path)!r} is no text, or UTF-16 without a byte order mark; save it as UTF-8")
    return text


def _why(error: Exception) -> str:
    """Why a text is not JSON: a number may have too many digits, too."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]


def _lines(path: Path, text: str, bad: Bad | None) -> list[Placed]:
    found: list[Placed] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append((f"line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                reason = f"not JSON ({_why(error)}); expected one object a line"
                put_aside(bad, f"line {number}", DataError(reason), repr(str(path)))
    return found


def _table(path: Path, text: str, delimiter: str | None, bad: Bad | None) -> list[Placed]:
    """The rows of CSV or TSV by the names in its header; a cell that is empty is a field that is not there."""
    header = text.partition("\n")[0]
    delimiter = delimiter or max(",;\t", key=header.count)  # spreadsheets write ; where the comma is decimal
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: list[Placed] = []
    try:
        names = [name.strip() for name in next(rows, [])]
        if len(set(names)) < len(names) or not all(names):
            raise DataError(f"{str(path)!r} has the header {names}, expected a name for each column, each once")
        for row in rows:
            if any(map(str.strip, row)):
                place = f"line {rows.line_num}"
                try:
                    found.append((place, _row(names, row)))
                except DataError as error:
                    put_aside(bad, place, error, repr(str(path)))
    except csv.Error as error:
        raise DataError(f"{str(path)!r}, line {rows.line_num}: not a table ({error})") from None
    return found


def _row(names: list[str], row: list[str]) -> dict[str, object]:
    if len(row) > len(names):
        raise DataError(f"{len(row)} cells, the header names {len(names)}; put text that holds the delimiter in quotes")
    return {name: _cell(cell) for name, cell in zip(names, row, strict=False) if cell.strip()}


def put_aside(bad: Bad | None, place: str, error: KnoweditError, source: str) -> None:
    """Keep why a record cannot be used; where nobody keeps such records, raise the error with its place."""
    if bad is None:
        raise type(error)(f"{source}, {place}: {error}") from None
    bad.append((place, str(error)))


def _cell(text: str) -> object:
    """A list or an object where the cell is one in JSON, else its text."""
    if text.lstrip().startswith(('["', "[]", "[{", '{"')):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise DataError(f"the cell {text[:40]!r} begins as JSON and is none") from None
    return text
