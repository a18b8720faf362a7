"""The folder of a run: what was asked for, one line a record, and what came out. It survives being killed.

    manifest.json    study, config, identity of code, data and model, seed, threads, versions, command
    records.jsonl    one JSON object a record, appended batch by batch and on the disk before the next one starts
    records.parquet  the same as a table, and
    summary.json     metrics, written at the end

A line that was cut off by a crash is dropped when the run goes on. A run goes on only as what it was: another config,
other data, another model or another number of threads are refused by name, since its records would not be those of one
run. One process at a time writes to a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...errors import DataError, InputError
from ...files import write_text

SCHEMA = "knowedit.run/1"
PINNED = ("study", "config", "identity", "threads", "shard")  # must be as they were for a run to go on
_CHUNK_ROWS = 1000  # of the table


class RunFolder:
    """The folder of a run, to be read. Raises `InputError` where it is none and `DataError` where it is damaged."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if not (self.folder / "manifest.json").is_file():
            raise InputError(f"{str(folder)!r} is no run: there is no manifest.json; give the folder of a run")

    @property
    def manifest(self) -> dict:
        return self._json("manifest.json")

    @property
    def summary(self) -> dict:
        if not (self.folder / "summary.json").is_file():
            raise InputError(f"the run {str(self.folder)!r} is not finished; go on with --resume")
        return self._json("summary.json")

    def rows(self) -> Iterator[dict]:
        """The records in the order of the file, one at a time; without a last line that was cut off."""
        path = self.folder / "records.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                    raise DataError(
                        f"{str(path)!r}, line {number}: no record of a run; the file was changed or damaged"
                    )
                yield row

    def _json(self, name: str) -> dict:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict):
            raise DataError(f"{str(path)!r} is damaged, expected a JSON object; take the folder's backup, or run anew")
        return content


class Writer:
    """A run that is being written. `done`: the ids of its records; `dropped`: bytes of a last line that was cut off."""

    def __init__(self, run: RunFolder):
        self.run = run
        self.path = run.folder / "records.jsonl"
        self.dropped = _drop_half_line(self.path)
        self.done: set[str] = set()
        for row in run.rows():
            if row["id"] in self.done:
                raise DataError(f"{str(self.path)!r} has the record {row['id']!r} twice; the file was changed")
            self.done.add(row["id"])

    def append(self, rows: Sequence[dict]) -> None:
        """Add records, and wait until they are on the disk; those that are there already are left out.

        Raises `InputError` where they cannot be written; the file is then as it was, and the run can go on later.
        """
        rows = [row for row in rows if row["id"] not in self.done]
        data = "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in rows).encode()
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, before)
            raise InputError(
                f"cannot write {str(self.path)!r}: {error.strerror}; make room and go on with --resume"
            ) from None
        self.done.update(row["id"] for row in rows)

    def finish(self, summary: dict) -> None:
        """Write the table and the summary, each whole or not at all."""
        _write_parquet(self.run, self.run.folder / "records.parquet")
        write_text(self.run.folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")


def check_folder(folder: str | Path, *, resume: bool = False) -> Path:
    """`folder` with `~` expanded, if a run could begin there, or with `resume` go on. Raises `InputError` otherwise."""
    folder = Path(folder).expanduser()
    has_run = (folder / "manifest.json").is_file()
    if _holds_anything(folder) and not (resume and has_run):
        what = "holds a run already; go on with --resume" if has_run else "exists already"
        raise InputError(f"{str(folder)!r} {what}, or choose a new folder")
    return folder


@contextmanager
def writing(folder: str | Path, manifest: dict, *, resume: bool = False) -> Iterator[Writer]:
    """A new run, or with `resume` the one that is there. Nobody else can write to it while the context lasts.

    Raises `InputError` for a folder that holds something else (without `resume` anything), that another process writes
    to, or whose manifest says something else.
    """
    folder = check_folder(folder, resume=resume)
    has_run = (folder / "manifest.json").is_file()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {str(folder)!r}: {error.strerror}; choose another") from None
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another process writes to {str(folder)!r}; wait for it, or choose another folder") from None
    except OSError as error:
        raise InputError(f"cannot write to {str(folder)!r}: {error.strerror}; choose another folder") from None
    try:
        if has_run:
            _check_same(folder, RunFolder(folder).manifest, manifest)
        else:
            write_text(folder / "manifest.json", json.dumps({"schema": SCHEMA, **manifest}, indent=1) + "\n")
        yield Writer(RunFolder(folder))
    finally:
        lock.release()


def merge_runs(folders: Sequence[str | Path], out: str | Path, summarise) -> RunFolder:
    """One run out of the shards of one, in a new folder; `summarise(rows)` makes its summary.

    Raises `InputError` where they are not shards of one run, one is missing or not finished, or they share a record.
    """
    runs = [RunFolder(folder) for folder in folders]
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run is given, expected the folders of all shards")
    manifests = [run.manifest for run in runs]
    for run, manifest in zip(runs, manifests, strict=True):
        _check_same(run.folder, {**manifests[0], "shard": None}, {**manifest, "shard": None})
        run.summary  # noqa: B018 - raises where it is not finished
    shards = sorted(tuple(manifest.get("shard") or (1, 1)) for manifest in manifests)
    n = shards[0][1]
    if shards != [(i, n) for i in range(1, n + 1)]:
        shard_names = ", ".join(f"{i}/{m}" for i, m in shards)
        raise InputError(f"the runs are the shards {shard_names}, expected each of 1/{n} to {n}/{n} once")
    manifest = {key: value for key, value in manifests[0].items() if key != "schema"}
    seconds = sum(run.summary.get("seconds", 0.0) for run in runs)
    with writing(out, {**manifest, "shard": None, "merged": [str(run.folder) for run in runs]}) as writer:
        for run in runs:
            chunk = []
            for row in run.rows():
                if row["id"] in writer.done:
                    raise InputError(f"the record {row['id']!r} is in two of the runs; give each shard once")
                chunk.append(row)
                if len(chunk) == _CHUNK_ROWS:
                    writer.append(chunk)
                    chunk = []
            writer.append(chunk)
        writer.finish(summary_of(writer.run, summarise, seconds))
        return writer.run


def summary_of(run: RunFolder, summarise, seconds: float) -> dict:
    """What `summarise` makes of the records, with how many there are, failed, and how long they took."""
    count = {"records": 0, "failed": 0}

    def sound() -> Iterator[dict]:
        for row in run.rows():
            count["records"] += 1
            if "error" in row:
                count["failed"] += 1
            else:
                yield row

    summary = summarise(sound())
    rate = count["records"] / seconds if seconds > 0 else None
    return {**summary, **count, "seconds": seconds, "records_per_second": rate}


def _holds_anything(folder: Path) -> bool:
    """Besides hidden files, which a run that was killed at once leaves."""
    if not folder.is_dir():
        return os.path.lexists(folder)
    return any(not path.name.startswith(".") for path in folder.iterdir())


def _check_same(folder: Path, was: dict, now: dict) -> None:
    now = json.loads(json.dumps(now))
    for name in PINNED:
        for path, a, b in _differences(name, was.get(name), now.get(name)):
            raise InputError(
                f"the run {str(folder)!r} has {path} {_short(a)}, asked for is {_short(b)}; ask for the same, or "
                "begin a new run in another folder"
            )


def _differences(path: str, a: object, b: object) -> Iterator[tuple[str, object, object]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(f"{path}.{key}", a.get(key), b.get(key))
    elif a != b:
        yield path, a, b


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _drop_half_line(path: Path) -> int:
    """Cut off what stands behind the last line end, and say how many bytes that were."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            line_end = file.read(end - start).rfind(b"\n")
            if line_end >= 0:
                end = start + line_end + 1
                break
            end = start
        file.truncate(end)
    return size - end


# ---------------------------------------------------------------- the table


def _write_parquet(run: RunFolder, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, str] = {}
    for row in run.rows():
        for name, value in _flat(row):
            kinds[name] = _wider(kinds.get(name), value)
    types = {"null": pa.null(), "bool": pa.bool_(), "float": pa.float64(), "text": pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
    beside = path.with_name(f".{path.name}")
    try:
        with pq.ParquetWriter(beside, schema) as writer:
            for chunk in _chunks(run.rows()):
                rows = [{name: _cell(kinds[name], value) for name, value in _flat(row)} for row in chunk]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; make room and --resume") from None
    finally:
        beside.unlink(missing_ok=True)


def _flat(row: dict, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves by dotted names; lists are leaves."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _wider(kind: str | None, value: object) -> str:
    value_kind = (
        "null" if value is None else "bool" if isinstance(value, bool) else
        "float" if isinstance(value, int | float) else "text"
    )  # fmt: skip
    if kind in (None, "null") or kind == value_kind:
        return value_kind
    return kind if value_kind == "null" else "text"


def _cell(kind: str, value: Any) -> Any:
    if value is None or kind == "null":
        return None
    if kind == "text" and not isinstance(value, str):
        return json.dumps(value)
    return float(value) if kind == "float" else value


def _chunks(rows: Iterable[dict]) -> Iterator[list[dict]]:
    chunk: list[dict] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
