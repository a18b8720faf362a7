"""The command line as a user meets it: what it prints, and one line with status 2 for whatever is wrong."""

import json
import logging
import shutil
import subprocess
import sys

import pytest
import torch
import transformers as T
from support.commands import HOSTILE, fails
from support.tiny import hf, tokenizer
from support.trained import facts, trained

from knowedit.evaluate.neurons.study import NeuronStudy
from knowedit.evaluate.runs.folder import RunFolder

NEEDED = {
    "schema", "model", "prompt", "target", "probability", "neurons", "completeness", "effect", "seconds",
}  # fmt: skip


ZARN = ("locate", "Zarn lives in", "--target", "Aldor", "--subject", "Zarn", "--draws", "40")


def test_locate_prints_one_json_object(run):
    status, out, err = run(*ZARN, "--paraphrase", "The home of Zarn is", "--paraphrase", "Today {} stays in", "--json")
    assert status == 0, err
    record = json.loads(out)
    assert NEEDED <= set(record)
    assert record["schema"] == "knowedit.locate/1"
    assert record["heldout"] == ["Today Zarn stays in"]  # the last paraphrase, as nothing else was held out
    assert record["refined_on"] == ["Zarn lives in", "The home of Zarn is"]
    assert {"layer", "index", "score", "share", "kind", "promotes", "suppresses"} <= set(record["neurons"][0])
    assert record["completeness"]["max_gap"] == max(record["completeness"]["by_layer"]) <= 1e-3
    for name in ("suppress", "amplify", "control_suppress", "control_amplify"):
        assert {"value", "low", "high", "n"} <= set(record["effect"][name])
    assert record["effect"]["suppress"]["n"] == 1 and record["effect"]["suppress"]["low"] is None
    assert record["effect"]["heldout"] is True
    assert record["effect"]["control_suppress"]["n"] == 40
    assert set(record["seconds"]) == {"load", "attribution", "effect"}


def test_locate_says_before_what_it_takes(run):
    status, out, err = run(*ZARN, "--paraphrase", "The home of Zarn is", "--heldout", "Today Zarn stays in",
                           "--negative", "Quill works as", "--nodes", "8", "--layers", "1-2")  # fmt: skip
    assert status == 0, err
    said = (
        "locating by 3 prompts takes at least {} passes through the model; then 40 random sets are tried on 1 held-out"
    )
    assert err.startswith(said.format(3 * (1 + 8 * 3))), "paths go through all three layers"


def test_locate_prints_a_table_for_people(run):
    status, out, _ = run(*ZARN)
    assert status == 0
    assert "Zarn lives in → Aldor" in out
    assert "no other ways to ask were given" in out and "Proof on 3 held-out prompts" in out
    assert "suppress, joint" in out and "suppress × 0" in out and "amplify × 2" in out
    assert "Kinds: there is no known fact of other relations or of the same relation" in out  # it knows no built-in one


def test_scores_that_do_not_add_up_are_said_in_table_and_json(run, monkeypatch):
    monkeypatch.setattr("knowedit.locate.neurons.INCOMPLETE", 1e-9)
    status, out, _ = run(*ZARN, "--nodes", "2")
    assert status == 0 and "Warning: the scores of a layer miss" in out
    status, out, _ = run(*ZARN, "--nodes", "2", "--json")
    gap = json.loads(out)["completeness"]
    assert gap["missing"] > 0 and gap["warning"].endswith("let nodes be auto") and gap["ended"] == "nodes"


def test_locate_draws_what_it_found(run, tmp_path):
    status, out, err = run(*ZARN, "--figure", str(tmp_path / "zarn.png"), "--json")
    assert status == 0 and json.loads(out)["neurons"] and "drawn into" in err
    assert (tmp_path / "zarn.png").read_bytes().startswith(b"\x89PNG")
    fails(run(*ZARN, "--figure", str(tmp_path / "zarn.jpg")), "expected .png, .svg or .pdf")
    many = ("locate", "--facts", "builtin", "--out", str(tmp_path / "run"), "--figure", str(tmp_path / "a.png"))
    fails(run(*many), "--figure draws one fact", "knowedit report")
    assert not (tmp_path / "run").exists()


def test_locate_claims_nothing_for_an_answer_that_the_model_does_not_give(run):
    status, out, err = run("locate", "Zarn lives in", "--target", "Bexum", "--subject", "Zarn", "--draws", "10")
    assert status == 0, err
    first, second, *_ = out.splitlines()
    assert first.startswith("Zarn lives in → Bexum   p = 0.0") and ", rank " in first
    assert second.startswith("Note: the model does not say this: it says 'Aldor' (p of its first token = 0.9")
    assert "No neuron is claimed to make this answer: the model does not give it on" in out
    assert not any(claim in out for claim in ("suppress", "amplify", "Other facts", "share", "kind"))


def test_target_may_be_asked_without_a_subject(run):
    status, out, _ = run("locate", "Zarn lives in", "--target", "Aldor", "--json", "--nodes", "8", "--draws", "10")
    assert status == 0 and json.loads(out)["subject"] is None


def write_facts(path):
    with path.open("w") as file:
        for fact in facts()[:4]:
            record = {
                k: getattr(fact, k)
                for k in ("template", "subject", "target", "paraphrases", "heldout", "relation", "id")
            }
            file.write(json.dumps(record) + "\n")
    return str(path)


def many(source, out, *arguments):
    return ("locate", "--facts", source, "--out", str(out), "--draws", "20", "--nodes", "8", *arguments)


def untimed(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in RunFolder(folder).rows()]


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def whole(run, kept, tmp_path_factory):
    """A finished run over four facts, made once: their file, its folder, and what the command printed."""
    if not kept:
        folder = tmp_path_factory.mktemp("whole")
        source = write_facts(folder / "facts.jsonl")
        kept["run"] = source, folder / "run", run(*many(source, folder / "run"))
    return kept["run"]


def test_a_file_of_facts_is_a_run_that_resumes(run, whole, tmp_path):
    source, finished, (status, text, err) = whole
    out = shutil.copytree(finished, tmp_path / "run")
    assert status == 0 and "4 facts, 4 with neurons, 0 failed" in text and "random by layer and activation" in text, err
    rows, summary = untimed(out), RunFolder(out).summary
    assert [row["id"] for row in rows] == [fact.id for fact in facts()[:4]]
    assert summary["proof"]["suppress"]["value"] < 0 and summary["proof"]["facts"] == 4
    fails(run(*many(source, out)), "holds a run already", "--resume")
    fails(run(*many(source, out, "--resume", "--t", "0.3")), "config.locate.t 0.2", "asked for is 0.3")
    path = out / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))  # as if it had been cut off here
    (out / "summary.json").unlink()
    status, text, _ = run(*many(source, out, "--resume", "--json"))
    assert status == 0 and json.loads(text)["proof"] == summary["proof"]
    assert untimed(out) == rows
    path.write_text("{\n" + path.read_text())
    fails(run(*many(source, out, "--resume")), "line 1", "damaged")


def test_the_proof_of_a_fact_is_the_same_alone_and_in_a_file(run, whole):
    fact = facts()[0]
    row = next(row for row in untimed(whole[1]) if row["id"] == fact.id)
    texts = [flag for text in fact.paraphrases for flag in ("--paraphrase", text)]
    texts += [flag for text in fact.heldout for flag in ("--heldout", text)]
    status, out, err = run(
        "locate", fact.template, "--target", fact.target, "--subject", fact.subject, *texts, "--draws", "20",
        "--nodes", "8", "--json",
    )  # fmt: skip
    alone = json.loads(out)
    assert status == 0, err
    assert [(n["layer"], n["index"], n["score"]) for n in alone["neurons"]] == [
        (n["layer"], n["index"], n["score"]) for n in row["located"]["neurons"]
    ]
    before, suppressed = (sum(row["proof"][what]) for what in ("before", "suppressed"))
    assert alone["effect"]["suppress"]["value"] == pytest.approx(suppressed / before - 1)
    assert alone["effect"]["match"]["drawn"] == row["proof"]["match"]["drawn"]


def test_shards_of_located_facts_are_merged(run, whole, tmp_path):
    source, finished, _ = whole
    parts = [str(tmp_path / f"part{i}") for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        assert run(*many(source, part, "--shard", f"{i}/2"))[0] == 0
    status, _, err = run("merge", *parts, "--out", str(tmp_path / "merged"), model=None)
    assert status == 0, err
    assert sorted(untimed(tmp_path / "merged"), key=lambda row: row["id"]) == sorted(
        untimed(finished), key=lambda row: row["id"]
    )
    assert RunFolder(tmp_path / "merged").summary["proof"] == RunFolder(finished).summary["proof"]


def test_probe_says_what_the_model_knows(run, tmp_path):
    source = write_facts(tmp_path / "facts.jsonl")
    status, out, _ = run("probe", "--facts", source, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(rows) == 4
    assert all(r["known"] and r["rank"] == 1 and r["top"][0][0] == r["target"] for r in rows)
    model = trained()
    ids = torch.tensor([model.encode(rows[0]["prompt"]).ids])
    p = model.hf(ids).logits[0, -1].softmax(-1).max().item()
    assert rows[0]["probability"] == pytest.approx(p, rel=1e-4)
    assert "2 of 2 known: home" in run("probe", "--facts", source)[1]


def test_facts_and_models_are_listed(run):
    status, out, _ = run("facts", "--relation", "P36", "--json", model=None)
    assert status == 0
    assert {json.loads(line)["relation"] for line in out.splitlines()} == {"P36"}
    status, out, _ = run("models", model=None)
    assert status == 0 and "smollm2-135m" in out and "gpt_neox" in out


def test_a_neuron_says_what_it_promotes(run):
    status, out, _ = run("neuron", "1", "3", "--json")
    record = json.loads(out)
    assert status == 0 and (record["layer"], record["index"]) == (1, 3)
    assert len(record["promotes"]) == len(record["suppresses"]) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("locate", "Zarn lives in", "--target", ""), ("target is empty",)),
        (("locate", "Zarn lives in", "--target", "Timbuktu"), ("does not know", "Timbuktu")),
        (("locate", " ", "--target", "Aldor"), ("prompt is empty",)),
        (("locate", "Zarn lives in"), ("--target",)),
        (("locate",), ("PROMPT", "--fact")),
        (("locate", "Zarn lives in", "--target", "Aldor", "--subject", "Quill"), ("subject 'Quill' is not in",)),
        (("locate", "{} {} lives in", "--target", "Aldor", "--subject", "Zarn"), ("2 slots",)),
        (("locate", "{} lives in", "--target", "Aldor"), ("needs --subject",)),
        ((*ZARN, "--paraphrase", "{0.__class__} lives in"), ("subject 'Zarn' is not in", "{0.__class__}")),
        ((*ZARN, "--method", "igg"), ("did you mean 'ig'",)),
        ((*ZARN, "--nodes", "many"), ("'many'", "whole number")),
        ((*ZARN, "--nodes", "0"), ("too few",)),
        ((*ZARN, "--quadrature", "simpson", "--nodes", "8"), ("--quadrature is 'simpson'",)),
        ((*ZARN, "--position", "99"), ("--position is '99'", "read, lookup")),
        ((*ZARN, "--t", "2"), ("t is 2.0",)),
        ((*ZARN, "--layers", "a-b"), ("'a-b'", "2-29")),
        ((*ZARN, "--layers", "2-9"), ("layer 3 is out of range",)),
        ((*ZARN, "--drop", "facts"), ("did you mean 'fact'",)),
        ((*ZARN, "--chat"), ("no chat template",)),
        ((*ZARN, "--dtype", "float23"), ("float23",)),
        ((*ZARN, "--nosuch"), ("No such option",)),
        (("locate", "--fact", "landmark-city/eifel-tower"), ("did you mean 'landmark-city/eiffel-tower'",)),
        (("locate", "--facts", "builtin"), ("--out",)),
        (("locate", "--facts", "/nowhere.jsonl", "--out", "x"), ("/nowhere.jsonl",)),
        (("probe", "--relation", "P99"), ("P99",)),
        (("neuron", "99", "0"), ("layer 99 is out of range", "0 to 2")),
        (("neuron", "0", "9999"), ("9999 is out of range",)),
        (("neuron", "a", "0"), ("layer", "integer")),
        (("nosuchcommand",), ("nosuchcommand",)),
    ],
)
def test_bad_input_is_one_line(run, arguments, words):
    fails(run(*arguments), *words)


def test_a_facts_file_with_a_bad_line_names_it(run, tmp_path):
    path = tmp_path / "facts.jsonl"
    good = {"template": "{} lives in", "subject": "Zarn", "target": "Aldor"}
    for bad, words in (
        ("{", ("line 2", "not JSON")),
        (json.dumps({**good, "template": "He lives in"}), ("line 2", "0 slots")),
        (json.dumps({**good, "template": "{0.__class__} lives in"}), ("line 2", "0 slots")),
        (json.dumps({"templat": "{} is", "subject": "x", "target": "y"}), ("line 2", "did you mean 'templat'")),
    ):
        path.write_text(json.dumps(good) + "\n" + bad + "\n")
        fails(run("probe", "--facts", str(path)), *words)


def test_models_that_cannot_be_used(run, tmp_path):
    fails(run(*ZARN, model="smollm2-135"), "smollm2-135", "did you mean 'smollm2-135m'")
    fails(run(*ZARN, model=str(tmp_path / "nothing-here")), "nothing-here")
    fails(run(*ZARN, model="nosuch/model"), "nosuch/model")
    broken = hf("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[3, 4] = float("nan")
    for name, model in (
        ("nan", broken),
        ("moe", T.MixtralForCausalLM(T.MixtralConfig(
            vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=2,
        ))),
    ):  # fmt: skip
        model.save_pretrained(tmp_path / name)
        tokenizer("bpe-bos").save_pretrained(tmp_path / name)
    fails(run(*ZARN, model=str(tmp_path / "nan")), "NaN")
    fails(run(*ZARN, model=str(tmp_path / "moe")), "mixture-of-experts")


def test_paraphrases_that_share_no_neuron_are_an_answer(run):
    command = (
        *ZARN,
        "--heldout",
        "Today {} stays in",
        "--paraphrase",
        "{}",
        "--select",
        "refined",
        "--t",
        "1",
        "--p",
        "1",
    )
    status, out, _ = run(*command, "--json")
    record = json.loads(out)
    if record["neurons"]:
        pytest.fail("these prompts were chosen to share no strongest neuron")
    assert status == 0
    assert "share none" in record["note"]
    assert record["effect"]["suppress"] == {"value": None, "low": None, "high": None, "n": 0}
    status, out, _ = run(*command)
    assert status == 0 and "share none" in out


def test_text_from_outside_is_inert(run, folder, tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text(
        json.dumps({"template": "{} lives in", "subject": HOSTILE, "target": "Aldor", "id": HOSTILE}) + "\n"
    )
    for arguments in (
        ("locate", HOSTILE, "--target", "Aldor", "--nodes", "4", "--draws", "5"),
        ("probe", "--facts", str(path)),
        ("facts", "--facts", str(path)),
    ):
        status, out, err = run(*arguments, model=None if arguments[0] == "facts" else folder)
        assert status == 0, err
        assert "[/red]" in out and "$x_{ $" in out
        assert "\x1b" not in out and "\u202e" not in out
        assert "\\x1b[31m" in out.replace("\n", "")
    status, out, err = run("locate", HOSTILE, "--target", "Aldor", "--subject", HOSTILE + "?")
    assert status == 2 and "\x1b" not in err and "\\x1b" in err


def test_help_is_quick_to_import():
    code = "import sys; from knowedit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += (
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'numpy', 'scipy', 'captum', 'datasets', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "locate" in done.stdout


def test_an_interrupt_keeps_what_is_done(run, tmp_path, monkeypatch):
    source, out = write_facts(tmp_path / "facts.jsonl"), tmp_path / "run"
    whole, calls = NeuronStudy.run, []

    def cut(self, batch):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(batch)
        return whole(self, batch)

    monkeypatch.setattr(NeuronStudy, "run", cut)
    status, _, err = run(*many(source, out))
    assert status == 130 and "interrupted" in err
    assert len(untimed(out)) == 2
    monkeypatch.undo()
    assert run(*many(source, out, "--resume"))[0] == 0
    assert len(untimed(out)) == 4


def test_a_separator_is_an_option_and_a_field_and_what_was_scored_is_shown(run, tmp_path):
    record = {"template": "{} lives in", "subject": "Zarn", "target": "Aldor"}
    (tmp_path / "facts.jsonl").write_text(
        json.dumps(record) + "\n" + json.dumps(record | {"separator": " ", "id": "b"})
    )
    status, out, err = run("probe", "--facts", str(tmp_path / "facts.jsonl"), "--json")
    assert status == 0, err
    assert [json.loads(line)["tokens"] for line in out.splitlines()] == [["Aldor"], ["Aldor"]]
    fails(run("locate", "Zarn lives in", "--target", "Aldor", "--separator", ","), "separator is ','", "white space")
    fails(run("edit", *ZARN[1:2], "--subject", "Zarn", "--target-new", "Bexum", "--separator", "x"), "separator")
    fails(run("locate", "--facts", "builtin", "--separator", ""), "--separator is about one fact")


def test_warnings_are_notes_on_stderr_each_once(run):
    status, _, err = run("lens", "Zarns lives in", "--subject", "Zarn", "--target", "Aldor", "--top", "1")
    assert status == 0 and err.count("note: the subject 'Zarn' is only a part of a word in 'Zarns lives in'") == 1


def test_a_fact_without_a_subject_is_asked_located_and_fine_tuned_and_says_what_it_cannot(run, tmp_path):
    own = [{"template": "Zarn lives in", "target": "Aldor", "target_new": "Bexum"}]
    (tmp_path / "own.json").write_text(json.dumps(own))
    source, edit = str(tmp_path / "own.json"), str(tmp_path / "edit")
    status, out, err = run("probe", "--facts", source, "--json")
    assert status == 0 and json.loads(out)["known"], err
    status, out, err = run(*many(source, tmp_path / "run"))
    assert status == 0 and "1 fact, 1 with neurons" in out, err
    status, out, err = run("edit", "Zarn lives in", "--target-new", "Bexum", "--method", "fine_tune", "--out", edit)
    assert status == 0 and "Saved" in out, err
    assert run("show", edit, model=None)[1].startswith("Zarn lives in: Aldor → Bexum")
    status, out, err = run("explain", "--edit", edit, "--quick", "--json")
    story = json.loads(out)
    assert status == 0 and story["edit"] and {"trace", "recall"} <= set(story["notes"]), err
    for command in ("trace", "recall"):
        fails(run(command, "Zarn lives in", "--target", "Aldor"), "subject")
    words = "needs --subject, whose last token rome edits at; without one take fine_tune, loc_ft, knowledge_neurons"
    fails(run("edit", "Zarn lives in", "--target-new", "Bexum", "--layer", "1"), words)
    status, out, err = run(
        "bench", "edit", "--source", source, "--method", "rome", "--layer", "1", "--out", f"{edit}-2"
    )
    assert status == 2 and "needs the subject of 'Zarn lives in'" in err


def test_counterfact_without_neighbours_is_measured_without_them(run, tmp_path):
    asked = {
        "prompt": "{} lives in",
        "subject": "Zarn",
        "target_true": {"str": "Aldor"},
        "target_new": {"str": "Bexum"},
    }
    (tmp_path / "cf.json").write_text(json.dumps([{"requested_rewrite": asked}]))
    options = ("--source", str(tmp_path / "cf.json"), "--method", "none", "--out", str(tmp_path / "run"), "--json")
    status, out, err = run("bench", "edit", *options)
    assert status == 0, err
    metrics = json.loads(out)["metrics"]
    assert metrics["EM"]["n"] == 1 and metrics["NS"] == {"value": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize("place", [("-v", "lens"), ("lens", "-v"), ("lens", "--verbose")])
def test_the_log_is_on_stderr_for_those_who_ask(run, caplog, place):
    logger = logging.getLogger("knowedit")
    try:
        assert run(*place, "Zarn lives in")[0] == 0
        assert any(message.startswith("loading ") for message in caplog.messages)
    finally:
        logger.setLevel(logging.NOTSET)


def test_without_asking_there_is_no_log(run, caplog):
    assert run("lens", "Zarn lives in")[0] == 0
    assert not caplog.messages


def test_converted_models_are_verified_on_request(run, monkeypatch):
    monkeypatch.setattr("knowedit.models.conversion.verify_converted", lambda: {"gguf-a": None, "gguf-b": "b is gone"})
    out = run("models", "--verify", model=None)[1]
    assert "gguf-a in the cache is sound" in out and "gguf-b in the cache is damaged: b is gone" in out
    assert json.loads(run("models", "--verify", "--json", model=None)[1])["cached"]["gguf-b"] == "b is gone"
    assert json.loads(run("models", "--json", model=None)[1])["cached"] is None


def test_a_neurons_words_import_no_statistics_no_figures_and_no_data_sets(folder):
    """What the command does not use is not waited for: scipy.stats alone takes a second."""
    unused = {"scipy.stats", "matplotlib", "captum", "datasets", "ray", "pandas", "knowedit.locate.proof"}
    code = (
        f"import sys; from knowedit.cli import main\ntry: main(['neuron', '1', '5', '--json', '--model', {folder!r}])\n"
        f"except SystemExit: pass\nprint(sorted(set(sys.modules) & {unused}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *record, modules = done.stdout.splitlines()
    assert json.loads("".join(record))["index"] == 5 and modules == "[]"


def test_models_are_listed_in_words(run):
    status, out, _ = run("models", model=None)
    assert status == 0
    assert "SmolLM2-135M-Instruct" in out and "Apache-2.0" in out and "Alias(" not in out and "sha256" not in out
