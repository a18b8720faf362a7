"""Progress is told in items done so far: numbers that never fall and end at the total, wherever an argument says so."""

import importlib
import inspect
import pkgutil
from dataclasses import replace

import pytest
import torch
from support.edits import SEARCH, strong
from support.tiny import SENTENCES, tiny
from support.trained import facts, trained

import knowedit
from knowedit import Fact, RomeConfig
from knowedit.edit import Covariance
from knowedit.edit.methods.loc_ft import LocFTConfig
from knowedit.edit.methods.v_star import request
from knowedit.facts import Neighbour
from knowedit.locate.config import LocateConfig
from knowedit.locate.fact_prompts import FactPrompts
from knowedit.locate.proof.neuron_kinds import ControlPool
from knowedit.memory.corpus_scan import scan
from knowedit.memory.neuron_card import CardConfig
from knowedit.memory.shared_neurons import PolysemanticityConfig
from knowedit.memory.triggers import CUTS, KeysConfig
from knowedit.mlp.quantization import PrecisionConfig
from knowedit.models.expansion import expansions
from knowedit.progress import counted
from knowedit.report.page.story import CHAPTERS, ExplainConfig

THREE = facts()[:3]
ROME = RomeConfig(layer=0, contexts=(), search=replace(SEARCH, steps=2), preserve=0.0)
LANDMARK = Fact("The {} is located in the city of", "Eiffel Tower", "P")


def _pool():
    return ControlPool(trained(), facts())


def _editable() -> list[Fact]:
    others = tuple(Neighbour(f.prompt, f.target, f.subject) for f in facts()[4:6])
    return [replace(f, target_new="Bexum" if f.target != "Bexum" else "Cirra", neighbours=others) for f in facts()[:3]]


def _unit(layer: int) -> Covariance:
    return Covariance(layer, torch.eye(trained().n_neurons), 100, {})


def _text(folder):
    path = folder / "text.txt"
    path.write_text(" ".join(SENTENCES))
    return path


def _prompts():
    return [trained().encode(f.prompt, f.subject) for f in THREE]


# function → (a call of it with `progress`, the total)
CASES = {
    "answers.ask": lambda call, folder: len(call(trained(), [trained().query(f.prompt, f.target) for f in THREE])),
    "edit.covariance.covariance": lambda call, folder: (
        call(tiny("gpt2"), [0], source=str(_text(folder)), tokens=200, cache=folder, few=True) and 200
    ),
    "edit.methods.best_layer.best_layer": lambda call, folder: (
        call(trained(), [0, 1], facts=_editable(), config=ROME) in (0, 1) and 2
    ),
    "edit.methods.best_layer.layer_scores": lambda call, folder: len(
        call(trained(), [0, 1], facts=_editable(), config=ROME, covariances={0: _unit(0), 1: _unit(1)})
    ),
    "edit.methods.loc_ft.loc_ft": lambda call, folder: len(
        call(trained(), _editable(), LocFTConfig(passes=3)).notes["losses"]
    ),
    "edit.methods.rome.rome_many": lambda call, folder: len(call(trained(), _editable(), ROME, covariance=_unit(0))),
    "edit.methods.v_star.find_v_star": lambda call, folder: len(
        call(trained(), [request(trained(), f, f.target_new, ()) for f in _editable()], 0, ROME.search)
    ),
    "locate.locate.locate_fact": lambda call, folder: call(trained(), THREE[0], negatives=["Zarn works as"]) and 4,
    "locate.locate.locate_prompts": lambda call, folder: call(trained(), FactPrompts.all_of(THREE[0])) and 3,
    "locate.locate.score_prompts": lambda call, folder: len(
        call(trained(), FactPrompts.all_of(THREE[0]), LocateConfig(method="gradient"), _pool())
    ),
    "locate.locate.score_negatives": lambda call, folder: len(
        call(trained(), [f.prompt for f in THREE], LocateConfig(method="gradient"), _pool())
    ),
    "memory.neuron_card.cards": lambda call, folder: (
        call(tiny("gpt2"), [(1, 5)], config=CardConfig(tokens=120))[0].tokens
    ),
    "memory.corpus_scan.scan": lambda call, folder: call(tiny("gpt2"), tokens=120).tokens,
    "memory.triggers.keys": lambda call, folder: (
        len(CUTS) * 6 * bool(call(tiny("gpt2"), scan(tiny("gpt2"), tokens=300), KeysConfig(prefixes=6)))
    ),
    "memory.shared_neurons.polysemanticity": lambda call, folder: sum(
        call(trained(), facts(), PolysemanticityConfig(rotations=1)).relations.values()
    ),
    "memory.sparsity.keep_strongest": lambda call, folder: call(trained(), _prompts()) and 3,
    "memory.values.agreement": lambda call, folder: len(call(tiny("gpt2"), scan(tiny("gpt2"), tokens=120))),
    "memory.values.compositional": lambda call, folder: len(call(tiny("gpt2"), scan(tiny("gpt2"), tokens=120))),
    "mlp.activations.collect": lambda call, folder: (
        call(trained(), _prompts(), lambda p: [p.read], expansions(trained())) and 3
    ),
    "mlp.layer_anatomy.anatomy": lambda call, folder: len(call(trained(), _prompts()).layers),
    "mlp.and_gate.and_gates": lambda call, folder: 5 * call(tiny("gpt2"), [LANDMARK]).facts,
    "mlp.imputation.impute_facts": lambda call, folder: len(call(trained(), THREE).each),
    "mlp.quantization.precision": lambda call, folder: len(
        call(trained(), THREE, [strong("Zarn", "Bexum")], PrecisionConfig(bits=(8, 1), neurons=1)).levels
    ),
    "mlp.probing.relation_probe": lambda call, folder: 3 * sum(call(trained(), facts()).relations.values()),
    "recall.trace.exact.trace_facts": lambda call, folder: len(call(trained(), THREE)),
    "serving.checks.run_checks": lambda call, folder: len(
        call(trained(), [strong("Zarn", "Bexum")], hold=THREE).checks
    ),
    "report.page.explain.explain": lambda call, folder: (
        call(trained(), THREE[0], config=ExplainConfig(quick=True, draws=5)) and len(CHAPTERS)
    ),
}


def _with_progress() -> set[str]:
    """Every public function of the library that has an argument `progress` of that kind."""
    found = set()
    for module in pkgutil.walk_packages(knowedit.__path__, "knowedit."):
        if module.name.endswith("__main__") or ".cli" in module.name:
            continue
        if module.name.endswith(".split_kernel"):  # for Triton, which is where CUDA is
            continue
        for name, function in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(function) and function.__module__ == module.name and not name.startswith("_"):
                argument = inspect.signature(function).parameters.get("progress")
                if argument is not None and argument.annotation == "Progress":
                    found.add(f"{module.name.removeprefix('knowedit.')}.{name}")
    return found - {"progress.counted"}


def test_every_function_with_progress_has_a_case_here():
    assert _with_progress() == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_progress_is_the_items_done_so_far(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    module, _, attribute = name.rpartition(".")
    function = getattr(importlib.import_module(f"knowedit.{module}"), attribute)
    told: list[int] = []
    total = CASES[name](lambda *args, **options: function(*args, progress=told.append, **options), tmp_path)
    assert told == sorted(told) and all(done > 0 for done in told)
    assert told[-1] == total


def test_what_is_interrupted_is_not_counted():
    told: list[int] = []
    for item in counted("abc", told.append):
        if item == "c":
            break
    assert told == [1, 2]
