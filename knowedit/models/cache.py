"""The on-disk cache: directories that are either complete and checked, or not there.

A directory is built beside its final place, described by a manifest of sizes, times of change and SHA-256 sums, flushed
to disk and renamed. A process killed at any moment leaves at most a temporary directory, which the next builder of the
same name removes. A file of the size and the time in the manifest is taken as it is, any other one is hashed: to hash
all of a large model takes longer than to load it. `verify` hashes all. A directory that no longer agrees with its
manifest is never used: it is rebuilt, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ..errors import InputError, KnoweditWarning, ModelError
from ..files import write_text
from ..writing.inert import inert

MANIFEST = "manifest.json"

_SCHEMA = 1
_log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Where the cache lies: `$KNOWEDIT_CACHE`, else `knowedit` in the user's cache directory of this platform.

    Raises `ModelError` where there is neither.
    """
    if chosen := os.environ.get("KNOWEDIT_CACHE"):
        return Path(chosen).expanduser().absolute()
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise ModelError("there is no home directory for the cache; set KNOWEDIT_CACHE to a directory") from None
    return Path(base) / "knowedit"


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal. Raises `OSError` where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cached_dir(name: str, build: Callable[[Path], None]) -> Path:
    """The directory `name` in the cache, made by `build(directory)` if it is not there or no longer sound.

    However many processes ask at once, one builds and the others wait. `name` must say all that decides the
    content. Raises `ModelError` where the cache cannot be written; errors that are raised by `build` pass through
    and leave nothing behind.
    """
    final = cache_root() / name
    if final.is_dir() and damage(final, by_time=True) is None:
        return final  # without the lock, so that a cache that is shared read-only works
    with writing(final.parent), locked(final, name):
        fault = damage(final, by_time=True) if final.is_dir() else None
        if fault is None and final.is_dir():
            return final  # another process built it while this one waited
        _sweep(final)
        if fault is not None:
            _log.warning("%s in the cache is damaged (%s); it is built again", name, fault)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(final), dir=final.parent))
        try:
            temporary.chmod(0o755)  # mkdtemp makes it private, others may share the cache
            build(temporary)
            _seal(temporary)
            if final.exists():
                final.rename(temporary.with_name(temporary.name + "-old"))
            temporary.rename(final)
            _flush(final.parent)
        finally:
            _sweep(final)
    return final


def key_of(request: Mapping) -> str:
    """SHA-256 of JSON values: the name under which their result is kept."""
    return hashlib.sha256(json.dumps([_SCHEMA, request], sort_keys=True).encode()).hexdigest()


def read_json(kind: str, key: str):
    """The JSON value that `write_json` kept; None where there is none, or it is damaged."""
    try:
        kept = json.loads((cache_root() / kind / f"{key}.json").read_text(encoding="utf-8"))
        return kept["value"] if kept["sha256"] == _sum_of(kept["value"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(kind: str, key: str, value) -> None:
    """Keep a small JSON value in the cache's folder `kind`, with its checksum.

    Raises `ModelError` where the folder cannot be made, `InputError` where the file cannot be written.
    """
    folder = cache_root() / kind
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        value = json.loads(json.dumps(value))
        write_text(folder / f"{key}.json", json.dumps({"sha256": _sum_of(value), "value": value}) + "\n")


def remembered(kind: str, key: str, make: Callable[[], Any]) -> Any:
    """The JSON value that is kept; else what `make` gives, which is kept then. A cache that cannot be written keeps
    nothing."""
    value = read_json(kind, key)
    if value is None:
        value = make()
        with suppress(ModelError, InputError):
            write_json(kind, key, value)
    return value


def _sum_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def damage(directory: Path, *, by_time: bool = False) -> str | None:
    """What is wrong with a cached directory, in a few words, or None if it is as its manifest says.

    `by_time`: hash only files whose time of change is not the manifest's. The times of sound files are written there.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"] if manifest["schema"] == _SCHEMA else None
        expected = {name: (entry["size"], entry["sha256"], entry.get("modified")) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing or unreadable"
    try:
        times = {}
        for name, (size, *_) in expected.items():  # sizes first: they cost nothing
            status = (directory / name).stat()
            times[name] = status.st_mtime_ns
            if status.st_size != size:
                return f"{name} has {status.st_size} bytes, expected {size}"
        changed = [name for name, (*_, modified) in expected.items() if modified != times[name]]
        for name in changed if by_time else expected:
            if sha256_file(directory / name) != expected[name][1]:
                return f"{name} has another SHA-256 than when it was written"
    except OSError as error:
        return f"{name}: {error.strerror}"
    if changed:
        with suppress(InputError):  # a cache that is shared read-only
            _write_manifest(directory, {n: {**entry, "modified": times[n]} for n, entry in files.items()})
    return None


def verify(directory: Path) -> str | None:
    """What `damage` finds when it hashes every file. What is damaged is built again when it is next asked for."""
    fault = damage(directory)
    if fault is not None:
        with writing(directory):
            (directory / MANIFEST).unlink(missing_ok=True)
    return fault


def _seal(directory: Path) -> None:
    """Write the manifest of a directory and bring all of it to disk."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        path.chmod(0o644)  # some writers make private files
        _flush(path)
        status = path.stat()
        entry = {"size": status.st_size, "modified": status.st_mtime_ns, "sha256": sha256_file(path)}
        files[path.relative_to(directory).as_posix()] = entry
    _write_manifest(directory, files)
    _flush(directory / MANIFEST)
    _flush(directory)


def _write_manifest(directory: Path, files: Mapping) -> None:
    write_text(directory / MANIFEST, json.dumps({"schema": _SCHEMA, "files": files}, indent=1))


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open directories, and renames there are journalled
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(final: Path) -> str:
    return f".{final.name}.tmp-"


def _sweep(final: Path) -> None:
    """Remove what builders of `final` left. Only the holder of the lock may, for no other builder can be alive then."""
    for path in final.parent.iterdir():
        if path.name.startswith(_prefix(final)):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(final: Path, what: str | None = None) -> Iterator[None]:
    """Only one process at a time is in here for the file or directory `final`, whose parent is made first.

    Warns before it waits: for `what` (by default the name of `final`), and for whom.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(final.parent / f".{final.name}.lock")
    holder = final.parent / f".{final.name}.holder"  # not in the lock's own file, which those who wait empty
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = f"{_holder(holder)} is making {what or final.name} in the cache; waiting for it"
        warnings.warn(message, KnoweditWarning, stacklevel=4)
        lock.acquire()
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%H:%M:%S')},", "utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        return inert(path.read_text(encoding="utf-8")) or "another process"
    except (OSError, ValueError):
        return "another process"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise `ModelError` with the remedy where the cache's `folder` cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the cache {str(folder)!r}: {getattr(error, 'strerror', None) or error}; "
            "set KNOWEDIT_CACHE to a directory that can be written and has room"
        ) from error
