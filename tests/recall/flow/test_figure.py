"""The picture of recall: one fact and many, as files that hold what they were given and nothing that was not."""

import pytest
from support.commands import HOSTILE
from support.trained import facts, trained

from knowedit import Fact, InputError
from knowedit.display.drawing import figure
from knowedit.errors import KnoweditWarning
from knowedit.recall.flow.average import average_recall
from knowedit.recall.flow.figure import draw_extraction, draw_propagation
from knowedit.recall.flow.pipeline import RecallConfig, recall_fact


@pytest.fixture(scope="module")
def one():
    return recall_fact(trained(), facts()[0], facts=facts(), config=RecallConfig(window=1, normed=True))


def test_one_fact_and_many_become_files(one, tmp_path):
    many = average_recall([one, recall_fact(trained(), facts()[2], facts=facts(), config=one.config)])
    for name, found in (("one.png", one), ("one.svg", one), ("many.pdf", many), ("many.png", many)):
        path = found.figure(tmp_path / name)
        assert path.stat().st_size > 5000
    assert one.figure(tmp_path / "again.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    with pytest.raises(InputError, match=r"\.png"):
        one.figure(tmp_path / "one.gif")


def test_lines_are_the_numbers(one):
    with figure(5, 3) as (_, axes):
        draw_propagation(axes, one)
        drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn["subject"] == one.edges.change("subject")
    assert drawn["rest of the prompt"] == one.edges.change("relation")


def test_events_are_dots(one):
    with figure(5, 3) as (_, axes):
        draw_extraction(axes, one)
        dots = sorted((int(x), int(y)) for row in axes.collections for x, y in row.get_offsets())
    told = one.extraction
    wanted = [(layer, 0) for layer, _ in told.heads] + [(layer, 1) for layer in told.layers("mlp")]
    assert dots == sorted(wanted + [(layer, 2) for layer in told.layers("attention")])


def test_hostile_text_is_inert(tmp_path):
    fact = Fact(template=HOSTILE.replace("Zarn", "{}"), subject="Zarn", target="Aldor")
    with pytest.warns(KnoweditWarning, match="only a part of a word"):
        found = recall_fact(trained(), fact, facts=facts())
    path = found.figure(tmp_path / "x.svg")
    assert b"<script" not in path.read_bytes() and b"\x1b" not in path.read_bytes()
