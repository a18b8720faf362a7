"""Edits for llama.cpp: the whole model with them in its weights as a GGUF file, or a LoRA adapter as one.

    to_gguf([edit], model, "whole", type="q8_0")    # llama-server -m whole/model.gguf
    to_gguf_lora([edit], model, "lora")             # llama-server -m base.gguf --lora lora/adapter.gguf

Tensors have the names that `gguf.get_tensor_name_map` gives them. llama.cpp rotates neighbouring coordinates of a head
where transformers rotates its halves, so in files of the llama architecture the rows of Q and K are in another order.
Vectors (norms, biases) are always float32, as llama.cpp wants them. An adapter holds A (k, in) and B (out, k) in
float32 at scale alpha / k = 1; a module of smaller rank is filled up with zeros, since a file has one alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..edit.apply import stacked
from ..edit.edit import Edit
from ..edit.export import factors, listed, mode_of, write_provenance
from ..errors import InputError, ModelError
from ..files import new_folder
from ..models.adapter import Model
from .gguf_tokenizer import add_tokenizer

MODEL, ADAPTER = "model.gguf", "adapter.gguf"
TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_OWN = {torch.float32: "f32", torch.float64: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Family:
    """The architecture of a family in GGUF files, and whether the rows of Q and K are in another order there."""

    arch: gguf.MODEL_ARCH
    permuted: bool = False


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3),
}


def to_gguf(edits: Edit | Sequence[Edit], model: Model, folder: str | Path, *, type: str | None = None) -> Path:
    """Write `model` with `edits` in its weights as `model.gguf` in a new folder, and return the folder.

    `type`: of matrices, a name of `TYPES`, by default what the model has. Matrices whose rows are no multiple of 32 are
    float16 in a q8_0 file.

    Raises `ModelError` for a family, a tokenizer or a setting that this cannot write as llama.cpp reads it; what
    `to_checkpoint` raises.
    """
    edits, family = listed(edits, model), _family(model)
    if said := _unwritten(model.config):
        raise ModelError(
            f"{model.name} has {said}, which llama.cpp would read otherwise from what is written here; export a "
            "checkpoint, and convert it by llama.cpp's convert_hf_to_gguf.py"
        )
    type = type or _OWN[model.dtype]
    if type not in TYPES:
        raise InputError(f"the type is {type!r}, expected one of {', '.join(TYPES)}")
    with new_folder(folder) as new:
        writer = _writer(new / MODEL, family, model)
        _add_shape(writer, model)
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[type]])
        if type == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, model)
        with stacked(model, edits):
            for name, tensor in _tensors(model, family):
                _add(writer, name, tensor, type)
            _close(writer)
        write_provenance(new, edits, "gguf")
    return Path(folder).expanduser()


def to_gguf_lora(edits: Edit | Sequence[Edit], model: Model, folder: str | Path) -> Path:
    """Write `edits` as a LoRA adapter for llama.cpp, `adapter.gguf` in a new folder, and return the folder.

    Raises what `to_peft` raises, and `ModelError` for a family that is not in `FAMILIES`.
    """
    edits, family = listed(edits, model, low_rank=True), _family(model)
    names = _names(model, family)
    with new_folder(folder) as new, stacked(model, edits, mode=mode_of(edits)):
        writer = _writer(new / ADAPTER, family, model)
        matrices = factors(edits)
        most = max(u.shape[1] for u, _ in matrices.values())
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(most))
        for path, (u, v) in matrices.items():
            more = (0, most - u.shape[1])
            for side, factor in (("lora_a", pad(v, more).T), ("lora_b", pad(u, more))):
                _add(writer, f"{names.get_name(path)}.weight.{side}", factor, "f32")
        _close(writer)
        write_provenance(new, edits, "gguf-lora")
    return Path(folder).expanduser()


# ---------------------------------------------------------------- what a file says


def _family(model: Model) -> Family:
    kind = getattr(model.config, "model_type", None)
    if kind not in FAMILIES:
        raise ModelError(
            f"{model.name} is of the family {kind!r}, which is not written as GGUF here, only {', '.join(FAMILIES)} "
            "are; export a checkpoint, and convert it by llama.cpp's convert_hf_to_gguf.py"
        )
    return FAMILIES[kind]


def _unwritten(config) -> str | None:
    """What a model has that these files do not say."""
    window = getattr(config, "sliding_window", None)
    windowed = set(getattr(config, "layer_types", None) or ["sliding_attention"]) != {"full_attention"}
    if window and windowed and window < config.max_position_embeddings:
        return f"attention within {window} positions"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default":
        return "scaled rotary positions"
    return None if config.hidden_act == "silu" else f"the activation {config.hidden_act}"


def _writer(path: Path, family: Family, model: Model) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_name(model.name)
    return writer


def _add_shape(writer: gguf.GGUFWriter, model: Model) -> None:
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_type("model")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Model, family: Family) -> Iterator[tuple[str, Tensor]]:
    """(name in a GGUF file, values) of each parameter. Tied output weights are there once, as llama.cpp has them."""
    names, config = _names(model, family), model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for path, tensor in model.hf.named_parameters():  # a tied weight comes once, as the embedding
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(
                f"{model.name} has the weight {path}, which has no name in GGUF files; export a checkpoint"
            )
        part = path.split(".")[-2]
        yield name, _permuted(tensor, heads[part]) if family.permuted and part in heads else tensor


def _permuted(tensor: Tensor, heads: int) -> Tensor:
    """Rows of Q or K (heads · 2 · half, …) in the order of llama.cpp: the two halves of a head interleaved."""
    rows = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


def _names(model: Model, family: Family) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(family.arch, model.n_layers)


def _add(writer: gguf.GGUFWriter, name: str, tensor: Tensor, type: str) -> None:
    values = np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy())
    kind = TYPES[type] if values.ndim > 1 else TYPES["f32"]
    if kind == TYPES["q8_0"] and values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = TYPES["f16"]
    if kind == TYPES["f32"]:
        writer.add_tensor(name, values)
    elif kind == TYPES["f16"]:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
