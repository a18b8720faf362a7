"""Rows of text: the same at every reading, from whatever source, and nothing but text where it counts."""

import json

import pytest
import torch
from support.edits import random_edit
from support.tiny import DECODERS, tiny

from knowedit.edit.apply import applied
from knowedit.errors import DataError, InputError
from knowedit.memory.corpus_scan import scan
from knowedit.sources import builtin_facts
from knowedit.texts import corpus as corpora
from knowedit.texts.corpus import Samples, contexts, corpus
from knowedit.texts.rows import frame, special, text_of
from knowedit.texts.sources import BuiltinText, HubText, TextFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def text_ids(model, rows) -> list[int]:
    return [token for batch in rows for token in batch[:, text_of(model)].flatten().tolist()]


# ---------------------------------------------------------------- samples


@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_samples_are_drawn_from_the_models_own_distribution(doubled, family):
    """Step by step on a cache is the same as whole passes, with the same numbers drawn."""
    model = tiny(family, torch.float64)
    found = corpora._sampled(model, 3, 8, "seed")
    number = int.from_bytes(corpora.hashlib.sha256(b"seed").digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(number)
    ids = torch.full((3, 1), frame(model)[0])
    for _ in range(8):
        with torch.no_grad():
            logits = model.hf(input_ids=ids, use_cache=False).logits[:, -1]
        logits[:, special(model)] = -torch.inf
        p = logits.softmax(-1)
        u = 1 - torch.rand(3, 1, generator=generator)
        ids = torch.cat([ids, (p.cumsum(-1) < u * p.sum(-1, keepdim=True)).sum(-1, keepdim=True)], dim=1)
    assert torch.equal(found, ids)


def test_samples_follow_the_probabilities():
    model = tiny("gpt2", scale=0.5)
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([[frame(model)[0]]])).logits[0, -1]
    logits[special(model)] = -torch.inf
    wanted = logits.softmax(-1)
    drawn = corpora._sampled(model, 20_000, 1, "frequencies")[:, 1]
    found = torch.bincount(drawn, minlength=model.vocabulary) / len(drawn)
    assert (found - wanted).abs().max() < 5 * (wanted.max() / len(drawn)).sqrt()
    assert not found[special(model)].any()


def test_samples_are_repeatable_and_leave_random_states_alone():
    model = tiny("llama")
    before = torch.get_rng_state()
    rows = [list(Samples(seed=seed, per_row=10).batches(model, 2000)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [batch.shape for batch in rows[0]] == [(128, 11), (72, 11)]
    assert all(torch.equal(a, b) for a, b in zip(rows[0], rows[1], strict=True))
    assert not torch.equal(rows[0][0], rows[2][0])
    assert not torch.equal(rows[0][0][:72], rows[0][1])  # batches differ
    assert not set(text_ids(model, rows[0])) & set(special(model))
    assert (rows[0][0][:, 0] == model.tokenizer.bos_token_id).all()
    (again,) = Samples(seed=0, per_row=10).batches(model, 2000, done=1280)
    assert torch.equal(again, rows[0][1])


def test_what_a_model_said_is_kept_for_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model, calls = tiny("llama"), []
    sampled = corpora._sampled
    monkeypatch.setattr(corpora, "_sampled", lambda *args: calls.append(args) or sampled(*args))

    def read(weights_hash, **other):
        return list(Samples(per_row=10, weights_hash=weights_hash, **other).batches(model, 2000))

    wanted = read(None)
    for weights_hash in ("kept", "kept", "other", "kept"):
        assert all(torch.equal(a, b) for a, b in zip(read(weights_hash), wanted, strict=True))
    assert len(calls) == 2 * 3  # two batches without a hash, and for each of two
    read("kept", seed=1)
    assert len(calls) == 2 * 4
    assert Samples(weights_hash="kept").identity(model) == Samples().identity(model)


def test_a_scan_of_an_altered_model_leaves_no_text_for_the_unaltered_one(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model = tiny("llama")
    with applied(model, random_edit(model, 1), mode="hook"):
        scan(model, "samples", tokens=200, weights_hash="of the weights")
    assert not list(tmp_path.rglob("*.safetensors"))
    scan(model, "samples", tokens=200, weights_hash="of the weights")
    assert {path.parent.name for path in tmp_path.rglob("*.safetensors")} == {"samples", "scans"}


def test_rows_fit_into_the_models_positions():
    model = tiny("gpt2")
    (rows,) = Samples().batches(model, 126)
    assert rows.shape == (2, 64)
    assert Samples().identity(model)["per_row"] == 63


# ---------------------------------------------------------------- contexts


def test_contexts_are_short_plain_texts():
    model = tiny("llama")
    before = torch.get_rng_state()
    texts = contexts(model, 7, (2, 9), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(texts) == 7 and texts == contexts(model, 7, (2, 9), seed=3) != contexts(model, 7, (2, 9), seed=4)
    for text in texts:
        assert text and text == " ".join(text.split()) and "\ufffd" not in text
        assert not any(token in text for token in model.tokenizer.all_special_tokens)
    short, long = (sum(map(len, texts[i::2])) / len(texts[i::2]) for i in (0, 1))
    assert short < long


def test_contexts_take_one_run_for_each_length(monkeypatch):
    model = tiny("gpt2")
    calls = []
    sampled = corpora._sampled
    monkeypatch.setattr(corpora, "_sampled", lambda *args: calls.append(args) or sampled(*args))
    assert len(contexts(model, 5)) == 5
    assert sorted(tokens for _, _, tokens, _ in calls) == [5, 10]


def test_no_contexts_where_none_can_be():
    assert contexts(tiny("bert"), 3) == ()
    assert contexts(tiny("gpt2"), 0) == ()


@pytest.mark.parametrize(
    "n, lengths, seed, said",
    [(-1, (5,), 0, "-1"), (1.5, (5,), 0, "1.5"), (1, (), 0, "()"), (1, (0,), 0, "(0,)"), (1, (5,), "x", "'x'")],
)
def test_wrong_contexts(n, lengths, seed, said):
    with pytest.raises(InputError) as caught:
        contexts(tiny("gpt2"), n, lengths, seed=seed)
    assert said in str(caught.value) and "expected" in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- given text


def test_a_text_file_is_its_tokens_in_rows(tmp_path):
    model = tiny("gpt2")
    text = "The capital of Japan is Tokyo. São Tomé! 東京\n" * 40 + "x"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark
    given = TextFile(tmp_path / "a.txt", per_row=20)
    wanted = model.tokenizer(text)["input_ids"]
    assert len(wanted) % 20
    rows = list(given.batches(model, 10**6))
    assert text_ids(model, rows) == wanted
    assert {len(row) for batch in rows for row in batch[:, 1:]} == {20, len(wanted) % 20}
    assert all((batch[:, 0] == model.tokenizer.bos_token_id).all() for batch in rows)
    assert text_ids(model, given.batches(model, 333)) == wanted[:333]
    assert text_ids(model, given.batches(model, 1500, done=1280)) == wanted[1280:1500]
    assert not list(given.batches(model, 100, done=100))


def test_long_files_are_read_in_pieces_without_cutting_words(tmp_path):
    model = tiny("gpt2")
    text = "".join(f"{i} is a number and not a word\n" for i in range(4000))
    (tmp_path / "a.txt").write_text(text)
    pieces = list(TextFile(tmp_path / "a.txt").texts())
    assert len(pieces) > 1 and "".join(pieces) == text and all(piece.endswith("\n") for piece in pieces)
    assert model.tokenizer.decode(text_ids(model, TextFile(tmp_path / "a.txt").batches(model, 500))) in text


def test_jsonl_holds_texts(tmp_path):
    model = tiny("llama")
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "id": 1}\n\n{"text": "half a \\ud800 character"}\n')
    found = text_ids(model, TextFile(path).batches(model, 1000))
    assert model.tokenizer.decode(found) == "one\n\nhalf a ? character\n\n"


def test_masked_rows_begin_and_end_with_their_special_tokens():
    model = tiny("bert")
    (rows,) = corpus("builtin").batches(model, 620)
    tok = model.tokenizer
    assert rows.shape == (10, 64) and (rows[:, 0] == tok.cls_token_id).all() and (rows[:, -1] == tok.sep_token_id).all()
    assert len(text_ids(model, [rows])) == 620
    fact = builtin_facts()[0]
    first = tok(f"{fact.prompt} {fact.target}.", add_special_tokens=False)["input_ids"]
    assert text_ids(model, [rows])[: len(first)] == first


def test_builtin_text_is_enough_for_a_masked_model_of_usual_size():
    words = sum(len(text.split()) for text in corpus("builtin").texts())
    assert words > 4 * 3072
    heldout = {template for fact in builtin_facts() for template in fact.heldout}
    assert heldout and all(fact.template not in heldout for fact in builtin_facts())


def test_mixed_builtin_text_is_the_same_sentences_evenly():
    plain, mixed = list(BuiltinText().texts()), list(BuiltinText(mixed=True).texts())
    assert sorted(plain) == sorted(mixed) and BuiltinText().what() != BuiltinText(mixed=True).what()
    relations = {f.relation for f in builtin_facts()}
    opening = [f for f in builtin_facts() if f"{f.prompt} {f.target}.\n" in set(mixed[:100])]
    assert {f.relation for f in opening} == relations


def test_identity_says_what_decides_the_rows(tmp_path):
    gpt2, llama = tiny("gpt2"), tiny("llama")
    for name in ("a.txt", "b.txt", "c.txt", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}' if name != "c.txt" else "another")
    same, renamed, other, kind = (TextFile(tmp_path / n).identity(gpt2) for n in ("a.txt", "b.txt", "c.txt", "a.jsonl"))
    assert same == renamed and same != other and same != kind
    assert TextFile(tmp_path / "a.txt").identity(llama) != same
    assert TextFile(tmp_path / "a.txt", per_row=7).identity(gpt2) != same
    assert Samples(seed=1).identity(gpt2) != Samples(seed=2).identity(gpt2)
    gpt2.tokenizer("a", padding="max_length", max_length=9, truncation=True)  # the tokenizer remembers such a call
    assert TextFile(tmp_path / "a.txt").identity(gpt2) == same
    json.dumps(same)


# ---------------------------------------------------------------- data sets


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets.load_dataset` that streams a local file, whatever is asked of the Hub."""
    import datasets

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"id": i, "text": f"Text number {i}."}) + "\n" for i in range(50)))
    asked = []
    real = datasets.load_dataset

    def load(name, config, **kwargs):
        asked.append((name, config, kwargs))
        return real("json", data_files=str(file), split=kwargs["split"], streaming=kwargs["streaming"])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked, file


def test_a_data_set_is_streamed_at_a_fixed_commit(hub):
    asked, _ = hub
    model = tiny("gpt2")
    text = corpus(f"Salesforce/wikitext:wikitext-103-raw-v1@{COMMIT}")
    found = text_ids(model, text.batches(model, 60))
    assert model.tokenizer.decode(found).startswith("Text number 0.\n\nText number 1.\n\n") and len(found) == 60
    assert text_ids(model, text.batches(model, 60, done=32)) == found[32:]
    assert asked[0] == (
        "Salesforce/wikitext",
        "wikitext-103-raw-v1",
        {"split": "train", "revision": COMMIT, "streaming": True},
    )
    assert text.identity(model)["revision"] == COMMIT


def test_the_present_commit_is_looked_up(hub, monkeypatch):
    import huggingface_hub

    class Info:
        sha = COMMIT

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision=None: Info())
    assert corpus("wikimedia/wikipedia:20231101.en").what()["revision"] == COMMIT


def test_a_data_set_out_of_reach(monkeypatch):
    import datasets

    with pytest.raises(InputError) as caught:  # no network in the tests
        corpus("wikimedia/wikipedia:20231101.en").identity(tiny("gpt2"))
    assert "cannot read the data set 'wikimedia/wikipedia'" in str(caught.value) and "\n" not in str(caught.value)

    def stream(*_, **__):
        yield {"text": "one"}
        raise ConnectionResetError("line one\nline two")

    monkeypatch.setattr(datasets, "load_dataset", stream)
    with pytest.raises(InputError) as caught:
        list(corpus(f"a/b@{COMMIT}").batches(tiny("gpt2"), 1000))
    assert "ConnectionResetError" in str(caught.value) and "\n" not in str(caught.value)


def test_a_data_set_without_text(hub):
    _, file = hub
    file.write_text('{"sentence": "x"}\n')
    with pytest.raises(InputError, match="found 'sentence', expected text in the field \"text\""):
        list(HubText("a/b", revision=COMMIT).batches(tiny("gpt2"), 10))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("source", ["sample", "wikipedia", "a/b/c", "/x", "", 7, "notes.pdf"])
def test_unknown_sources(source):
    with pytest.raises(InputError) as caught:
        corpus(source)
    assert repr(source) in str(caught.value) and "\n" not in str(caught.value)
    if source == "sample":
        assert "did you mean 'samples'" in str(caught.value)


FILES = {
    "missing.txt": (None, InputError, "No such file"),
    "latin.txt": (b"Z\xfcrich", DataError, "not UTF-8"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', DataError, "line 2: not JSON"),
    "deep.jsonl": (b"[" * 100_000, DataError, "line 1: not JSON"),
    "list.jsonl": (b"[1]", InputError, "found list"),
    "field.jsonl": (b'{"body": "a"}', InputError, "found 'body'"),
    "number.jsonl": (b'{"text": 3}', InputError, "expected text"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_used(tmp_path, name):
    content, error, said = FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        list(corpus(str(tmp_path / name)).batches(tiny("gpt2"), 100))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_masked_models_say_nothing_by_themselves():
    with pytest.raises(InputError, match="masked model, which cannot sample text; give"):
        Samples().identity(tiny("bert"))


@pytest.mark.parametrize(
    "make", [lambda: Samples(seed=1.5), lambda: Samples(per_row=0), lambda: TextFile("a.txt", per_row=0)]
)
def test_configs_check_themselves(make):
    with pytest.raises(InputError, match="expected"):
        make()
