"""Real runs of `bench edit` that are killed, again and again, at random moments: is a record lost, doubled or changed?

Single and sequential runs on the tiny trained model of the tests, by ROME and by fine-tuning, whose sequential edits
are made again on resuming. Each is killed by SIGKILL after a random number of records and a random part of the time
that one takes, and goes on with `--resume`'s path until it is done or killed once more; once a line is left
half-written. A run that has all its records loses some of them again. At the end the records must be those of a run
that nobody disturbed, apart from their timings.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from knowedit.evaluate.edits.study import EditStudy
from knowedit.evaluate.runs.engine import run_study
from knowedit.evaluate.runs.folder import RunFolder

from ..registry import benchmark
from ..timing import Stopwatch
from .forked import killed_in_child

FACTS = 12
KINDS = {
    "single": {},
    "sequential": {"sequential": True},
    "sequential, fine-tuned": {"sequential": True, "method": "fine_tune", "settings": {"steps": 5, "lr": 0.01}},
}


@benchmark("robustness.kills", "Do runs that are killed lose, double or change a record?")
def kills(n: int = 51) -> dict:
    """`n` kills in all, a third of them of each kind of run."""
    sys.path.append(str(Path(__file__).parents[2] / "tests"))  # the trained model is the tests'
    from support.studies import study
    from support.trained import trained

    torch.set_num_threads(1)  # a process that was forked from one with more has lost them
    trained()
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KNOWEDIT_CACHE"] = str(Path(folder) / "cache")
        for seed, (name, options) in enumerate(KINDS.items()):
            make = lambda options=options: study(FACTS, **options)  # noqa: E731
            runs[name] = killed(make, Path(folder) / str(seed), n // len(KINDS), seed)
    return {"kills": sum(run["kills"] for run in runs.values()), "runs": runs}


@kills.row
def kills_row(record: dict) -> list[str]:
    harm = {what: sum(run[what] for run in record["runs"].values()) for what in ("lost", "doubled", "changed")}
    counts = ", ".join(f"{count} {what}" for what, count in harm.items())
    return [f"{record['kills']} kills of runs of edits (small model), single and sequential: {counts}"]


def killed(make: Callable[[], EditStudy], folder: Path, kills: int, seed: int) -> dict:
    """Kill runs of `make()` in `folder` as often as `kills`, and compare the end with a run that nobody disturbed."""
    rng, watch = random.Random(seed), Stopwatch()
    _in_child(make, folder / "whole")  # which also fills the caches
    watch("whole", _in_child, make, folder / "timed")
    total, place = _lines(folder / "whole"), folder / "killed"
    seconds = watch.total("whole") / total  # that a record takes
    moments, resumed = [], 0
    while len(moments) < kills:
        if _lines(place) == total:
            _take_back(place, rng)
        resumed += place.exists()
        if not _in_child(make, place, rng.randint(_lines(place), total - 1), rng.random() * seconds):
            continue  # it was done before it could be killed
        moments.append(_lines(place))
        if len(moments) == kills // 2 and moments[-1]:
            with (place / "records.jsonl").open("ab") as file:
                file.write(b'{"id": "home/zarn", "aft')
    _in_child(make, place)
    return {
        "kills": len(moments),
        "resumed": resumed,
        "records_at_kills": moments,
        "half_written_lines": int(any(moments)),
        **_compared(RunFolder(folder / "whole"), RunFolder(place)),
    }


def _compared(whole: RunFolder, run: RunFolder) -> dict:
    expected, records = ({row["id"]: _untimed(row) for row in folder.rows()} for folder in (whole, run))
    ids = [row["id"] for row in run.rows()]
    return {
        "records": len(ids),
        "lost": len(expected.keys() - records.keys()),
        "doubled": len(ids) - len(set(ids)),
        "changed": sum(records.get(i) != row for i, row in expected.items()),
        "same_summary": _untimed(whole.summary) == _untimed(run.summary),
    }


def _untimed(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in ("seconds", "records_per_second")}


def _in_child(make: Callable[[], EditStudy], place: Path, records: int | None = None, seconds: float = 0.0) -> bool:
    """Run or go on in a forked process, which has the model already, and say whether it was killed.

    It is killed once there are as many `records` as that, and so many `seconds` have passed.
    """

    def work() -> None:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        tqdm.set_lock(threading.RLock())  # the lock of bars is one of all forks: who dies with it stops the others
        run_study(make(), place, resume=(place / "manifest.json").exists(), progress=False)

    def moment(child: int) -> None:
        ended = partial(os.waitid, os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        while _lines(place) < records and not ended():
            time.sleep(0.001)
        time.sleep(seconds)

    return killed_in_child(work, None if records is None else moment)


def _lines(place: Path) -> int:
    path = place / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _take_back(place: Path, rng: random.Random) -> None:
    for name in ("summary.json", "records.parquet"):
        (place / name).unlink(missing_ok=True)
    lines = (place / "records.jsonl").read_bytes().splitlines(keepends=True)
    (place / "records.jsonl").write_bytes(b"".join(lines[: rng.randrange(len(lines))]))
