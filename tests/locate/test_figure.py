"""What the figure of located neurons shows: their scores, what they do together, and the proof where there is one."""

from dataclasses import replace

import pytest
from support.trained import facts, trained

from knowedit import InputError
from knowedit.locate import figure as drawn
from knowedit.locate.attribution import AttributionConfig
from knowedit.locate.config import LocateConfig
from knowedit.locate.figure import located_figure
from knowedit.locate.locate import locate_fact
from knowedit.locate.proof.neuron_kinds import ControlPool
from knowedit.locate.proof.proof import prove_located


@pytest.fixture(scope="module")
def found():
    model, fact = trained(), facts()[0]
    pool = ControlPool(model, facts())
    located = locate_fact(model, fact, LocateConfig(attribution=AttributionConfig(nodes=4)), pool=pool)
    heldout = [template.replace("{}", fact.subject) for template in fact.heldout]
    return located, prove_located(model, located, heldout, pool=pool, draws=10)


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figure that is saved last."""
    kept = []
    save = drawn.save
    monkeypatch.setattr(drawn, "save", lambda fig, path: kept.append(fig) or save(fig, path))
    return lambda: kept[-1].axes


def test_bars_curves_and_proof_are_those_of_the_result(found, axes, tmp_path):
    located, proof = found
    assert located_figure(tmp_path / "a.svg", located, proof).stat().st_size > 1000
    scores, joint, effect = axes()
    assert [bar.get_width() for bar in scores.patches] == [neuron.score for neuron in located.neurons]
    suppressed = joint.lines[0].get_xdata()
    assert list(suppressed) == [100 * neuron.suppress for neuron in located.neurons]
    assert effect.lines[0].get_xdata()[0] == 100 * proof.suppress.value


def test_refined_neurons_have_no_curve(found, axes, tmp_path):
    located, proof = found
    refined = replace(located, neurons=tuple(replace(n, suppress=None, amplify=None) for n in located.neurons))
    located_figure(tmp_path / "a.png", refined, proof)
    assert len(axes()) == 2


def test_an_answer_that_the_model_does_not_give_has_no_proof_and_no_curve(found, axes, tmp_path):
    located, proof = found
    located_figure(tmp_path / "a.pdf", replace(located, rank=102), replace(proof, recalled=0.0))
    (scores,) = axes()
    assert scores.get_title("left") == "not what the model says, but its choice number 102"


def test_a_set_without_neurons_is_drawn_empty(found, axes, tmp_path):
    located, _ = found
    located_figure(tmp_path / "a.png", replace(located, neurons=()))
    assert not axes()[0].patches


def test_the_same_neurons_give_the_same_bytes_and_hostile_text_is_text(found, tmp_path):
    located, proof = found
    hostile = replace(located, prompt="[/red] \x1b[31m $x_{ $ \u202e in", target="$\\frac")
    one, two = (located_figure(tmp_path / name, hostile, proof).read_bytes() for name in ("a.svg", "b.svg"))
    assert one == two
    with pytest.raises(InputError, match=r"ends in '.jpg'"):
        located_figure(tmp_path / "a.jpg", located, proof)
