"""Figures of traces and patches: what they say of tokens, kinds and numbers, with text taken literally."""

from dataclasses import replace

import numpy as np
import pytest
from support.commands import HOSTILE
from support.trained import facts, trained

from knowedit.display.drawing import figure, heat_maps, save
from knowedit.recall.trace import Site, TraceConfig, average_traces, patch, trace, trace_facts
from knowedit.recall.trace.figure import draw_lines, draw_trace
from knowedit.recall.trace.patching import grid
from knowedit.writing.counts import number_of

CONFIG = TraceConfig(draws=2, severed=("mlp",))


@pytest.fixture(scope="module")
def found():
    return trace(trained(), "Each day Zarn acts as", "baker", "Zarn", CONFIG)


def test_maps_have_the_tokens_down_the_layers_across_and_the_scores(found):
    kinds = list(found.effects)
    with figure(columns=len(kinds)) as (_, axes):
        draw_trace(axes, found)
        for ax, kind in zip(axes, kinds, strict=True):
            assert [t.get_text() for t in ax.get_yticklabels()] == ["Each", "day", "Zarn*", "acts", "as"]
            assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "2"]
            assert ax.get_xlabel() == (
                "layer" if kind.startswith("state") else f"centre of {number_of(found.window, 'layer')}"
            )
            np.testing.assert_allclose(ax.images[0].get_array(), found.scores(kind))


def test_maps_have_one_scale_whose_middle_is_the_corrupted_run_and_which_names_it_and_the_clean_one(found):
    n = len(found.effects)
    with figure(columns=n) as (fig, axes):
        draw_trace(axes, found)
        (limits,) = {ax.images[0].get_clim() for ax in axes}
        (bar,) = [ax for ax in fig.axes if ax not in list(axes)]
        (names,) = bar.child_axes
    scores = np.concatenate([found.scores(kind).ravel() for kind in found.effects])
    assert sum(limits) / 2 == pytest.approx(found.low) and limits[0] <= scores.min() and scores.max() <= limits[1]
    assert names.get_yticks() == pytest.approx([found.low, found.high])
    assert [t.get_text() for t in names.get_yticklabels()] == ["corrupted\n(white)", "clean"]
    shown = (min(found.low, scores.min()), max(found.high, scores.max()))
    assert bar.get_ylim() == pytest.approx(shown)


def test_names_of_runs_that_are_nearly_equal_share_a_place(found):
    with figure() as (fig, axes):
        heat_maps([axes], [np.eye(2)], rows=["a", "b"], label="p", white=("corrupted", 0.5), mark=("clean", 0.51))
        (names,) = fig.axes[-1].child_axes
        assert [t.get_text() for t in names.get_yticklabels()] == ["corrupted\n(white),\nclean"]


def test_all_maps_are_drawn_into_one_file_and_the_same_again(found, tmp_path):
    first, second = (found.figure(tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second and len(first) > 5000
    assert found.figure(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_lines_have_the_average_and_its_interval(tmp_path):
    average = average_traces(trace_facts(trained(), facts()[:3], CONFIG))
    with figure() as (_, axes):
        draw_lines(axes, average, "state")
        names = [line.get_label() for line in axes.lines[:-1]]
        assert names == ["last subject (n = 3)", "first after (n = 3)", "last (n = 3)"]
        wanted = [e.value for e in average.effects["state"]["last"]]
        np.testing.assert_allclose(axes.lines[2].get_ydata(), wanted)
    assert average.figure(tmp_path / "average.png").exists()


def test_patches_are_drawn_around_the_corrupt_prompt(tmp_path):
    model = trained()
    for kind in ("residual", "head"):
        done = patch(model, "Zarn lives in", "Quill lives in", grid(model, kind, range(3)), "logit", target="Aldor")
        assert replace(done, prompts=(HOSTILE, HOSTILE)).figure(tmp_path / f"{kind}.png").exists()
    alone = patch(model, "Zarn lives in", "Zarn lives in", [Site("mlp", 0, 0)], "logit", target="Aldor")
    assert alone.figure(tmp_path / "one.svg").exists()


def test_hostile_text_is_drawn_as_it_is(tmp_path):
    found = trace(trained(), f"{HOSTILE} Quill lives in", "Bexum", "Quill", TraceConfig(kinds=("state",), fast=True))
    with figure() as (fig, axes):
        draw_trace([axes], found)
        save(fig, tmp_path / "map.png")
        assert not any("\x1b" in t.get_text() for t in axes.get_yticklabels())
    assert found.figure(tmp_path / "hostile.svg").exists()
