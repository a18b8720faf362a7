"""`knowedit lens`: the numbers of the functions, as JSON, tables and a figure; one line for what cannot be asked."""

import json

import pytest
from support.commands import HOSTILE, fails
from support.edits import strong
from support.tiny import hf, tokenizer
from support.trained import trained

from knowedit.recall.lens.decomposition import logit_attribution
from knowedit.recall.lens.projection import logit_lens

ZARN = ("lens", "Zarn lives in", "--target", "Aldor")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An edit of the trained model, of Zarn's home."""
    return str(strong("Zarn", "Bexum").save(tmp_path_factory.mktemp("edits") / "zarn"))


def test_it_prints_one_json_object_with_the_functions_numbers(run):
    status, out, err = run(*ZARN, "--foil", "Bexum", "--positions", "all", "--heads", "2", "--neurons", "3", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["schema"] == "knowedit.lens/1" and found["edited"] is None and found["edits"] == []
    model = trained()
    one = found["unedited"]
    wanted = logit_lens(model, "Zarn lives in", "Aldor", "Bexum", positions="all").as_dict()
    assert one["lens"]["positions"][-1]["settled"] == wanted["positions"][-1]["settled"]
    last, own = (p["positions"][-1]["layers"][-1] for p in (one["lens"], wanted))
    assert last["probability"] == pytest.approx(own["probability"], rel=1e-4) and last["rank"] == own["rank"] == 1
    parts = logit_attribution(model, "Zarn lives in", "Aldor", "Bexum")
    assert one["contributions"]["logit"] == pytest.approx(parts.logit, rel=1e-4)
    assert one["contributions"]["total"] == pytest.approx(one["contributions"]["logit"], abs=1e-4)
    assert len(one["contributions"]["heads"]) == 2 and len(one["contributions"]["neurons"]) == 3


def test_it_prints_tables_for_people(run):
    status, out, _ = run(*ZARN, "--positions", "0,-1")
    assert status == 0
    assert "Zarn lives in → 'Aldor'" in out and "rank 1 after the last layer" in out
    assert "First choices by position" in out and "'Zarn'" in out
    assert "check: parts − logit" in out and "Strongest heads" in out and "Strongest neurons" in out


def test_without_a_target_the_models_own_answer_is_taken(run):
    status, out, _ = run("lens", "{} lives in", "--subject", "Zarn", "--json")
    assert status == 0 and json.loads(out)["unedited"]["lens"]["target"] == "Aldor"


def test_a_subject_may_be_the_whole_prompt(run):
    status, out, err = run("lens", "Zarn", "--subject", "Zarn", "--positions", "lookup", "--json")
    assert status == 0, err
    assert [p["position"] for p in json.loads(out)["unedited"]["lens"]["positions"]] == [0]


def test_an_edit_is_shown_beside_the_unedited_model(run, saved, tmp_path):
    picture = tmp_path / "lens.png"
    status, out, err = run("lens", "--edit", saved, "--figure", str(picture), "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["prompt"] == "Zarn lives in" and len(found["edits"]) == 1
    before, after = (found[when]["lens"]["positions"][-1]["layers"][-1] for when in ("unedited", "edited"))
    assert found["unedited"]["lens"]["target"] == "Aldor" and found["unedited"]["lens"]["foil"] == "Bexum"
    assert before["rank"] == 1 and after["foil_rank"] == 1 and after["foil_probability"] > before["foil_probability"]
    assert found["edited"]["contributions"]["logit"] < 0 < found["unedited"]["contributions"]["logit"]
    assert picture.stat().st_size > 1000
    status, out, _ = run("lens", "Zarn lives in", "--edit", saved)
    assert status == 0 and "with the edit: 'Aldor' has probability" in out and "Direct logit attribution, with" in out


def test_a_masked_model_has_a_lens_and_says_why_no_parts(run, tmp_path):
    hf("bert").save_pretrained(tmp_path)
    tokenizer("wordpiece").save_pretrained(tmp_path)
    asked = ("lens", "The city of [MASK] is in France.", "--target", "Paris")
    status, out, err = run(*asked, model=str(tmp_path))
    assert status == 0, err
    assert "Logit lens at the read position" in out and "No parts of the logit" in out
    found = json.loads(run(*asked, "--json", model=str(tmp_path))[1])
    assert found["unedited"]["contributions"] is None and "masked model" in found["contributions_refused"]


def test_hostile_text_is_inert(run):
    status, out, err = run("lens", HOSTILE, "--target", "Aldor", "--positions", "all")
    assert status == 0, err
    assert "\x1b" not in out and "\u202e" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("give one of", "PROMPT")),
        (("Zarn lives in", "--fact", "x"), ("give one of",)),
        (("--fact", "landmark-city/eifel-tower"), ("did you mean 'landmark-city/eiffel-tower'",)),
        (("{} lives in",), ("needs --subject",)),
        (("Zarn lives in", "--subject", "Quill"), ("is not in the prompt",)),
        (("Zarn lives in", "--positions", "lookup"), ("needs a subject",)),
        (("Zarn lives in", "--positions", "somewhere"), ("'somewhere'", "read, lookup, all")),
        (("Zarn lives in", "--positions", "44"), ("44", "token indices")),
        (("Zarn lives in", "--top", "0"), ("--top", "from 1 on")),
        (("Zarn lives in", "--heads", "-1"), ("--heads", "from 0 on")),
        (("Zarn lives in", "--target", "Aldor", "--foil", "Aldor"), ("choose another foil",)),
        (("Zarn lives in", "--target", "Nowhere"), ("does not know the target",)),
        (("Zarn " * 40,), ("tokens", "shorten it")),
        (("",), ("prompt is empty",)),
        (("Zarn lives in", "--edit", "nowhere"), ("nowhere",)),
        (("Zarn lives in", "--figure", "nowhere/lens.png"), ("no folder",)),
        (("Zarn lives in", "--figure", "lens.jpg"), (".png, .svg or .pdf",)),
    ],
)
def test_what_cannot_be_asked_is_one_line(run, arguments, words):
    fails(run("lens", *arguments), *words)
