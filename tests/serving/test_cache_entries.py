"""The cache is listed as it is, and cleaning leaves what is in use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import LIMIT

import knowedit
from knowedit.models.cache import MANIFEST, cached_dir, damage, write_json
from knowedit.serving.cache_entries import KINDS, clean, entries

HOLDER = """
import sys
from pathlib import Path
from knowedit.models.cache import locked

with locked(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(directory: Path) -> None:
    (directory / "weights").write_bytes(bytes(range(256)) * 40)
    (directory / "sub").mkdir()
    (directory / "sub" / "config.json").write_text("{}")


def test_entries_are_what_is_kept_and_what_dead_processes_left(root):
    cached_dir("model", build)
    write_json("layers", "0123", [1])
    (root / ".model.tmp-1").mkdir()
    (root / ".model.tmp-1" / "half").write_bytes(bytes(100))
    (root / ".model.holder").write_text("process 1")
    (root / ".DS_Store").write_text("of somebody else")
    kept, left = entries()
    assert [(entry.name, entry.kind) for entry in kept] == [("model", "models"), ("layers/0123.json", "layers")]
    assert (
        kept[0].size == 10242 + (root / "model" / MANIFEST).stat().st_size
        and kept[1].size == (root / "layers" / "0123.json").stat().st_size
    )
    assert {entry.name: entry.size for entry in left} == {".model.tmp-1": 100, ".model.holder": 9, ".model.lock": 0}


def test_cleaning_removes_what_is_stale_and_leaves_what_is_held_or_used(root):
    cached_dir("model", build)
    cached_dir("old", build)
    for path in (root / "old").rglob("*"):
        os.utime(path, (0, 0))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(root / "held")], stdout=-1, stdin=-1, text=True)
    assert holder.stdout.readline() == "holding\n"
    (root / ".held.tmp-1").mkdir()
    assert {entry.name for entry in clean()} == {".model.lock", ".old.lock"} and (root / "old").is_dir()
    assert "old" in {entry.name for entry in clean(older=30)} and not (root / "old").exists()
    assert (root / ".held.tmp-1").is_dir() and (root / ".held.lock").exists() and damage(root / "model") is None
    holder.communicate("now it may end\n", LIMIT)
    clean(older=0)
    assert list(root.iterdir()) == []


def test_halves_of_small_files_stay_while_they_may_still_be_written(root):
    (root / "rows").mkdir(parents=True)
    halves = [root / "rows" / name for name in (".0123.tmp-ab_c", ".0123.json.0123abcd")]
    for half in halves:
        half.write_bytes(bytes(10))
    assert entries() == ([], []) and clean(older=0) == []
    for half in halves:
        os.utime(half, (0, 0))
    assert {entry.name for entry in clean()} == {f"rows/{half.name}" for half in halves}


def test_a_cache_that_is_not_there_is_empty(root):
    assert entries() == ([], []) and clean(older=0) == [] and not root.exists()


def test_every_folder_of_the_cache_is_told_in_words():
    package = Path(knowedit.__file__).parent
    named = re.compile(r'(?:remembered\(|write_json\(|cache_root\(\) / )"(\w+)"|^UNKNOWN = "(\w+)"', re.M)
    names = {one or other for file in package.rglob("*.py") for one, other in named.findall(file.read_text())}
    assert names | {"models"} == set(KINDS)
