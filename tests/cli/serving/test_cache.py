"""`knowedit cache` as a user meets it."""

import json

from knowedit.models.cache import cached_dir


def test_sizes_are_listed_and_what_is_cleaned_is_gone(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    cached_dir("gguf-1", lambda folder: (folder / "weights").write_bytes(bytes(2_000_000)))
    status, out, _ = run("cache", "list", model=None)
    assert status == 0
    row = next(line for line in out.splitlines() if line.startswith("gguf-1"))
    assert "2.0 MB" in row and "left by dead processes" in out
    _, out, _ = run("cache", "clean", model=None)
    assert "2.0 MB are kept" in out and "--older DAYS removes more" in out and ".gguf-1.lock" in out
    _, out, _ = run("cache", "clean", "--older", "0", "--json", model=None)
    record = json.loads(out)
    assert [entry["name"] for entry in record["removed"]] == ["gguf-1"] and record["bytes"] > 2_000_000
    assert list(tmp_path.iterdir()) == []
