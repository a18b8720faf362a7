"""A set's folder: killed at any moment nothing is lost, and nothing damaged is read as something else."""

import errno
import json
import os
import random
import shutil

import pytest
import torch
from filelock import FileLock
from support.fact_sets import fact_set, loaded, requests

from knowedit.edit.fact_set.store import HEADER, INDEX, Store
from knowedit.errors import DataError, InputError

FACTS = requests()[:6]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that has grown: facts came one after the other, one went, one came again."""
    folder = tmp_path_factory.mktemp("sets") / "set"
    made = fact_set()
    made.save(folder)
    for fact in FACTS:
        made.add([fact])
    made.remove([FACTS[2].id])
    made.add([FACTS[2]])
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "set")


def test_a_folder_holds_the_set(folder):
    store = Store.read(folder)
    assert list(store.members) == [f.id for f in (*FACTS[:2], *FACTS[3:], FACTS[2])]
    fresh = fact_set()
    fresh.add(FACTS)
    assert loaded(folder).edit().factors_hash == fresh.edit().factors_hash
    for name, row in fresh._store.rows.items():
        assert torch.equal(row.key, store.rows[name].key) and torch.equal(row.delta, store.rows[name].delta)
        assert (row.probability, row.steps) == (store.rows[name].probability, store.rows[name].steps)


def test_an_index_that_was_cut_off_anywhere_goes_on_from_its_last_whole_line(folder, saved):
    whole = (saved / INDEX).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    generator = random.Random(0)
    for cut in [*ends, *(end - 1 for end in ends), *(generator.randrange(len(whole)) for _ in range(20))]:
        (folder / INDEX).write_bytes(whole[:cut])
        store = Store.read(folder)
        count = sum(end <= cut for end in ends)
        assert len(store.rows) == sum(json.loads(w)["event"]["event"] == "rows" for w in whole.splitlines()[:count])
        missing = [fact for fact in FACTS if fact.id not in store.members]
        store.change((), missing)  # what comes next overwrites the rest of the line
        assert set(Store.read(folder).members) == {fact.id for fact in FACTS}


def test_what_a_killed_process_left_beside_the_index_is_no_part_of_the_set(folder):
    (folder / "rows-000007.safetensors").write_bytes(b"half of a fi")
    (folder / ".rows-000007.safetensors.0a1b2c3d").write_bytes(b"half")
    store = Store.read(folder)
    other = fact_set()
    other.add([requests()[8]])
    store.keep(other._store.rows)
    assert len(Store.read(folder).rows) == len(FACTS) + 1


def test_no_flipped_bit_is_read_as_another_set(folder, saved):
    generator = random.Random(0)
    files = sorted(
        path.name for path in saved.iterdir() if path.name in (HEADER, INDEX) or path.suffix == ".safetensors"
    )
    for i in range(200):
        name = files[i % len(files)]
        raw = bytearray((saved / name).read_bytes())
        place = generator.randrange(len(raw)) if i >= len(files) else len(raw) - 1
        raw[place] ^= 1 << generator.randrange(8)
        (folder / name).write_bytes(raw)
        with pytest.raises((DataError, InputError), match="is damaged.*take its backup"):
            Store.read(folder)
        shutil.copy(saved / name, folder / name)
    assert Store.read(folder).members == Store.read(saved).members


def test_a_file_of_rows_that_is_gone_or_a_link_is_refused(folder, tmp_path):
    (folder / "rows-000001.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="rows-000001.safetensors is not there"):
        Store.read(folder)
    (folder / "rows-000001.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is no plain file"):
        Store.read(folder)


def test_a_line_of_another_set_is_refused(folder, tmp_path):
    lines = (folder / INDEX).read_bytes().splitlines(keepends=True)
    (folder / INDEX).write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(DataError, match="line 1 of index.jsonl"):
        Store.read(folder)


def test_a_folder_that_is_no_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no fact set"):
        Store.read(tmp_path)
    (tmp_path / HEADER).write_text('{"schema": "other/1"}')
    with pytest.raises(DataError, match="expected 'knowedit.fact-set/2'"):
        Store.read(tmp_path)


@pytest.mark.parametrize("when", ["rows", "index"])
def test_a_disk_that_fills_loses_nothing_that_was_found(folder, when, monkeypatch):
    made = loaded(folder)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fsync(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(INDEX) == (when == "index"):
            raise full
        real(descriptor)

    real = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match="No space left on device.*make room"):
        made.add(requests()[6:8])
    monkeypatch.undo()
    assert set(loaded(folder)._store.members) == {fact.id for fact in FACTS}
    made.add(requests()[6:8])  # the same set goes on
    assert len(loaded(folder)) == 8


def test_one_process_writes_at_a_time(folder):
    made = loaded(folder)
    with FileLock(folder / ".lock"), pytest.raises(InputError, match="another process writes"):
        Store.read(folder).change([FACTS[0].id], ())
    Store.read(folder).change([FACTS[0].id], ())
    with pytest.raises(InputError, match="was changed meanwhile; load it again"):
        made.remove([FACTS[1].id])


def test_a_set_is_saved_to_a_new_folder_only(folder):
    with pytest.raises(InputError, match="exists already"):
        fact_set().save(folder)
