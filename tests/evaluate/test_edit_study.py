"""Studies of edits on tiny models: single ones never touch a weight, sequential ones go on bit for bit."""

import json

import edits as random_edits
import pytest
import tiny
import torch
from trained import facts as trained_facts
from trained import trained

from knowedit.edit.apply import applied, edits_on
from knowedit.edit.contrast import contrast_facts, rates
from knowedit.edit.covariance import Covariance
from knowedit.errors import InputError
from knowedit.evaluate import methods
from knowedit.evaluate.edit_study import EditStudy, EditStudyConfig, summary
from knowedit.evaluate.engine import run_study
from knowedit.facts import Neighbour
from knowedit.sources import Source

ROME = {"contexts": 0, "protect": 0.0, "search": {"steps": 20, "lr": 0.5, "decay": 0.0, "clamp": 20.0}}


def source(n=6):
    """The trained model's facts about homes, with new targets and neighbours."""
    homes = [fact for fact in trained_facts() if fact.relation == "home"][:n]
    made = []
    for i, fact in enumerate(homes):
        near = next(other for other in homes if other.target != fact.target)
        new = next(other.target for other in homes[i:] + homes[:i] if other.target != fact.target)
        made.append(
            type(fact)(**{**vars(fact), "target_new": new, "neighbours": (Neighbour(near.prompt, near.target),)})
        )
    return Source("made", "facts", tuple(made), (), "0" * 64)


@pytest.fixture
def prepared(monkeypatch):
    """ROME with C = 1: the trained model has no text to take a covariance from."""

    def identity(model, layers, **_):
        return {layer: Covariance(layer, torch.eye(model.n_neurons), 1000, {}) for layer in layers}

    monkeypatch.setattr(methods, "covariance", identity)


def study(**options):
    config = EditStudyConfig(**{"layer": 1, "settings": ROME, "batch": 2, "checkpoints": (1, 3), **options})
    return EditStudy(config, trained(), source())


def stripped(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.rows()]


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
            wanted = rates(contrast_facts(model, [fact], heldout=False))
        for name, (value,) in wanted.items():
            assert row["after"][name] == pytest.approx(value, abs=1e-4)
    for name in ("ES", "EM"):
        assert found.summary["metrics"][name]["value"] > found.summary["before"][name]["value"] + 0.3
    assert found.summary["by_relation"]["home"]["ES"]["n"] == 6 and found.summary["known"] == 6


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
    assert stripped(again) == stripped(whole)
    assert set(again.summary["checkpoints"]) == {"1", "3"}
    assert again.summary["checkpoints"]["3"]["metrics"]["ES"]["n"] == 3


def take_off(model):
    for handle in edits_on(model):
        handle.revert()


def test_no_method_leaves_everything_as_it_was(tmp_path):
    found = run_study(study(method="none", layer=None, settings={}), tmp_path / "run", progress=False)
    assert found.summary["metrics"] == found.summary["before"]


def test_perplexity_is_the_relative_rise_of_a_plain_text():
    this = EditStudy(EditStudyConfig(method="none", perplexity=True), tiny.tiny("llama"), source())
    edit = random_edits.random_edit(this.model, 1, scale=0.5)
    none, some = this._rises([None, edit])
    assert none == pytest.approx(0.0, abs=1e-5) and abs(some) > 1e-3
    with applied(this.model, edit):
        (now,) = this._rises([None])
    assert now == pytest.approx(some, rel=1e-4)


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
        ({"method": "none", "layer": 1}, "has no settings"),
        ({"method": "knowledge_neurons", "layer": 1}, "leave out the layer"),
        ({"batch": 0}, "the batch is 0"),
        ({"checkpoints": (10, 1)}, "rising numbers"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(InputError) as error:
        EditStudyConfig(**options)
    assert said in str(error.value)


def test_a_summary_of_chosen_metrics_and_of_nothing():
    row = {"relation": None, "known": True, "before": {"ES": 0.0, "NS": 1.0}, "after": {"ES": 1.0, "NS": 1.0}}
    found = summary([row, {**row, "perplexity": 0.015}], ("ES",))
    assert list(found["metrics"]) == ["ES"] and found["perplexity"]["within_2_percent"] == 1.0
    assert summary([])["metrics"] == {}
    assert json.dumps(found)


def test_known_facts_only():
    config = EditStudyConfig(method="none", known_only=True)
    assert len(EditStudy(config, trained(), source()).facts) == 6
    with pytest.raises(InputError, match="knows none of the facts"):
        EditStudy(config, tiny.tiny("llama"), source())
