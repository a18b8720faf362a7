"""The log of a folder of edits: who put which edit in when, what it did, and whether it is live or revoked.

    log = EditLog("edits")            # edits/dubai, edits/rome, edits/log.jsonl
    log.record("ada")                 # edits that are new in the folder
    log.revoke("dubai", "ada", "the tower moved back")
    log.live()                        # what is to be on the model, in order

The log only grows, and each line has the hash of all before it (`files.Chain`). It has the file hash of each edit, so
an edit whose files are others than were logged, or that is gone, is found. Whoever could write all of the folder could
also write a log anew: keep `log.last`, which `knowedit log` prints, elsewhere.
"""

from __future__ import annotations

import getpass
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..display.result import Table
from ..edit.edit import Edit, load_edit
from ..edit.guard import of_guard
from ..edit.storage import RECORD, read
from ..errors import DataError, InputError, did_you_mean
from ..files import Chain
from ..models.cache import sha256_file
from ..models.checks import one_line

LOG = "log.jsonl"


@dataclass(frozen=True)
class Revocation:
    """Who took an edit back, when and why, and the SHA-256 of each file that what is left was exported to."""

    who: str
    when: str
    why: str
    exported: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """An edit in the log. `bases` are hashes of the weights that it was made for, `facts` what it says, in words."""

    name: str
    who: str
    when: str
    content_hash: str
    file_hash: str
    model: str
    method: str
    bases: Mapping[str, str]
    facts: tuple[str, ...]
    metrics: Mapping[str, Any]
    revoked: Revocation | None = None


class EditLog:
    """The log of `folder`. Raises `InputError` where that is none, `DataError` where a line or an edit was changed.

    - `entries`: by name, in the order in which edits were recorded, which is that of their application.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise InputError(f"{str(folder)!r} is no folder; give one that holds saved edits")
        self.entries: dict[str, Entry] = {}
        self._chain = Chain(self.folder / LOG, f"the log of {str(folder)!r}")
        if (self.folder / LOG).exists():
            try:
                for event in self._chain.events():
                    self._take(event)
                self._check_files()
            except (DataError, OSError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"the log of {str(folder)!r} does not hold: {one_line(error)}; take its backup"
                ) from None

    @property
    def last(self) -> str:
        """The hash of the last line, and so of the whole log."""
        return self._chain.last

    def record(self, who: str) -> list[str]:
        """Log the edits that are new in the folder, oldest first, and return their names.

        Raises `InputError` where the log cannot be written, `DataError` for an edit that is damaged.
        """
        folders = [
            path.parent for path in sorted(self.folder.glob(f"*/{RECORD}")) if path.parent.name not in self.entries
        ]
        new = {folder.name: (load_edit(folder), sha256_file(folder / RECORD)) for folder in folders}
        if not new:
            return []
        with self._chain.writing():
            for name, (edit, file_hash) in sorted(new.items(), key=lambda item: (item[1][0].created, item[0])):
                event = {
                    "event": "edit",
                    "name": name,
                    "who": who,
                    "when": _now(),
                    "file_hash": file_hash,
                    **_said(edit),
                }
                self._chain.append(event)
                self._take(event)
        return list(self.entries)[-len(new) :]

    def revoke(self, name: str, who: str, why: str = "", exported: Path | None = None) -> None:
        """Log that an edit is taken back, with the hashes of the files in the folder `exported`.

        Raises `InputError` for an edit that is not live, and where the log cannot be written.
        """
        self.check_live(name)
        files = sorted(path for path in exported.rglob("*") if path.is_file()) if exported else []
        hashes = {path.relative_to(exported).as_posix(): sha256_file(path) for path in files}
        event = {"event": "revoke", "name": name, "who": who, "when": _now(), "why": why, "exported": hashes}
        with self._chain.writing():
            self._chain.append(event)
        self._take(event)

    def check_live(self, name: str) -> None:
        """Raise `InputError` unless an edit of that name is in the log and live."""
        if name not in self.entries:
            raise InputError(f"the log has no edit {name!r}{did_you_mean(name, self.entries)}; see knowedit log")
        if revoked := self.entries[name].revoked:
            raise InputError(f"the edit {name!r} was revoked on {revoked.when} by {revoked.who}; nothing is to be done")

    def live(self, without: str | None = None) -> list[Edit]:
        """The edits that are not revoked, in the order of the log, but for one."""
        return [load_edit(self.folder / e.name) for e in self.entries.values() if not e.revoked and e.name != without]

    def as_dict(self) -> dict:
        return {"folder": str(self.folder), "last": self.last, "edits": list(self.entries.values())}

    def table(self) -> Iterator[str | Table]:
        rows = []
        for entry in self.entries.values():
            state = f"revoked {entry.revoked.when} by {entry.revoked.who}" if entry.revoked else "live"
            what = "; ".join(entry.facts[:2]) + f" and {len(entry.facts) - 2} more" * (len(entry.facts) > 2)
            base = ", ".join(sorted({value[:12] for value in entry.bases.values()}))
            rows.append((entry.name, entry.when, entry.who, what, _measured(entry.metrics), base, state))
        yield Table(("edit", "when", "who", "what", "measured", "base", "state"), rows)
        yield ""
        live = sum(not entry.revoked for entry in self.entries.values())
        yield f"edits that are live: {live} of {len(self.entries)}; the log ends in {self.last}"

    def _take(self, event: Mapping) -> None:
        """Let an event count."""
        fields = {name: value for name, value in event.items() if name != "event"}
        name = fields["name"]
        if event["event"] == "edit":
            if name in self.entries:
                raise DataError(f"the edit {name!r} is logged twice")
            self.entries[name] = Entry(**{**fields, "facts": tuple(fields["facts"])})
        else:
            del fields["name"]
            self.entries[name] = replace(self.entries[name], revoked=Revocation(**fields))

    def _check_files(self) -> None:
        """Raise `DataError` for a live edit whose files are others than were logged."""
        for entry in self.entries.values():
            if entry.revoked:
                continue
            read(self.folder / entry.name)  # the factors are those of the record
            if sha256_file(self.folder / entry.name / RECORD) != entry.file_hash:
                raise DataError(f"the edit {entry.name!r} is another than was logged")


def user(folder: str | Path) -> str:
    """Who is at work: git's user name in `folder`, else that of the system."""
    try:
        asked = subprocess.run(
            ["git", "config", "user.name"], cwd=folder, capture_output=True, text=True, errors="replace", timeout=10
        )
        name = asked.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        name = ""
    try:
        return name or getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise InputError("nobody knows who you are here: there is no user name; give one by --by NAME") from None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _said(edit: Edit) -> dict:
    """What the log keeps of an edit."""
    metrics: dict[str, Any] = {}
    if measured := of_guard(edit.measured):
        outcomes = measured["facts"]
        metrics = {
            "relative_norm": measured["preflight"]["relative_norm"],
            "p_new": [[outcome[when]["prompt"]["p_new"] for when in ("before", "after")] for outcome in outcomes],
            "perplexity": [measured["perplexity"][when] for when in ("before", "after")],
            "refused": measured["guard"]["refused"],
        }
    return {
        "content_hash": edit.content_hash,
        "model": edit.model,
        "method": edit.method,
        "bases": dict(edit.bases),
        "facts": [f"{fact.prompt}: {fact.target} → {fact.target_new}" for fact in edit.facts],
        "metrics": metrics,
    }


def _measured(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return ""
    pairs: Sequence = metrics["p_new"]
    parts = [f"p new {pairs[0][0]:.3f} → {pairs[0][1]:.3f}"] if len(pairs) == 1 else []
    before, after = metrics["perplexity"]
    parts += [f"perplexity {after / before - 1:+.1%}"] if before else []
    return ", ".join([*parts, *(["refused by the guard"] if metrics["refused"] else [])])
