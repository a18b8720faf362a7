"""The lens figure shows the numbers it is given, for every kind of result, and text from outside literally."""

import pytest
from matplotlib.figure import Figure
from support.commands import HOSTILE
from support.tiny import tiny
from support.trained import facts, trained

from knowedit.errors import InputError
from knowedit.recall.lens.decomposition import logit_attribution
from knowedit.recall.lens.figure import (
    COLUMNS,
    draw_choices,
    draw_layers,
    draw_probability,
    draw_rank,
    draw_strongest,
    lens_figure as draw,
)
from knowedit.recall.lens.projection import aim, logit_lens


@pytest.fixture(scope="module")
def asked():
    one, other = facts()[0], facts()[2]
    return trained(), aim(trained(), one.prompt, one.target, other.target)


def axes():
    return Figure().subplots()


def test_lines_are_the_probabilities_and_ranks(asked):
    model, found = asked[0], logit_lens(*asked)
    ax = axes()
    draw_probability(ax, found)
    assert [line.get_label() for line in ax.lines] == [found.target, found.foil]
    assert ax.lines[0].get_ydata().tolist() == pytest.approx(found.probability[:, 0].tolist())
    assert list(ax.lines[0].get_xdata()) == [-1, 0, 1, model.n_layers - 1]
    ax = axes()
    draw_rank(ax, found, edited=found)
    assert [list(line.get_ydata()) for line in ax.lines[::2]] == [found.rank[:, 0].tolist()] * 2


def test_choices_by_position_or_by_rank(asked):
    found = logit_lens(*asked, positions="all", top=2)
    ax = axes()
    draw_choices(ax, found)
    texts = [text.get_text() for text in ax.texts]
    assert len(texts) == len(found.top) * len(found.positions)
    assert texts[-1] == found.target  # the last layer at the read position
    framed = sum(choices[0][0] == found.target for row in found.top for choices in row)
    assert len(ax.patches) == framed >= 1
    ax = axes()
    draw_choices(ax, logit_lens(*asked, top=2))
    assert [t.get_text() for t in ax.texts[-2:]] == [word for word, _ in found.top[-1][-1]]


def test_a_long_prompt_shows_what_leads_to_the_answer():
    found = logit_lens(tiny("gpt2"), "a b c d e f g h i j k l m n o p q r", positions="all", top=1)
    assert len(found.positions) > COLUMNS
    ax = axes()
    draw_choices(ax, found)
    assert len(ax.texts) == COLUMNS * len(found.top)
    assert f"the last {COLUMNS} positions" in ax.get_title(loc="left") + ax.get_title()


def test_bars_are_the_parts(asked):
    parts = logit_attribution(*asked)
    ax = axes()
    draw_layers(ax, parts)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([parts.embedding, *parts.attention.tolist(), *parts.mlp.tolist()])
    ax = axes()
    draw_strongest(ax, parts, n=3)
    strongest = [*parts.strongest_heads(3), *parts.strongest_neurons(3)]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([value for *_, value in strongest])
    assert ax.get_yticklabels()[0].get_text() == "head {}.{}".format(*strongest[0])


def test_biases_have_a_bar_where_there_are_any():
    ax = axes()
    draw_layers(ax, parts := logit_attribution(tiny("phi"), "The city of", "P"))
    assert parts.bias in [pytest.approx(bar.get_height()) for bar in ax.patches]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_whole_figure_is_written(asked, tmp_path, suffix):
    found, parts = logit_lens(*asked, positions="all"), logit_attribution(*asked)
    path = draw(tmp_path / f"lens.{suffix}", found, parts, edited=found, edited_parts=parts, title=HOSTILE)
    assert path.stat().st_size > 1000
    assert draw(
        tmp_path / f"again.{suffix}", found, parts, edited=found, edited_parts=parts, title=HOSTILE
    ).read_bytes() == (path.read_bytes())


def test_scripts_that_the_font_lacks_are_spelled_out(tmp_path):
    found = logit_lens(tiny("llama"), "東京 is the capital of", "Japan", positions="all")
    assert draw(tmp_path / "lens.png", found, title="東京").stat().st_size > 1000  # matplotlib would warn of each glyph
    ax = axes()
    draw_probability(ax, logit_lens(tiny("bert"), "a [MASK]", "東京"))
    assert ax.lines[0].get_label() == "\\u6771"


def test_hostile_and_masked(tmp_path):
    model = tiny("bert")
    found = logit_lens(model, "<script>alert(1)</script> $x_{ [MASK] $ \x1b[31m", "Paris", positions="all")
    text = draw(tmp_path / "lens.svg", found, title=HOSTILE).read_text()
    assert "<script>" not in text and "\x1b" not in text
    with pytest.raises(InputError, match="no folder"):
        draw(tmp_path / "nowhere" / "lens.svg", found)
