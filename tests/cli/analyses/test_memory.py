"""`knowedit neuron --card` and `knowedit memory` as a user meets them, and their figures."""

import json

import pytest
from support.commands import HOSTILE, fails
from support.tiny import tiny
from support.trained import facts

from knowedit.evaluate.runs.folder import RunFolder
from knowedit.memory.neuron_card import card

ESTIMATE = {"value", "low", "high", "n"}


@pytest.fixture
def some_facts(tmp_path):
    """Facts of the trained model, in a file."""
    path = tmp_path / "facts.jsonl"
    names = ("template", "subject", "target", "relation", "id")
    path.write_text("".join(json.dumps({n: getattr(f, n) for n in names}) + "\n" for f in facts()))
    return str(path)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{f.prompt} {f.target}\n" for f in facts()) * 3)
    return str(path)


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    """A tiny masked model as a directory."""
    place = tmp_path_factory.mktemp("masked")
    model = tiny("bert")
    model.hf.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return str(place)


def test_a_card_is_one_json_object(run, corpus, tmp_path):
    picture = tmp_path / "card.png"
    status, out, err = run("neuron", "1", "3", "--card", "--corpus", corpus, "--json", "--figure", str(picture))
    assert status == 0, err
    record = json.loads(out)
    assert record["schema"] == "knowedit.neuron/1" and (record["layer"], record["index"]) == (1, 3)
    assert len(record["promotes"]) == len(record["suppresses"]) == 12 and record["value_norm"] > 0
    assert 0 <= record["active"] <= 1 and record["source"]["kind"] == "txt" and "gate" in record["definition"]
    assert {"before", "token", "after", "next", "activation"} == set(record["triggers"][0])
    assert set(record["on_texts"]["suppressed"]) == set(record["on_texts"]["control"]) == ESTIMATE
    assert record["located"] == [] and record["on_facts"] is None
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_card_names_the_located_facts(run, some_facts, corpus, tmp_path):
    out = tmp_path / "run"
    done = run("locate", "--facts", some_facts, "--out", str(out), "--method", "gradient", "--t", "0.1", "--limit", "4")
    assert done[0] == 0, done[2]
    rows = list(RunFolder(out).rows())
    assert len(rows) == 4
    sites = {(n["layer"], n["index"]): row["id"] for row in rows for n in row["located"]["neurons"]}
    (layer, index), fact = next(iter(sites.items()))
    command = ("neuron", str(layer), str(index), "--card", "--corpus", corpus, "--located", str(out))
    record = json.loads(run(*command, "--json")[1])
    assert fact in [one["fact"] for one in record["located"]]
    assert record["on_facts"]["suppressed"]["n"] == len(record["located"])
    status, text, _ = run(*command)
    assert status == 0 and fact in text and "set to 0: the facts that share it" in text and "⟦" in text
    fails(run(*command[:-1], str(tmp_path)), "is no run")
    rows[0]["located"]["weights_hash"] = "0" * 64
    (out / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fails(run(*command), "other weights")


def test_memory_is_one_json_object(run, corpus, some_facts, tmp_path):
    picture = tmp_path / "memory.svg"
    status, out, err = run(
        "memory", "--corpus", corpus, "--facts", some_facts, "--prefixes", "8", "--groups", "1", "--json", "--figure",
        str(picture),
    )  # fmt: skip
    assert status == 0, err
    record = json.loads(out)
    assert record["schema"] == "knowedit.memory/1" and record["tokens"] > 100 and len(record["facts"]) == 24
    assert [k["layer"] for k in record["keys"]["keys"]] == [0, 1, 2]
    assert set(record["keys"]["keys"][0]["dead"]) == {"first", "last", "random"}
    assert set(record["keys"]["agreement"][0]["agree"]) == ESTIMATE
    assert 0 <= record["keys"]["mean_compositional"]["value"] <= 1
    assert [k["share"] for k in record["sparsity"]["kept"]] == [0.05, 0.1, 0.2, 0.3, 0.5]
    assert set(record["sparsity"]["kept"][0]) == {"share", "ratio", "top1", "random_ratio", "random_top1"}
    assert len(record["sparsity"]["layers"]) == 3 and record["sparsity"]["groups"]["layer"] == 1
    assert record["polysemanticity"]["relations"] == {"home": 12, "work": 12}
    assert set(record["polysemanticity"]["rotated"]) >= {"used", "polysemantic", "general", "histogram"}
    assert picture.read_text().startswith("<?xml") and "<svg" in picture.read_text()


def test_memory_prints_what_is_asked_for(run, corpus, some_facts):
    status, out, _ = run("memory", "--what", "sparsity", "--layers", "1-2", "--corpus", corpus, "--facts", some_facts)
    assert status == 0 and "Sparsity" in out and "Keys and values" not in out and "24 facts" in out
    status, out, _ = run("memory", "--what", "keys", "--prefixes", "4", "--corpus", corpus, "--layers", "2")
    assert status == 0 and "Keys and values" in out and "Sparsity" not in out
    status, out, _ = run("memory", "--what", "polysemanticity", "--facts", some_facts)
    assert status == 0 and "rotated basis" in out
    status, out, _ = run("memory", "--what", "sparsity", "--groups", "0", "--corpus", corpus, "--facts", some_facts)
    assert status == 0 and "neurons in" in out


def test_keys_are_for_decoders(run, masked):
    fails(run("memory", "--what", "keys", model=masked), "masked model", "take a decoder")
    fails(run("neuron", "0", "1", "--card", "--corpus", "samples", model=masked), "cannot sample")
    status, out, _ = run("neuron", "0", "1", "--card", "--tokens", "200", "--json", model=masked)
    assert status == 0 and json.loads(out)["on_texts"] is None


def test_hostile_corpora_are_inert(run, tmp_path, recwarn):
    """Markup, escapes and mathtext are shown as they are, in the terminal and in the figure."""
    path = tmp_path / "hostile.txt"
    path.write_text(f"{HOSTILE} <script>alert(1)</script> $\\frac{{1}}$ \x1b]0;owned\x07 \u202e São 東京 \n" * 4)
    status, out, err = run("neuron", "1", "3", "--card", "--corpus", str(path))
    assert status == 0, err
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    found = card(tiny("gpt2"), 1, 2, str(path))
    assert any(mark in t.before + t.token + t.after for t in found.triggers for mark in ("\x1b", "<script>", "$"))
    drawn = found.figure(tmp_path / "card.svg").read_text()
    assert "<script>" not in drawn and not [w for w in recwarn if "Glyph" in str(w.message)]


def test_bad_input_is_one_line(run, tmp_path):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "wrong.jsonl").write_text('{"words": 1}\n')
    card = ("neuron", "1", "3", "--card")
    for arguments, words in (
        ((*card, "--corpus", str(empty)), ("holds no text",)),
        ((*card, "--corpus", str(binary)), ("not UTF-8",)),
        ((*card, "--corpus", str(tmp_path / "wrong.jsonl")), ("line 1", "text")),
        ((*card, "--corpus", str(tmp_path / "nothing.txt")), ("nothing.txt",)),
        ((*card, "--corpus", "buildin"), ("did you mean 'builtin'",)),
        ((*card, "--tokens", "0"), ("tokens",)),
        ((*card, "--figure", str(tmp_path / "card.gif")), (".gif",)),
        ((*card, "--figure", str(tmp_path / "none" / "card.png")), ("no folder",)),
        ((*card, "--located", str(tmp_path)), ("is no run", "give the folder of a run")),
        (("neuron", "1", "3", "--corpus", "builtin"), ("--corpus", "--card")),
        (("neuron", "1", "3", "--figure", "x.png"), ("--figure", "--card")),
        (("neuron", "9", "3", "--card"), ("layer 9 is out of range",)),
        (("neuron", "1", "99", "--card"), ("99 is out of range",)),
        (("memory", "--what", "kees"), ("did you mean 'keys'",)),
        (("memory", "--layers", "0-9"), ("layer 3 is out of range",)),
        (("memory", "--layers", "x"), ("'x'",)),
        (("memory", "--at", "lookup"), ("lookup",)),
        (("memory", "--what", "keys", "--groups", "1"), ("--what sparsity",)),
        (("memory", "--what", "sparsity", "--groups", "7"), ("layer 7",)),
        (("memory", "--corpus", str(empty)), ("holds no text",)),
        (("memory", "--figure", str(tmp_path / "card.txt")), (".txt",)),
        (("memory", "--what", "polysemanticity", "--facts", str(tmp_path / "no.jsonl")), ("no.jsonl",)),
    ):
        fails(run(*arguments), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["binary.txt", "empty.txt", "wrong.jsonl"]
