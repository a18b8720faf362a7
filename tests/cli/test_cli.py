"""The command line as a user meets it: what it prints, and one line with status 2 for whatever is wrong."""

import json
import subprocess
import sys

import pytest
import torch
import transformers as T
from support.commands import HOSTILE, fails
from support.tiny import hf, tokenizer
from support.trained import facts, trained

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


def test_locate_prints_a_table_for_people(run):
    status, out, _ = run(*ZARN)
    assert status == 0
    assert "Zarn lives in → Aldor" in out
    assert "nothing was held out" in out
    assert "suppress × 0" in out and "amplify × 2" in out


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


def test_a_file_of_facts_is_located_and_resumed(run, tmp_path):
    source, out = write_facts(tmp_path / "facts.jsonl"), tmp_path / "run"
    command = ("locate", "--facts", source, "--out", str(out), "--draws", "20", "--nodes", "8")
    status, text, _ = run(*command)
    assert status == 0 and "4 facts" in text
    done = sorted(p.name for p in (out / "effects").iterdir())
    assert done == ["home%2Fquill.json", "home%2Fzarn.json", "work%2Fquill.json", "work%2Fzarn.json"]
    before = (out / "summary.json").read_text()
    kept = out / "effects" / done[0]
    stamp = kept.stat().st_mtime_ns
    (out / "effects" / done[1]).unlink()  # as if the run had been cut off here
    status, text, _ = run(*command, "--json")
    assert status == 0 and json.loads(text) == json.loads(before)
    assert (out / "summary.json").read_text() == before
    assert kept.stat().st_mtime_ns == stamp
    fails(run(*command, "--t", "0.3"), "another run", "config")
    kept.write_text(kept.read_text()[:50])
    fails(run(*command), kept.name, "damaged")


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
        ((*ZARN, "--quadrature", "simpson", "--nodes", "8"), ("no quadrature is called 'simpson'",)),
        ((*ZARN, "--position", "99"), ("position 99",)),
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
        (json.dumps({**good, "templat": "x"}), ("line 2", "did you mean 'template'")),
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
    status, out, _ = run(
        *ZARN, "--heldout", "Today {} stays in", "--paraphrase", "{}", "--t", "1", "--p", "1", "--json"
    )
    record = json.loads(out)
    if record["neurons"]:
        pytest.fail("these prompts were chosen to share no strongest neuron")
    assert status == 0
    assert "share none" in record["note"]
    assert record["effect"]["suppress"] == {"value": None, "low": None, "high": None, "n": 0}
    status, out, _ = run(*ZARN, "--heldout", "Today {} stays in", "--paraphrase", "{}", "--t", "1", "--p", "1")
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
    import knowedit.cli.locate_many as many

    source, out = write_facts(tmp_path / "facts.jsonl"), tmp_path / "run"
    command = ("locate", "--facts", source, "--out", str(out), "--draws", "20", "--nodes", "8")
    whole, calls = many._one, []

    def cut(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return whole(*arguments)

    monkeypatch.setattr(many, "_one", cut)
    status, _, err = run(*command)
    assert status == 130 and "interrupted" in err
    assert len(list((out / "effects").iterdir())) == 2
    monkeypatch.undo()
    assert run(*command)[0] == 0
    assert len(list((out / "effects").iterdir())) == 4


@pytest.mark.usefixtures("default_model", "all_threads")
def test_the_main_job_on_the_real_model(run):
    status, out, _ = run(
        "locate", "The Eiffel Tower is located in the city of", "--target", "Paris", "--subject", "Eiffel Tower",
        "--paraphrase", "The {} can be found in the city of", "--heldout", "To photograph the {}, go to the city of",
        "--json", model=None,
    )  # fmt: skip
    record = json.loads(out)
    assert status == 0
    assert record["probability"] == pytest.approx(0.70, abs=0.01)
    assert record["completeness"]["max_gap"] <= 1e-3
    assert record["neurons"]
    assert record["effect"]["suppress"]["value"] < -0.5
    assert record["effect"]["p_suppress"] < 0.05
