"""The study of neurons on the trained model: each figure again by plain means, its options, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny
from support.edits import FACT
from support.studies import records
from support.trained import facts, trained

import knowedit
from knowedit import AttributionConfig, attribute
from knowedit.errors import InputError
from knowedit.evaluate.neurons.study import (
    NeuronStudy,
    NeuronStudyConfig,
    of_relations,
    prompts_of,
    spread_over_relations,
)
from knowedit.evaluate.runs.engine import run_study
from knowedit.sources import Source


def source(made=None):
    return Source("made", "facts", tuple(facts()[:8] if made is None else made), (), "0" * 64)


def study(made=None, model=None, **options):
    return NeuronStudy(NeuronStudyConfig(**{"draws": 5, **options}), model or trained(), source(made))


def run(folder, *args, **options):
    return run_study(study(*args, **options), folder, progress=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("study") / "run")


# ---------------------------------------------------------------- a record by plain means


def probability(model, prompt, target):
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.hf(input_ids=ids).logits[0, -1].softmax(-1)[model.tokenizer(target)["input_ids"][0]].item()


def test_neurons_are_those_that_the_prompts_share(done):
    model = trained()
    row, fact = next(done.rows()), facts()[0]
    prompts = [t.replace("{}", fact.subject) for t in (fact.template, *fact.paraphrases)]
    assert row["prompts"] == len(prompts) == 3
    scores = [attribute(model, p, fact.target, AttributionConfig(nodes=8)).scores for p in prompts]
    coarse = [{tuple(s) for s in (score >= 0.2 * score.max()).nonzero().tolist()} for score in scores]
    wanted = {s for found in coarse for s in found if sum(s in other for other in coarse) >= 0.7 * 3}
    assert {tuple(s) for s in row["methods"]["ig"]["neurons"]} == wanted and row["neurons"] == len(wanted) > 0


def test_effects_are_those_of_the_intervened_model_on_heldout_prompts(done):
    model = trained()
    for row, fact in list(zip(done.rows(), facts(), strict=False))[:3]:
        prompts = [t.replace("{}", fact.subject) for t in fact.heldout]
        assert row["before"] == pytest.approx([probability(model, p, fact.target) for p in prompts], abs=1e-5)
        for name in ("ig", "activation"):
            found = row["methods"][name]
            neurons = [tuple(site) for site in found["neurons"]]
            for what, change in (("suppressed", knowedit.suppress), ("amplified", knowedit.amplify)):
                with change(model, neurons):
                    wanted = [probability(model, p, fact.target) for p in prompts]
                assert found[what] == pytest.approx(wanted, abs=1e-5)


def test_baselines_have_as_many_neurons(done):
    model, row, fact = trained(), next(done.rows()), facts()[0]
    prompts = [t.replace("{}", fact.subject) for t in (fact.template, *fact.paraphrases)]
    activations = torch.stack([knowedit.rank(model, model.query(p, fact.target), method="activation") for p in prompts])
    mean = activations.abs().mean(0)
    strongest = {divmod(i, mean.shape[1]) for i in mean.flatten().topk(row["neurons"]).indices.tolist()}
    assert {tuple(s) for s in row["methods"]["activation"]["neurons"]} == strongest
    assert "neurons" not in row["methods"]["random"] and len(row["methods"]["random"]["suppressed"]) == 2
    assert study().run([fact.id])[0]["methods"]["random"] == row["methods"]["random"]  # drawn by seed and id alone
    assert study(seed=1).run([fact.id])[0]["methods"]["random"] != row["methods"]["random"]


def test_located_neurons_matter_more_than_the_baselines(done):
    metrics = done.summary["metrics"]
    assert metrics["suppress:ig"]["high"] < 0 and metrics["suppress:ig"]["n"] == 8
    assert metrics["suppress:ig"]["value"] < 5 * metrics["suppress:random"]["value"]
    for figure in metrics.values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert set(done.summary["by_relation"]) == {"home", "work"} and done.summary["empty"] == 0
    assert sum(done.summary["layers"]["ig"]) == sum(row["neurons"] for row in done.rows())
    assert "located" not in done.summary and "erasure" not in done.summary
    for name in ("same_relation", "other_relations"):
        assert done.summary["specificity"][name]["suppress"]["n"] == 8


# ---------------------------------------------------------------- options


def test_a_resumed_run_has_the_same_records(tmp_path, done):
    again = tmp_path / "run"
    run(again)
    path = again / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    found = run_study(study(), again, resume=True, progress=False)
    assert records(found) == records(done)
    assert {k: v for k, v in found.summary.items() if "second" not in k} == {
        k: v for k, v in done.summary.items() if "second" not in k
    }


def test_stability_in_thresholds_and_nodes(tmp_path):
    found = run(tmp_path / "run", facts()[:2], stability=True).summary["stability"]
    assert found["t=0.2 p=0.7"]["jaccard"] == {**found["t=0.2 p=0.7"]["jaccard"], "value": 1.0, "n": 2}
    assert found["t=0.1 p=0.5"]["neurons"] >= found["t=0.2 p=0.7"]["neurons"] >= found["t=0.3 p=0.9"]["neurons"]
    assert found["nodes=4"]["jaccard"]["n"] == 1 and 0 < found["nodes=16"]["jaccard"]["value"] <= 1


def test_erased_relations_are_asked_beside_the_others(tmp_path):
    before = [p.clone() for p in trained().hf.parameters()]
    found = run(tmp_path / "run", erase=True).summary["erasure"]
    assert all(torch.equal(a, b) for a, b in zip(before, trained().hf.parameters(), strict=True))
    assert set(found) == {"home", "work"}
    for relation in found.values():
        assert relation["own"]["first_choice_before"] == 1.0 and relation["own"]["n"] == relation["others"]["n"] == 4
        assert relation["own"]["probability_after"] < relation["own"]["probability_before"]


def test_layers_most_and_one_baseline(tmp_path):
    found = run(tmp_path / "run", facts()[:2], layers=(1, 2), most=1, baselines=("random",))
    for row in found.rows():
        assert row["neurons"] == 1 and row["methods"]["ig"]["neurons"][0][0] in (1, 2)
        assert list(row["methods"]) == ["ig", "random"]
    for method in ("gradient", "logit", "ablation"):
        (row,) = study(facts()[:1], method=method, t=0.01).run(["home/zarn"])
        assert row["neurons"] > 0 and method in row["methods"]


def test_a_masked_model_is_studied_too(tmp_path):
    fact = replace(FACT, paraphrases=("{} stands in",), heldout=("You find {} in",), relation="P131", id="eiffel")
    found = run(tmp_path / "run", [fact], tiny.tiny("bert"), known_only=False)
    (row,) = found.rows()
    assert "error" not in row and len(row["before"]) == 1


def test_a_fact_without_a_second_prompt_fails_alone(tmp_path):
    lonely = replace(facts()[0], paraphrases=(), heldout=(), id="lonely")
    found = run(tmp_path / "run", [lonely, *facts()[1:3]])
    assert found.summary["failed"] == 1 and found.summary["metrics"]["suppress:ig"]["n"] == 2
    assert next(row for row in found.rows() if "error" in row)["error"] == (
        "it has no second prompt to prove its neurons on"
    )


# ---------------------------------------------------------------- which facts, which prompts


def test_prompts_that_locate_never_prove():
    fact = replace(facts()[0], heldout=(), rephrasings=("Whose home is Aldor?",))
    own = [t.replace("{}", "Zarn") for t in (fact.template, *fact.paraphrases)]
    assert prompts_of(fact, 4) == ([own[0], own[2]], [own[1], "Whose home is Aldor?"])
    assert prompts_of(facts()[0], 2)[0] == own[:2]
    for some in (fact, *facts()):
        located, held = prompts_of(some, 9)
        assert not set(located) & set(held)


def test_relations_are_chosen_by_name_and_spread():
    assert {f.relation for f in of_relations(facts(), ("home",))} == {"home"}
    with pytest.raises(InputError, match="no relation is called 'hom'.*did you mean 'home'.*; there are home, work"):
        of_relations(facts(), ("hom",))
    some = spread_over_relations(facts(), 3)
    assert [f.id for f in some] == ["home/zarn", "work/zarn", "home/osk", "work/osk", "home/dask", "work/dask"]
    assert len(study(per_relation=2, made=facts()).facts) == 4


def test_only_known_facts():
    wrong = replace(facts()[0], target=facts()[2].target, id="wrong")
    assert "wrong" not in study([wrong, facts()[1]]).facts
    assert "wrong" in study([wrong, facts()[1]], known_only=False).facts
    with pytest.raises(InputError, match="knows none of the facts"):
        study([wrong])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "igg"}, "did you mean 'ig'"),
        ({"baselines": ("randm",)}, "did you mean 'random'"),
        ({"t": 0}, "t is 0, expected a fraction"),
        ({"p": 1.2}, "p is 1.2"),
        ({"prompts": 0}, "prompts is 0"),
        ({"nodes": 0}, "nodes"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(InputError) as error:
        NeuronStudyConfig(**options)
    assert said in str(error.value)


def test_a_layer_that_is_not_there():
    with pytest.raises(InputError, match="layer 7"):
        study(layers=(7,))


def test_the_mean_of_random_draws_is_kept(done):
    assert all(0 <= v <= 1 for row in done.rows() for v in row["methods"]["random"]["suppressed"])
    assert np.isfinite(done.summary["metrics"]["amplify_ratios:random"]["value"])
