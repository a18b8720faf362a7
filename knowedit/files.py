"""Files and folders written whole or not at all, and files of lines that only grow."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import DataError, InputError


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, so that no reader ever sees half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` by way of a temporary file beside it. Raises `InputError` where it cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        file = open(temporary, "xb")  # as readable as the user's other files, which a mkstemp is not
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}; choose a folder that exists") from None
    try:
        with file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_file(path: str | Path) -> Path:
    """`path` with `~` expanded. Raises `InputError` where no file can be written to it."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"cannot write {str(path)!r}: it is a folder; give the name of a file")
    _check_parent(path)
    if not os.access(path.parent, os.W_OK):
        raise InputError(
            f"cannot write {str(path)!r}: {str(path.parent)!r} may not be written to; choose another folder"
        )
    return path


def check_new(folder: str | Path) -> Path:
    """`folder` with `~` expanded. Raises `InputError` where it exists already or its parent does not."""
    folder = Path(folder).expanduser()
    if os.path.lexists(folder):
        raise InputError(f"{str(folder)!r} exists already; choose a new folder, or remove it first")
    _check_parent(folder)
    return folder


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"cannot write {str(path)!r}: {str(path.parent)!r} is no folder; make it first")


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `folder` if all goes well and is gone otherwise.

    Raises what `check_new` raises, and `InputError` where something cannot be written.
    """
    folder = check_new(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            new = Path(beside) / "new"
            new.mkdir()  # as readable as the user's other folders; the temporary one is private
            yield new
            plain = Path(beside) / "plain"
            plain.touch()
            for file in new.rglob("*"):
                if file.is_file():  # some writers make private files
                    file.chmod(plain.stat().st_mode)
            os.rename(new, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write {str(folder)!r}: {reason}; choose a folder that can be written and has room"
        ) from error


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def rendered(record: Mapping) -> bytes:
    """One line of JSON, of which there is only one for a record."""
    return (json.dumps(record, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()


class Chain:
    """A file of events that only grows: a line each, with the hash of itself and of all lines before it.

    An event counts when its line is whole, so a process may be killed at any moment. A line that was changed, taken
    out or put in is found, since those behind it no longer fit; whoever keeps `last` elsewhere also finds a tail that
    was cut off or written anew. One process at a time writes. `what` it is of stands in errors; without a `path` it is
    in memory.
    """

    def __init__(self, path: Path | None, what: str):
        self.path, self.what = path, what
        self.count = 0
        self.last = ""  # the hash of the last line
        self._end = 0  # of the last whole line, in bytes

    def events(self) -> Iterator[dict]:
        """The events that were not read yet. Raises `DataError` for a line that is another than was written."""
        assert self.path is not None
        raw = self.path.read_bytes()
        while self._end < len(raw):
            end = raw.find(b"\n", self._end)
            line = raw[self._end : len(raw) if end < 0 else end]
            event = self._event(line)
            if end < 0 and self._event(line[:-1]) is None:
                return  # it was cut off: the process that wrote it was killed before the line counted
            if end < 0 or event is None:
                raise DataError(f"line {self.count + 1} of {self.path.name} is another than was written")
            self._advance(line + b"\n")
            yield event

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else writes, and nobody has written since this was read; `InputError` where that is not so."""
        from filelock import FileLock, Timeout

        if self.path is None:
            yield
            return
        try:
            with FileLock(self.path.parent / ".lock", timeout=0):
                if self.path.exists() and self.path.stat().st_size != self._end and self._others():
                    raise InputError(f"{self.what} was changed meanwhile; load it again")
                yield
        except Timeout:
            raise InputError(f"another process writes to {self.what}; wait until it is done") from None
        except OSError as error:
            raise InputError(
                f"cannot write to {self.what}: {error.strerror or error}; what was found before is kept: make room, "
                "and go on by the same command"
            ) from None

    def append(self, event: Mapping, files: Mapping[str, bytes] | None = None) -> None:
        """Add `files` beside it and the event that counts them; all or nothing, also where the disk is full."""
        line = self._line(event)
        if self.path is not None:
            for name, data in (files or {}).items():
                write_bytes(self.path.with_name(name), data)
                with open(self.path.with_name(name), "rb") as file:
                    os.fsync(file.fileno())  # on the disk before the line that counts it
            with open(self.path, "r+b" if self.path.exists() else "x+b") as index:
                index.truncate(self._end)  # a line that was cut off
                index.seek(self._end)
                try:
                    index.write(line)
                    index.flush()
                    os.fsync(index.fileno())
                except OSError:
                    index.truncate(self._end)
                    raise
        self._advance(line)

    def _event(self, line: bytes) -> dict | None:
        """The event of a line that may stand next; None for any other."""
        try:
            event = json.loads(line.decode("ascii"))["event"]
            return event if self._line(event) == line + b"\n" else None
        except (ValueError, RecursionError, KeyError, TypeError):
            return None

    def _line(self, event: Mapping) -> bytes:
        return rendered({"after": self.last, "event": event, "sum": sha256(self.last.encode() + rendered(event))})

    def _advance(self, line: bytes) -> None:
        self.last = sha256(line)
        self._end += len(line)
        self.count += 1

    def _others(self) -> bool:
        """Whether a whole line stands behind the last that was read."""
        assert self.path is not None
        with open(self.path, "rb") as file:
            file.seek(self._end)
            return b"\n" in file.read()
