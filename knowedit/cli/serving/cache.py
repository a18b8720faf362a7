"""`knowedit cache`: what is kept on this machine, and what of it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ...display.result import Table
from ..shared.command import Printout, command, run_command
from ..shared.help import Command, group
from ..shared.options import Output

if TYPE_CHECKING:
    from ...serving.cache_entries import Entry

LONGEST = 20  # letters of a folder's name that are shown

app = group("cache", "Converted models, covariances and small tables that are kept on this machine.")


@app.command("list", cls=Command)
@command
def list_cache(*, output: Output) -> None:
    """What the cache holds: sizes, and when it was last used."""
    from ...models.cache import cache_root
    from ...serving.cache_entries import entries

    kept, left = entries()
    record = {"cache": str(cache_root()), "bytes": _size(kept + left), "kept": kept, "left": left}
    run_command("knowedit.cache/1", lambda _: Printout(record, _listed(record)), None, output)


@app.command("clean", cls=Command)
@command
def clean_cache(
    older: Annotated[
        int | None, typer.Option(metavar="DAYS", help="Also what was not used for so many days; 0: everything.", min=0)
    ] = None,
    *,
    output: Output,
) -> None:
    """Remove what dead processes left: locks and halves. With --older also what was not used for long.

    What another process holds stays. A model that was removed is fetched or converted again when it is next asked for.
    """
    from ...models.cache import cache_root
    from ...serving.cache_entries import clean, entries

    gone = clean(older)
    kept, _ = entries()
    record = {"cache": str(cache_root()), "removed": gone, "bytes": _size(gone), "kept": _size(kept)}
    parts: list[str | Table] = []
    if gone:
        parts = [Table(("removed", "size"), [(entry.name, _bytes(entry.size)) for entry in gone]), ""]
    more = "; --older DAYS removes more" if kept and older is None else ""
    freed = f"{_bytes(_size(gone))} are free again" if gone else "nothing was to be removed"
    text = f"{freed}, {_bytes(_size(kept))} are kept in {record['cache']}{more}"
    run_command("knowedit.cache-cleaned/1", lambda _: Printout(record, (*parts, text)), None, output)


def _listed(record: dict) -> Iterator[str | Table]:
    """A row for each model and each folder, with how many entries it has."""
    from ...serving.cache_entries import KINDS

    kinds: dict[str, list[Entry]] = {}
    for entry in record["kept"]:
        kinds.setdefault(entry.name if entry.kind == "models" else entry.kind, []).append(entry)
    rows = [(_short(name), KINDS.get(kept[0].kind, ""), *_row(kept)) for name, kept in kinds.items()]
    rows += [("", "left by dead processes", *_row(record["left"]))] if record["left"] else []
    if rows:
        yield Table(("folder", "what", "entries", "size", "last used"), rows)
        yield ""
    yield f"{_bytes(record['bytes'])} in {record['cache']}"


def _short(name: str) -> str:
    """The name of a folder, without the end of a long hash."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}…"


def _row(entries: Sequence[Entry]) -> tuple:
    used = time.strftime("%Y-%m-%d", time.localtime(max(entry.used for entry in entries)))
    return len(entries), _bytes(_size(entries)), used


def _size(entries: Sequence[Entry]) -> int:
    return sum(entry.size for entry in entries)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
