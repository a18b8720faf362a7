"""Files and folders written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError


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


def check_new(folder: str | Path) -> Path:
    """`folder` with `~` expanded. Raises `InputError` where it exists already or its parent does not."""
    folder = Path(folder).expanduser()
    if os.path.lexists(folder):
        raise InputError(f"{str(folder)!r} exists already; choose a new folder, or remove it first")
    if not folder.parent.is_dir():
        raise InputError(f"cannot write {str(folder)!r}: {str(folder.parent)!r} is no folder; make it first")
    return folder


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
