"""Where each architecture keeps its blocks, its down-projections and its head: one table, overridable.

A layout is data. `Model` probes it when a model is wrapped, so a wrong one fails there and not in a result.
Models that the table does not know are looked at by structure: the longest `ModuleList` holds the blocks, and
the down-projection is found by name and shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from ..errors import LayoutError, ModelError


@dataclass(frozen=True)
class Layout:
    """What knowedit must know of one architecture. Module paths:

    - `blocks`: the `ModuleList` of transformer blocks.
    - `attention`, `down`: inside a block; `down` is the projection from the neurons back to the residual stream.
    - `final`: what stands between the last block and the unembedding, in order. A step is a module path, an
      activation function's name, or a path with a `?` that some models of the family leave out.
    - `heads`: inside the attention module, the projection from the joined heads to the residual stream; empty where its
      name tells.
    - `up`, `gate`: inside a block, the projections that the neurons are made of; empty where structure tells.
    - `text`: the part that reads text, of a model that also reads images; empty where that is the whole model.

    A model may have `attention` in some blocks only. What looks into attention refuses it then.

    And two facts:

    - `trees`: a decoder that takes each token's position and a mask of who sees whom, so that one row can hold a tree
      of tokens. Others are run on plain rows.
    - `encoder`: a masked language model, where the config does not name its head.

    The unembedding itself is what transformers calls the model's output embeddings.
    """

    blocks: str
    attention: str
    down: str
    final: tuple[str, ...]
    heads: str = ""
    up: str = ""
    gate: str = ""
    text: str = ""
    trees: bool = False
    encoder: bool = False


_LLAMA = Layout("model.layers", "self_attn", "mlp.down_proj", ("model.norm",), heads="o_proj", trees=True)
_GPT2 = Layout("transformer.h", "attn", "mlp.c_proj", ("transformer.ln_f",), heads="c_proj", trees=True)
_HYBRID = replace(_LLAMA, trees=False)  # blocks without attention mix tokens in other ways
_BLOOM = Layout("transformer.h", "self_attention", "mlp.dense_4h_to_h", ("transformer.ln_f",), heads="dense")

LAYOUTS: dict[str, Layout] = {  # by the config's model_type
    "bamba": replace(_HYBRID, down="feed_forward.down_proj", final=("model.final_layernorm",)),
    "bert": Layout(
        "bert.encoder.layer",
        "attention",
        "output.dense",
        ("cls.predictions.transform",),
        heads="output.dense",
        encoder=True,
    ),
    "bloom": _BLOOM,
    "cohere": _LLAMA,
    "distilbert": Layout(
        "distilbert.transformer.layer",
        "attention",
        "ffn.lin2",
        ("vocab_transform", "activation", "vocab_layer_norm"),
        heads="out_lin",
        encoder=True,
    ),
    "falcon": _BLOOM,
    "falcon_h1": replace(_HYBRID, down="feed_forward.down_proj", final=("model.final_layernorm",)),
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neo": replace(_GPT2, heads="attention.out_proj", trees=False),
    "gpt_neox": Layout(
        "gpt_neox.layers",
        "attention",
        "mlp.dense_4h_to_h",
        ("gpt_neox.final_layer_norm",),
        heads="dense",
        trees=True,
    ),
    "gptj": Layout("transformer.h", "attn", "mlp.fc_out", ("transformer.ln_f",), heads="out_proj", trees=True),
    "granite": _LLAMA,
    "granitemoehybrid": replace(_HYBRID, down="shared_mlp.output_linear"),
    "lfm2": replace(_HYBRID, down="feed_forward.w2", final=("model.embedding_norm",), heads="out_proj"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "modernbert": Layout(
        "model.layers",
        "attn",
        "mlp.Wo",
        ("model.final_norm", "head"),
        heads="Wo",
        encoder=True,
    ),
    "mpt": Layout("transformer.blocks", "attn", "ffn.down_proj", ("transformer.norm_f",), heads="out_proj"),
    "olmo2": _LLAMA,
    "olmo_hybrid": _HYBRID,
    "opt": Layout(
        "model.decoder.layers",
        "self_attn",
        "fc2",
        ("model.decoder.final_layer_norm?", "model.decoder.project_out?"),
        heads="out_proj",
    ),
    "phi": Layout("model.layers", "self_attn", "mlp.fc2", ("model.final_layernorm",), heads="dense", trees=True),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "recurrent_gemma": Layout(
        "model.layers", "temporal_block", "mlp_block.down_proj", ("model.final_norm",), heads="o_proj"
    ),
    "roberta": Layout(
        "roberta.encoder.layer",
        "attention",
        "output.dense",
        ("lm_head.dense", "gelu", "lm_head.layer_norm"),
        heads="output.dense",
        encoder=True,
    ),
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": Layout("model.layers", "self_attn", "mlp.c_proj", ("model.norm",), heads="o_proj", trees=True),
}

WITHOUT_MLPS = {  # why they are none of ours, by the config's model_type
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), "is a state-space model whose blocks have no MLP"),
    "nemotron_h": "has an MLP in some of its blocks only",
    "rwkv": "is a recurrent model whose blocks mix channels by a gate from the token before and not by an MLP",
    "xlstm": "is a recurrent model of matrix memories, some of whose blocks have no MLP",
    **dict.fromkeys(("zamba", "zamba2"), "shares one MLP among many of its blocks"),
}

REMEDY = "pass layout=knowedit.Layout(blocks=…, attention=…, down=…, final=(…,)) with this model's module paths"

# what projections are called in families that the table does not know: as in those that it knows, and some more
_HEADS_NAMES = {layout.heads.rpartition(".")[2] for layout in LAYOUTS.values()}
_DOWN_NAMES = (
    *{layout.down.removeprefix("mlp.").removeprefix("ffn.").lower() for layout in LAYOUTS.values()},
    "w2",
    "proj_out",
)


def find_layout(hf: nn.Module) -> Layout:
    """The layout of a loaded transformers model: from the table, else by structure."""
    refuse(hf)
    config, text = hf.config.get_text_config(), ""
    if config is not hf.config:
        decoder = hf.get_decoder()
        text = next(path for path, module in hf.named_modules() if module is decoder)
    row = LAYOUTS.get(config.model_type)
    if row is None:
        return by_structure(hf, text)
    return _inside(row, text) if text else row


def _inside(row: Layout, text: str) -> Layout:
    """The row of a model whose part at the path `text` is what the row's first module is in a model of text alone."""
    first = row.blocks.partition(".")[0]
    blocks, *final = (
        path.replace(f"{first}.", f"{text}.", 1) if path.startswith(f"{first}.") else path
        for path in (row.blocks, *row.final)
    )
    return replace(row, blocks=blocks, final=tuple(final), text=text)


def refuse(hf: nn.Module) -> None:
    """Raise `ModelError` for models whose neurons are not one coordinate each of one down-projection a block."""
    config = hf.config
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{config.model_type} is an encoder-decoder model; knowedit takes decoders and masked language models"
        )
    if reason := WITHOUT_MLPS.get(config.get_text_config().model_type):
        raise ModelError(f"{config.model_type} {reason}; knowedit takes models with one MLP a block")
    experts = [name for name, _ in hf.named_modules() if name.rsplit(".", 1)[-1] == "experts"]
    if experts:
        raise ModelError(
            f"{config.model_type} is a mixture-of-experts model ({experts[0]}), whose neurons depend on the router; "
            "knowedit takes models with one MLP a block"
        )


def by_structure(hf: nn.Module, text: str = "") -> Layout:
    """Guess a layout from the names and shapes of modules, of those in `text` where a part alone reads text; the probe
    decides whether the guess was right."""
    lists = [
        (name, m)
        for name, m in hf.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) and f"{name}.".startswith(f"{text}." if text else "")
    ]
    if not lists:
        raise LayoutError(f"{type(hf).__name__} has no list of blocks; {REMEDY}")
    blocks_path, blocks = max(lists, key=lambda item: len(item[1]))
    block = blocks[0]
    names = [name for block in blocks for name, _ in block.named_children()]
    names = [name for name in names if "att" in name.lower() and "norm" not in name.lower()]
    attention = min(names, key=lambda name: "linear" in name.lower(), default="")
    down = [
        name
        for name, module in block.named_modules()
        if hasattr(module, "weight") and "att" not in name.lower() and name.lower().endswith(_DOWN_NAMES)
    ]
    if len(down) != 1:
        raise LayoutError(
            f"{type(hf).__name__}: expected one down-projection in {blocks_path}[0], found {down or 'none'}; {REMEDY}"
        )
    parent = blocks_path.rpartition(".")[0]
    after = [n for n, _ in hf.get_submodule(parent).named_children()]
    after = after[after.index(blocks_path.rpartition(".")[2]) + 1 :]
    norms = [f"{parent}.{n}".lstrip(".") for n in after if "norm" in n.lower() or n.lower().startswith("ln")]
    return Layout(blocks_path, attention, down[0], tuple(norms), text=text)


def heads_path(layout: Layout, attention: nn.Module) -> str:
    """The path in an attention module of the projection from its joined heads: the layout's, else by its name."""
    if layout.heads:
        return layout.heads
    paths = [name for name, _ in attention.named_modules() if name.rsplit(".", 1)[-1] in _HEADS_NAMES]
    if len(paths) != 1:
        raise LayoutError(
            f"{type(attention).__name__} has {paths or 'no module'} for the projection of its heads, expected one; "
            "pass layout=knowedit.Layout(…, heads=…) with its path in the attention module"
        )
    return paths[0]
