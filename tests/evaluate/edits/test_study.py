"""Studies of edits on tiny models: single ones never touch a weight, sequential ones go on bit for bit."""

import json
from dataclasses import replace

import pytest
import torch
from support import edits as random_edits, tiny
from support.rounding import LOGITS, near
from support.studies import ROME, records, source, study
from support.trained import trained

from knowedit.edit.apply import applied, edits_on
from knowedit.edit.covariance import Covariance
from knowedit.edit.fact_set.fact_set import FactSet
from knowedit.edit.methods import rome as rome_method
from knowedit.edit.methods.table import method_config
from knowedit.edit.rewrite_quality import rates, rewrite_quality
from knowedit.errors import InputError
from knowedit.evaluate.edits.config import EditStudyConfig
from knowedit.evaluate.edits.study import EditStudy
from knowedit.evaluate.edits.summary import summary
from knowedit.evaluate.runs.engine import run_study
from knowedit.facts import Neighbour
from knowedit.sources import Source


@pytest.fixture
def prepared(monkeypatch):
    """ROME with C = 1: the trained model has no text to take a covariance from."""

    def identity(model, layers, **_):
        return {layer: Covariance(layer, torch.eye(model.n_neurons), 1000, {}) for layer in layers}

    monkeypatch.setattr(rome_method, "covariance", identity)


def test_single_edits_measure_what_applying_each_does(tmp_path, prepared):
    model = trained()
    before = random_edits.weights(model)
    found = run_study(study(perplexity=False), tmp_path / "run", progress=False)
    assert random_edits.same(random_edits.weights(model), before)
    rows = list(found.rows())
    assert [row["id"] for row in rows] == [fact.id for fact in source().facts]
    this = study()
    for row, fact in zip(rows, source().facts, strict=True):
        (edit,) = this._editor([fact])
        with applied(model, edit):
            wanted = rates(rewrite_quality(model, [fact], heldout=False))
        for name, (value,) in wanted.items():
            assert row["after"][name] == near(value, size=LOGITS)
    for name in ("ES", "EM"):
        assert found.summary["metrics"][name]["value"] > found.summary["before"][name]["value"] + 0.3
    assert found.summary["by_relation"]["home"]["ES"]["n"] == 6


@pytest.mark.parametrize("method", ["rome", "fine_tune"])
def test_sequential_edits_stay_on_and_a_resumed_run_is_the_same_to_the_bit(tmp_path, prepared, method):
    options = {"sequential": True, "method": method}
    if method == "fine_tune":
        options["settings"] = {"steps": 3, "lr": 0.01}
    model = trained()
    base = random_edits.weights(model)
    whole = run_study(study(**options), tmp_path / "whole", progress=False)
    assert len(edits_on(model)) == 6
    after = random_edits.weights(model)
    take_off(model)
    assert random_edits.same(random_edits.weights(model), base)
    cut = tmp_path / "cut"
    run_study(study(**options), cut, progress=False)
    take_off(model)
    path = cut / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    again = run_study(study(**options), cut, resume=True, progress=False)
    assert random_edits.same(random_edits.weights(model), after)
    take_off(model)
    assert records(again) == records(whole)
    assert set(again.summary["checkpoints"]) == {"1", "3"}
    assert again.summary["checkpoints"]["3"]["metrics"]["ES"]["n"] == 3


SET = {
    "layers": [0],
    "least": 1e-9,
    "rows": {"contexts": 1, "preserve": 0.0, "covariance": {"tokens": 400}, "search": {"steps": 3}},
}


def test_a_sequence_of_a_method_that_changes_facts_together_is_a_set_that_grows(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    options = {"sequential": True, "method": "memit", "layer": None, "settings": SET, "batch": 4}
    model = trained()
    base = random_edits.weights(model)
    whole = run_study(study(**options), tmp_path / "whole", progress=False)
    at_once = FactSet(model, method_config("memit", SET, None, model))
    at_once.add(list(source().facts))
    (on,) = edits_on(model)
    assert on.edit.factors_hash == at_once.edit().factors_hash
    rows = list(whole.rows())
    assert [row["edit"]["facts"] for row in rows] == [
        1,
        3,
        3,
        4,
        6,
        6,
    ]  # up to checkpoints 1 and 3, and of batches of 4
    assert [row["id"] for row in rows if "checkpoint" in row] == [rows[0]["id"], rows[2]["id"]]
    after = random_edits.weights(model)
    take_off(model)
    assert random_edits.same(random_edits.weights(model), base)

    for kept in (2, 5, 6):
        cut = tmp_path / f"cut {kept}"
        run_study(study(**options), cut, progress=False)
        take_off(model)
        path = cut / "records.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
        again = run_study(study(**options), cut, resume=True, progress=False)
        if kept < 6:
            assert random_edits.same(random_edits.weights(model), after)
        take_off(model)
        assert records(again) == records(whole)


def test_a_set_goes_on_without_facts_that_it_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    facts = list(source().facts)
    facts[1] = replace(facts[1], target_new="no such word")
    third = next(f.target for f in facts if f.target not in (facts[0].target, facts[0].target_new))
    facts.insert(3, replace(facts[0], id="contrary", target_new=third))
    config = EditStudyConfig(method="memit", sequential=True, settings=SET, batch=2, checkpoints=(5,))
    found = run_study(
        EditStudy(config, trained(), Source("made", "facts", tuple(facts), (), "0" * 64)),
        tmp_path / "run",
        progress=False,
    )
    take_off(trained())
    rows = {row["id"]: row for row in found.rows()}
    assert "error" in rows[facts[1].id] and len(rows) == 7
    assert rows["contrary"]["edit"] == {"method": None}
    assert found.summary["checkpoints"]["5"]["metrics"]["ES"]["n"] == 5


@pytest.mark.parametrize("options", [{"sequential": True}, {}, {"method": "memit", "settings": SET, "layer": None}])
def test_a_record_with_a_neighbour_that_is_too_long_fails_alone(tmp_path, monkeypatch, prepared, options):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    facts = list(source().facts)
    long = Neighbour(f"{'a ' * trained().config.max_position_embeddings}lives in", "Aldor")
    facts[1] = replace(facts[1], neighbours=(long,))
    config = study(**options).settings
    found = run_study(
        EditStudy(config, trained(), Source("made", "facts", tuple(facts), (), "0" * 64)),
        tmp_path / "run",
        progress=False,
    )
    take_off(trained())
    failed = {row["id"]: row["error"] for row in found.rows() if "error" in row}
    assert list(failed) == [facts[1].id] and "shorten it" in failed[facts[1].id]


def take_off(model):
    for handle in edits_on(model):
        handle.revert()


def test_no_method_leaves_everything_as_it_was(tmp_path):
    found = run_study(study(method="none", layer=None, settings={}), tmp_path / "run", progress=False)
    assert found.summary["metrics"] == found.summary["before"]


def test_free_writing_and_drift_of_single_and_sequential_edits(tmp_path, prepared):
    """The first edit of a sequence is alone on the model, so both ways measure the same of it."""
    options = {"perplexity": True, "generate": True}
    single = run_study(study(**options), tmp_path / "single", progress=False)
    model = trained()
    sequential = run_study(study(**options, sequential=True), tmp_path / "sequential", progress=False)
    take_off(model)
    one, other = next(single.rows()), next(sequential.rows())
    names = {"free_ES", "free_PS", "chat_ES", "portability", "GE"}
    assert names <= one["before"].keys() and names | {"essence", "perplexity"} <= one["after"].keys()
    for when in ("before", "after"):
        assert one[when] == near(other[when], size=LOGITS)
    for row in single.rows():  # a target of one token is written exactly where it is the first choice
        for when in ("before", "after"):
            assert row[when]["free_ES"] == row[when]["ES_argmax"] and row[when]["free_PS"] == row[when]["PS_argmax"]
    assert single.summary["metrics"]["free_ES"]["value"] > 0 == single.summary["before"]["free_ES"]["value"]
    assert single.summary["metrics"]["essence"]["n"] == 6 and one["after"]["essence"] > 0
    assert single.summary["perplexity"]["n"] == 6
    third = list(sequential.rows())[2]
    assert sequential.summary["checkpoints"]["3"]["metrics"]["perplexity"]["value"] == third["after"]["perplexity"]


def test_swapped_targets_turn_efficacy_of_the_unedited_model_over(tmp_path):
    model, made = trained(), source()
    swapped = [
        type(f)(**{**vars(f), "target": f.target_new, "target_new": f.target, "neighbours": ()}) for f in made.facts
    ]
    found = [
        run_study(
            EditStudy(EditStudyConfig(method="none"), model, Source("made", "facts", tuple(facts), (), "0" * 64)),
            tmp_path / str(len(facts[0].neighbours)),
            progress=False,
        ).summary["metrics"]
        for facts in (made.facts, swapped)
    ]
    for name in ("ES", "PS"):
        assert found[0][name]["value"] == 1 - found[1][name]["value"] == 0
    for name in ("EM", "PM"):
        assert found[0][name]["value"] == pytest.approx(-found[1][name]["value"])


def test_facts_without_a_new_target_are_skipped_and_counted(tmp_path):
    facts = list(source().facts)
    facts[2] = type(facts[2])(**{**vars(facts[2]), "target_new": None})
    made = Source("made", "facts", tuple(facts), (), "0" * 64)
    this = EditStudy(EditStudyConfig(method="none"), trained(), made)
    assert this.skipped == [(facts[2].id, "it has no new target to be edited to")]
    found = run_study(this, tmp_path / "run", progress=False)
    assert (found.summary["records"], found.summary["failed"], found.summary["skipped"]) == (5, 0, 1)
    none = Source("made", "facts", tuple(facts[2:3]), (), "0" * 64)
    with pytest.raises(InputError, match="no fact of 'made' has a new target"):
        EditStudy(EditStudyConfig(method="none"), trained(), none)


def test_a_masked_model_writes_nothing_and_can_be_fine_tuned(tmp_path):
    model = tiny.tiny("bert")
    fact = random_edits.FACT
    made = Source("made", "facts", (type(fact)(**{**vars(fact), "id": "eiffel"}),), (), "0" * 64)
    with pytest.raises(InputError, match="masked model, which generates no text; leave out --generate"):
        EditStudy(EditStudyConfig(generate=True), model, made)
    config = EditStudyConfig(method="fine_tune", settings={"steps": 20, "lr": 0.05}, perplexity=True)
    found = run_study(EditStudy(config, model, made), tmp_path / "run", progress=False).summary
    assert found["metrics"]["ES"]["value"] == 1.0 and "essence" not in found["metrics"]
    assert found["perplexity"]["n"] == 1


def test_a_record_that_cannot_be_edited_is_recorded_and_the_run_goes_on(tmp_path, prepared):
    facts = list(source().facts)
    facts[1] = type(facts[1])(**{**vars(facts[1]), "target_new": facts[1].target})
    made = Source("made", "facts", tuple(facts), (("9", "because"),), "0" * 64)
    config = EditStudyConfig(layer=1, settings=ROME, batch=3)
    found = run_study(EditStudy(config, trained(), made), tmp_path / "run", progress=False)
    assert found.summary["failed"] == 1 and found.summary["records"] == 6 and found.summary["skipped"] == 1
    (failed,) = [row for row in found.rows() if "error" in row]
    assert "the fact's own target" in failed["error"]


def test_another_setting_or_other_data_are_refused(tmp_path, prepared):
    run_study(study(), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="search.lr 0.5, asked for is 0.25"):
        settings = {**ROME, "search": {**ROME["search"], "lr": 0.25}}
        run_study(study(settings=settings), tmp_path / "run", resume=True, progress=False)
    other = EditStudy(EditStudyConfig(layer=1, settings=ROME, batch=2, checkpoints=(1, 3)), trained(), source())
    object.__setattr__(other.source, "sha256", "1" * 64)
    with pytest.raises(InputError, match="identity.data"):
        run_study(other, tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "romme"}, "did you mean 'rome'"),
        ({"metrics": ("ESS",)}, "did you mean 'ES'"),
        ({"settings": {"serch": {}}}, "did you mean 'search'"),
        ({"settings": {"search": {"lrr": 1}}}, "no search setting is called 'lrr'"),
        ({"settings": {"search": 3}}, "expected settings of its own"),
        ({"settings": {"published": "gpt-2-xl"}}, "did you mean 'gpt2-xl'"),
        ({"method": "fine_tune", "settings": {"published": "gpt2-xl"}}, "did you mean"),
        ({"method": "none", "layer": 1}, "the method none takes no layer, found 1; leave it out"),
        ({"method": "none", "settings": {"lr": 1}}, "the method none has no settings, found lr; leave them out"),
        ({"method": "knowledge_neurons", "layer": 1}, "takes no layer, found 1; leave it out"),
        ({"batch": 0}, "the batch is 0"),
        ({"snippets": "data"}, "add --generate"),
        ({"checkpoints": (10, 1)}, "rising numbers"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(InputError) as error:
        EditStudyConfig(**options)
    assert said in str(error.value)


def test_a_summary_of_chosen_metrics_and_of_nothing():
    row = {"relation": None, "before": {"ES": 0.0, "NS": 1.0}, "after": {"ES": 1.0, "NS": 1.0}}
    rises = ({**row, "after": {**row["after"], "perplexity": rise}} for rise in (0.015, 0.005, 9.0))
    found = summary([row, *rises], ("ES",))
    assert list(found["metrics"]) == ["ES"]
    rises = {"within_1_percent": 1 / 3, "within_2_percent": 2 / 3, "median": 0.015, "worst": 9.0, "n": 3}
    assert found["perplexity"] == near(rises, size=LOGITS)
    assert summary([])["metrics"] == {}
    assert json.dumps(found)


def test_known_facts_only():
    config = EditStudyConfig(method="none", known_only=True)
    assert len(EditStudy(config, trained(), source()).facts) == 6
    with pytest.raises(InputError, match="knows none of the facts"):
        EditStudy(config, tiny.tiny("llama"), source())
