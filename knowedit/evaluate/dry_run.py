"""What a run would take, said before any weights are loaded: records, prompts, forward passes, memory.

What cannot be known here, a source or a model that is out of reach, is said to be unknown with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from ..errors import InputError, KnoweditError
from ..models.loading import config_of
from ..sources import Source, load_source
from .methods import config_dict, method_config
from .metrics import asked_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


def dry_run(study: str, config) -> dict:
    """What `study` ("edit" or "neurons") with `config` would do, as JSON values."""
    unknown: dict[str, str] = {}
    source = _tried(unknown, "source", lambda: _source(config))
    model = _tried(unknown, "model", lambda: _model(config))
    found = {
        "study": study,
        "config": config.as_dict(),
        "records": None if source is None else len(source.facts),
        "skipped": None if source is None else len(source.skipped),
        "format": None if source is None else source.format,
        "model": model,
    }
    if study == "edit":
        found |= _edit(config, source)
    return {**found, "unknown": unknown}


def _tried(unknown: dict, what: str, make):
    try:
        return make()
    except KnoweditError as error:
        unknown[what] = str(error)
        return None


def _source(config) -> Source:
    return load_source(
        config.source, limit=config.limit, sample=config.sample, seed=config.seed, format=config.format,
        revision=config.revision,
    )  # fmt: skip


def _model(config) -> dict:
    """Parameters and the bytes that weights take, from the model's config alone."""
    shape = config_of(config.model)
    with init_empty_weights(), torch.device("meta"):
        try:
            auto = AutoModelForMaskedLM if _masked(shape) else AutoModelForCausalLM
            hf = auto.from_config(shape)
        except ValueError as error:
            raise InputError(f"{config.model!r} is no language model: {' '.join(str(error).split())[:200]}") from None
    hf.tie_weights()
    parameters = sum({id(p): p.numel() for p in hf.parameters()}.values())
    dtype = config.dtype or str(getattr(shape, "dtype", None) or "float32").removeprefix("torch.")
    return {"name": config.model, "parameters": parameters, "dtype": dtype, "bytes": parameters * BYTES.get(dtype, 4)}


def _masked(shape) -> bool:
    return any(name.endswith("ForMaskedLM") for name in getattr(shape, "architectures", None) or ())


def _edit(config, source: Source | None) -> dict:
    """Prompts that are asked, and sequences that the search for the edits runs."""
    method = _method(config)
    found: dict = {"method": {"name": config.method, **(config_dict(method) or {})}}
    if source is None:
        return found
    prompts = sum(len(asked_of(fact)) for fact in source.facts if fact.target_new)
    found["asked"] = {"prompts": prompts, "sequences": 2 * 2 * prompts}  # two targets, before and after
    if isinstance(method_settings := config_dict(method), Mapping) and config.method == "rome":
        contexts = method_settings["contexts"]
        rows = (contexts if isinstance(contexts, int) else len(contexts)) + 2  # the prompt itself, and the essence
        steps = method_settings["search"]["steps"]
        found["search"] = {"rows": rows, "steps_at_most": steps, "sequences": rows * steps * len(source.facts)}
    elif config.method == "fine_tune":
        found["search"] = {"rows": 1, "steps_at_most": method.steps, "sequences": method.steps * len(source.facts)}
    return found


def _method(config):
    """The method's settings; where only the loaded model would tell the layer, the defaults."""
    return method_config(config.method, config.settings, config.layer)
