"""Edits for llama.cpp: the whole model with them in its weights as a GGUF file, or a LoRA adapter as one.

    to_gguf([edit], model, "whole", type="q8_0")    # llama-server -m whole/model.gguf
    to_gguf_lora([edit], model, "lora")             # llama-server -m base.gguf --lora lora/adapter.gguf

Tensors have the names that `gguf.get_tensor_name_map` gives them, and the values that their family stores. Vectors
(norms, biases), positions and convolutions are always float32, as llama.cpp wants them. An adapter holds A (k, in) and
B (out, k) in float32 at scale alpha / k = 1; a module of smaller rank is filled up with zeros, since a file has one
alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..edit.apply import stacked
from ..edit.edit import Edit
from ..edit.export import factors, listed, mode_of, write_provenance
from ..errors import InputError
from ..files import new_folder
from ..models.adapter import Model
from .gguf_families import Family, check_settings, family_of, name_of, shape_of, stored
from .gguf_tokenizer import add_tokenizer

MODEL, ADAPTER = "model.gguf", "adapter.gguf"
TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_FLOAT32 = ("position_embd", "shortconv.conv")
_OWN = {torch.float32: "f32", torch.float64: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def to_gguf(edits: Edit | Sequence[Edit], model: Model, folder: str | Path, *, type: str | None = None) -> Path:
    """Write `model` with `edits` in its weights as `model.gguf` in a new folder, and return the folder.

    `type`: of matrices, a name of `TYPES`, by default what the model has. Matrices whose rows are no multiple of 32 are
    float16 in a q8_0 file.

    Raises `ModelError` for a family, a tokenizer or a setting that this cannot write as llama.cpp reads it; what
    `to_checkpoint` raises.
    """
    edits, family = listed(edits, model), family_of(model)
    check_settings(model, family)
    type = type or _OWN[model.dtype]
    if type not in TYPES:
        raise InputError(f"the type is {type!r}, expected one of {', '.join(TYPES)}")
    with new_folder(folder) as new:
        writer = _writer(new / MODEL, family, model)
        _add_shape(writer, model, family)
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
    edits, family = listed(edits, model, low_rank=True), family_of(model)
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
                _add(writer, f"{name_of(names, path, model)}.weight.{side}", factor, "f32")
        _close(writer)
        write_provenance(new, edits, "gguf-lora")
    return Path(folder).expanduser()


# ---------------------------------------------------------------- what a file says


def _writer(path: Path, family: Family, model: Model) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_name(model.name)
    return writer


def _add_shape(writer: gguf.GGUFWriter, model: Model, family: Family) -> None:
    writer.add_type("model")
    for key, value in shape_of(model, family).items():
        kind = gguf.GGUFValueType.get_type(value)
        kind = gguf.GGUFValueType.UINT32 if kind == gguf.GGUFValueType.INT32 else kind
        writer.add_key_value(f"{writer.arch}.{key}", value, kind)


def _tensors(model: Model, family: Family) -> Iterator[tuple[str, Tensor]]:
    """(name in a GGUF file, values) of each parameter. Tied output weights are there once, as llama.cpp has them."""
    names = _names(model, family)
    for path, tensor in model.hf.named_parameters():  # a tied weight comes once, as the embedding
        name = name_of(names, path, model)
        yield name, stored(name, path, tensor, model, family)


def _names(model: Model, family: Family) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(family.arch, model.n_layers)


def _add(writer: gguf.GGUFWriter, name: str, tensor: Tensor, type: str) -> None:
    values = np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy())
    kind = TYPES["f32" if values.ndim == 1 or any(part in name for part in _FLOAT32) else type]
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
