"""The figures of `knowedit mlp` are drawn whatever was measured, say what they show, and take text literally."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from support.commands import HOSTILE
from support.tiny import PROMPT, TARGET, tiny
from support.trained import facts, trained

from knowedit import Fact
from knowedit.mlp import figure as figures
from knowedit.mlp.accounting import account, account_config
from knowedit.mlp.and_gate import and_gates
from knowedit.mlp.imputation import ImputationConfig, impute, impute_facts
from knowedit.mlp.layer_anatomy import anatomy
from knowedit.mlp.probing import relation_probe
from knowedit.mlp.quantization import PrecisionConfig, precision
from knowedit.mlp.value_geometry import geometry


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw, and return all words of the figure."""

    def call(draw, *given):
        kept = []
        monkeypatch.setattr(figures, "save", lambda fig, path: kept.append((fig, path)))
        draw(tmp_path / "x.png", *given)
        monkeypatch.undo()
        (fig, path) = kept[0]
        figures.save(fig, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        return words(fig)

    return call


def words(fig: Figure) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in fig.findobj(Text))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_anatomy_of_plain_and_gated_mlps(family, drawn):
    model = tiny(family)
    found = anatomy(model, [model.encode(PROMPT)])
    shown = drawn(found.figure, 1)
    assert "neurons, 48 wide" in shown and "nonlinearity" in shown and "linear probe: give facts" in shown
    assert ("gate, 48 wide" in shown) == (family == "llama")


def test_anatomy_with_a_probe(drawn):
    model = trained()
    found = anatomy(model, [model.encode(f.prompt) for f in facts()])
    shown = drawn(replace(found, probe=relation_probe(model, facts())).figure, 2)
    assert "linear probe of 2 relations (n = 24)" in shown and "random expansion" in shown


def test_one_prompt_and_many_facts_imputed(drawn):
    model = trained()
    query = model.query("Zarn lives in", "Aldor", "Zarn")
    shown = drawn(impute(model, query, "Aldor").figure)
    assert "Zarn lives in → Aldor" in shown and "3 highest dimensions" in shown and "3 random dimensions" in shown
    alone = drawn(impute(model, query, "Aldor", ImputationConfig(draws=0)).figure)
    assert "random" not in alone
    assert "3 facts" in drawn(impute_facts(model, facts()[:3]).figure)


def test_hostile_words_are_drawn_as_they_are(drawn):
    model = trained()
    prompt = HOSTILE.replace("Zarn", "Zarn ")
    shown = drawn(impute(model, model.query(prompt, "Aldor"), "$x_{").figure)
    assert "\x1b" not in shown and "\\x1b[31m" in shown and "$x_{" in shown


def test_geometry_with_and_without_gates(drawn):
    model = tiny("gpt2")
    found = geometry(model)
    assert "give a subject of several words" in drawn(found.figure)
    fact = Fact("The {} is located in the city of", "Eiffel Tower", TARGET)
    shown = drawn(replace(found, gates=and_gates(model, [fact])).figure, 2)
    assert "value vectors, layer 2" in shown and "d = 12,288" in shown and "AND: both parts needed" in shown


def test_accounting_and_precision(drawn):
    assert "66.4%" in drawn(account_config("gpt3").figure)
    assert "tiny-bert" in drawn(account(tiny("bert")).figure)
    found = precision(trained(), facts()[:4], config=PrecisionConfig(bits=(4, 1), neurons=2))
    shown = drawn(found.figure)
    assert "facts known (n = 4)" in shown and "located again" in shown and "edits hold" not in shown
