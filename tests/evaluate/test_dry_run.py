"""Plans: what they count is what a run does, every published config is complete, and no network is needed."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from support.studies import source, study
from support.trained import facts, trained

from knowedit.cli.benchmarks.bench import configured
from knowedit.edit.methods.table import METHODS
from knowedit.evaluate.dry_run import SHAPES, dry_run
from knowedit.evaluate.edits import study as edit_study
from knowedit.evaluate.edits.config import EditStudyConfig
from knowedit.evaluate.neurons.study import NeuronStudy, NeuronStudyConfig
from knowedit.evaluate.runs.configs import named_configs
from knowedit.evaluate.runs.engine import run_study
from knowedit.facts import fill
from knowedit.models.passes.scaled_answers import ScaledAnswers
from knowedit.sources import Source, builtin_facts
from knowedit.sources.formats import FORMATS

CONFIGS = named_configs()
DEFAULTS = {"edit": EditStudyConfig, "neurons": NeuronStudyConfig}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} speaks", "relation_id": "P103", "subject": "Danielle Darrieux",
        "target_new": {"str": "English", "id": "Q1860"}, "target_true": {"str": "French", "id": "Q150"},
    },
    "paraphrase_prompts": ["a", "b"], "neighborhood_prompts": ["c", "d", "e"], "generation_prompts": ["f"],
}  # fmt: skip
ZSRE = {"subject": "Ann", "src": "Where is Ann from?", "pred": "Rome", "rephrase": "Ann is from?", "answers": ["Bonn"],
        "loc": "nq question: who is who", "loc_ans": "Bob", "cond": "Rome >> Bonn"}  # fmt: skip
LITE = {
    "case_id": 16, "prompt": "Ann is from", "subject": "Ann", "target_new": "Bonn", "ground_truth": "Rome",
    "rephrase_prompt": "Ann's town is", "locality_prompt": "Bob is from", "locality_ground_truth": "Rome",
}  # fmt: skip
RELATION = {
    "name": "capital", "prompt_templates": ["{} has the capital"], "prompt_templates_zs": ["The capital of {} is"],
    "samples": [{"subject": "France", "object": "Paris"}, {"subject": "Italy", "object": "Rome"}],
}  # fmt: skip
BAGS = {"P36": [[["The capital of France is [MASK].", "Paris"], ["France's capital is [MASK].", "Paris"]]]}
SAMPLES = {
    "counterfact": [COUNTERFACT],
    "zsre": [ZSRE],
    "counterfact-lite": [LITE],
    "wikibigedit": [{name: value for name, value in LITE.items() if name not in ("case_id", "ground_truth")}],
    "relations": RELATION,
    "pararel": BAGS,
}
# forward passes before the edit: two targets a prompt, each pair once (neighbours of the sample of relations have the
# new target for their answer), and zsRE's probe of locality, which WikiBigEdit has as a neighbour, too
PASSES = {
    "counterfact": 2 * 6, "zsre": 2 * 2 + 1, "counterfact-lite": 2 * 3, "wikibigedit": 2 * 3,
    "relations": 2 * 2 * 3 - 2,
}  # fmt: skip


def loaded(name, **given):
    study = CONFIGS[name].study
    return study, configured(DEFAULTS[study](), study, name, given)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_loaded_and_planned_without_a_network(name, tmp_path, all_threads):
    study, config = loaded(name)
    given = {}
    if config.source != "builtin":
        assert dry_run(study, replace(config, model="nobody"))["records"] is None  # its file is the user's
        assert config.format in FORMATS
        (tmp_path / "data.json").write_text(json.dumps(SAMPLES[config.format]))
        given = {"source": str(tmp_path / "data.json"), "sample": None, "skip": 0}
    _, config = loaded(name, **given)
    plan = dry_run(study, config)
    assert plan["unknown"] == {} and plan["records"] >= 1
    assert plan["model"]["parameters"] > 1e8 and plan["memory"]["total"] >= plan["memory"]["weights"] > 0
    assert plan["passes"]["total"] == sum(n for what, n in plan["passes"].items() if what != "total") > 0
    if study == "edit" and config.format:
        assert plan["passes"]["before"] == plan["passes"]["after"] == PASSES[config.format]
        assert plan["passes"].get("search", 0) > 0 or not METHODS[config.method].edits


def test_the_published_settings_are_all_there():
    models, sets = ("gpt2-xl", "gpt-j-6b"), ("counterfact", "zsre")
    wanted = {f"{method}_{name}_{data}" for method in ("rome", "ft", "ft-l") for name in models for data in sets}
    wanted |= {"rome_llama-3-8b_counterfact", "neurons_bert-base-cased_pararel"}
    assert wanted <= CONFIGS.keys()
    methods = {name: dry_run(*loaded(name))["method"] for name in wanted}
    rome = methods["rome_gpt2-xl_counterfact"]
    assert (rome["layer"], rome["search"]["steps"], rome["search"]["lr"], rome["search"]["kl"]) == (17, 20, 0.5, 0.0625)
    assert methods["rome_gpt-j-6b_zsre"]["layer"] == methods["rome_llama-3-8b_counterfact"]["layer"] == 5
    assert methods["ft_gpt2-xl_zsre"]["layer"] == 1 and methods["ft_gpt2-xl_zsre"]["norm_constraint"] is None
    assert methods["ft-l_gpt-j-6b_counterfact"]["norm_constraint"] == 5e-5
    dai = loaded("neurons_bert-base-cased_pararel")[1]
    assert (dai.locate.attribution.nodes, dai.locate.t, dai.locate.p, dai.locate.adjust) == (20, 0.2, 0.7, True)


@pytest.mark.parametrize(
    ("name", "parameters", "layers", "neurons"),
    [
        ("openai-community/gpt2-xl", 1_557_611_200, 48, 6400),
        ("EleutherAI/gpt-j-6b", 6_050_882_784, 28, 16384),
        ("google-bert/bert-base-cased", 108_340_804, 12, 3072),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248, 32, 14336),
    ],
)
def test_shapes_of_published_models(name, parameters, layers, neurons):
    assert name in SHAPES
    model = dry_run("edit", EditStudyConfig(model=name, limit=1))["model"]
    assert (model["parameters"], model["layers"], model["neurons"]) == (parameters, layers, neurons)


# ---------------------------------------------------------------- what is counted is what is done


@pytest.fixture
def homes(tmp_path):
    """The trained model and its facts about homes as a user has them."""
    trained().hf.save_pretrained(tmp_path / "model")
    trained().tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "homes.jsonl").write_text("".join(json.dumps(asdict(f)) + "\n" for f in source().facts))
    return {"source": str(tmp_path / "homes.jsonl"), "model": str(tmp_path / "model")}


@pytest.mark.parametrize("sequential", [False, True])
def test_passes_of_edits_are_those_of_a_run(tmp_path, monkeypatch, homes, sequential):
    asked = []
    score = edit_study.score_edits
    monkeypatch.setattr(edit_study, "score_edits", lambda model, edits, pairs, **more: asked.append(
        sum(map(len, pairs))) or score(model, edits, pairs, **more))  # fmt: skip
    options = {"method": "fine_tune", "settings": {"steps": 2}, "layer": 1, "sequential": sequential}
    from knowedit.edit.apply import edits_on

    run_study(study(**options), tmp_path / "run", progress=False)
    for handle in edits_on(trained()):
        handle.revert()
    plan = dry_run("edit", EditStudyConfig(**homes, checkpoints=(1, 3), **options))
    passes = plan["passes"]
    assert sum(asked) == passes["before"] + passes["after"] + passes.get("checkpoints", 0)
    assert passes["search"] == 6 * 2 and ("checkpoints" in passes) == sequential
    model = trained()
    assert plan["memory"]["weights"] == plan["model"]["bytes"] == 4 * sum(p.numel() for p in model.hf.parameters())
    at_once = 32 + 4 * 32
    assert plan["memory"]["changes"] == 4 * model.d_model * model.n_neurons * at_once


def test_passes_of_neurons_are_those_of_a_run(tmp_path, monkeypatch, homes):
    scaled, kept = [], []
    scale, keep = ScaledAnswers.scaled, ScaledAnswers.kept

    def counted(self, sets, factor):
        scaled.extend((query.prompt.text, len(sets)) for query in self.queries)
        return scale(self, sets, factor)

    def counted_alone(self, masks, layers):
        kept.append(len(self) * len(masks))
        return keep(self, masks, layers)

    monkeypatch.setattr(ScaledAnswers, "scaled", counted)
    monkeypatch.setattr(ScaledAnswers, "kept", counted_alone)
    made = Source("made", "facts", source().facts, (), "0" * 64)
    run_study(NeuronStudy(NeuronStudyConfig(draws=5), trained(), made), tmp_path / "run", progress=False)
    passes = dry_run("neurons", NeuronStudyConfig(**homes, draws=5))["passes"]
    heldout = {fill(template, fact.subject) for fact in source().facts for template in fact.heldout}
    sets = 1 + 1 + 5 + 5  # located, by activation, random by layer and activation, random by layer
    alone = 2 + 5  # located, none, random by layer and activation
    assert passes["effect"] == 12 * (1 + 2 * sets + alone)
    assert passes["known"] == 6 and passes["locate"] == 18 * (1 + 6 * 3)  # at least
    assert sum(n for text, n in scaled if text in heldout) == passes["effect"] - 12 * (1 + alone)
    assert 12 * alone < sum(kept) <= 12 * alone + passes["faithfulness"]  # a small model has fewer sizes
    assert 0 < sum(n for text, n in scaled if text not in heldout) <= passes["specificity"]


def test_what_the_run_writes_and_measures_beside():
    plan = dry_run("edit", EditStudyConfig(limit=2, perplexity=True, generate=True, known_only=True))
    assert plan["at_most"] and plan["records"] == 2
    assert plan["passes"]["known"] == len(builtin_facts())  # at most: asked are as many as it takes to find two
    assert plan["passes"]["perplexity"] == 3 and plan["passes"]["essence"] == 4
    assert plan["passes"]["written tokens"] >= 2 * 2 * (10 + 24)


def test_relations_and_facts_a_relation_are_counted(homes):
    Path(homes["source"]).write_text("".join(json.dumps(asdict(f)) + "\n" for f in facts()))
    plan = dry_run("neurons", NeuronStudyConfig(**homes, relations=("work",), per_relation=3, erase=True))
    assert plan["records"] == 3 and plan["passes"]["erase"] == 2 * 2 * 12


def test_no_weights_are_made(monkeypatch):
    made = []
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, *_, **__: made.append(tensor) or tensor)
    dry_run("edit", EditStudyConfig(model="meta-llama/Meta-Llama-3-8B", limit=1))
    assert all(tensor.device.type == "meta" for tensor in made)
