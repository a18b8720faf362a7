"""What a run would take, said before any weights are loaded: records, forward passes, memory.

`passes` counts sequences that run through the model, by what for; several share a batch, and prompts that begin alike
share their beginning, so there are fewer calls. `memory` counts what must be held, in bytes; activations come on top.
What cannot be known here, a source or a model that is out of reach, is said to be unknown with the reason. Of the
published settings' models the shapes are known here, so their plans need no network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from ..edit.methods.fine_tune import at_once
from ..edit.methods.table import config_dict, method_config
from ..edit.rewrite_quality import paraphrases_of
from ..errors import InputError, KnoweditError, ModelError
from ..facts import Fact
from ..locate.attribution import AUTO_NODES
from ..models.adapter import Model
from ..models.layouts import find_layout
from ..models.loading import config_of
from ..selection import choose, source_of
from ..sources import Source
from .edits.generation import ANSWER, CHAT, QUESTION, TEXT
from .edits.metrics import asked_of, zsre_asked
from .neurons import study as neurons

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
SHAPES = {  # model type and what differs from transformers' defaults for it
    "openai-community/gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "EleutherAI/gpt-j-6b": ("gptj", {"tie_word_embeddings": False}),
    "google-bert/bert-base-cased": ("bert", {"vocab_size": 28996, "architectures": ["BertForMaskedLM"]}),
    "meta-llama/Meta-Llama-3-8B": (
        "llama", {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8},
    ),
}  # fmt: skip
_TRAINED = 4  # copies beside a change that is trained: its place in the batch, its gradient and two moments


def dry_run(study: str, config) -> dict:
    """What `study` ("edit" or "neurons") with `config` would do, as JSON values."""
    unknown: dict[str, str] = {}
    source = _tried(unknown, "source", lambda: source_of(config))
    model = _tried(unknown, "model", lambda: _model(config))
    method = _tried(unknown, "method", lambda: _method(config, study, model)) or {"name": config.method}
    facts = () if source is None else _chosen(study, config, source)
    found = {
        "study": study,
        "config": config.as_dict(),
        "records": None if source is None else len(facts),
        "at_most": config.known_only,  # those that the model knows are fewer
        "skipped": None if source is None else len(source.skipped) + len(source.facts) - len(_usable(study, source)),
        "format": None if source is None else source.format,
        "model": None if model is None else _shape(config, model),
        "method": method,
        "passes": None,
        "memory": None if model is None else _memory(config, study, model),
    }
    if source is not None:
        edits = study == "edit"
        passes = _edit_passes(config, source, facts, method, model) if edits else _neuron_passes(config, facts, model)
        if config.known_only:
            passes = {"known": len(source.facts), **passes}
        found["passes"] = {**passes, "total": sum(passes.values())}
    return {**found, "unknown": unknown}


def _tried(unknown: dict, what: str, make):
    try:
        return make()
    except KnoweditError as error:
        unknown[what] = str(error)
        return None


def _usable(study: str, source: Source) -> list[Fact]:
    return [fact for fact in source.facts if study != "edit" or fact.target_new is not None]


def _chosen(study: str, config, source: Source) -> list[Fact]:
    """The facts that would be run if the model knew all of them."""
    facts = _usable(study, source)
    if study == "neurons":
        facts = neurons.of_relations(facts, config.relations)
    facts = choose(facts, limit=config.limit, sample=config.sample, seed=config.seed)
    return neurons.spread_over_relations(facts, config.per_relation) if study == "neurons" else facts


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


def _memory(config, study: str, model: Model) -> dict[str, int]:
    """Bytes: weights, and what the method holds beside them."""
    found = {"weights": _shape(config, model)["bytes"]}
    if study == "edit" and config.method == "rome":
        found["covariance"] = (4 + 8) * model.n_neurons**2  # in float32, and its factor in float64
    if study == "edit" and config.method == "fine_tune":
        found["changes"] = (
            4 * model.d_model * model.n_neurons * (config.batch + _TRAINED * min(config.batch, at_once(model)))
        )
    return {**found, "total": sum(found.values())}


# ---------------------------------------------------------------- editing


def _method(config, study: str, model: Model | None) -> dict:
    """The method with its settings; where the model is not known and would tell its layer, the defaults."""
    if study != "edit":
        return {"name": config.method}
    settings = method_config(config.method, config.settings, config.layer, model)
    return {"name": config.method, **(config_dict(settings) or {})}


def _edit_passes(config, source: Source, facts: Sequence[Fact], method: dict, model: Model | None) -> dict[str, int]:
    """The search's are forward and backward, and the most that there can be."""
    n = len(facts)
    asked = [2 * len(asked_of(fact)) + (len(zsre_asked(fact)) if source.format == "zsre" else 0) for fact in facts]
    found = {"search": sum(_search(method, fact, model) for fact in facts), "before": sum(asked), "after": sum(asked)}
    if config.sequential:
        found["checkpoints"] = sum(sum(asked[:c]) for c in config.checkpoints if c <= n)
    if config.perplexity:
        found["perplexity"] = n + 1
        found["essence"] = 2 * n
    if config.generate:
        found["written tokens"] = 2 * sum(map(_tokens, facts))
    return found


def _search(method: dict, fact: Fact, model: Model | None) -> int:
    """Sequences for one edit: ROME has the prompt, behind each context and by itself, and the essence."""
    if method["name"] == "knowledge_neurons":
        locate = method["locate"]
        return (1 + len(fact.paraphrases)) * _locating(locate["method"], locate["attribution"]["nodes"], None, model)
    if method["name"] == "rome" and "search" in method:
        contexts = method["contexts"]
        return ((contexts if isinstance(contexts, int) else len(contexts)) + 2) * method["search"]["steps"]
    return method.get("steps", 0) if method["name"] == "fine_tune" else 0


def _tokens(fact: Fact) -> int:
    """That are written about one fact, at most; each is a forward pass of its own."""
    return (
        ANSWER * (1 + len(paraphrases_of(fact, heldout=False)))
        + QUESTION * len(fact.probes) + CHAT + TEXT * len(fact.generation)
    )  # fmt: skip


# ---------------------------------------------------------------- neurons


def _neuron_passes(config, facts: Sequence[Fact], model: Model | None) -> dict[str, int]:
    """Of the integral each node is a row a layer, of one token in decoders; forward and backward."""
    prompts = [neurons.prompts_of(fact, config.prompts) for fact in facts]
    located, held = (sum(len(pair[i]) for pair in prompts) for i in (0, 1))
    sets = 1 + ("activation" in config.baselines) + config.draws * ("random" in config.baselines)
    found = {
        "locate": located * _locating(config.method, config.nodes, config.layers, model),
        "effect": held * (1 + 2 * sets),
    }
    if "activation" in config.baselines:
        found["activation"] = located
    found["specificity"] = 2 * neurons.OTHERS * (1 + 2) * len(facts)
    if config.stability and config.method == "ig":
        found["stability"] = (
            -(-len(facts) // neurons.NODES_EVERY) * sum(neurons.NODES_GRID) * _layers(config.layers, model)
        )
    if config.erase:
        found["erase"] = 2 * 2 * neurons.ASKED * len({fact.relation_name or fact.relation for fact in facts})
    return found


def _locating(method: str, nodes: int | str, layers: Sequence[int] | None, model: Model | None) -> int:
    """Sequences to locate neurons with one prompt."""
    nodes = AUTO_NODES if nodes == "auto" else nodes
    return 1 + (nodes * _layers(layers, model) if method == "ig" else 0)


def _layers(layers: Sequence[int] | None, model: Model | None) -> int:
    return 1 if model is None else len(layers or range(model.n_layers))
