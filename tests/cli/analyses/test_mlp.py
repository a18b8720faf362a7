"""`knowedit mlp`: the functions' numbers as JSON, tables and figures; one line for bad input, and nothing written."""

import json

import pytest
import torch
from support.commands import HOSTILE, fails
from support.edits import strong
from support.tiny import PROMPT, tiny
from support.trained import facts, trained

from knowedit.cli import main
from knowedit.edit.edit import save_edit
from knowedit.mlp.accounting import account, account_config
from knowedit.mlp.imputation import ImputationConfig, impute
from knowedit.mlp.layer_anatomy import anatomy
from knowedit.mlp.quantization import PrecisionConfig, precision
from knowedit.mlp.value_geometry import geometry

ZARN = ("mlp", "{} lives in", "--subject", "Zarn", "--target", "Aldor")
ALL = ("anatomy", "imputation", "geometry", "accounting")


@pytest.fixture
def file(tmp_path):
    """All facts that the model knows, as a file; two subjects have two words."""
    path = tmp_path / "facts.jsonl"
    names = ("template", "subject", "target", "relation", "id", "paraphrases")
    path.write_text("\n".join(json.dumps({n: getattr(f, n) for n in names}) for f in facts()))
    return str(path)


@pytest.fixture
def edited(tmp_path):
    return str(save_edit(strong("Zarn", "Dovath"), tmp_path / "edit"))


def test_json_has_the_functions_numbers(run):
    status, out, err = run(*ZARN, "--draws", "3", "--seed", "4", "--tokens", "50", "--json")
    assert status == 0, err
    found = json.loads(out)
    model = trained()
    assert found["schema"] == "knowedit.mlp/1" and found["layer"] == 1
    assert [found["facts"][0][n] for n in ("prompt", "subject", "target")] == ["Zarn lives in", "Zarn", "Aldor"]
    wanted = impute(model, model.query("Zarn lives in", "Aldor", "Zarn"), "Aldor", ImputationConfig(draws=3, seed=4))
    assert found["imputation"]["highest"] == pytest.approx(wanted.highest, abs=1e-5)
    assert [len(draws) for draws in found["imputation"]["random"]] == [3] * 3
    stages = anatomy(model, [model.encode("Zarn lives in")]).layer(2).stages
    assert found["anatomy"]["layers"][2]["stages"][3]["quantiles"] == pytest.approx(stages[3].quantiles, abs=1e-5)
    assert found["anatomy"]["probe"] is None and found["geometry"]["gates"] is None  # one fact, a subject of one word
    mean = geometry(model).layers[0].interference.value
    assert found["geometry"]["layers"][0]["interference"]["value"] == pytest.approx(mean, abs=1e-5)
    parts = {name: {"parameters": p.parameters, "flops": p.flops} for name, p in account(model, 50).parts.items()}
    assert found["accounting"]["parts"] == parts
    assert "precision" not in found


def test_tables_and_a_figure_for_each_analysis(run, file, tmp_path):
    status, out, err = run("mlp", "--facts", file, "--layer", "2", "--figure", str(tmp_path / "mlp.png"))
    assert status == 0, err
    for words in ("Shape flow: 32 input → 24 gate", "Linear probe of 2 relations at layer 2 (n = 24", "on 24 facts",
                  "How many directions fit", "d = 12288", "No AND-gate test", "Accounting of", "MLPs"):  # fmt: skip
        assert words in out, words
    for name in ALL:
        assert (tmp_path / f"mlp-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "mlp.png").exists()


@pytest.mark.parametrize("name", ALL)
def test_one_analysis_draws_into_the_very_file(run, tmp_path, name):
    picture = tmp_path / "one.svg"
    status, out, err = run(*ZARN, "--what", name, "--figure", str(picture), "--json")
    assert status == 0, err
    assert set(ALL) & set(json.loads(out)) == {name} and json.loads(out)["figures"] == {name: str(picture)}
    assert picture.read_text().startswith("<?xml")


def test_and_gates_where_a_subject_has_two_words(tmp_path, capsys):
    """On a model with a tokenizer that knows any text."""
    folder = tmp_path / "model"
    model = tiny("gpt2")
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    with pytest.raises(SystemExit) as end:
        main(["mlp", PROMPT, "--subject", "Eiffel Tower", "--what", "geometry", "--model", str(folder),
              "--figure", str(tmp_path / "g.png")])  # fmt: skip
    out = capsys.readouterr().out
    assert end.value.code == 0 and "need both parts of this subject" in out
    assert (tmp_path / "g.png").exists()


def test_quantize_alone_means_all_bits_and_the_model_is_not_shown_otherwise(run, file, edited):
    status, out, err = run("mlp", "--facts", file, "--limit", "6", "--quantize", "--neurons", "2", "--edit", edited,
                           "--json")  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    assert set(ALL) & set(found) == set()
    levels = found["precision"]["levels"]
    assert [level["bits"] for level in levels] == [None, 8, 4, 2, 1, 8, 4, 2, 1]
    assert found["precision"]["edits"] == 1 and levels[0]["efficacy"]["value"] == 1
    assert levels[0]["known"]["n"] == 6 and levels[0]["known"]["value"] == 1


def test_quantized_edits_are_a_table_of_their_own(run, file, edited):
    status, out, err = run(
        "mlp", "--facts", file, "--limit", "2", "--neurons", "1", "--edit", edited, "--quantize", "8"
    )
    assert status == 0, err
    assert "1 edited" in out and "first choice" in out and "neighbourhood" in out and "attention" in out


def test_quantize_at_the_end_and_with_bits(run, file, tmp_path):
    picture = tmp_path / "bits.png"
    status, out, err = run("mlp", "--facts", file, "--limit", "4", "--neurons", "0", "--figure", str(picture),
                           "--quantize", "3")  # fmt: skip
    assert status == 0, err
    assert "full precision" in out and "attention" in out and picture.exists()
    found = precision(trained(), facts()[:1], config=PrecisionConfig(bits=(3,), neurons=0))
    assert f"{found.levels[1].error:.3f}" in out


def test_a_config_alone_needs_no_model(run, tmp_path):
    picture = tmp_path / "gpt3.svg"
    status, out, err = run("mlp", "--config", "gpt3", "--figure", str(picture), model="no/such/model")
    assert status == 0, err
    assert "115,970,015,232" in out and "174,604,259,328" in out and picture.exists()
    status, out, _ = run("mlp", "--config", "gpt2", "--tokens", "64", "--json", model=None)
    assert json.loads(out)["accounting"]["parameters"] == account_config("gpt2").parameters == 124_439_808


def test_hostile_text_is_inert(run, tmp_path):
    prompt = HOSTILE.replace("Zarn", "Zarn ")
    status, out, err = run("mlp", prompt, "--subject", "Zarn", "--target", "Aldor", "--what", "imputation",
                           "--figure", str(tmp_path / "inert.png"))  # fmt: skip
    assert status == 0, err
    assert "\x1b" not in out and "\u202e" not in out and "[bold]" in out and (tmp_path / "inert.png").exists()


def test_a_model_of_one_layer(tmp_path, capsys):
    folder = tmp_path / "model"
    model = tiny("gpt2", n_layer=1)
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    with pytest.raises(SystemExit) as end:
        main(["mlp", PROMPT, "--subject", "Eiffel Tower", "--model", str(folder), "--figure", str(tmp_path / "m.png"),
              "--quantize", "4", "--what", "all", "--json"])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and len(found["imputation"]["highest"]) == 1 and len(found["figures"]) == 5


BAD = {
    "what": (("--what", "anatomi"), ("did you mean 'anatomy'",)),
    "layer": (("--layer", "7"), ("layer 7", "0 to 2")),
    "share": (("--share", "2"), ("fraction",)),
    "draws": (("--draws", "-1"), ("0 or more",)),
    "bits": (("--quantize", "8,x"), ("8,x", "1 to 16")),
    "no bits": (("--quantize", "0"), ("1 to 16",)),
    "edit without bits": (("--edit", "somewhere"), ("--quantize",)),
    "edit that is none": (("--quantize", "--edit", "nowhere"), ("nowhere",)),
    "config with a fact": (("--config", "gpt3"), ("knows no facts",)),
    "tokens": (("--tokens", "0", "--what", "accounting"), ("1 or more",)),
    "picture": (("--figure", "mlp.gif"), (".png",)),
    "folder": (("--figure", "no/such/folder/mlp.png"), ("no folder",)),
    "two questions": (("--facts", "builtin"), ("one of",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, words = BAD[name]
    fails(run(*ZARN, *options), *words)
    assert not list(tmp_path.iterdir())


def test_more_bad_input_is_one_line(run, file):
    fails(run("mlp", "{} lives in"), "--subject")
    fails(run("mlp", "Zarn", "--subject", "Zarn"), "whole prompt")
    fails(run("mlp", "Zarn lives in" + " in" * 40, "--subject", "Zarn", "--target", "Aldor"), "at most 32")
    fails(run("mlp", "--facts", file, "--limit", "0"), "--limit", "1")
    fails(run("mlp", "--config", "gpt4", model=None), "no config is called 'gpt4'")
    fails(run("mlp", "--config", "gpt3", "--quantize", model=None), "no weights")
    fails(run("mlp", "--fact", "capital/jpan"), "did you mean")
    assert torch.is_grad_enabled()
