"""Run a study over its records, batch by batch, so that it can be killed at any moment and go on.

A study's batches are fixed by its config and data alone, and threads are pinned, so a batch gives the same records
whenever and wherever it is run. A batch of which some records are there already is run again as a whole, and what is
missing is written.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ...errors import InputError, did_you_mean
from ...version import versions
from .folder import RunFolder, summary_of, writing
from .ray import ray_batches
from .study import Study, run_batch

ENGINES = ("serial", "ray")


def run_study(
    study: Study,
    folder: str | Path,
    *,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    engine: str = "serial",
    workers: int = 1,
    address: str | None = None,
    gpus: int = 0,
    build: Callable[[], Study] | None = None,
    progress: bool = True,
    command: str = "",
    log: Callable[[dict, int], None] = lambda values, step: None,
) -> RunFolder:
    """Run `study` into `folder` and summarise it.

    **Arguments:**

    - `resume`: go on with the run that is there, if any. `shard`: (i, n), only every n-th batch from the i-th on.
    - `engine`: `"serial"`, or `"ray"` with `workers`, at the cluster `address` or on this machine; each worker claims
      so many `gpus` and makes its own study by `build`, which must be picklable.
    - `log`: called with {"records", "failed"} and the number of records after each batch, and with the metrics at last.

    Raises `InputError` for an engine or shard that cannot be, a folder that cannot be used, and where every record
    failed.
    """
    _check_engine(study, engine, workers, shard, build)
    batches = study.batches()
    if shard is not None:
        batches = batches[shard[0] - 1 :: shard[1]]
        if not batches:
            raise InputError(f"shard {shard[0]}/{shard[1]} has no records: there are fewer batches than shards")
    manifest = _manifest(study, shard, command)
    with writing(folder, manifest, resume=resume) as writer:
        if writer.dropped:
            dropped = f"{writer.path.name}: a half-written last line of {writer.dropped} bytes was dropped"
            tqdm.write(dropped, file=sys.stderr)
        ids = {i for batch in batches for i in batch}
        if strange := sorted(writer.done - ids):
            raise InputError(f"the run holds the record {strange[0]!r}, which is none of this study's; begin a new run")
        started, before = time.perf_counter(), _seconds(writer.run)
        if study.sequential and writer.done:
            study.restore(list(writer.run.rows()))
        todo = [batch for batch in batches if not writer.done.issuperset(batch)]
        failed = 0
        with tqdm(
            total=len(ids), initial=len(writer.done), desc=study.name, unit="record", disable=None if progress else True
        ) as bar:
            for rows in _executed(study, todo, writer.done, engine, workers, address, gpus, build):
                known = len(writer.done)
                failed += sum("error" in row for row in rows)
                writer.append(rows)
                bar.update(len(writer.done) - known)
                log({"records": len(writer.done), "failed": failed}, len(writer.done))
        seconds = before + time.perf_counter() - started
        summary = summary_of(writer.run, study.summarise, seconds)
        if summary["records"] and summary["failed"] == summary["records"]:
            first = next(row for row in writer.run.rows() if "error" in row)
            raise InputError(f"all {summary['failed']} records failed, the first ({first['id']}): {first['error']}")
        writer.finish(summary)
        log(_values(summary), summary["records"])
        return writer.run


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of `"i/n"`, counted from 1. Raises `InputError` for anything else."""
    i, slash, n = text.partition("/")
    if slash and len(text) < 20 and i.strip().isdecimal() and n.strip().isdecimal() and 1 <= int(i) <= int(n):
        return int(i), int(n)
    raise InputError(f"the shard is {text!r}, expected i/n with i from 1 to n, such as 2/8")


@cache
def code_hash() -> str:
    """SHA-256 over the package's own source files."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root).as_posix()).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _manifest(study: Study, shard: tuple[int, int] | None, command: str) -> dict:
    return {
        "study": study.name,
        "config": study.config,
        "identity": study.identity(),
        "threads": torch.get_num_threads(),
        "shard": None if shard is None else list(shard),
        "code": code_hash(),
        "versions": {**versions(), "python": platform.python_version()},
        "command": command,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _executed(
    study: Study,
    todo: Sequence[list[str]],
    done: set[str],
    engine: str,
    workers: int,
    address: str | None,
    gpus: int,
    build: Callable[[], Study] | None,
) -> Iterator[list[dict]]:
    if engine == "ray":
        threads = torch.get_num_threads()
        yield from ray_batches(build, todo, workers=workers, address=address, threads=threads, gpus=gpus)
    else:
        for batch in todo:  # of a sequential study, what is there already is on the model
            yield run_batch(study, [i for i in batch if i not in done] if study.sequential else batch)


def _values(summary: dict) -> dict[str, float]:
    """The metrics without their intervals."""
    return {name: found["value"] for name, found in summary["metrics"].items() if found["value"] is not None}


def _seconds(run: RunFolder) -> float:
    """Time that earlier parts of the run took, as far as its records tell."""
    return sum(sum(row["seconds"].values()) for row in run.rows() if isinstance(row.get("seconds"), dict))


def _check_engine(study: Study, engine: str, workers: int, shard, build) -> None:
    if engine not in ENGINES:
        raise InputError(f"no engine is called {engine!r}{did_you_mean(engine, ENGINES)}; expected serial or ray")
    if not isinstance(workers, int) or workers < 1:
        raise InputError(f"{workers!r} workers are wanted, expected a number from 1 on")
    if engine == "serial" and workers > 1:
        raise InputError(f"the serial engine has one worker, {workers} are wanted; add --engine ray")
    if study.sequential and (engine == "ray" or shard is not None):
        raise InputError("in a sequential study each edit comes on top of those before; run it serially, in one piece")
    if engine == "ray" and build is None:
        raise InputError("the ray engine needs `build`, by which each worker makes its own study")
    if shard is not None and not (len(shard) == 2 and 1 <= shard[0] <= shard[1]):
        raise InputError(f"the shard is {shard!r}, expected (i, n) with i from 1 to n")
