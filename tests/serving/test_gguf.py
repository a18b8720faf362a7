"""GGUF files hold the edited model, as transformers reads them; adapters hold ΔW."""

import dataclasses
import json
from collections import Counter

import gguf
import pytest
import torch
from accelerate import cpu_offload
from gguf import GGUFReader
from support.edits import random_edit, weights, with_edits
from support.tiny import PROMPT, hf, tiny, tokenizer
from support.trained import trained
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from knowedit import InputError, ModelError, wrap
from knowedit.edit.apply import applied, stacked
from knowedit.serving.gguf_families import FAMILIES
from knowedit.serving.gguf_file import ADAPTER, MODEL, to_gguf, to_gguf_lora

# settings that transformers does not read from files, as it takes them then
READ = {
    "falcon": dict(ffn_hidden_size=128),
    "gemma2": dict(head_dim=256, final_logit_softcapping=30.0, attn_logit_softcapping=50.0),
    "gemma3_text": dict(head_dim=256, num_hidden_layers=7),
    "gpt2": dict(n_positions=1024, n_inner=None),
    "qwen3": dict(head_dim=128),
}
TOKENIZERS = {"gemma2": "pieces", "gemma3_text": "pieces", "phi3": "pieces-prefixed", "mistral": "pieces-prefixed"}


def model_of(family: str, **config):
    windows = {} if FAMILIES[family].windows else {"sliding_window": None, "use_sliding_window": False}
    tok = tokenizer(TOKENIZERS.get(family, "bpe"))
    settings = {"vocab_size": len(tok) + 7, **windows, **READ.get(family, {}), **config}
    return wrap(hf(family, **settings), tok, name=f"tiny-{family}")


def reloaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL, dtype=torch.float32).eval()


@torch.no_grad()
def logits(hf_model, ids):
    return hf_model(input_ids=torch.tensor([ids])).logits


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_float32_file_gives_the_logits_of_the_edited_model(family, tmp_path):
    model = model_of(family)
    edits = [random_edit(model, 0, 1, seed=1), random_edit(model, 1, seed=2, rank=0)]
    folder = to_gguf(edits, model, tmp_path / "gguf")
    ids = model.encode(PROMPT).ids
    unedited = logits(model.hf, ids)
    with stacked(model, edits):
        wanted = logits(model.hf, ids)
    said = logits(reloaded(folder), ids)
    assert torch.equal(said, wanted) and not torch.equal(said, unedited)
    assert torch.equal(logits(model.hf, ids), unedited)
    again = AutoTokenizer.from_pretrained(folder, gguf_file=MODEL)
    assert again(PROMPT)["input_ids"] == model.tokenizer(PROMPT)["input_ids"]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "knowedit.json", MODEL]


ROUNDING = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 254 + 2**-11}  # of a matrix's largest entry


@pytest.mark.parametrize("type", ROUNDING)
def test_smaller_types_round_matrices_and_leave_vectors(type, tmp_path):
    model = model_of("llama", hidden_size=64, intermediate_size=96)  # rows of whole blocks of 32
    edit = random_edit(model, 1)
    folder = to_gguf(edit, model, tmp_path / "gguf", type=type)
    found = reloaded(folder)
    with applied(model, edit):
        for name, wanted in model.hf.named_parameters():
            error = (found.get_parameter(name) - wanted).abs().max()
            assert error <= (ROUNDING[type] * wanted.abs().max() if wanted.dim() > 1 else 0), name
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(folder / MODEL).tensors if "norm" not in tensor.name}
    assert kinds == {type.upper()}


def test_rows_that_are_no_whole_blocks_are_float16_in_a_q8_0_file(tmp_path):
    folder = to_gguf(random_edit(m := model_of("llama"), 1), m, tmp_path / "gguf", type="q8_0")
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(folder / MODEL).tensors}
    assert kinds["blk.1.ffn_down.weight"] == "F16" and kinds["blk.1.ffn_up.weight"] == "Q8_0"  # 48 and 32 a row


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_adapter_holds_the_change_at_scale_one(family, tmp_path):
    model = tiny(family)
    edits = [random_edit(model, 0, 1, seed=1), random_edit(model, 1, seed=2, rank=2)]
    base = weights(model)
    reader = GGUFReader(to_gguf_lora(edits, model, tmp_path / "lora") / ADAPTER)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == gguf.MODEL_ARCH_NAMES[FAMILIES[family].arch]
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert sorted(tensors) == [f"blk.{i}.ffn_down.weight.lora_{side}" for i in (0, 1) for side in "ab"]
    for layer, wanted in enumerate(with_edits(model, base, *edits)[:2]):
        a, b = (tensors[f"blk.{layer}.ffn_down.weight.lora_{side}"] for side in "ab")
        scale = fields["adapter.lora.alpha"] / b.shape[1]
        torch.testing.assert_close(base[layer] + scale * b @ a, wanted)
    assert all(map(torch.equal, weights(model), base))


def test_an_offloaded_model_has_the_same_adapter(tmp_path):
    model, edit = model_of("llama"), random_edit(model_of("llama"), 1)
    files = [to_gguf_lora(edit, model, tmp_path / "here") / ADAPTER]
    cpu_offload(model.hf, execution_device="cpu")
    files.append(to_gguf_lora(edit, model, tmp_path / "offloaded") / ADAPTER)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path):
    def refused(model, said, write=to_gguf, error=ModelError, **options):
        with pytest.raises(error, match=said) as caught:
            write(random_edit(model, 1, rank=options.pop("rank", 1)), model, tmp_path / "out", **options)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())

    refused(tiny("opt"), "'opt', which is not written as GGUF here.*convert_hf_to_gguf")
    refused(tiny("opt"), "'opt', which is not written", to_gguf_lora)
    refused(trained(), "no byte-level BPE.*no BPE of SentencePiece")
    refused(wrap(hf("llama"), tokenizer("sentencepiece")), "no byte-level BPE")
    refused(model_of("gpt2", activation_function="relu"), "activation_function='relu' .not 'gelu_new'")
    refused(model_of("gemma2", query_pre_attn_scalar=144), "query_pre_attn_scalar=144 .not 256")
    refused(model_of("gemma2", layer_types=["full_attention"] * 3), "windows of attention in other layers")
    refused(model_of("falcon", new_decoder_architecture=True), "new_decoder_architecture=True .not False")
    scaled = model_of("llama")
    scaled.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    refused(scaled, "scaled rotary positions")
    refused(tiny("qwen2"), "attention within 4 positions")
    refused(model_of("llama", vocab_size=300), "the id 34., its model has 300 tokens")
    refused(model_of("llama"), "the type is 'q9'", error=InputError, type="q9")
    refused(model_of("llama"), "densely, which no LoRA", to_gguf_lora, InputError, rank=0)
    other = model_of("llama")
    broken = dataclasses.replace(random_edit(other, 1), bases={other.down_path(1): "0" * 64})
    with pytest.raises(ModelError, match="not the one that this edit"):
        to_gguf(broken, other, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["a way to split a token is no merge", "merges of two tokens alternate"])
def test_merges_that_scores_cannot_say_are_refused(change, tmp_path):
    known = json.loads(tokenizer("pieces").backend_tokenizer.to_str())
    merges = known["model"]["merges"]
    counts = Counter(left + right for left, right in merges)
    several = next(i for i, (left, right) in enumerate(merges) if counts[left + right] > 1)
    merge = merges.pop(several)
    if change == "merges of two tokens alternate":
        merges.append(merge)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(known)), unk_token="<unk>")
    model = wrap(hf("llama", vocab_size=len(other)), other, name="tiny")
    with pytest.raises(ModelError, match="no BPE of SentencePiece"):
        to_gguf(random_edit(model, 1), model, tmp_path / "out")
