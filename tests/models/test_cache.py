"""The cache: directories are complete and sound, or they are built."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import LIMIT

from knowedit.errors import DataError, InputError, ModelError
from knowedit.models import cache
from knowedit.models.cache import MANIFEST, cache_root, cached_dir, damage, sha256_file, verify
from knowedit.models.tensor_cache import TensorCache


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Writes two files and counts how often it was asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self, directory: Path) -> None:
        self.calls += 1
        (directory / "weights").write_bytes(bytes(range(256)) * 40)
        (directory / "sub").mkdir()
        (directory / "sub" / "config.json").write_text("{}")


def leftovers(root: Path) -> list[str]:
    return [p.name for p in root.iterdir() if ".tmp-" in p.name]


def test_builds_once(root):
    build = Builder()
    first = cached_dir("model", build)
    assert first == root / "model" == cached_dir("model", build)
    assert build.calls == 1 and damage(first) is None and not leftovers(root)
    files = json.loads((first / MANIFEST).read_text())["files"]
    weights = first / "weights"
    modified = weights.stat().st_mtime_ns
    assert files["weights"] == {"size": 10240, "modified": modified, "sha256": sha256_file(weights)}
    assert set(files) == {"weights", "sub/config.json"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    later(path)


def later(path: Path) -> None:
    """Another time than before: those of two writes may be one tick of the clock."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


DAMAGES = {
    "one bit": (lambda d: flip(d / "weights"), "SHA-256"),
    "truncated": (lambda d: (d / "weights").write_bytes(b"abc"), "3 bytes, expected 10240"),
    "a file gone": (lambda d: (d / "sub" / "config.json").unlink(), "No such file"),
    "no manifest": (lambda d: (d / MANIFEST).unlink(), "manifest.json is missing"),
    "empty manifest": (lambda d: (d / MANIFEST).write_text(""), "manifest.json is missing or unreadable"),
    "manifest of another kind": (lambda d: (d / MANIFEST).write_text("[1]"), "unreadable"),
    "manifest of another schema": (lambda d: (d / MANIFEST).write_text('{"schema": 99, "files": {}}'), "unreadable"),
    "manifest that lies": (
        lambda d: (d / MANIFEST).write_text((d / MANIFEST).read_text().replace("10240", "10241")),
        "expected 10241",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_noticed_and_repaired(root, caplog, kind):
    harm, said = DAMAGES[kind]
    build = Builder()
    directory = cached_dir("model", build)
    harm(directory)
    assert damage(directory) is not None
    with caplog.at_level(logging.WARNING):
        assert cached_dir("model", build) == directory
    assert build.calls == 2 and damage(directory) is None and not leftovers(root)
    assert said in caplog.text and "built again" in caplog.text


def flip_unseen(path: Path) -> None:
    """As a disk does: another content under the same size and time."""
    status = path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def hashed(monkeypatch) -> list[str]:
    """The names of the files that are hashed from now on."""
    names = []
    monkeypatch.setattr(cache, "sha256_file", lambda path: names.append(path.name) or sha256_file(path))
    return names


def test_files_of_the_size_and_time_in_the_manifest_are_taken_unhashed(root, monkeypatch):
    directory = cached_dir("model", Builder())
    names = hashed(monkeypatch)
    flip_unseen(directory / "weights")
    assert cached_dir("model", None) == directory and names == []


def test_a_file_of_another_time_is_hashed_once(root, monkeypatch):
    directory = cached_dir("model", Builder())
    names = hashed(monkeypatch)
    later(directory / "weights")
    assert [cached_dir("model", None) for _ in range(2)] == [directory] * 2 and names == ["weights"]
    manifest = json.loads((directory / MANIFEST).read_text())
    del manifest["files"]["weights"]["modified"]  # as in a cache that an earlier version made
    (directory / MANIFEST).write_text(json.dumps(manifest))
    assert [cached_dir("model", None) for _ in range(2)] == [directory] * 2 and names == ["weights"] * 2


def test_a_cache_that_is_shared_read_only_is_hashed_each_time(root, monkeypatch):
    directory = cached_dir("model", Builder())
    names = hashed(monkeypatch)
    later(directory / "weights")

    def refused(path, text):
        raise InputError("cannot write")

    monkeypatch.setattr(cache, "write_text", refused)
    assert [cached_dir("model", None) for _ in range(2)] == [directory] * 2 and names == ["weights"] * 2


def test_what_is_verified_and_damaged_is_built_again(root):
    directory, build = cached_dir("model", Builder()), Builder()
    assert verify(directory) is None and cached_dir("model", build) == directory and not build.calls
    flip_unseen(directory / "weights")
    assert "another SHA-256" in verify(directory)
    assert cached_dir("model", build) == directory and build.calls == 1 and verify(directory) is None


def test_a_failed_build_leaves_nothing(root):
    def build(directory):
        (directory / "half").write_text("x")
        raise DataError("the source is damaged")

    with pytest.raises(DataError, match="the source is damaged"):
        cached_dir("model", build)
    assert not (root / "model").exists() and not leftovers(root)


def test_a_failed_rebuild_keeps_no_damaged_directory_in_use(root):
    directory = cached_dir("model", Builder())
    flip(directory / "weights")

    def build(_):
        raise DataError("no network")

    with pytest.raises(DataError):
        cached_dir("model", build)
    assert damage(directory) is not None  # still known to be damaged, so the next call builds again
    build = Builder()
    assert damage(cached_dir("model", build)) is None and build.calls == 1


def test_names_do_not_sweep_each_other(root):
    (root / ".model.tmp-1").mkdir(parents=True)
    (root / ".model-2.tmp-1").mkdir()
    cached_dir("model", Builder())
    assert leftovers(root) == [".model-2.tmp-1"]


WORKER = """
import os, sys, time
from pathlib import Path
from knowedit.models.cache import cached_dir

here, workers = Path(sys.argv[1]), int(sys.argv[2])

def build(directory):
    with open(here / "log", "a") as log:
        log.write("built\\n")
    (directory / "half").write_text("half")
    print("building", flush=True)
    while len(list(here.glob("started-*"))) < workers:
        time.sleep(0.01)
    (directory / "rest").write_text("rest")

(here / f"started-{os.getpid()}").touch()
print(sorted(p.name for p in cached_dir("model", build).iterdir()), flush=True)
"""


HOLDER = """
import sys
from pathlib import Path
from knowedit.models.cache import locked

with locked(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.readline()
"""


def worker(folder: Path, workers: int) -> subprocess.Popen:
    """A process that builds, and is not done before `workers` of them have started."""
    command = [sys.executable, "-c", WORKER, str(folder), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_start_together_build_once(root, tmp_path):
    workers = [worker(tmp_path, 3) for _ in range(3)]
    said = [w.communicate(timeout=LIMIT)[0].splitlines()[-1] for w in workers]
    assert [w.returncode for w in workers] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
    assert said == ["['half', 'manifest.json', 'rest']"] * 3


def test_a_killed_builder_leaves_nothing_wrong(root, tmp_path):
    victim = worker(tmp_path, 2)  # the other never comes
    assert victim.stdout.readline() == "building\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=LIMIT)
    assert leftovers(root) and not (root / "model").exists()
    build = Builder()
    directory = cached_dir("model", build)  # the lock died with its holder
    assert build.calls == 1 and damage(directory) is None and not leftovers(root)
    assert not (directory / "half").exists()


@pytest.mark.parametrize(
    "wait, name, what",
    [
        (lambda: cached_dir("model", Builder()), "model", "model"),
        (lambda: TensorCache(cache_root()).locked("0123456789").__enter__(), "0123456789", "cache 01234567"),
    ],
)
def test_whoever_waits_is_told_before_for_what_and_for_whom(root, monkeypatch, wait, name, what):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(root / name)], stdout=-1, stdin=-1, text=True)
    assert holder.stdout.readline() == "holding\n"
    said = []

    def warn(message, *_, **__):
        said.append(message)
        holder.communicate("now it may end\n", LIMIT)

    monkeypatch.setattr(cache.warnings, "warn", warn)
    wait()
    (text,) = said
    assert re.fullmatch(rf"process {holder.pid} on .+, since .+, is making {what} in the cache; waiting for it", text)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="cannot write the cache .*set KNOWEDIT_CACHE") as error:
        cached_dir("model", Builder())
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(root):
    def build(directory):
        (directory / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left on device; set KNOWEDIT_CACHE"):
        cached_dir("model", build)
    assert not leftovers(root)


def test_a_sound_directory_needs_no_lock(root, monkeypatch):
    directory = cached_dir("model", Builder())
    monkeypatch.setattr(cache, "FileLock", None)  # a shared cache may be read-only
    assert cached_dir("model", Builder()) == directory


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", "~/elsewhere")
    assert cache_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("KNOWEDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_root() == tmp_path / "knowedit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "knowedit"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_root() == Path.home() / "Library" / "Caches" / "knowedit"


def test_small_json_values_are_kept_and_damaged_ones_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    key = cache.key_of({"weights": "a", "layer": 1})
    assert key == cache.key_of({"layer": 1, "weights": "a"}) != cache.key_of({"layer": 2, "weights": "a"})
    assert cache.read_json("layers", key) is None
    cache.write_json("layers", key, [{"layer": 1}])
    assert cache.read_json("layers", key) == [{"layer": 1}] and cache.read_json("neurons", key) is None
    file = tmp_path / "layers" / f"{key}.json"
    sound = file.read_text()
    for damaged in ("{damaged", "5", "[1]", '[{"layer": 1}]', sound.replace('"layer": 1', '"layer": 2')):
        file.write_text(damaged)
        assert cache.read_json("layers", key) is None
    assert cache.remembered("layers", key, lambda: (3, 4)) == (3, 4)
    assert cache.remembered("layers", key, lambda: pytest.fail("it is kept")) == [3, 4]
