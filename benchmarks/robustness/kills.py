"""Real runs of `bench edit` that are killed, again and again, at random moments: is a record lost, doubled or changed?

    python -m benchmarks.robustness.kills

Single and sequential runs on the tiny trained model of the tests, by ROME and by fine-tuning, whose sequential edits
are made again on resuming. Each is killed by SIGKILL after a random time and goes on with `--resume`'s path until it is
done or killed once more; once a line is left half-written. A run that has all its records loses some of them again.
At the end the records must be those of a run that nobody disturbed, apart from their timings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm.auto import tqdm

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # the trained model is the tests'

from knowedit.evaluate.edits.study import EditStudy
from knowedit.evaluate.runs.engine import run_study
from knowedit.evaluate.runs.folder import RunFolder

from ..results import save

FACTS = 12
KINDS = {
    "single": {},
    "sequential": {"sequential": True},
    "sequential, fine-tuned": {"sequential": True, "method": "fine_tune", "settings": {"steps": 5, "lr": 0.01}},
}


def killed(make: Callable[[], EditStudy], folder: Path, kills: int, seed: int) -> dict:
    """Kill runs of `make()` in `folder` so often, and compare what is there at the end with an undisturbed run."""
    rng = random.Random(seed)
    _in_child(make, folder / "whole", None)  # which also fills the caches
    started = time.perf_counter()
    _in_child(make, folder / "timed", None)
    longest = time.perf_counter() - started
    place = folder / "killed"
    done, moments, resumed = 0, [], 0
    while done < kills:
        if _lines(place) == _lines(folder / "whole"):
            _take_back(place, rng)
        resumed += place.exists()
        if not _in_child(make, place, rng.uniform(0.05, 1.0) * longest):
            continue  # it was faster
        done += 1
        moments.append(_lines(place))
        if done == kills // 2 and moments[-1]:
            with (place / "records.jsonl").open("ab") as file:
                file.write(b'{"id": "home/zarn", "aft')
    _in_child(make, place, None)
    return {
        "kills": done, "resumed": resumed, "records_at_kills": moments, "half_written_lines": int(any(moments)),
        **_compared(RunFolder(folder / "whole"), RunFolder(place)),
    }  # fmt: skip


def _compared(whole: RunFolder, run: RunFolder) -> dict:
    wanted, found = ({row["id"]: _untimed(row) for row in some.rows()} for some in (whole, run))
    ids = [row["id"] for row in run.rows()]
    return {
        "records": len(ids), "lost": len(wanted.keys() - found.keys()), "doubled": len(ids) - len(set(ids)),
        "changed": sum(found.get(i) != row for i, row in wanted.items()),
        "same_summary": _untimed(whole.summary) == _untimed(run.summary),
    }  # fmt: skip


def _untimed(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in ("seconds", "records_per_second")}


def _in_child(make: Callable[[], EditStudy], place: Path, seconds: float | None) -> bool:
    """Run or go on in a forked process, which has the model already, and say whether it was killed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            tqdm.set_lock(threading.RLock())  # the lock of bars is one of all forks: who dies with it stops the others
            run_study(make(), place, resume=(place / "manifest.json").exists(), progress=False)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed; its error is above")
    return os.WIFSIGNALED(status)


def _lines(place: Path) -> int:
    path = place / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _take_back(place: Path, rng: random.Random) -> None:
    for name in ("summary.json", "records.parquet"):
        (place / name).unlink(missing_ok=True)
    lines = (place / "records.jsonl").read_bytes().splitlines(keepends=True)
    (place / "records.jsonl").write_bytes(b"".join(lines[: rng.randrange(len(lines))]))


def main() -> None:
    from support.studies import study
    from support.trained import trained

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=51, help="in all, a third of them of each kind")
    kills = parser.parse_args().kills
    torch.set_num_threads(1)  # a process that was forked from one with more has lost them
    trained()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KNOWEDIT_CACHE"] = str(Path(folder) / "cache")
        found = {}
        for seed, (name, options) in enumerate(KINDS.items()):
            found[name] = killed(lambda o=options: study(FACTS, **o), Path(folder) / str(seed), kills // 3, seed)
            print(json.dumps({name: found[name]}), flush=True)
    save("robustness/kills", {"kills": sum(f["kills"] for f in found.values()), "runs": found})


if __name__ == "__main__":
    main()
