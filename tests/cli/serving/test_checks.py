"""`knowedit test` in a CI job: its status, its table and its report."""

import json
from dataclasses import replace
from xml.etree import ElementTree

from support.commands import fails
from support.edits import strong
from support.trained import facts


def written(path, some):
    path.write_text("".join(json.dumps(fact.as_dict()) + "\n" for fact in some))
    return str(path)


def test_the_status_is_0_where_all_passes_and_3_with_a_table_where_something_broke(run, tmp_path):
    edit = str(strong("Zarn", "Bexum").save(tmp_path / "edit"))
    zarn = next(fact for fact in facts() if fact.subject == "Zarn")
    hold = written(tmp_path / "hold.jsonl", [replace(zarn, target_new="Bexum")])
    keep = written(tmp_path / "keep.jsonl", [fact for fact in facts() if fact.subject in ("Brem", "Tavo")])
    status, out, err = run("test", edit, "--hold", hold, "--keep", keep)
    assert status == 0, err
    assert "hold: 1 of 1 passed" in out and "keep: 4 of 4 passed" in out
    broken = written(tmp_path / "broken.jsonl", [zarn])
    report = tmp_path / "junit.xml"
    status, out, err = run("test", edit, "--hold", hold, "--keep", broken, "--junit", str(report))
    assert status == 3 and err.splitlines()[-1].startswith("error: checks that failed: 1 of 2")
    row = next(line for line in out.splitlines() if line.startswith("keep "))
    assert "home/zarn" in row and "Aldor" in row and "Bexum" in row
    assert ElementTree.fromstring(report.read_bytes()).get("failures") == "1"


def test_nothing_to_check_is_refused_before_a_model_is_loaded(run, tmp_path):
    edit = str(strong("Zarn", "Bexum").save(tmp_path / "edit"))
    fails(run("test", edit, model="nowhere"), "nothing to check")
