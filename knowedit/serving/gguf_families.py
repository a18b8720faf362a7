"""Families of models in GGUF files: their names there, what files say of their shape, and how they store weights.

llama.cpp has an architecture for each family, which knows by heart what files do not say. A row of `FAMILIES` says what
that is, and a model that has it otherwise is refused, since it would be another model there. All rows are read back by
transformers in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import gguf
from gguf import MODEL_ARCH as ARCH
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from ..models.adapter import Model

Settings = Mapping[str, object]
REMEDY = "export a checkpoint, and convert it by llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Family:
    """How llama.cpp has a family.

    - `arch`: its architecture there.
    - `fixed`: settings of the config that files do not say, as llama.cpp has them: a value or a function of the config.
    - `stored`: an expression for names of tensors, and their values in files as a function of ours and of the config.
    - `says`: what files say of this family alone, from the config.
    - `windows`: every so many layers, one attends to all positions and the others within a window.
    """

    arch: gguf.MODEL_ARCH
    fixed: Settings
    stored: Mapping[str, Callable] = field(default_factory=dict)
    says: Callable = lambda config: {}
    windows: int | None = None


def _rotated(heads: str) -> Callable:
    """Rows of Q or K (heads · 2 · half, …) as llama.cpp's llama rotates them: the two halves of a head interleaved."""

    def interleaved(tensor: Tensor, config) -> Tensor:
        count = getattr(config, heads)
        rows = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
        return rows.transpose(1, 2).reshape(tensor.shape)

    return interleaved


def _by_kind(tensor: Tensor, config) -> Tensor:
    """Rows of Q, K and V (heads · 3 · size, …), head by head, as all of Q, all of K, all of V."""
    rows = tensor.reshape(config.num_attention_heads, 3, -1, *tensor.shape[1:])
    return rows.transpose(0, 1).reshape(tensor.shape)


_ROTATED = {r"attn_q\.": _rotated("num_attention_heads"), r"attn_k\.": _rotated("num_key_value_heads")}
_PLUS_ONE = {r"norm\.weight": lambda tensor, config: tensor.float() + 1}
_SILU = {"hidden_act": "silu"}
_LLAMA = Family(ARCH.LLAMA, _SILU, _ROTATED)
_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": lambda config: config.head_dim,
    "attention_bias": False,
    "tie_word_embeddings": True,
}

FAMILIES = {  # by the config's model_type
    "bloom": Family(
        ARCH.BLOOM,
        {"apply_residual_connection_post_layernorm": False, "tie_word_embeddings": True},
        {r"attn_qkv\.": _by_kind},
    ),
    "falcon": Family(
        ARCH.FALCON,
        {"activation": "gelu", "alibi": False, "bias": False, "multi_query": True, "new_decoder_architecture": False}
        | {"parallel_attn": True, "tie_word_embeddings": True},
        says=lambda config: {"attention.head_count_kv": 1},
    ),
    "gemma2": Family(
        ARCH.GEMMA2,
        _GEMMA,
        _PLUS_ONE,
        lambda config: {
            "attn_logit_softcapping": float(config.attn_logit_softcapping),
            "final_logit_softcapping": float(config.final_logit_softcapping),
        },
        windows=2,
    ),
    "gemma3_text": Family(
        ARCH.GEMMA3,
        _GEMMA
        | {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
        _PLUS_ONE,
        lambda config: {"rope.freq_base_swa": float(config.rope_parameters["sliding_attention"]["rope_theta"])},
        windows=6,
    ),
    "gpt2": Family(
        ARCH.GPT2,
        {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    ),
    "lfm2": Family(
        ARCH.LFM2,
        {},
        {r"shortconv\.conv\.": lambda tensor, config: tensor.squeeze(1)},
        lambda config: {
            "shortconv.l_cache": config.conv_L_cache,
            "attention.head_count_kv": [
                config.num_key_value_heads * (kind == "full_attention") for kind in config.layer_types
            ],
        },
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "nemotron": Family(ARCH.NEMOTRON, {"hidden_act": "relu2"}, _PLUS_ONE),
    "phi3": Family(ARCH.PHI3, _SILU),
    "qwen2": Family(ARCH.QWEN2, _SILU),
    "qwen3": Family(ARCH.QWEN3, _SILU),
    "stablelm": Family(
        ARCH.STABLELM,
        _SILU | {"qk_layernorm": False},
        says=lambda config: {"use_parallel_residual": config.use_parallel_residual},
    ),
    "starcoder2": Family(ARCH.STARCODER2, {"hidden_act": "gelu_pytorch_tanh", "use_bias": True}),
}
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")


def family_of(model: Model) -> Family:
    """The row of the model's family. Raises `ModelError` for a family that is not in the table."""
    kind = getattr(model.hf.config, "model_type", None)
    if kind not in FAMILIES:
        raise ModelError(
            f"{model.name} is of the family {kind!r}, which is not written as GGUF here, only {', '.join(FAMILIES)} "
            f"are; {REMEDY}"
        )
    return FAMILIES[kind]


def check_settings(model: Model, family: Family) -> None:
    """Raise `ModelError` for a model that has settings which its family's files do not say."""
    config = model.config
    if said := _windows(config, family) or _rotary(config) or _others(config, family):
        raise ModelError(f"{model.name} has {said}, which llama.cpp would read otherwise from a GGUF file; {REMEDY}")


def _windows(config, family: Family) -> str | None:
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not family.windows:
        windowed = set(kinds or ["sliding_attention"]) != {"full_attention"}
        short = window and windowed and window < config.max_position_embeddings
        return f"attention within {window} positions" if short else None
    known = [("full" if (i + 1) % family.windows == 0 else "sliding") + "_attention" for i in range(len(kinds))]
    return "windows of attention in other layers than its family" if kinds != known else None


def _rotary(config) -> str | None:
    rotary = getattr(config, "rope_parameters", None) or {}
    types = {said.get("rope_type", "default") for said in (rotary, *rotary.values()) if isinstance(said, dict)}
    return "scaled rotary positions" if types - {"default"} else None


def _others(config, family: Family) -> str | None:
    for name, value in family.fixed.items():
        known, own = value(config) if callable(value) else value, getattr(config, name, value)
        if own != known and not callable(own):
            return f"{name}={own!r} (not {known!r})"
    return None


def shape_of(model: Model, family: Family) -> dict[str, int | float | bool | list[int]]:
    """What a file says of the model's shape, by the keys that follow the name of its architecture."""
    config, heads = model.config, model.n_heads
    size = getattr(config, "head_dim", None) or model.d_model // heads
    rotary = getattr(config, "rope_parameters", None) or {}
    rotary = rotary.get("full_attention", rotary)
    epsilon = next(getattr(config, name) for name in _EPSILONS if hasattr(config, name))
    shape = {
        "context_length": getattr(config, "max_position_embeddings", 2048),  # Bloom has no such limit
        "embedding_length": model.d_model,
        "block_count": model.n_layers,
        "feed_forward_length": model.n_neurons,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_epsilon": epsilon,  # the two programs ask for different ones of some families
        "attention.layer_norm_rms_epsilon": epsilon,
        "vocab_size": model.vocabulary,
    }
    if rotary:
        shape |= {
            "rope.dimension_count": int(size * (rotary.get("partial_rotary_factor") or 1)),
            "rope.freq_base": float(rotary["rope_theta"]),
        }
    if family.windows:
        shape["attention.sliding_window"] = config.sliding_window
    return shape | family.says(config)


def name_of(names: gguf.TensorNameMap, path: str, model: Model) -> str:
    """The name in a file of the weight or module at `path`. Raises `ModelError` where files have no name for it."""
    for known in (path, path.partition(".")[2]):  # of some families without the module that holds all blocks
        if name := names.get_name(known, try_suffixes=(".weight", ".bias")):
            return name
    raise ModelError(f"{model.name} has the weight {path}, which has no name in GGUF files; export a checkpoint")


def stored(name: str, path: str, tensor: Tensor, model: Model, family: Family) -> Tensor:
    """What a file has as `name` for the parameter `tensor` at `path`: projections as (out, in)."""
    if tensor.dim() == 2 and isinstance(model.hf.get_submodule(path.rpartition(".")[0]), Conv1D):
        tensor = tensor.T
    for pattern, change in family.stored.items():
        if re.search(pattern, name):
            tensor = change(tensor, model.config)
    return tensor
