"""`knowedit trace` and `knowedit patch`: the functions' numbers as JSON, tables and figures; one line for bad input."""

import json

import numpy as np
import pytest
from support.commands import HOSTILE, fails
from support.trained import facts, trained

from knowedit.recall.trace import TraceConfig, trace

ZARN = ("trace", "Zarn lives in", "--subject", "Zarn", "--target", "Aldor", "--draws", "3")


@pytest.fixture
def two(tmp_path):
    """Two facts that the model knows, as a file."""
    path = tmp_path / "facts.jsonl"
    names = ("template", "subject", "target", "relation", "id")
    path.write_text("\n".join(json.dumps({n: getattr(f, n) for n in names}) for f in facts()[:2]))
    return str(path)


def test_it_prints_one_json_object_with_the_functions_numbers(run):
    status, out, err = run(*ZARN, "--severed", "mlp", "--seed", "2", "--noise", "2", "--window", "2", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["schema"] == "knowedit.trace/1"
    config = TraceConfig(draws=3, severed=("mlp",), seed=2, noise=2, window=2)
    wanted = trace(trained(), "Zarn lives in", "Aldor", "Zarn", config)
    assert found["high"] == pytest.approx(wanted.high, rel=1e-5) and found["config"] == config.as_dict()
    assert found["low"]["n"] == 3 and found["low"]["value"] == pytest.approx(wanted.low, rel=1e-4)
    for kind in wanted.effects:
        np.testing.assert_allclose(found["maps"][kind]["scores"], wanted.scores(kind), rtol=1e-4)


def test_it_prints_tables_and_draws_a_figure(run, tmp_path):
    picture = tmp_path / "trace.png"
    status, out, err = run(*ZARN, "--kind", "state, mlp", "--figure", str(picture))
    assert status == 0, err
    assert "Zarn lives in → Aldor" in out and "'Zarn'*" in out and "state: most is restored at" in out
    assert "attention" not in out and "3 draws" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_fast_mode_and_the_models_own_answer(run):
    status, out, err = run("trace", "{} lives in", "--subject", "Zarn", "--fast", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["target"] == "Aldor" and found["config"]["fast"] is True and found["high"] > found["low"]["value"]


def test_many_facts_are_averaged(run, two, tmp_path):
    picture = tmp_path / "average.svg"
    status, out, err = run("trace", "--facts", two, "--draws", "2", "--json", "--figure", str(picture))
    assert status == 0, err
    found = json.loads(out)
    assert found["facts"] == ["home/zarn", "work/zarn"] and found["total_effect"]["n"] == 2
    assert set(found["maps"]["state"]["classes"]) == {"last subject", "first after", "last"}
    assert picture.read_text().startswith("<?xml")
    status, out, _ = run("trace", "--facts", two, "--draws", "2", "--limit", "1", "--fast")
    assert status == 0 and "1 fact, " in out and "last subject" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("trace", "Zarn lives in"), "--subject"),
        (("trace", "Zarn", "--subject", "Zarn", "--target", "Aldor"), "whole prompt"),
        (("trace", "{}", "--subject", "Zarn"), "whole prompt"),
        (("trace", "Zarn lives in", "--subject", "Quill"), "not in the prompt"),
        (("trace", "Zarn " * 40 + "in", "--subject", "Zarn", "--target", "Aldor"), "shorten it"),
        (("trace",), "give one of"),
        (("trace", "Zarn lives in", "--fact", "x"), "give one of"),
        ((*ZARN, "--kind", "states"), "did you mean 'state'"),
        ((*ZARN, "--severed", "mpl"), "did you mean 'mlp'"),
        ((*ZARN, "--severed", "mlp", "--fast"), "no fast mode"),
        ((*ZARN, "--window", "0"), "window"),
        ((*ZARN, "--draws", "0"), "draws"),
        ((*ZARN, "--noise", "-1"), "noise"),
        ((*ZARN, "--figure", "no/such/folder/a.png"), "no folder"),
        ((*ZARN, "--figure", "trace.txt"), "expected .png"),
        (("patch", "Zarn lives in", "You will find Quill in", "--target", "Aldor"), "one length"),
        (("patch", "Zarn lives in", "Quill lives in", "--target", "Aldor", "--site", "heads"), "did you mean 'head'"),
        (("patch", "Zarn lives in", "Quill lives in", "--target", "Aldor", "--metric", "logits"), "mean 'logit'"),
        (("patch", "Zarn lives in", "Quill lives in", "--target", "Aldor", "--figure", "no/such/a.png"), "no folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(run, arguments, words):
    fails(run(*arguments), words)


@pytest.mark.parametrize("site", ["residual", "mlp", "attention", "head"])
def test_patches_are_shown_and_drawn(run, site, tmp_path):
    picture = tmp_path / "patch.png"
    command = ("patch", "Zarn lives in", "Quill lives in", "--target", "Aldor", "--foil", "Bexum", "--site", site)
    status, out, err = run(*command, "--figure", str(picture))
    assert status == 0, err
    assert "logit_difference of 'Aldor'" in out and "recovered" in out and picture.exists()
    status, out, _ = run(*command, "--json")
    found = json.loads(out)
    assert found["schema"] == "knowedit.patch/1" and found["metric"] == "logit_difference"
    assert len(found["patched"]) == (3 * 4 if site == "head" else 3 * 3)


def test_hostile_text_is_inert(run, tmp_path):
    picture = tmp_path / "trace.svg"
    prompt = f"{HOSTILE} Quill lives in"
    status, out, err = run(
        "trace", prompt, "--subject", "Quill", "--target", "Bexum", "--fast", "--figure", str(picture)
    )
    assert status == 0, err
    assert "\x1b" not in out and "[/red] \\x1b[31mZarn" in out and picture.exists()
