"""Runs that are killed, go on, are cut into shards, fail in places, and never lose or double a record."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.fake import Fake, records
from tqdm.auto import tqdm

from knowedit.errors import DataError, InputError
from knowedit.evaluate.runs import folder as store
from knowedit.evaluate.runs.engine import parse_shard, run_study
from knowedit.evaluate.runs.folder import RunFolder, merge_runs


def run(study, folder, **options):
    return run_study(study, folder, progress=False, **options)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_run_writes_every_record_once_with_manifest_table_and_summary(tmp_path, sequential):
    found = run(Fake(sequential=sequential), tmp_path / "run", command="knowedit bench")
    assert [row["id"] for row in found.rows()] == [f"r/{i}" for i in range(23)]
    assert found.manifest["command"] == "knowedit bench" and found.manifest["identity"] == {"data": "d", "model": "m"}
    assert found.summary["records"] == 23 and found.summary["failed"] == 0
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "run" / "records.parquet").to_pylist()
    assert [row["after.ES"] for row in table] == [row["after"]["ES"] for row in found.rows()]


# ---------------------------------------------------------------- killed


KILLS = 25  # of each kind


def _size(path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("sequential", [False, True])
def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path, sequential):
    """Many SIGKILLs of one run after the other; the records are those of a run that nobody disturbed."""
    whole = records(run(Fake(n=60, size=4, sequential=sequential), tmp_path / "whole"))
    path = tmp_path / "killed" / "records.jsonl"
    # a forked child that has imported everything is killed: a new interpreter would take seconds each time
    rng = random.Random(int(sequential))
    kills = 0
    while kills < KILLS:
        child = os.fork()
        if not child:
            try:
                tqdm.set_lock(threading.RLock())  # of its own: whoever dies with that of all forks stops the others
                study = Fake(n=60, size=4, sequential=sequential, pause=0.004)
                run(study, tmp_path / "killed", resume=(path.parent / "manifest.json").exists())
            finally:
                os._exit(0)
        wanted, ended = _size(path) + rng.randrange(1500), 0  # bytes of records, which are 60 to 80 long
        while not ended and _size(path) < wanted:
            time.sleep(0.0005)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        if kills == KILLS // 2 and path.exists():
            with path.open("ab") as file:
                file.write(b'{"id": "r/59", "aft')
        if (path.parent / "summary.json").exists() and kills < KILLS:
            for name in ("summary.json", "records.parquet"):  # done too soon: take some records away again
                (path.parent / name).unlink(missing_ok=True)
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:9]))
    again = run(Fake(n=60, size=4, sequential=sequential), tmp_path / "killed", resume=True)
    ids = [row["id"] for row in again.rows()]
    assert len(ids) == len(set(ids)) == 60
    assert records(again) == whole


def test_a_half_written_last_line_is_dropped_and_said(tmp_path, capsys):
    whole = records(run(Fake(), tmp_path / "run"))
    path = tmp_path / "run" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6][:-9])
    again = run(Fake(), tmp_path / "run", resume=True)
    assert records(again) == whole
    assert "half-written last line" in capsys.readouterr().err


def test_a_batch_that_is_half_there_is_run_whole_and_only_the_rest_is_written(tmp_path):
    whole = records(run(Fake(), tmp_path / "run"))
    path = tmp_path / "run" / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    study = Fake()
    again = run(study, tmp_path / "run", resume=True)
    assert study.calls[0] == ["r/4", "r/5", "r/6", "r/7"] and records(again) == whole


def test_a_sequential_run_restores_what_was_done_and_does_the_rest(tmp_path):
    whole = records(run(Fake(sequential=True), tmp_path / "run"))
    path = tmp_path / "run" / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    study = Fake(sequential=True)
    again = run(study, tmp_path / "run", resume=True)
    assert study.calls[0] == ["r/6", "r/7"] and records(again) == whole


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"config": {"lr": 2}}, "config.lr null, asked for is 2"),
        ({"data": "e"}, 'identity.data "d", asked for is "e"'),
    ],
)
def test_another_config_or_other_data_are_refused_by_name(tmp_path, changed, said):
    run(Fake(), tmp_path / "run")
    with pytest.raises(InputError, match="asked for is") as error:
        run(Fake(**changed), tmp_path / "run", resume=True)
    assert said in str(error.value)


def test_a_folder_that_is_there_or_not_there(tmp_path):
    run(Fake(), tmp_path / "run", resume=True)  # there is none yet: a job that is sent again runs the same line
    with pytest.raises(InputError, match="go on with --resume"):
        run(Fake(), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("!")
    with pytest.raises(InputError, match="exists already"):
        run(Fake(), tmp_path / "other")
    with pytest.raises(InputError, match="is no run"):
        RunFolder(tmp_path / "other")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_has_a_bar_on_a_terminal_alone(tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    run_study(Fake(), tmp_path / "run")
    assert ("23/23" in capsys.readouterr().err) == terminal


def test_two_processes_cannot_write_to_one_folder(tmp_path):
    with store.writing(tmp_path / "run", {"study": "edit"}):
        code = (
            "import sys; from knowedit.evaluate.runs.folder import writing; from knowedit.errors import InputError\n"
            "try:\n    with writing(sys.argv[1], {'study': 'edit'}, resume=True): pass\n"
            "except InputError as error: print(error)"
        )
        found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert "another process writes to" in found.stdout


def test_a_full_disk_leaves_whole_lines_and_the_run_goes_on_later(tmp_path, monkeypatch):
    whole = records(run(Fake(), tmp_path / "whole"))
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", fsync)
    with pytest.raises(InputError, match="No space left on device; make room and go on with --resume"):
        run(Fake(), tmp_path / "run")
    monkeypatch.undo()
    assert len(list(RunFolder(tmp_path / "run").rows())) == 8
    assert records(run(Fake(), tmp_path / "run", resume=True)) == whole


def test_a_damaged_line_and_a_doubled_record_are_told(tmp_path):
    run(Fake(), tmp_path / "run")
    path = tmp_path / "run" / "records.jsonl"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'{"id": "r/3"', b'{"id": r/3"'))
    with pytest.raises(DataError, match="line 4: no record"):
        list(RunFolder(tmp_path / "run").rows())
    path.write_bytes(good + good.splitlines(keepends=True)[0])
    with pytest.raises(DataError, match="'r/0' twice"):
        run(Fake(), tmp_path / "run", resume=True)


# ---------------------------------------------------------------- failures, shards


def test_a_failing_record_is_recorded_and_the_others_go_on(tmp_path):
    found = run(Fake(fail={"r/5"}), tmp_path / "run")
    assert records(found)["r/5"] == {"id": "r/5", "error": "r/5 cannot be run"}
    assert found.summary["records"] == 23 and found.summary["failed"] == 1
    with pytest.raises(InputError, match=r"all 2 records failed, the first \(r/0\): r/0 cannot be run"):
        run(Fake(n=2, fail={"r/0", "r/1"}), tmp_path / "none")


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b", "/", "1/0", "-1/2", "²/3", f"1/{'9' * 5000}"])
def test_shards_that_are_none(text):
    with pytest.raises(InputError, match="expected i/n"):
        parse_shard(text)


def test_shards_together_are_the_whole(tmp_path):
    whole = records(run(Fake(), tmp_path / "whole"))
    parts = [run(Fake(), tmp_path / f"part{i}", shard=parse_shard(f"{i}/3")).folder for i in (1, 2, 3)]
    merged = merge_runs(parts, tmp_path / "merged", Fake().summarise)
    assert records(merged) == whole and merged.summary["records"] == 23
    assert merged.summary["metrics"]["ES"]["value"] == pytest.approx(
        RunFolder(tmp_path / "whole").summary["metrics"]["ES"]["value"]
    )
    with pytest.raises(InputError, match="the shards 1/3, 2/3, expected each of 1/3 to 3/3 once"):
        merge_runs(parts[:2], tmp_path / "two", Fake().summarise)
    other = run(Fake(data="e"), tmp_path / "other", shard=(3, 3)).folder
    with pytest.raises(InputError, match="identity.data"):
        merge_runs([*parts[:2], other], tmp_path / "mixed", Fake().summarise)


def test_engines_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="did you mean 'serial'"):
        run(Fake(), tmp_path / "run", engine="seriall")
    with pytest.raises(InputError, match="add --engine ray"):
        run(Fake(), tmp_path / "run", workers=2)
    with pytest.raises(InputError, match="run it serially"):
        run(Fake(sequential=True), tmp_path / "run", shard=(1, 2))
    with pytest.raises(InputError, match="fewer batches than shards"):
        run(Fake(n=3), tmp_path / "run", shard=(2, 2))
    assert not (tmp_path / "run").exists()


def test_ray_that_is_not_installed_is_said_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'knowedit\[ray\]'"):
        run(Fake(), tmp_path / "run", engine="ray", workers=2, build=Fake)


def test_the_summary_needs_memory_for_one_record_at_a_time(tmp_path):
    found = run(Fake(n=300, size=50), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["records"] == 300
    rows = found.rows()
    assert next(rows)["id"] == "r/0" and iter(rows) is rows
