"""`knowedit bench`: whole runs of the trained model in a folder, and one line for whatever cannot be run."""

import errno
import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from support.commands import HOSTILE, fails
from support.studies import source
from support.trained import facts, trained

from knowedit.evaluate.edits.generation import QUESTION, generate
from knowedit.evaluate.runs import folder as store
from knowedit.evaluate.runs.configs import named_configs
from knowedit.evaluate.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("own_cache")

FINE_TUNE = ("--method", "fine_tune", "--layer", "1", "--set", "steps=8", "--set", "lr=0.02", "--batch", "2")
LITE = {
    "case_id": 16, "prompt": "Zarn lives in", "subject": "Zarn", "target_new": "Bexum", "ground_truth": "Aldor",
    "rephrase_prompt": "The home of Zarn is", "locality_prompt": "Quill lives in", "locality_ground_truth": "Bexum",
}  # fmt: skip


def written(path, made):
    path.write_text("".join(json.dumps(asdict(fact)) + "\n" for fact in made))
    return str(path)


@pytest.fixture
def homes(tmp_path):
    return written(tmp_path / "homes.jsonl", source().facts)


@pytest.fixture
def edit(run, homes, tmp_path):
    """`bench edit` of the six homes into `name`."""

    def call(*arguments, name="run", given=homes):
        return run("bench", "edit", "--source", given, "--out", str(tmp_path / name), *FINE_TUNE, *arguments)

    return call


def records(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in RunFolder(folder).rows()]


# ---------------------------------------------------------------- edit


def test_edit_prints_the_summary_as_json(edit, tmp_path):
    status, out, err = edit("--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["schema"] == "knowedit.bench/1" and found["records"] == 6 and found["failed"] == 0
    for figure in found["metrics"].values():
        assert figure.keys() == {"value", "low", "high", "n"}
    assert found["metrics"]["ES"]["value"] == 1.0 > found["before"]["ES"]["value"]
    assert {"ES", "PS", "NS", "EM", "PM", "NM", "ES_argmax", "PS_argmax", "NS_argmax", "Score"} <= set(found["metrics"])
    assert found["seconds"] > 0 and found["records_per_second"] == pytest.approx(6 / found["seconds"])
    assert {p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")} == {
        "manifest.json", "records.jsonl", "records.parquet", "summary.json",
    }  # fmt: skip
    assert RunFolder(tmp_path / "run").manifest["command"].startswith("knowedit bench edit --source ")


def test_edit_prints_a_table_for_people(edit):
    status, out, err = edit("--perplexity", "--generate", "--metrics", "ES,essence,GE,free_ES")
    assert status == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["metric", "before", "after", "95", "%", "interval", "n", "unit"]
    by_name = {line[0]: line for line in lines}
    assert by_name["ES"][1:3] == ["0.0", "100.0"] and by_name["ES"][-1] == "%"
    assert by_name["essence"][-1] == "nats" and "GE" not in by_name  # nothing to write on from
    assert "6 records, 0 failed, 0 skipped" in out


def test_sequential_edits_show_their_checkpoints(edit):
    status, out, _ = edit("--sequential", "--checkpoints", "1,3,6", "--perplexity")
    assert status == 0
    table = out[out.index("all so far") :].splitlines()
    assert table[0].split()[-2:] == ["perplexity,", "%"]
    assert [line.split()[0] for line in table[1:4]] == ["1", "3", "6"]


def test_rome_by_the_models_own_covariance_and_a_sample(run, homes, tmp_path):
    settings = [part for pair in ("contexts=0", "preserve=0.0", "search.steps=4") for part in ("--set", pair)]
    options = ("--layer", "1", "--sample", "2", "--json", *settings)
    status, out, err = run("bench", "edit", "--source", homes, "--out", str(tmp_path / "run"), *options)
    assert status == 0 and json.loads(out)["records"] == 2, err
    assert RunFolder(tmp_path / "run").manifest["config"]["resolved"]["search"]["steps"] == 4


# ---------------------------------------------------------------- neurons


def neurons(run, tmp_path, *arguments, made=None):
    given = written(tmp_path / "facts.jsonl", facts()[:8] if made is None else made)
    return run("bench", "neurons", "--source", given, "--out", str(tmp_path / "neurons"), "--draws", "5", *arguments)


def test_neurons_prints_the_summary_as_json(run, tmp_path):
    status, out, err = neurons(run, tmp_path, "--json", "--relations", "home", "--stability", "--erase")
    assert status == 0, err
    found = json.loads(out)
    assert found["schema"] == "knowedit.bench/1" and found["records"] == 4
    assert {"suppress:ig", "amplify:ig", "suppress:activation", "suppress:random", "neurons"} <= set(found["metrics"])
    assert found["seconds"] > 0 and found["records_per_second"] > 0
    assert {"layers", "overlap", "specificity", "stability", "erasure", "by_relation", "proof"} <= set(found)


def test_neurons_prints_a_table_for_people(run, tmp_path):
    status, out, err = neurons(run, tmp_path)
    assert status == 0, err
    by_name = {line.split()[0]: line for line in out.splitlines() if line}
    assert by_name["neurons"].endswith("per fact") and by_name["suppress:ig"].rstrip().endswith("%")
    mean = sum(len(row["located"]["neurons"]) for row in RunFolder(tmp_path / "neurons").rows()) / 8
    assert by_name["neurons"].split()[1] == f"{mean:.2f}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--relations", "hom"), ("no relation is called 'hom'", "did you mean 'home'")),
        (("--method", "igg"), ("did you mean 'ig'",)),
        (("--draws", "0"), ("draws is 0",)),
        (("--layers", "9"), ("layer 9",)),
        (("--nodes", "many"), ("nodes",)),
    ],
)
def test_neurons_that_cannot_be_studied(run, tmp_path, arguments, words):
    fails(neurons(run, tmp_path, *arguments), *words)
    assert not (tmp_path / "neurons").exists()


# ---------------------------------------------------------------- going on


def cut(folder, lines, rest=b""):
    (folder / "summary.json").unlink()
    path = folder / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]) + rest)


def test_a_run_goes_on_also_behind_a_half_written_line(edit, tmp_path):
    edit()
    whole = records(tmp_path / "run")
    cut(tmp_path / "run", 3, b'{"id": "home/os')
    status, out, err = edit("--resume", "--json")
    assert status == 0 and json.loads(out)["records"] == 6
    assert "a half-written last line of 15 bytes was dropped" in err
    assert records(tmp_path / "run") == whole


def test_a_run_of_another_config_or_other_data_is_refused(edit, tmp_path, homes):
    edit()
    cut(tmp_path / "run", 3)
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    fails(edit("--resume", "--set", "lr=0.03"), "lr 0.02, asked for is 0.03", "new run")
    fails(edit("--resume", "--seed", "1"), "config.seed 0, asked for is 1")
    data = Path(homes).read_bytes()
    Path(homes).write_bytes(data.replace(b"Bexum", b"bexum", 1))  # one byte
    fails(edit("--resume"), "identity.data")
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before
    Path(homes).write_bytes(data)
    assert edit("--resume")[0] == 0


def test_folders_that_are_there_or_not(edit, run, homes, tmp_path):
    fails(run("bench", "edit", "--source", homes), "name one with --out")
    assert edit("--resume", name="begun")[0] == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("!")
    fails(edit(), "exists already")
    assert edit(name="other")[0] == 0
    fails(edit(name="other"), "holds a run already; go on with --resume")


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(edit, tmp_path, monkeypatch):
    edit(name="whole")
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", fsync)
    fails(edit(), "No space left on device; make room and go on with --resume")
    monkeypatch.undo()
    assert len(records(tmp_path / "run")) == 2
    assert edit("--resume")[0] == 0 and records(tmp_path / "run") == records(tmp_path / "whole")


def test_shards_merge_to_the_whole(edit, run, tmp_path):
    edit(name="whole")
    for i in "12":
        assert edit("--shard", f"{i}/2", name=f"part{i}")[0] == 0
    parts = [str(tmp_path / f"part{i}") for i in "12"]
    status, out, err = run("merge", *parts, "--out", str(tmp_path / "all"), "--json", model=None)
    assert status == 0, err
    by_id = {row["id"]: row for row in records(tmp_path / "whole")}
    assert {row["id"]: row for row in records(tmp_path / "all")} == by_id
    assert json.loads(out)["metrics"] == RunFolder(tmp_path / "whole").summary["metrics"]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shard", "3/2"), ("the shard is '3/2', expected i/n",)),
        (("--sequential", "--shard", "1/2"), ("run it serially",)),
        (("--method", "romme"), ("--method is 'romme' (did you mean 'rome'", "did you mean 'rome'")),
        (("--metrics", "ES,PSS"), ("'PSS' is no metric", "did you mean 'PS'")),
        (("--source", "buildin"), ("no source 'buildin'", "did you mean 'builtin'")),
        (("--format", "counterfct"), ("did you mean 'counterfact'",)),
        (("--set", "stepps=1"), ("did you mean 'steps'",)),
        (("--set", "steps"), ("expected NAME=VALUE",)),
        (("--limit", "0"), ("the limit is 0",)),
        (("--batch", "0"), ("the batch is 0",)),
        (("--checkpoints", "10,1"), ("rising numbers",)),
        (("--checkpoints", "ten"), ("expected numbers such as 1,10,100",)),
        (("--engine", "rey"), ("did you mean 'ray'",)),
        (("--workers", "2"), ("add --engine ray",)),
        (("--tracker", "wandbb"), ("did you mean 'wandb'",)),
        (("--config", "missing.yaml"), ("cannot read the config 'missing.yaml'",)),
        (("--config", "rome_gpt2xl_zsre"), ("did you mean 'rome_gpt2-xl_zsre'", "`knowedit bench configs` lists")),
        (("--snippets", "folder"), ("add --generate",)),
        (("--generate", "--snippets", "folder"), ("cannot read", "attribute_snippets.json")),
        (("--layer", "7"), ("layer 7",)),
    ],
)
def test_what_cannot_be_run_is_one_line(edit, tmp_path, arguments, words):
    fails(edit(*arguments), *words)
    assert not (tmp_path / "run" / "records.jsonl").exists() or not records(tmp_path / "run")


def test_ray_that_is_not_installed_is_one_line(edit, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    fails(edit("--engine", "ray", "--workers", "2"), "pip install 'knowedit[ray]'", "--engine serial")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", ("is empty",)),
        ("", ("is empty",)),
        ('[{"a": 1}]', ("fields 'a'", "no known format")),
        (json.dumps([LITE, {**LITE, "case_id": 9, "target_new": []}]), ("record 9: target_new is [], expected text",)),
        (json.dumps([LITE, LITE]), ("'counterfact-lite/16' twice",)),
        ('[{"a": 1},', ("not JSON", "is the file whole?")),
        (
            json.dumps([{**LITE, "subject": "Nice"}]),
            ("holds no facts that can be asked", "'Nice' is not in its prompt"),
        ),
        (json.dumps({**asdict(facts()[0])}), ("no fact of", "has a new target")),
    ],
)
def test_sources_that_cannot_be_used_are_one_line(edit, tmp_path, content, words):
    (tmp_path / "data.json").write_text(content)
    fails(edit(given=str(tmp_path / "data.json")), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study: neurons", ("is for `knowedit bench neurons`",)),
        ("study: edits", ("expected `study: edit`",)),
        ("- a", ("holds no settings",)),
        ("study: edit\nmethodd: rome", ("did you mean 'method'",)),
        ("study: [", ("is not YAML",)),
    ],
)
def test_configs_that_cannot_be_used_are_one_line(edit, tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    fails(edit("--config", str(tmp_path / "c.yaml")), *words)


def test_configs_are_listed_shown_and_found_by_name(run, tmp_path):
    status, out, _ = run("bench", "configs", model=None)
    names = [line.split()[0] for line in out.splitlines() if line[0] != " "]  # words may go on in a second line
    assert status == 0 and names == ["config", *named_configs()]
    status, out, _ = run("bench", "configs", "rome_gpt2-xl_zsre", model=None)
    assert status == 0 and "published: gpt2-xl" in out and "Needs zsre_mend_eval.json" in out
    status, out, _ = run("bench", "configs", "kn_smollm2", "--json", model=None)
    (config,) = json.loads(out)["configs"]
    assert config["settings"]["method"] == "knowledge_neurons" and config["command"].startswith("knowedit bench edit")
    fails(run("bench", "configs", "kn_smollm", model=None), "did you mean 'kn_smollm2'")


def test_a_config_is_run_by_its_name(edit, tmp_path):
    options = ("--config", "ft-l_smollm2", "--limit", "2", "--set", "norm_constraint=0.1")
    status, _, err = edit(*options)
    assert status == 0, err
    config = RunFolder(tmp_path / "run").manifest["config"]
    assert (config["method"], config["perplexity"], config["limit"]) == ("fine_tune", True, 2)
    assert config["resolved"]["norm_constraint"] == 0.1


def test_options_take_precedence_over_the_config(edit, tmp_path):
    (tmp_path / "c.yaml").write_text("study: edit\nlimit: 4\nsettings:\n  steps: 3\n  lr: 0.5\n")
    status, _, err = edit("--config", str(tmp_path / "c.yaml"), "--limit", "2")
    assert status == 0, err
    config = RunFolder(tmp_path / "run").manifest["config"]
    assert config["limit"] == 2 and config["settings"] == {"steps": 8, "lr": 0.02}


# ---------------------------------------------------------------- skipped, inert


def test_a_record_whose_subject_is_not_in_its_prompt_is_skipped_counted_and_said(edit, tmp_path):
    data = tmp_path / "lite.json"
    data.write_text(json.dumps([LITE, {**LITE, "case_id": 17, "subject": "Nice"}]))
    status, out, err = edit(given=str(data))
    assert status == 0, err
    assert "skipped: 1 record, the first (17): its subject 'Nice' is not in its prompt 'Zarn lives in'" in err
    assert "1 record, 0 failed, 1 skipped" in out


def test_hostile_text_is_inert(edit, run, tmp_path):
    made = [
        replace(fact, relation=name, relation_name=name, id=f"{name}/{i}")
        for i, (fact, name) in enumerate(zip(source().facts, (HOSTILE, "=1+1", "$x_{", "<b>"), strict=False))
    ]
    broken = replace(made[0], target=HOSTILE, id=f"{HOSTILE}/broken")
    given = written(tmp_path / "hostile.jsonl", [*made, broken])
    status, out, err = edit("--json", given=given)
    assert status == 0 and "\x1b" not in out + err and "\u202e" not in out + err
    found = json.loads(out)
    assert set(found["by_relation"]) == {HOSTILE, "=1+1", "$x_{", "<b>"} and found["failed"] == 1
    status, out, err = edit(given=written(tmp_path / "all.jsonl", [broken]), name="all")
    assert status == 2 and "\x1b" not in out + err and "\u202e" not in out + err
    fails(edit(given=f"{HOSTILE}.json", name="none"), "there is no source")


# ---------------------------------------------------------------- plans


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(edit, run, tmp_path, homes):
    status, out, err = edit("--dry-run")
    assert status == 0, err
    lines = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in out.splitlines()[1:])
    assert lines["records"] == "6" and lines["forward passes: search"] == "48"
    assert lines["forward passes: before"] == lines["forward passes: after"] == "44"
    assert "memory: total" in lines and not (tmp_path / "run").exists()
    status, out, _ = run("bench", "neurons", "--source", homes, "--dry-run", "--json")
    plan = json.loads(out)
    assert status == 0 and plan["schema"] == "knowedit.bench-plan/1"
    assert plan["passes"]["locate"] == 6 * 3 * (1 + 6 * 3) and plan["at_most"] is True


def test_a_dry_run_says_what_it_cannot_know(run):
    status, out, err = run("bench", "edit", "--source", "missing.json", "--dry-run", model="nobody/nothing")
    assert status == 0 and "records" in out and "unknown" in out
    assert "source unknown: there is no source 'missing.json'" in err and "model unknown: " in err


# ---------------------------------------------------------------- what the sources ask beside

ZSRE = {"subject": "Zarn", "src": "Zarn lives in", "pred": "Aldor", "rephrase": "The home of Zarn is",
        "answers": ["Bexum"], "loc": "nq question: Quill lives in", "loc_ans": "Bexum"}  # fmt: skip
MQUAKE = {
    "case_id": 3, "questions": ["The job of Zarn is"], "new_answer": "miner", "new_answer_alias": ["weaver"],
    "requested_rewrite": [{"prompt": "{} lives in", "subject": "Zarn", "question": "The home of Zarn is",
                           "target_true": {"str": "Aldor"}, "target_new": {"str": "Bexum"}}],
}  # fmt: skip
COUNTERFACT = {
    "case_id": 7, "paraphrase_prompts": ["The home of Zarn is"], "neighborhood_prompts": ["Quill lives in"],
    "generation_prompts": ["Zarn lives in", "Today Zarn stays in"],
    "requested_rewrite": {"prompt": "{} lives in", "subject": "Zarn", "relation_id": "P551",
                          "target_true": {"str": "Aldor", "id": "Q1"}, "target_new": {"str": "Bexum", "id": "Q2"}},
}  # fmt: skip


def measured(edit, tmp_path, record, *arguments):
    (tmp_path / "data.json").write_text(json.dumps([record]))
    status, out, err = edit("--json", *arguments, given=str(tmp_path / "data.json"))
    assert status == 0, err
    return json.loads(out)


def test_zsre_has_its_own_metrics(edit, tmp_path):
    found = measured(edit, tmp_path, ZSRE)["metrics"]
    assert found["Efficacy"] == {"value": 1.0, "low": None, "high": None, "n": 1}
    assert found["Paraphrase"]["n"] == found["Specificity"]["n"] == 1


def test_portability_is_measured_of_what_is_written(edit, tmp_path):
    found = measured(edit, tmp_path, MQUAKE, "--generate")
    assert found["metrics"]["portability"] == found["metrics"]["probe:two-hop"]
    (text,) = generate(trained(), MQUAKE["questions"], tokens=QUESTION)
    said = {"miner", "weaver"} & set(text.split())
    assert found["before"]["portability"] == {"value": float(bool(said)), "low": None, "high": None, "n": 1}


def test_entropy_and_reference_score_are_measured_of_longer_text(edit, tmp_path):
    folder = tmp_path / "snippets"
    folder.mkdir()
    texts = [{"relation_id": "P551", "target_id": "Q2", "samples": [{"name": "Quill", "text": "Bexum is home"}]}]
    (folder / "attribute_snippets.json").write_text(json.dumps(texts))
    (folder / "tfidf_vocab.json").write_text(json.dumps({"bexum": 0, "is": 1, "aldor": 2}))
    np.save(folder / "idf.npy", np.array([2.0, 1.0, 2.0]))
    found = measured(edit, tmp_path, COUNTERFACT, "--generate", "--snippets", str(folder))
    assert found["metrics"]["GE"]["value"] > 0 and 0 < found["metrics"]["RS"]["value"] <= 1
    assert RunFolder(tmp_path / "run").manifest["identity"]["snippets"]
    np.save(folder / "idf.npy", np.array([2.0, 1.0, 1.0]))
    cut(tmp_path / "run", 0)
    arguments = ("--resume", "--generate", "--snippets", str(folder))
    fails(edit(*arguments, given=str(tmp_path / "data.json")), "identity.snippets")
