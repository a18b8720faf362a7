"""The commands of editing as a user meets them, on a tiny trained model in a folder."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from support.commands import HOSTILE, fails
from support.edits import strong
from support.tiny import tiny
from support.trained import HOME, facts, trained

import knowedit
from knowedit.cli import app
from knowedit.edit.rewrite_quality import rewrite_quality
from knowedit.models.cache import sha256_file

pytestmark = pytest.mark.usefixtures("own_cache")

EDIT = ("edit", "Zarn lives in", "--subject", "Zarn", "--target-new", "Bexum")
ROME = (*EDIT, "--layer", "0", "--set", "covariance.tokens=400", "--set", "contexts=2")


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Two edits in folders, of different facts."""
    place = tmp_path_factory.mktemp("edits")
    return [str(strong(s, new).save(place / s)) for s, new in (("Zarn", "Bexum"), ("Quill", "Dovath"))]


# ---------------------------------------------------------------- edit


def test_edit_reports_what_the_saved_edit_does(run, tmp_path):
    out = tmp_path / "zarn"
    status, text, err = run(
        *ROME, "--target-true", "Aldor", "--paraphrase", "The home of {} is", "--paraphrase", "Today Zarn stays in",
        "--neighbour", "Quill lives in=Bexum", "--lens", "--out", str(out), "--json",
    )  # fmt: skip
    assert status == 0, err
    report = json.loads(text)
    assert report["schema"] == "knowedit.edit-report/1"
    assert (report["method"], report["layer"], report["layers"], report["out"]) == ("rome", 0, [0], str(out))
    assert {"load", "prepare", "edit", "check"} == set(report["seconds"])
    assert report["preflight"]["relative_norm"] > 0 and report["preflight"]["first"] is True
    assert len(report["lens"]) == 3
    edit, model = knowedit.load_edit(out), trained()
    assert edit.content_hash == report["content_hash"]
    assert edit.made["command"].startswith("knowedit edit 'Zarn lives in' --subject Zarn --target-new Bexum")
    assert edit.made["threads"] == torch.get_num_threads() and edit.measured["preflight"]["relative_norm"] > 0
    measured = edit.measured["facts"][0]
    assert measured["before"] == report["before"] and measured["after"] == report["after"]
    assert edit.measured["perplexity"] == report["perplexity"] and "refused" in edit.measured["guard"]
    fact = edit.facts[0]
    assert fact.paraphrases == ("The home of {} is", "Today {} stays in")
    (before,) = rewrite_quality(model, [fact])
    with edit.applied(model):
        (after,) = rewrite_quality(model, [fact])
    for name, wanted in (("before", before), ("after", after)):
        found = report[name]
        assert {"prompt", "p_true", "p_new", "top"} <= set(found["prompt"])
        pairs = [(found["prompt"], wanted.prompt), *zip(found["paraphrases"], wanted.paraphrases, strict=True)]
        pairs += zip(found["neighbours"], wanted.neighbours, strict=True)
        assert len(pairs) == 4
        for shown, measured in pairs:
            assert shown["prompt"] == measured.prompt
            assert shown["p_true"] == pytest.approx(measured.p_true, rel=1e-4)
            assert shown["p_new"] == pytest.approx(measured.p_new, rel=1e-4)
            assert shown["top"][0][0] == measured.top[0][0]
    assert report["before"]["neighbours"][0]["p_true"] > 0.9  # of its own answer
    assert report["after"]["prompt"]["p_new"] > report["before"]["prompt"]["p_new"]


def test_edit_prints_a_table_and_saves_nothing_by_itself(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*ROME, "--neighbour", "Tavo lives in=Cirra", "--paraphrase", "The home of {} is")
    assert status == 0, err
    assert "Zarn lives in: Aldor → Bexum   (rome, layer 0 of" in out
    assert "the model's own first choice" in out  # no --target-true was given
    assert re.search("paraphrases won, which prefer the new answer and more than before: [01] of 1", out)
    assert "Not saved" in out and list(tmp_path.iterdir()) == []
    row = next(line for line in out.splitlines() if line.startswith("prompt"))
    assert "'Aldor' →" in row
    assert (
        "neighbours that keep their own answer: 1 of 1" in out
        and "Warning: the subject is the prompt's first token" in out
    )
    assert "Perplexity" in out and "‖ΔW‖/‖W‖" in out


def test_a_second_run_finds_the_covariance_in_the_cache(run, monkeypatch):
    import knowedit.edit.covariance as covariance

    hashes = [json.loads(run(*ROME, "--json")[1])["content_hash"]]
    monkeypatch.setattr(covariance, "_computed", lambda *_: pytest.fail("computed again"))
    hashes.append(json.loads(run(*ROME, "--json")[1])["content_hash"])
    assert hashes[0] == hashes[1]


def test_a_built_in_fact_brings_its_prompts(run, monkeypatch):
    import knowedit.sources.builtin as sources

    monkeypatch.setattr(sources, "builtin_facts", facts)
    status, out, err = run(
        "edit",
        "--fact",
        "home/zarn",
        "--target-new",
        "Cirra",
        "--layer",
        "0",
        "--set",
        "covariance.tokens=400",
        "--json",
    )
    assert status == 0, err
    report = json.loads(out)
    assert report["fact"]["id"] == "home/zarn" and report["fact"]["target_new"] == "Cirra"
    assert [p["prompt"] for p in report["after"]["paraphrases"]] == [t.replace("{}", "Zarn") for t in HOME[1:]]
    fails(run("edit", "--fact", "home/zarn", "--layer", "0"), "no target_new")


@pytest.mark.parametrize("method", ["knowledge_neurons", "fine_tune"])
def test_other_methods(run, tmp_path, method):
    status, out, err = run(*EDIT, "--method", method, "--out", str(tmp_path / "edit"), "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["method"] == method and report["preflight"]["k_C_inv_k"] is None
    assert report["after"]["prompt"]["p_new"] > report["before"]["prompt"]["p_new"]
    assert knowedit.load_edit(tmp_path / "edit").method == method


def test_the_guard_saves_nothing(run, tmp_path, monkeypatch):
    import knowedit.edit.guard as check

    strict = check.Guard(relative_norm=1e-9)
    monkeypatch.setattr(check, "Guard", lambda: strict)
    out = tmp_path / "edit"
    fails(run(*ROME, "--guard", "--out", str(out)), status=3)
    assert not out.exists()
    monkeypatch.undo()


LEARNS_NOTHING = ("--method", "fine_tune", "--set", "steps=1", "--set", "lr=0.0000001", "--layer", "1")


def test_an_edit_that_did_not_take_opens_with_that(run, tmp_path):
    status, out, err = run(*EDIT, *LEARNS_NOTHING, "--out", str(tmp_path / "edit"))
    assert status == 0, err
    assert out.startswith("The edit did not take: after 'Zarn lives in' the model says 'Aldor'")
    report = json.loads(run(*EDIT, *LEARNS_NOTHING, "--json")[1])
    assert report["did_not_take"].startswith("after 'Zarn lives in' the model says")


def test_the_guard_refuses_an_edit_that_did_not_take(run, tmp_path):
    out = tmp_path / "edit"
    fails(run(*EDIT, *LEARNS_NOTHING, "--guard", "--out", str(out)), "did not take", status=3)
    assert not out.exists()


def test_an_edit_that_took_does_not_say_otherwise(run):
    learnt = ("--method", "fine_tune", "--layer", "1", "--set", "norm_constraint=null", "--set", "lr=0.05")
    status, out, err = run(*EDIT, *learnt)
    assert status == 0, err
    assert "did not take" not in out and out.startswith("Zarn lives in: Aldor → Bexum")


def test_layer_auto_takes_the_best_layer(run, monkeypatch):
    import knowedit.edit.methods.best_layer as layer

    monkeypatch.setattr(layer, "best_layer", lambda model, *_, **__: 1)
    status, out, err = run(*EDIT, "--layer", "auto", "--set", "covariance.tokens=400", "--json")
    assert status == 0, err
    assert json.loads(out)["layer"] == 1


def test_a_masked_model_is_edited_too(run, tmp_path):
    model = tiny("bert")
    for part in (model.hf, model.tokenizer):
        part.save_pretrained(tmp_path / "bert")
    command = ("edit", "Paris is the capital of [MASK].", "--subject", "Paris", "--target-new", "Italy", "--layer", "1")
    command = (*command, "--set", "covariance.tokens=200", "--out", str(tmp_path / "edit"))
    status, out, err = run(*command, model=str(tmp_path / "bert"))
    assert status == 0, err
    assert "Perplexity" not in out and "Paris is the capital of [MASK]." in out
    result = run("generate", "Paris is", "--edit", str(tmp_path / "edit"), model=str(tmp_path / "bert"))
    fails(result, "masked model", "knowedit diff")


# ---------------------------------------------------------------- what is done with edits


def test_generate_without_and_with(run, saved):
    status, out, err = run("generate", "Zarn lives in", "--edit", saved[0], "--tokens", "1", "--json")
    assert status == 0, err
    record = json.loads(out)
    assert (record["unedited"].strip(), record["edited"].strip()) == ("Aldor", "Bexum")
    assert record["edits"] == [knowedit.load_edit(saved[0]).content_hash]
    status, out, _ = run("generate", "Zarn lives in", "--edit", saved[0], "--edit", saved[1], "--tokens", "1")
    assert status == 0 and out.splitlines()[2].split() == ["without", "the", "edits", "with"]
    assert out.splitlines()[3].split() == ["Aldor", "Bexum"]
    status, out, _ = run("generate", "Zarn lives in", "--tokens", "1")
    assert status == 0 and out.split() == ["Zarn", "lives", "in", "Aldor"]


def test_generate_samples_by_seed_alone(run, saved):
    command = ("generate", "Zarn lives in", "--sample", "--tokens", "12", "--json", "--seed")
    state = torch.get_rng_state()
    texts = [json.loads(run(*command, seed)[1])["unedited"] for seed in ("1", "1", "2", "3")]
    assert torch.equal(torch.get_rng_state(), state)
    assert texts[0] == texts[1] and len(set(texts)) > 1


def test_diff_lists_other_first_choices(run, saved, tmp_path):
    source = tmp_path / "facts.jsonl"
    fields = ("template", "subject", "target", "relation", "id")
    source.write_text("".join(json.dumps({k: getattr(f, k) for k in fields}) + "\n" for f in facts()))
    status, out, err = run("diff", "--edit", saved[0], "--facts", str(source), "--json")
    assert status == 0, err
    found = json.loads(out)
    model, edit = trained(), knowedit.load_edit(saved[0])

    def choices():
        logits = [model.hf(torch.tensor([model.encode(f.prompt).ids])).logits[0, -1] for f in facts()]
        return [model.tokenizer.decode([row.argmax().item()]) for row in logits]

    before = choices()
    with edit.applied(model):
        after = choices()
    wanted = {f.id: (b, a) for f, b, a in zip(facts(), before, after, strict=True) if b != a}
    assert found["asked"] == 24 and "home/zarn" in wanted
    assert {c["id"]: (c["before"][0], c["after"][0]) for c in found["changed"]} == wanted
    assert next(c for c in found["changed"] if c["id"] == "home/zarn")["edited_subject"] is True
    assert found["right"]["before"] == 24
    status, out, _ = run("diff", "--edit", saved[0], "--facts", str(source), "--limit", "4")
    assert status == 0 and "Prompts with another first choice: 1 of 4" in out and "'Aldor'" in out


def test_show_needs_no_model(run, saved, monkeypatch):
    import knowedit

    monkeypatch.setattr(knowedit, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    status, out, err = run("show", saved[0], "--json", model=None)
    assert status == 0, err
    record = json.loads(out)
    edit = knowedit.load_edit(saved[0])
    ((path, delta),) = edit.deltas.items()
    assert record["content_hash"] == edit.content_hash
    assert record["file_hash"] == sha256_file(Path(saved[0]) / "edit.json")
    assert edit.factors_hash == sha256_file(Path(saved[0]) / "edit.safetensors")
    assert record["weights"][path]["rank"] == 1
    assert record["weights"][path]["norm"] == pytest.approx(delta.matrix().norm().item(), rel=1e-4)
    assert record["facts"][0]["target_new"] == "Bexum" and record["config"]["layer"] == 0
    status, out, _ = run("show", saved[0], model=None)
    assert status == 0
    for word in ("Zarn lives in: Aldor → Bexum", "by rome", path, "rank 1", "content hash", "config: layer", "created"):
        assert word in out


def test_exports_say_what_the_edits_say(run, saved, folder, tmp_path):
    out = tmp_path / "adapter"
    status, text, err = run("export", *saved, "--to", "peft", str(out))
    assert status == 0 and "a PEFT adapter" in text and "2 edits" in text, err
    ranks = {tuple(tensor.shape) for tensor in load_file(out / "adapter_model.safetensors").values()}
    assert ranks == {(2, 24), (32, 2)}
    status, text, err = run("export", saved[0], str(tmp_path / "merged"), "--to", "checkpoint", "--json")
    assert status == 0, err
    assert json.loads(text)["to"] == "checkpoint"
    merged, model = knowedit.load(str(tmp_path / "merged")), trained()
    with knowedit.load_edit(saved[0]).applied(model):
        assert torch.equal(merged.down_weight(0), model.down_weight(0))


def test_covariance_reports_its_conditioning(run):
    command = ("covariance", "--layers", "0-2", "--tokens", "400", "--seed", "5", "--json")
    status, out, err = run(*command)
    assert status == 0, err
    record = json.loads(out)
    assert [layer["layer"] for layer in record["layers"]] == [0, 1, 2]
    assert record["computed"] is True and record["source"]["kind"] == "samples"
    assert all(layer["tokens"] == 400 and 1 < layer["effective_rank"] <= 24 for layer in record["layers"])
    again = json.loads(run(*command)[1])
    assert again["computed"] is False and again["layers"] == record["layers"]
    status, out, _ = run(*command[:-1])
    assert status == 0 and "effective rank" in out and "found in" in out


def test_show_writes_a_card_once(run, saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "zarn")
    status, out, err = run("show", str(folder), "--card", model=None)
    assert status == 0, err
    assert "disclose" in (folder / "README.md").read_text() and knowedit.load_edit(folder)
    (folder / "README.md").write_text("mine")
    fails(run("show", str(folder), "--card", model=None), "exists already")
    assert (folder / "README.md").read_text() == "mine"
    fails(run("show", str(folder), "--card", "--probe"), "ask for one of them")


def test_show_probe_tries_the_built_in_subjects(run, saved):
    status, out, err = run("show", saved[0], "--probe", "--json")
    assert status == 0, err
    record = json.loads(out)
    moved = [subject["moved"] for subject in record["subjects"]]
    assert record["model"] and moved == sorted(moved, reverse=True) and len(moved) > 100


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("edit",), ("TEMPLATE", "--fact")),
        (("edit", "Zarn lives in", "--fact", "capital/japan"), ("either",)),
        (("edit", "Zarn lives in", "--target-new", "Bexum"), ("--subject",)),
        (("edit", "Zarn lives in", "--subject", "Zarn"), ("--target-new",)),
        (("edit", "Zarn lives in", "--subject", "Quill", "--target-new", "Bexum"), ("'Quill' is not in the prompt",)),
        (("edit", "{} lives in", "--subject", "", "--target-new", "Bexum"), ("subject", "''")),
        (("edit", "{} {} is", "--subject", "Zarn", "--target-new", "Bexum"), ("2 slots",)),
        (("edit", "Zarn {0.__class__} in", "--subject", "Quill", "--target-new", "Bexum"), ("{0.__class__}",)),
        (("edit", "--fact", "capital/jpan"), ("did you mean 'capital/japan'",)),
        (("edit", "--fact", "capital/japan", "--subject", "Zarn"), ("--subject",)),
        ((*EDIT, "--target-true", "Bexum"), ("the new answer 'Bexum' is", "own target")),
        ((*EDIT, "--target-true", ""), ("target", "''")),
        ((*EDIT[:-1], "", "--target-true", "Aldor"), ("target_new is ''",)),
        ((*EDIT[:-1], "Aldor", "--layer", "0"), ("'Aldor' is the model's first choice already",)),
        ((*EDIT[:-1], "Timbuktu", "--layer", "0"), ("does not know", "Timbuktu")),
        ((*EDIT, "--layer", "3"), ("layer 3 is out of range", "0 to 2")),
        ((*ROME, "--layer", "2"), ("what layer 2 puts out at the subject's last token", "edit a layer below 2")),
        ((*EDIT, "--layer=-1"), ("layer -1 is out of range",)),
        ((*EDIT, "--layer", "first"), ("'first'", "auto")),
        ((*EDIT, "--method", "fine_tune", "--layer", "3"), ("layer 3 is out of range",)),
        ((*EDIT, "--method", "fine_tune", "--layer", "auto"), ("fine_tune does not choose its layer by trying",)),
        ((*EDIT, "--method", "knowledge_neurons", "--layer", "1"), ("takes no layer, found 1; leave it out",)),
        ((*EDIT, "--method", "fine_tune", "--set", "norm_constraint=0"), ("norm_constraint is 0",)),
        ((*EDIT, "--set", "norm_constraint=1e-3"), ("no setting is called 'norm_constraint'", "there are contexts")),
        ((*EDIT, "--method", "fine_tune", "--set", "lrr=1"), ("no setting is called 'lrr'", "did you mean 'lr'")),
        ((*EDIT, "--method", "knowledge_neurons", "--seed", "1"), ("no setting is called 'seed'",)),
        ((*EDIT, "--set", "search.lr"), ("'search.lr'", "NAME=VALUE")),
        ((*EDIT, "--set", "search.lr=high"), ("wrong type",)),
        ((*EDIT, "--set", "published=gpt2xl"), ("'gpt2xl'", "did you mean 'gpt2-xl'")),
        ((*EDIT, "--method", "none"), ("the method none makes no edit",)),
        ((*EDIT, "--method", "romee"), ("'romee'", "did you mean 'rome'")),
        (EDIT, ("no table has the layer", "auto")),
        ((*EDIT, "--layer", "auto"), ("knows none of the facts", "give a layer")),
        ((*EDIT, "--layer", "0", "--set", "covariance.tokens=20"), ("20 tokens are too few", "48 or more")),
        ((*EDIT, "--layer", "0", "--set", "covariance.tokens=0"), ("0 tokens",)),
        ((*EDIT, "--layer", "0", "--set", "covariance.text=/nowhere.txt"), ("/nowhere.txt",)),
        ((*ROME, "--set", "contexts=-1"), ("contexts are -1",)),
        ((*ROME, "--paraphrase", "He lives in"), ("'Zarn' is not in the prompt 'He lives in'",)),
        ((*ROME, "--neighbour", "Quill lives in"), ("'Quill lives in'", "PROMPT=ANSWER")),
        ((*ROME, "--neighbour", "Quill lives in="), ("PROMPT=ANSWER",)),
        ((*ROME, "--neighbour", "Quill lives in=Timbuktu"), ("Timbuktu",)),
        (("generate", "Zarn lives in", "--edit", "/nowhere"), ("/nowhere", "no folder")),
        (("generate", "Zarn lives in", "--tokens", "0"), ("0 new tokens",)),
        (("generate", "Zarn lives in", "--tokens", "31"), ("31 more", "32")),
        (("generate", " "), ("prompt is empty",)),
        (("diff",), ("--edit",)),
        (("diff", "--edit", "/nowhere"), ("/nowhere",)),
        (("covariance",), ("no table has the layer",)),
        (("covariance", "--layers", "0-3"), ("layer 3 is out of range",)),
        (("covariance", "--layers", "a"), ("'a'",)),
        (("covariance", "--layers", "0", "--tokens", "20"), ("too few",)),
        (("covariance", "--layers", "0", "--text", "sample"), ("did you mean 'samples'",)),
    ],
)
def test_bad_input_is_one_line(run, arguments, words):
    fails(run(*arguments), *words)


def test_an_out_that_exists_is_said_before_the_work(run, tmp_path, saved, monkeypatch):
    monkeypatch.setattr(knowedit, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "there").mkdir()
    for place, word in ((tmp_path / "there", "exists already"), (tmp_path / "no" / "where", "no folder")):
        fails(run(*ROME, "--out", str(place)), str(place), word)
        fails(run("export", saved[0], "--to", "peft", str(place)), str(place), word)
    assert [p.name for p in tmp_path.iterdir()] == ["there"] and list((tmp_path / "there").iterdir()) == []


def test_damaged_edits_are_refused(run, saved, tmp_path):
    flipped, truncated, nan = (Path(shutil.copytree(saved[0], tmp_path / n)) for n in ("flipped", "truncated", "nan"))
    factors = flipped / "edit.safetensors"
    data = bytearray(factors.read_bytes())
    data[-5] ^= 4
    factors.write_bytes(data)
    path = truncated / "edit.json"
    path.write_bytes(path.read_bytes()[:-40])
    tensors = load_file(nan / "edit.safetensors")
    save_file({name: tensor.fill_(float("nan")) for name, tensor in tensors.items()}, nan / "edit.safetensors")
    for place in (flipped, truncated, nan):
        for command in (
            ("show", str(place)),
            ("generate", "Zarn lives in", "--edit", str(place)),
            ("diff", "--edit", str(place)),
            ("export", str(place), "--to", "peft", str(tmp_path / "out")),
        ):
            result = run(*command, **({"model": None} if command[0] == "show" else {}))
            fails(result, str(place), "no sound edit")
    assert not (tmp_path / "out").exists()


def test_an_edit_of_another_model_is_refused(run, saved, tmp_path):
    other = tiny("llama")
    other.hf.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    place = str(tmp_path / "other")
    for command in (
        ("generate", "Zarn lives in", "--edit", saved[0]),
        ("diff", "--edit", saved[0], "--limit", "2"),
        ("export", saved[0], "--to", "checkpoint", str(tmp_path / "out")),
    ):
        fails(run(*command, model=place), "layers.0.mlp.down_proj")
    changed = trained().hf.state_dict()
    model = type(trained().hf)(trained().hf.config)
    model.load_state_dict(changed)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "changed")
    trained().tokenizer.save_pretrained(tmp_path / "changed")
    result = run("generate", "Zarn lives in", "--tokens", "1", "--edit", saved[0], model=str(tmp_path / "changed"))
    fails(result, "not the one that this edit was made for")
    assert not (tmp_path / "out").exists()


def test_exports_are_refused(run, saved, tmp_path):
    out = str(tmp_path / "out")
    fails(run("export", saved[0], "--to", "peftt", out), "did you mean 'peft'")
    fails(run("export", saved[0], out), "--to")
    fails(run("export", out, "--to", "peft"), "DIR")
    fails(run("export", saved[0], "--to", "checkpoint", "--base", "x", out), "--base")
    dense = tmp_path / "dense"
    assert run(*EDIT, "--method", "fine_tune", "--out", str(dense))[0] == 0
    fails(run("export", str(dense), "--to", "peft", out), "checkpoint instead")
    assert "dense" in run("show", str(dense), model=None)[1]
    assert not (tmp_path / "out").exists()


def test_text_from_outside_is_inert(run, tmp_path):
    out = tmp_path / "edit"
    for command, model in (
        (("edit", HOSTILE, "--subject", "\x1b[31mZarn\x1b[0m", "--target-new", "Bexum", "--target-true", "Aldor",
          "--paraphrase", "[/red] " + HOSTILE, "--neighbour", f"{HOSTILE}=Aldor", "--layer", "0",
          "--set", "covariance.tokens=400", "--set", "contexts=0", "--out", str(out)), True),
        (("show", str(out)), False),
        (("generate", HOSTILE, "--edit", str(out), "--tokens", "3"), True),
    ):  # fmt: skip
        status, text, err = run(*command, **({} if model else {"model": None}))
        assert status == 0, err
        assert "[/red]" in text and "$x_{ $" in text
        assert "\x1b" not in text and "\u202e" not in text
        assert "\\x1b[31m" in text.replace("\n", "")
    status, _, err = run("edit", HOSTILE, "--subject", HOSTILE + "?", "--target-new", "Bexum")
    assert status == 2 and "\x1b" not in err and "\\x1b" in err


def test_the_commands_import_nothing_heavy():
    code = (
        "import sys, knowedit.cli\nprint(sorted(set(sys.modules) & {'torch', 'transformers', 'numpy', 'tqdm', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_names_what_there_is():
    page = (Path(__file__).parents[3] / "docs/editing.md").read_text(encoding="utf-8")
    names = set(re.findall(r"knowedit\.([a-zA-Z_]+)(?![a-zA-Z_.])", page)) - {"json"}
    assert names and names <= set(knowedit.__all__)
    commands = typer.main.get_command(app).commands
    every = [*commands.values(), *commands["bench"].commands.values()]
    known = {option for command in every for parameter in command.params for option in parameter.opts}
    options = set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", page))
    assert options and options <= known
    used = set(re.findall(r"(?:^|`)knowedit ([a-z]+)", page, re.M))
    assert used and used <= set(commands)
