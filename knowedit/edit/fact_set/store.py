"""The rows and the facts of a set, in memory or in a folder that only grows.

    set.json                   what the set is: model, hash of its weights, config, and a checksum
    index.jsonl                one line an event: rows that were found, facts that came and went
    rows-000001.safetensors    keys and δ, a file for each event of rows

A file of rows is there, whole, before its event is written, and an event counts when its line is whole. So a process
may be killed at any moment: what was found is there, a line that was cut off is none. Each line has the hash of itself
and of all lines before it, each file of rows its own in its event: nothing damaged is ever read as something else.
Nothing is unpickled. One process at a time writes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ...errors import DataError, InputError, did_you_mean
from ...facts import Fact
from ...files import Chain, new_folder, rendered, sha256, write_bytes
from ...models.checks import one_line
from .rows import Row, content_hash

SCHEMA = "knowedit.fact-set/2"
HEADER, INDEX = "set.json", "index.jsonl"


class Store:
    """What a set is (`header`), its `members` by id, all `rows` that were ever found by name, and its `folder`.

    `hashes`: of the members' contents, by id.
    """

    def __init__(self, header: Mapping[str, Any], folder: Path | None = None):
        self.header = json.loads(json.dumps(dict(header)))
        self.folder = folder
        self.members: dict[str, Fact] = {}
        self.hashes: dict[str, str] = {}
        self.rows: dict[str, Row] = {}
        self._files = 0
        self._chain = Chain(None if folder is None else folder / INDEX, f"the fact set {str(folder)!r}")

    @classmethod
    def read(cls, folder: str | Path) -> Store:
        """The store in `folder`. Raises `InputError` where there is none, `DataError` where it is damaged."""
        folder = Path(folder).expanduser()
        if not (folder / HEADER).is_file():
            raise InputError(f"{str(folder)!r} is no fact set: there is no {HEADER}; give the folder of one")
        try:
            store = cls(_header((folder / HEADER).read_bytes()), folder)
            for event in store._chain.events():
                store._take(event)
            return store
        except (DataError, InputError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"the fact set {str(folder)!r} is damaged: {one_line(error)}; take its backup, or add the facts anew"
            ) from None

    def write(self, folder: str | Path) -> Store:
        """Write all of it to a new `folder`, where it grows from then on."""
        with new_folder(folder) as new:
            copy = Store(self.header, new)
            write_bytes(new / HEADER, rendered({**self.header, "checksum": sha256(rendered(self.header))}))
            (new / INDEX).touch()
            copy.keep(self.rows)
            copy.change((), list(self.members.values()))
        copy.folder = Path(folder).expanduser()
        copy._chain.path, copy._chain.what = copy.folder / INDEX, f"the fact set {str(copy.folder)!r}"
        return copy

    def facts(self) -> tuple[Fact, ...]:
        """The members in the order of their contents' hashes."""
        return tuple(self.members[name] for _, name in sorted((hash, name) for name, hash in self.hashes.items()))

    def keep(self, rows: Mapping[str, Row]) -> None:
        """Keep rows by name. Raises `InputError` where they cannot be written; nothing is lost then."""
        if not rows:
            return
        with self._chain.writing():
            names = list(rows)
            file = f"rows-{self._files + 1:06}.safetensors"
            keys, deltas = (torch.stack([getattr(rows[name], part) for name in names]) for part in ("key", "delta"))
            data = save({"key": keys.contiguous(), "delta": deltas.contiguous()})
            event = {
                "event": "rows",
                "file": file,
                "sha256": sha256(data),
                "rows": [[name, rows[name].probability, rows[name].steps] for name in names],
            }
            self._chain.append(event, {file: data})
            self._files += 1
            self.rows.update(rows)

    def check_there(self, ids: Iterable[str]) -> list[str]:
        """The ids, if each is that of a member and none is there twice. Raises `InputError` otherwise."""
        ids = list(ids)
        counts = Counter(ids)
        for name in ids:
            if name not in self.members:
                raise InputError(f"no fact of the set has the id {name!r}{did_you_mean(str(name), self.members)}")
            if counts[name] > 1:
                raise InputError(f"the id {name!r} is there twice, expected each once")
        return ids

    def change(self, removed: Iterable[str], added: Sequence[Fact]) -> None:
        """Let members go, by id, and others come, all or nothing."""
        removed = list(removed)
        if not removed and not added:
            return
        with self._chain.writing():
            self._chain.append({"event": "change", "removed": removed, "added": [fact.as_dict() for fact in added]})
            self._changed(removed, added)

    def _changed(self, removed: Sequence[str], added: Sequence[Fact]) -> None:
        for name in removed:
            del self.members[name], self.hashes[name]
        for fact in added:
            if fact.id is None or fact.id in self.members:
                raise DataError(f"the fact {fact.id!r} came twice")
            self.members[fact.id], self.hashes[fact.id] = fact, content_hash(fact)

    def _take(self, event: dict) -> None:
        """Let an event that was read count."""
        if event["event"] == "change":
            self._changed(event["removed"], [Fact.from_dict(fact) for fact in event["added"]])
            return
        assert self.folder is not None
        path = self.folder / event["file"]
        if path.parent != self.folder or path.is_symlink() or not path.is_file():
            raise DataError(f"{event['file']} is not there, or is no plain file")
        data = path.read_bytes()
        if sha256(data) != event["sha256"]:
            raise DataError(f"{event['file']} has another SHA-256 than was written")
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise DataError(f"{event['file']} cannot be read ({one_line(error)})") from None
        for (name, probability, steps), key, delta in zip(event["rows"], tensors["key"], tensors["delta"], strict=True):
            self.rows[name] = Row(key, delta, probability, steps)
        self._files += 1


def _header(raw: bytes) -> dict:
    record = json.loads(raw.decode("ascii"))
    if record.get("schema") != SCHEMA:
        raise DataError(f"{HEADER} is of schema {record.get('schema')!r}, expected {SCHEMA!r}")
    header = {name: value for name, value in record.items() if name != "checksum"}
    if raw != rendered(record) or record.get("checksum") != sha256(rendered(header)):
        raise DataError(f"the checksum or the form of {HEADER} is another than was written")
    return header
