"""Key covariances: the plain loop's numbers from one pass, kept soundly, taken up again to the bit."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.commands import LIMIT
from support.counts import counted
from support.rounding import assert_near, near
from support.tiny import FAMILIES, N_NEURONS, tiny

import knowedit.edit.covariance as module
from knowedit.edit.covariance import Covariance, covariance, default_tokens
from knowedit.edit.delta import LowRank, weight_hash
from knowedit.edit.edit import Edit
from knowedit.errors import InputError, ModelError
from knowedit.models import tensor_cache
from knowedit.models.intervene import amplify
from knowedit.texts import corpus as corpora
from knowedit.texts.corpus import corpus

TEXT = "The capital of Japan is Tokyo. Danielle Darrieux was born in the city of Bordeaux. "


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where caches are named by a relative path
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "covariance"


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "text.txt").write_text("".join(f"{i}. {TEXT}\n" for i in range(100)))
    return str(tmp_path / "text.txt")


@pytest.fixture
def calls(monkeypatch) -> list:
    """A list that grows whenever something is computed rather than read."""
    made = []
    computed = module._computed
    monkeypatch.setattr(module, "_computed", lambda *args: made.append(1) or computed(*args))
    return made


def plain(model, layer: int, source: str, tokens: int, seed: int = 0) -> torch.Tensor:
    """Σ k kᵀ / tokens by the definition: a whole pass a row, with a hook on one module, in float64."""
    keys = []
    hook = model.down(layer).register_forward_pre_hook(lambda _, args: keys.append(args[0]))
    last = -1 if model.masked else None
    found = []
    for rows in corpus(source, seed=seed).batches(model, tokens):
        for row in rows:
            keys.clear()
            with torch.no_grad():
                model.hf(input_ids=row[None], attention_mask=torch.ones_like(row[None]))
            found += list(keys[0].reshape(len(row), -1)[1:last].double())
    hook.remove()
    k = torch.stack(found[:tokens])
    return k.T @ k / len(k)


def close(found: Covariance, wanted: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return (found.C.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


# ---------------------------------------------------------------- the numbers


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_gives_what_a_loop_over_layers_gives(family, text):
    model = tiny(family)
    layers = range(model.n_layers)
    found = covariance(model, layers, source=text, tokens=500)
    assert list(found) == list(layers)
    for layer, C in found.items():
        assert (C.layer, C.tokens, C.C.dtype, C.C.shape) == (layer, 500, torch.float32, (model.n_neurons,) * 2)
        assert close(C, plain(model, layer, text, 500)) and torch.equal(C.C, C.C.T)


def test_samples_of_the_model_are_the_default(calls):
    model = tiny("llama")
    before = torch.get_rng_state()
    found = covariance(model, [2, 0, 2], tokens=300, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(found) == [0, 2] and found[0].source["kind"] == "samples" and len(calls) == 1
    assert close(found[2], plain(model, 2, "samples", 300, seed=5))
    other = covariance(model, [2], tokens=300, seed=6)[2]
    assert not close(other, found[2].C.double(), 1e-2)


def test_further_layers_read_what_the_model_said_before(monkeypatch):
    model, said = tiny("llama"), []
    sampled = corpora._sampled
    monkeypatch.setattr(corpora, "_sampled", lambda *args: said.append(args) or sampled(*args))
    first = covariance(model, [0], tokens=300, seed=7)[0]
    second = covariance(model, [1], tokens=300, seed=7)[1]
    assert len(said) == 1 and first.tokens == second.tokens == 300
    assert close(second, plain(model, 1, "samples", 300, seed=7))


def test_what_an_altered_model_says_is_not_kept(root):
    model = tiny("llama")
    with amplify(model, [(0, index) for index in range(8)], 9.0, at="all"):
        altered = covariance(model, [1], tokens=300)[1]
        assert altered.solve(torch.ones(model.n_neurons)).isfinite().all()
    assert not root.parent.exists()
    assert not close(covariance(model, [1], tokens=300)[1], altered.C.double(), 1e-2)


def test_a_cache_of_ones_own_holds_all_that_is_kept(tmp_path):
    covariance(tiny("llama"), [0], tokens=300, cache="own")
    assert not (tmp_path / "cache").exists() and len(list((tmp_path / "own").glob("*.safetensors"))) == 1


def test_masked_models_read_the_builtin_facts():
    model = tiny("bert")
    found = covariance(model, [1], tokens=400)[1]
    assert found.source["kind"] == "builtin" and close(found, plain(model, 1, "builtin", 400))


@pytest.mark.parametrize("tokens", [97, 126, 127, 1008, 1009])
def test_the_budget_is_exact(tokens, text):
    """Also where it ends inside of a row (63 tokens of text) or of a part (16 rows)."""
    model = tiny("gpt2")
    found = covariance(model, [0], source=text, tokens=tokens)[0]
    assert found.tokens == tokens and close(found, plain(model, 0, text, tokens))


@pytest.mark.parametrize("family, ends", [("gpt2", 1), ("bert", 2)])
def test_special_positions_are_left_out(family, ends, text):
    """Keys that are enormous wherever no text stands change nothing."""
    model = tiny(family)
    clean = covariance(model, [0], source=text, tokens=200)[0]

    def spoil(_, args):
        x = args[0].clone()
        x[:, 0] = 1e6
        if ends == 2:
            x[:, -1] = 1e6
        return (x,)

    hook = model.down(0).register_forward_pre_hook(spoil)
    again = covariance(model, [0], source=text, tokens=200, cache="elsewhere-" + family)[0]
    hook.remove()
    assert torch.equal(clean.C, again.C)


def test_the_pass_ends_at_the_highest_wanted_layer(text):
    model = tiny("llama")
    seen = []
    hooks = [block.register_forward_pre_hook(lambda *_, i=i: seen.append(i)) for i, block in enumerate(model.blocks)]
    covariance(model, [1], source=text, tokens=126)
    for hook in hooks:
        hook.remove()
    assert seen == [0, 1]
    assert not any(model.down(layer)._forward_pre_hooks for layer in range(model.n_layers))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keys_are_added_up_in_float32(dtype, text):
    model = tiny("llama", dtype)
    assert close(covariance(model, [1], source=text, tokens=2000)[1], plain(model, 1, text, 2000), 2e-2)
    ones = 3000  # bfloat16 counts to 256 and float16 to 2048
    hook = model.down(0).register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]),))
    found = covariance(model, [0], source=text, tokens=ones, cache="ones")[0]
    hook.remove()
    assert torch.equal(found.C, torch.ones(N_NEURONS, N_NEURONS))


def test_it_is_that_of_the_unedited_model(text, calls):
    model = tiny("gpt2")
    clean = covariance(model, [0, 2], source=text, tokens=300)
    path, weight = model.down_path(0), model.down_weight(0)
    delta = LowRank(torch.ones(weight.shape[0], 1), torch.ones(weight.shape[1], 1))
    edit = Edit({path: delta}, {path: weight_hash(weight)}, method="test")
    with edit.applied(model):
        edited = model.down_weight(0).clone()
        again = covariance(model, [0, 2], source=text, tokens=300, cache="fresh")
        kept = covariance(model, [0, 2], source=text, tokens=300)
        assert torch.equal(model.down_weight(0), edited)
    assert len(calls) == 2
    assert all(torch.equal(clean[i].C, again[i].C) and torch.equal(clean[i].C, kept[i].C) for i in (0, 2))


# ---------------------------------------------------------------- solving


def test_solve_is_the_shrunk_inverse():
    keys = torch.randn(200, 48) * torch.logspace(0, 2, 48)
    C = Covariance(0, keys.T @ keys / 200, 200, {})
    k = torch.randn(48, 3)
    for shrinkage in (None, 0.0, 0.5):
        ridge = (0.01 if shrinkage is None else shrinkage) * C.C.double().diagonal().mean()
        A = C.C.double() + ridge * torch.eye(48, dtype=torch.float64)
        wanted = torch.linalg.solve(A, k.double())
        size = torch.linalg.cond(A) * wanted.abs().max()  # solving multiplies rounding by so much
        found = C.solve(k, shrinkage)
        assert found.dtype == torch.float64
        assert_near(found, wanted, size, operations=48)
        assert_near(C.solve(k[:, 0].requires_grad_(), shrinkage), wanted[:, 0], size, operations=48)
        k = k.detach()


def test_the_factor_is_computed_once():
    C = Covariance(0, torch.eye(4, dtype=torch.float64), 10, {})
    with counted() as counts:
        for shrinkage in (None, 0.01, None, 0.5, 0.5):
            C.solve(torch.ones(4), shrinkage)
    assert counts.names["aten::linalg_cholesky_ex.L"] == 2
    assert torch.equal(C.C, torch.eye(4))  # and C is as it was


def test_factors_lie_beside_C_and_are_right_after_any_change(text, root):
    model, keys = tiny("llama"), torch.randn(5, N_NEURONS, generator=torch.Generator().manual_seed(0))
    changes = {
        "C": lambda C: C.solve(torch.ones(N_NEURONS)),
        "another shrinkage": lambda C: C.solve(torch.ones(N_NEURONS), 0.5),
        "keys": lambda C: C.plus(keys, 3.0).solve(torch.ones(N_NEURONS)),
        "another weight": lambda C: C.plus(keys, 1.0).solve(torch.ones(N_NEURONS)),
        "other keys": lambda C: C.plus(keys[:4], 3.0).solve(torch.ones(N_NEURONS)),
    }

    def solved(layer: int) -> tuple[int, list[torch.Tensor]]:
        """Of a new process: how many factors are made, and what C and its changes give."""
        with counted() as counts:
            found = [change(covariance(model, [layer], source=text, tokens=300)[layer]) for change in changes.values()]
        return counts.names["aten::linalg_cholesky_ex.L"], found

    for layer in (0, 2):
        C = replace(covariance(model, [layer], source=text, tokens=300)[layer], kept=None)
        wanted = [change(C) for change in changes.values()]
        (made, first), (made_again, again) = solved(layer), solved(layer)
        assert (made, made_again) == (len(changes), 0)
        assert all(torch.equal(*pair) for pair in zip(first + again, 2 * wanted, strict=True))
    assert sum(path.suffix == ".safetensors" for path in root.iterdir()) == 2 * (1 + len(changes))


def test_a_damaged_factor_is_made_again(text, root, caplog):
    ones = torch.ones(N_NEURONS)
    C = covariance(tiny("llama"), [0], source=text, tokens=300)[0]
    of_C = set(root.glob("*.safetensors"))
    wanted = C.solve(ones)
    (path,) = set(root.glob("*.safetensors")) - of_C
    flip(path, path.stat().st_size - 50)
    with caplog.at_level(logging.WARNING), counted() as counts:
        again, once_more = (replace(C).solve(ones) for _ in range(2))
    assert "is damaged; it is computed again" in caplog.text and counts.names["aten::linalg_cholesky_ex.L"] == 1
    assert torch.equal(again, wanted) and torch.equal(once_more, wanted)


def test_where_nothing_can_be_written_the_factor_is_made_each_time(text, monkeypatch):
    C = covariance(tiny("llama"), [0], source=text, tokens=300)[0]
    monkeypatch.setattr(tensor_cache, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only")))
    with counted() as counts:
        one, two = (replace(C).solve(torch.ones(N_NEURONS)) for _ in range(2))
    assert torch.equal(one, two) and counts.names["aten::linalg_cholesky_ex.L"] == 2


@pytest.mark.parametrize(("device", "where"), [("cuda:1", "cuda:1"), ("mps:0", "cpu"), ("cpu", "cpu"), ("meta", "cpu")])
def test_it_is_solved_where_the_weights_are_if_float64_is_there(device, where):
    weight = SimpleNamespace(device=torch.device(device))
    model = SimpleNamespace(down=lambda layer: SimpleNamespace(weight=weight))
    assert module._device(model, 3) == torch.device(where)


def test_conditioning_reports_what_is_known():
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    found = Covariance(0, rotation @ values.diag() @ rotation.T, 3, {}).conditioning(0.5)
    shares = values.numpy() / 8
    assert found["condition"] == near((4 + 1) / (1 + 1), size=4, operations=4 * 4)
    assert found["effective_rank"] == near(np.exp(-(shares * np.log(shares)).sum()), size=4, operations=4 * 4)
    assert found["trace"] == near(8, operations=4 * 4)
    assert found["largest_share"] == near(0.5, operations=4 * 4)
    assert found["tokens_per_neuron"] == 0.75 and found["fewer_tokens_than_neurons"] is True
    json.dumps(found)
    assert Covariance(0, torch.zeros(4, 4), 3, {}).conditioning(0)["condition"] is None
    assert Covariance(0, torch.eye(4), 30, {}).conditioning()["fewer_tokens_than_neurons"] is False


# ---------------------------------------------------------------- the cache


def test_what_is_kept_is_not_computed_again(text, calls, root):
    model = tiny("llama")
    first = covariance(model, [0, 2], source=text, tokens=300)
    assert len(calls) == 1
    again = covariance(model, [0, 1, 2], source=text, tokens=300)
    assert len(calls) == 2  # for layer 1
    once_more = covariance(model, [2, 1], source=text, tokens=300)
    assert len(calls) == 2
    assert torch.equal(first[2].C, again[2].C) and torch.equal(again[1].C, once_more[1].C)
    assert again[0].source == first[0].source and again[0].tokens == 300
    assert sum(path.suffix == ".safetensors" for path in root.iterdir()) == 3
    assert not [p for p in root.iterdir() if p.suffix == ".part" or ".tmp-" in p.name]


def test_anything_else_is_another_entry(text, tmp_path, calls):
    (tmp_path / "other.txt").write_text(TEXT * 80)
    model, other = tiny("llama"), tiny("llama", seed=1)
    requests = [
        (model, {"source": text, "tokens": 300}),
        (model, {"source": text, "tokens": 301}),
        (other, {"source": text, "tokens": 300}),
        (model, {"source": str(tmp_path / "other.txt"), "tokens": 300}),
        (model, {"source": "samples", "tokens": 300}),
        (model, {"source": "samples", "tokens": 300, "seed": 1}),
        (tiny("llama", torch.bfloat16), {"source": text, "tokens": 300}),
    ]
    for number, (which, request) in enumerate(requests, 1):
        covariance(which, [0], **request)
        assert len(calls) == number
    for which, request in requests:
        covariance(which, [0], **request)
    assert len(calls) == len(requests)


def flip(path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda p, other: p.write_bytes(p.read_bytes()[:-100]),
    "empty": lambda p, other: p.write_bytes(b""),
    "one bit of C": lambda p, other: flip(p, p.stat().st_size - 50),
    "one bit of the record": lambda p, other: flip(p, p.read_bytes().index(b"300")),
    "one bit of the length": lambda p, other: flip(p, 2),
    "another key's file": lambda p, other: p.write_bytes(other.read_bytes()),
    "no file of ours": lambda p, other: p.write_text("hello"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_never_trusted(kind, text, calls, root, caplog):
    model = tiny("llama")
    wanted = covariance(model, [0], source=text, tokens=300)[0]
    (path,) = root.glob("*.safetensors")
    covariance(model, [1], source=text, tokens=300)
    (other,) = set(root.glob("*.safetensors")) - {path}
    DAMAGES[kind](path, other)
    with caplog.at_level(logging.WARNING):
        again = covariance(model, [0], source=text, tokens=300)[0]
    assert len(calls) == 3 and torch.equal(again.C, wanted.C) and again.tokens == 300
    assert "is damaged; it is computed again" in caplog.text
    covariance(model, [0], source=text, tokens=300)
    assert len(calls) == 3  # mended


def test_every_flipped_bit_is_noticed_or_harmless(text, root):
    model = tiny("gpt2", n_inner=8)
    wanted = covariance(model, [0], source=text, tokens=100)[0]
    (path,) = root.glob("*.safetensors")
    sound = path.read_bytes()
    store, noticed = tensor_cache.TensorCache(root), 0
    for position in range(0, len(sound), 3):
        flip(path, position)
        read = store.read(path.stem, {"C": (8, 8)})
        noticed += read is None
        assert read is None or (torch.equal(read[1]["C"], wanted.C) and read[0]["tokens"] == 100), position
        path.write_bytes(sound)
    assert noticed > 0.9 * len(range(0, len(sound), 3))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("source", ["text", "samples"])
def test_a_killed_run_goes_on_to_the_same_bits(source, text, root, monkeypatch):
    source = text if source == "text" else source
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr("knowedit.texts.corpus.BATCH_ROWS", 8)
    monkeypatch.setattr("knowedit.texts.sources.BATCH_ROWS", 8)
    model = tiny("llama")
    request = {"source": source, "tokens": 1700}  # 4 batches of 504 tokens, the last one broken
    whole = covariance(model, [0, 2], **request, cache="whole")

    def kill(done: int) -> None:
        if done > 1100:
            raise Killed

    with pytest.raises(Killed):
        covariance(model, [0, 2], **request, progress=kill)
    (part,) = root.glob("*.part")
    assert not list(root.glob("*.safetensors"))
    seen = []
    again = covariance(model, [0, 2], **request, progress=seen.append)
    assert seen[0] > 1008 and seen[-1] == 1700
    assert all(torch.equal(whole[i].C, again[i].C) and whole[i].tokens == again[i].tokens for i in (0, 2))
    assert not part.exists()


def test_damaged_sums_are_begun_again(text, root, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr("knowedit.texts.sources.BATCH_ROWS", 8)
    model = tiny("llama")

    def kill(done: int) -> None:
        if done > 600:
            raise Killed

    with pytest.raises(Killed):
        covariance(model, [0], source=text, tokens=1000, progress=kill)
    (part,) = root.glob("*.part")
    flip(part, part.stat().st_size - 9)
    left = root / f".{part.stem}.tmp-left"
    left.write_text("of a killed writer")
    seen = []
    found = covariance(model, [0], source=text, tokens=1000, progress=seen.append)[0]
    assert seen[0] < 600 and close(found, plain(model, 0, text, 1000)) and not left.exists()


def test_two_at_once_do_the_work_once(text, root, monkeypatch):
    """Both see nothing kept; the one that waits for the other then reads what that one made."""
    computations, looks = [], threading.local()
    computed, cached, both = module._computed, module._cached, threading.Barrier(2)

    def look(*args):
        kept = cached(*args)
        if not hasattr(looks, "first"):  # each thread's first look ends when the other's has
            looks.first = kept
            both.wait(LIMIT)
        return kept

    monkeypatch.setattr(module, "_cached", look)
    monkeypatch.setattr(module, "_computed", lambda *args: computations.append(1) or computed(*args))
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(covariance, tiny("llama"), [1], source=text, tokens=1000) for _ in range(2)]
        one, two = (run.result(LIMIT)[1] for run in runs)
    assert len(computations) == 1 and torch.equal(one.C, two.C)


def test_a_cache_that_cannot_be_written(text, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot write the cache .*; set KNOWEDIT_CACHE"):
        covariance(tiny("gpt2"), [0], source=text, tokens=200, cache=tmp_path / "file" / "x")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_cache, "save_file", full)
    with pytest.raises(ModelError, match="No space left on device"):
        covariance(tiny("gpt2"), [0], source=text, tokens=200, cache="full")
    assert not [p for p in (tmp_path / "full").iterdir() if p.suffix == ".safetensors" or ".tmp-" in p.name]


# ---------------------------------------------------------------- budgets and bad input


def test_default_budget():
    assert default_tokens(tiny("gpt2")) == 8192
    assert default_tokens(tiny("gpt2", n_inner=4096)) == 16384


def test_without_a_budget_a_short_text_is_read_whole(text, calls):
    model = tiny("gpt2")
    found = covariance(model, [0], source=text)[0]
    total = len(model.tokenizer(Path(text).read_text())["input_ids"])
    assert found.tokens == total < 8192
    assert covariance(model, [0], source=text)[0].tokens == total
    with pytest.raises(InputError, match=f"the text holds {total} tokens, 8192 are wanted; give a longer text"):
        covariance(model, [0], source=text, tokens=8192)


def test_too_few_tokens_are_refused_unless_asked_for(text, tmp_path, calls):
    model = tiny("gpt2")
    with pytest.raises(InputError, match="95 tokens are too few .* 48 neurons, expected 96 or more"):
        covariance(model, [0], source=text, tokens=95)
    assert not calls
    assert covariance(model, [0], source=text, tokens=20, few=True)[0].tokens == 20
    (tmp_path / "short.txt").write_text("Paris. ")
    with pytest.raises(InputError, match="too few"):
        covariance(model, [0], source=str(tmp_path / "short.txt"))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="holds no tokens"):
        covariance(model, [0], source=str(tmp_path / "empty.txt"))


@pytest.mark.parametrize(
    "layers, request_, said",
    [
        ([3], {}, "layer 3 is out of range"),
        ([-1], {}, "layer -1 is out of range"),
        (["1"], {}, "layer '1' is out of range"),
        ([], {}, "the layers are \\[\\]"),
        (1, {}, "the layers are 1, expected one or more of 0 to 2 in a list"),
        ([0], {"tokens": 0}, "0 tokens are wanted"),
        ([0], {"tokens": 1e4}, "10000.0 tokens are wanted"),
        ([0], {"source": "wiki"}, "no text source is called 'wiki'"),
        ([0], {"seed": "a"}, "the seed is 'a'"),
    ],
)
def test_wrong_requests(layers, request_, said):
    with pytest.raises(InputError, match=said) as caught:
        covariance(tiny("gpt2"), layers, **request_)
    assert "\n" not in str(caught.value)


def test_samples_of_a_masked_model():
    with pytest.raises(InputError, match="masked model, which cannot sample text"):
        covariance(tiny("bert"), [0], source="samples")


C4 = Covariance(3, torch.zeros(4, 4), 7, {})


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: C4.solve(torch.ones(5)), "keys of shape \\(5,\\), expected \\(4,\\) or \\(4, m\\)"),
        (lambda: C4.solve(torch.tensor([1.0, float("nan"), 0, 0])), "the key holds NaN"),
        (lambda: C4.solve(torch.ones(4), 0), "layer 3 from 7 tokens is not positive definite with a shrinkage of 0"),
        (lambda: C4.solve(torch.ones(4), -1), "the shrinkage is -1"),
        (lambda: C4.conditioning(float("nan")), "the shrinkage is nan"),
        (lambda: Covariance(0, torch.full((2, 2), torch.inf), 1, {}), "layer 0 holds NaN or infinity"),
        (lambda: Covariance(0, torch.ones(2, 3), 1, {}), "shape \\(2, 3\\), expected"),
    ],
)
def test_wrong_values(call, said):
    with pytest.raises(InputError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
