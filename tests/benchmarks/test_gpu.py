"""The script for a GPU runs as it is on a CPU, with a tiny shape: every piece gives its line."""

import json
from dataclasses import replace

from benchmarks import gpu


def test_every_piece_prints_a_line_and_all_are_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "EQUAL", replace(gpu.EQUAL, steps=2))
    gpu.main(f"--shape tiny --device cpu --together 4 --file {tmp_path / 'gpu.json'}".split())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == json.loads((tmp_path / "gpu.json").read_text())["pieces"]
    assert len(lines) == len({line["piece"] for line in lines}) == 13
    for line in lines:
        assert line["seconds"] > 0 and line["card"] == "cpu" and line["model"] == "random tiny"
        assert "loop" not in line or abs(line["ratio"] - line["loop"] / line["seconds"]) <= 1e-9 * line["ratio"]
    beside = {line["piece"].split(",")[0] for line in lines if "loop" in line}
    assert beside == {"v* of 6 prompts", "v* of 21 prompts", "integrated gradients", "trace of three maps"}


def test_a_piece_that_would_begin_too_late_says_that_it_is_left_out(tmp_path, capsys):
    gpu.main(f"--shape tiny --device cpu --limit 0 --file {tmp_path / 'gpu.json'}".split())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 13 and all("left_out" in line and "seconds" not in line for line in lines)
