"""What lies in the cache, and what of it goes.

Locks and half-built directories whose process is gone are told from those in use by the lock itself, which the system
releases when a process ends, however it ends.
"""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..models.cache import MANIFEST, cache_root, writing

KINDS = {
    "models": "a converted model",
    "contexts": "texts that stand before prompts",
    "covariance": "covariances of keys, and keys beside them",
    "explain": "chapters of pages of facts",
    "general": "neurons that any answer needs",
    "layers": "layers to edit, as `--layer auto` found them",
    "neurons": "neurons of relations",
    "rows": "keys and values of facts in sets",
    "samples": "text that a model says by itself",
    "scans": "what a corpus says of neurons",
    "unknown": "facts that a model does not know",
}
"""What the folders hold, in words."""

FRESH = 3600.0  # seconds


@dataclass(frozen=True)
class Entry:
    """A file or directory of the cache: its path below the root, its size in bytes and when it was last read or made.

    The time is in seconds since 1970. A file system that keeps no times of reading tells only when it was made.
    """

    name: str
    size: int
    used: float

    @property
    def kind(self) -> str:
        """What lies beside it: the folder that it is in, or `"models"`."""
        return self.name.rpartition("/")[0] or "models"


def entries() -> tuple[list[Entry], list[Entry]]:
    """What is kept in the cache, and what processes left that are gone: locks, signs of their holders, halves.

    What a living process holds is in neither list.
    """
    root = cache_root()
    kept, left = [], []
    for folder in (root, *_folders(root)):
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in paths:
            with suppress(FileNotFoundError):  # gone since it was listed
                entry = _entry(root, path)
                if not path.name.startswith("."):
                    if path.is_file() or (path / MANIFEST).is_file():
                        kept.append(entry)
                elif (final := _left_by(path)) is not None and not _is_held(final) and not _is_fresh(path, entry):
                    left.append(entry)
    return kept, left


def clean(older: float | None = None) -> list[Entry]:
    """Remove what dead processes left and, where it is said, what was not used for `older` days; return what went.

    What another process holds stays. A model that is in use goes on: its files stay until it is closed. Raises
    `ModelError` where something cannot be removed.
    """
    root, gone = cache_root(), []
    kept, _ = entries()
    with writing(root):
        for entry in kept:
            path = root / entry.name
            held = _is_held(path) or _is_held(path.with_suffix(""))  # tensors are locked by their key alone
            if older is not None and entry.used <= time.time() - older * 86400 and not held:
                _remove(path)
                gone.append(entry)
        for entry in entries()[1]:
            _remove(root / entry.name)
            gone.append(entry)
    return gone


def _folders(root: Path) -> list[Path]:
    """The folders of files, which are no entries themselves."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != "." and not (p / MANIFEST).is_file())


def _entry(root: Path, path: Path) -> Entry:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files or [path]]
    used = max(max(stat.st_atime, stat.st_mtime) for stat in stats)
    return Entry(path.relative_to(root).as_posix(), sum(stat.st_size for stat in stats) if files else 0, used)


def _left_by(path: Path) -> Path | None:
    """What a hidden path was locked or built for; None where it is nothing of ours."""
    name, suffix = path.name[1:], path.suffix
    if suffix in (".lock", ".holder"):
        return path.with_name(name.removesuffix(suffix))
    if written := re.fullmatch(r"(.+)\.[0-9a-f]{8}", name):  # by `files.write_bytes`
        return path.with_name(written[1])
    return path.with_name(name.partition(".tmp-")[0]) if ".tmp-" in name else None


def _is_fresh(path: Path, entry: Entry) -> bool:
    """Whether a half-written file may still be written: small ones are without a lock."""
    return path.is_file() and path.suffix not in (".lock", ".holder") and entry.used > time.time() - FRESH


def _is_held(final: Path) -> bool:
    """Whether a living process is at work on `final`."""
    path = final.parent / f".{final.name}.lock"
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
