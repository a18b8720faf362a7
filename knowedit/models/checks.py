"""What a model must be before its weights are read, and what must hold of them afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from torch.nn.utils.parametrize import is_parametrized
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ..errors import ModelError
from .layouts import WITHOUT_MLPS

# what configs of the families call the number of experts; dense members of a family say 0, 1 or None
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


def check_config(config, name: str) -> None:
    """Raise `ModelError` for models without one MLP a block, before any weights are fetched or read."""
    kind = getattr(config, "model_type", None) or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name!r} is an encoder-decoder model ({kind}); knowedit takes decoders and masked language models"
        )
    text = config.get_text_config()
    if reason := WITHOUT_MLPS.get(text.model_type):
        raise ModelError(f"{name!r} ({kind}) {reason}; knowedit takes models with one MLP a block")
    for part in (text, getattr(text, "ffn_config", None)):
        for key in _EXPERTS:
            number = getattr(part, key, None)
            if isinstance(number, int) and number > 1:
                raise ModelError(
                    f"{name!r} is a mixture-of-experts model ({kind} with {number} experts), whose neurons depend on "
                    "the router; knowedit takes models with one MLP a block"
                )


def transformers_model(hf) -> PreTrainedModel:
    """The transformers model itself: `hf`, or the one that a PEFT model's adapters sit in.

    Raises `ModelError` with what to wrap instead for something else, and for weights that cannot be read.
    """
    found = type(hf).__name__
    if hasattr(type(hf), "get_base_model"):  # PEFT: adapters sit in the modules that are measured
        if hf.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{found} puts virtual tokens before each prompt, which knowedit does not see; wrap its "
                "get_base_model() to look at the model without them"
            )
        hf = hf.get_base_model()
    if not isinstance(hf, PreTrainedModel):
        parts = {**getattr(hf, "__dict__", {}), **getattr(hf, "_modules", {})}
        inner = next((name for name, part in parts.items() if isinstance(part, PreTrainedModel)), None)
        remedy = "give a model of transformers, or its name to knowedit.load" if inner is None else f"wrap its .{inner}"
        around = "no transformers model" if inner is None else f"something around a {type(parts[inner]).__name__}"
        raise ModelError(f"{found} is {around}; {remedy}")
    for path, module in hf.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{path} of {found} was made by torch.jit, whose modules take no hooks; give the model as it was before"
            )
        if is_parametrized(module):
            names = ", ".join(module.parametrizations)
            raise ModelError(
                f"{path} of {found} has its {names} computed from other weights; make it plain by "
                f"torch.nn.utils.parametrize.remove_parametrizations(module, {next(iter(module.parametrizations))!r})"
            )
        if callable(getattr(module, "weight", None)):
            kind = f"{type(module).__module__}.{type(module).__name__}"
            raise ModelError(
                f"{path} of {type(hf).__name__} is quantized ({kind}), which keeps its weight to itself; "
                "wrap the model before it is quantized"
            )
        weights = module.parameters(recurse=False)
        if not hasattr(module, "_hf_hook") and any(weight.device.type == "meta" for weight in weights):
            raise ModelError(
                f"the weights of {path} of {type(hf).__name__} have no values (meta); load it with from_pretrained"
            )
    return hf


def is_masked(hf: PreTrainedModel) -> bool:
    """A masked language model, not a causal one. Raises `ModelError` for one that is neither."""
    # looked up by config: to list the mappings' values would import every model of transformers
    masked = MODEL_FOR_MASKED_LM_MAPPING.get(type(hf.config), None) is type(hf)
    causal = type(hf) in (
        mapping.get(type(hf.config), None)
        for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    )
    if not masked and not causal and not type(hf).__name__.endswith(("ForCausalLM", "LMHeadModel", "ForMaskedLM")):
        raise ModelError(
            f"{type(hf).__name__} is neither a causal nor a masked language model; load it with its language-model head"
        )
    return masked or type(hf).__name__.endswith("ForMaskedLM")


def check_complete(found: dict, name: str) -> None:
    """Raise `ModelError` where transformers filled weights with random numbers, for it only logs that.

    `found` is what `from_pretrained(..., output_loading_info=True)` says.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{name!r} lacks the weights {missing[0]}{more}, without which it is no language model; "
            "load a checkpoint that was saved with its language-model head"
        )


def one_line(error: object, limit: int = 240) -> str:
    """The first lines of somebody else's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter of transformers' while the context lasts; on a terminal downloads have bars."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled() and sys.stderr.isatty()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
