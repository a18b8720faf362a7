"""What a run would take, said before any weights are loaded: records, forward passes, memory.

`passes` counts sequences that run through the model, by what for; several share a batch, and prompts that begin alike
share their beginning, so there are fewer calls. `memory` counts what must be held, in bytes; activations come on top.
What cannot be known here, a source or a model that is out of reach, is said to be unknown with the reason. Of the
published settings' models the shapes are known here, so their plans need no network.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from ..errors import InputError, KnoweditError, ModelError
from ..models.adapter import Model
from ..models.layouts import find_layout
from ..models.loading import config_of
from ..selection import source_of
from .edits import plan as edits
from .neurons import plan as neurons

PLANS = {"edit": edits, "neurons": neurons}  # each with `method_settings` and `plan`

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # model type and what differs from transformers' defaults for it
    "openai-community/gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "EleutherAI/gpt-j-6b": ("gptj", {"tie_word_embeddings": False}),
    "google-bert/bert-base-cased": ("bert", {"vocab_size": 28996, "architectures": ["BertForMaskedLM"]}),
    "meta-llama/Meta-Llama-3-8B": (
        "llama", {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8},
    ),
}  # fmt: skip


def dry_run(study: str, config) -> dict:
    """What `study` ("edit" or "neurons") with `config` would do, as JSON values."""
    plans = PLANS[study]
    unknown: dict[str, str] = {}
    source = _tried(unknown, "source", lambda: source_of(config))
    model = _tried(unknown, "model", lambda: _model(config))
    method = _tried(unknown, "method", lambda: plans.method_settings(config, model))
    facts = [] if source is None else config.chosen(source.facts)
    plan = plans.plan(config, source, facts, model)
    shape = None if model is None else _shape(config, model)
    passes = None
    if source is not None:
        passes = {**({"known": len(source.facts)} if config.known_only else {}), **plan["passes"]}
    passed_over = 0 if source is None else len(source.skipped) + len(source.facts) - len(config.usable(source.facts))
    return {
        "study": study,
        "config": config.as_dict(),
        "records": None if source is None else len(facts),
        "at_most": config.known_only,  # those that the model knows are fewer
        "skipped": None if source is None else passed_over,
        "format": None if source is None else source.format,
        "model": shape,
        "method": method or plans.method_settings(config, None),
        "passes": None if passes is None else _with_total(passes),
        "memory": None if shape is None else _with_total({"weights": shape["bytes"], **plan["memory"]}),
        "unknown": unknown,
    }


def _tried(unknown: dict, what: str, make):
    try:
        return make()
    except KnoweditError as error:
        unknown[what] = str(error)
        return None


def _with_total(numbers: dict[str, int]) -> dict[str, int]:
    return {**numbers, "total": sum(numbers.values())}


# ---------------------------------------------------------------- the model


def _model(config) -> Model:
    """The model without its weights, from its config alone."""
    shape = _config_of(config.model)
    with init_empty_weights(), torch.device("meta"):
        try:
            auto = AutoModelForMaskedLM if _masked(shape) else AutoModelForCausalLM
            hf = auto.from_config(shape)
        except ValueError as error:
            raise InputError(f"{config.model!r} is no language model: {' '.join(str(error).split())[:200]}") from None
    hf.tie_weights()
    return Model(hf, None, find_layout(hf), config.model)


def _config_of(name: str):
    try:
        return config_of(name)
    except ModelError:
        if name not in SHAPES:
            raise
        kind, options = SHAPES[name]
        return AutoConfig.for_model(kind, **options)


def _masked(shape) -> bool:
    return any(name.endswith("ForMaskedLM") for name in getattr(shape, "architectures", None) or ())


def _shape(config, model: Model) -> dict:
    parameters = sum({id(p): p.numel() for p in model.hf.parameters()}.values())
    dtype = config.dtype or str(getattr(model.hf.config, "dtype", None) or "float32").removeprefix("torch.")
    return {
        "name": config.model, "parameters": parameters, "dtype": dtype, "bytes": parameters * BYTES.get(dtype, 4),
        "layers": model.n_layers, "neurons": model.n_neurons,
    }  # fmt: skip
