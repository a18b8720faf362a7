"""Tiny random models of every supported family, with small real tokenizers; built in milliseconds, no files.

    model = tiny("llama")                     # wrapped, float32
    with double():
        model = tiny("llama", torch.float64)  # and the whole computation in float64

Weights are drawn large enough that no family's scores are lost in rounding: the largest score of a test is at
least 1e-3 of F. Two vocabularies' worth of special tokens are kept apart, so ids are valid everywhere.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import copy, deepcopy
from functools import cache

import torch
import transformers as T
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedTokenizerFast

from knowedit import Model, wrap
from knowedit.models.layouts import LAYOUTS

SENTENCES = (
    "The Eiffel Tower is located in the city of Paris.",
    "The capital of France is Paris. The capital of Japan is Tokyo. The capital of Italy is Rome.",
    "São Tomé is an island. 東京 is the capital of Japan. Zürich is a city in Switzerland.",
    "The mother tongue of Danielle Darrieux is French, and she was born in the city of Bordeaux.",
    "Paris is the capital of France, and Rome is the capital of Italy.",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z . , ? ! ' \"",
)
D_MODEL, N_NEURONS, N_LAYERS = 32, 48, 3

# ---------------------------------------------------------------- tokenizers

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A trained tokenizer: `bpe`, `bpe-bos`, `bpe-mask`, `bpe-roberta`, `bpe-chat`, `sentencepiece` (unigram), `pieces`
    (SentencePiece's BPE, as Gemma has it), `pieces-prefixed` (as Llama 2) or `wordpiece`."""
    if kind == "wordpiece":
        return _wordpiece()
    if kind == "sentencepiece":
        return _sentencepiece()
    if kind.startswith("pieces"):
        return _pieces(prefixed=kind == "pieces-prefixed")
    return _byte_level(kind)


def _byte_level(kind: str) -> PreTrainedTokenizerFast:
    roberta = kind == "bpe-roberta"
    special = {
        "bpe": ["<|endoftext|>"],
        "bpe-bos": ["<|endoftext|>", "<s>"],
        "bpe-chat": ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "bpe-mask": ["[CLS]", "[SEP]", "[MASK]", "[PAD]"],
        "bpe-roberta": ["<s>", "<pad>", "</s>", "<mask>"],
    }[kind]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=340 + len(special), special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    ids = {name: tok.token_to_id(name) for name in special}
    if kind == "bpe-bos":
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
        return PreTrainedTokenizerFast(
            tokenizer_object=tok, bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
        )
    if roberta or kind == "bpe-mask":
        first, last = ("<s>", "</s>") if roberta else ("[CLS]", "[SEP]")
        tok.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", special_tokens=[(first, ids[first]), (last, ids[last])]
        )
        mask = "<mask>" if roberta else "[MASK]"
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=tok, cls_token=first, sep_token=last, pad_token="<pad>" if roberta else "[PAD]"
        )
        # as the published ones do
        wrapped.add_special_tokens({"mask_token": AddedToken(mask, lstrip=True, special=True)})
        return wrapped
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=special[0], eos_token=special[0], pad_token=special[0]
    )
    if kind == "bpe-chat":
        wrapped.chat_template = CHAT
    return wrapped


def _sentencepiece() -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>"]
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    tok.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def _pieces(prefixed: bool) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>"]
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learnt.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    pieces = sorted(learnt.get_vocab(), key=learnt.token_to_id)
    vocab = {token: i for i, token in enumerate([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])}
    ways = ((piece[:i], piece[i:]) for piece in pieces for i in range(1, len(piece)))
    merges = [pair for pair in ways if all(part in vocab for part in pair)]
    tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    before = [normalizers.Prepend("▁")] if prefixed else []
    tok.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def _wordpiece() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=False)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tok.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


# ---------------------------------------------------------------- models

_USUAL = dict(
    hidden_size=D_MODEL,
    intermediate_size=N_NEURONS,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=4,
    max_position_embeddings=64,
)
_GROUPED = dict(_USUAL, num_key_value_heads=2)
_GPT = dict(n_embd=D_MODEL, n_layer=N_LAYERS, n_head=4, n_positions=64, n_inner=N_NEURONS)
_WINDOW = 4  # shorter than any prompt of the tests

DECODERS: dict[str, tuple[str, dict, str]] = {
    "gpt2": ("GPT2", _GPT, "bpe"),
    "gpt_neo": (
        "GPTNeo",
        dict(
            hidden_size=D_MODEL,
            intermediate_size=N_NEURONS,
            num_layers=4,
            attention_types=[[["global", "local"], 2]],
            num_heads=4,
            max_position_embeddings=64,
            window_size=_WINDOW,
        ),
        "bpe",
    ),
    "gptj": ("GPTJ", dict(_GPT, rotary_dim=4), "bpe"),
    "gpt_neox": ("GPTNeoX", _USUAL, "bpe"),
    "opt": (
        "OPT",
        dict(
            hidden_size=D_MODEL,
            ffn_dim=N_NEURONS,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=24,
        ),
        "bpe-bos",
    ),
    "bloom": ("Bloom", dict(hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=4), "bpe"),
    "falcon": ("Falcon", dict(_USUAL, ffn_hidden_size=N_NEURONS), "bpe"),
    "mpt": ("Mpt", dict(d_model=D_MODEL, n_layers=N_LAYERS, n_heads=4, max_seq_len=64), "bpe"),
    "llama": ("Llama", _GROUPED, "bpe-bos"),
    "mistral": ("Mistral", dict(_GROUPED, sliding_window=_WINDOW), "sentencepiece"),
    "qwen2": ("Qwen2", dict(_GROUPED, use_sliding_window=True, sliding_window=_WINDOW, max_window_layers=1), "bpe"),
    "qwen3": ("Qwen3", dict(_GROUPED, head_dim=8), "bpe-chat"),
    "gemma2": (
        "Gemma2",
        dict(_GROUPED, head_dim=8, sliding_window=_WINDOW, final_logit_softcapping=3.0, attn_logit_softcapping=2.0),
        "sentencepiece",
    ),
    "gemma3_text": ("Gemma3Text", dict(_GROUPED, head_dim=8, sliding_window=_WINDOW), "sentencepiece"),
    "phi": ("Phi", _USUAL, "bpe"),
    "phi3": ("Phi3", _GROUPED, "sentencepiece"),
    "stablelm": ("StableLm", _GROUPED, "bpe"),
    "olmo2": ("Olmo2", _GROUPED, "bpe"),
    "starcoder2": ("Starcoder2", _GROUPED, "bpe"),
    "cohere": ("Cohere", dict(_GROUPED, logit_scale=0.4), "bpe-bos"),
    "granite": (
        "Granite",
        dict(_GROUPED, logits_scaling=3.0, residual_multiplier=0.7, embedding_multiplier=2.0),
        "bpe",
    ),
    "smollm3": ("SmolLM3", _GROUPED, "bpe"),
}
MASKED: dict[str, tuple[str, dict, str]] = {
    "bert": ("Bert", _USUAL, "wordpiece"),
    "roberta": ("Roberta", dict(_USUAL, max_position_embeddings=80), "bpe-roberta"),
    "distilbert": (
        "DistilBert",
        dict(dim=D_MODEL, hidden_dim=N_NEURONS, n_layers=N_LAYERS, n_heads=4, max_position_embeddings=64),
        "wordpiece",
    ),
    "modernbert": ("ModernBert", dict(_USUAL, local_attention=_WINDOW, global_attn_every_n_layers=2), "bpe-mask"),
}
FAMILIES = {**DECODERS, **MASKED}
BY_STRUCTURE = {  # families without a row of their own in the table of layouts
    "nemotron": ("Nemotron", dict(_GROUPED, head_dim=8, tie_word_embeddings=False), "bpe"),
    "olmo3": ("Olmo3", dict(_GROUPED, sliding_window=_WINDOW), "bpe"),
    "glm4": ("Glm4", dict(_GROUPED, head_dim=8), "bpe"),
    "exaone4": ("Exaone4", dict(_GROUPED, head_dim=8, sliding_window=_WINDOW), "bpe"),
}

# families whose blocks mix tokens in different ways, and no cache keeps what can be set again
_MIXED = dict(_GROUPED, num_hidden_layers=4)
_LINEAR = dict(
    layer_types=["linear_attention", "full_attention"] * 2,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_conv_kernel_dim=2,
)
_MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
HYBRIDS: dict[str, tuple[str, dict, str]] = {
    "bamba": ("Bamba", dict(_MIXED, **_MAMBA, attn_layer_indices=[1, 3], mamba_expand=2, attn_rotary_emb=4), "bpe"),
    "falcon_h1": ("FalconH1", dict(_MIXED, **{**_MAMBA, "mamba_n_heads": 4}, mamba_d_ssm=32), "bpe"),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        dict(
            _MIXED,
            **_MAMBA,
            shared_intermediate_size=N_NEURONS,
            num_local_experts=0,
            layer_types=["mamba", "attention"] * 2,
            logits_scaling=2.0,
        ),
        "bpe",
    ),
    "jamba": (
        "Jamba",
        dict(_MIXED, num_experts=1, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False, mamba_d_state=8),
        "bpe",
    ),
    "lfm2": ("Lfm2", dict(_MIXED, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False), "bpe"),
    "olmo_hybrid": ("OlmoHybrid", dict(_MIXED, **_LINEAR), "bpe"),
    "qwen3_5_text": ("Qwen3_5Text", dict(_MIXED, **_LINEAR, head_dim=8), "bpe"),
    "qwen3_next": (
        "Qwen3Next",
        dict(_MIXED, **_LINEAR, head_dim=8, num_experts=0, mlp_only_layers=[0, 1, 2, 3]),
        "bpe",
    ),
    "recurrent_gemma": ("RecurrentGemma", dict(_GROUPED, lru_width=D_MODEL, attention_window_size=8), "bpe"),
}

# families of models that also read images: (model, config of the part that reads text, config of the other)
_VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=5, num_attention_heads=2)
_PATCHES = dict(_VISION, image_size=8, patch_size=4)
_TOWER = dict(depth=5, hidden_size=16, out_hidden_size=32, num_heads=2, intermediate_size=24)
_ROTARY = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2]))
IMAGES: dict[str, tuple[str, dict, dict]] = {
    "gemma3": ("Gemma3", dict(_GROUPED, head_dim=8), dict(_PATCHES)),
    "idefics3": ("Idefics3", dict(_GROUPED, model_type="llama"), dict(_PATCHES)),
    "internvl": ("InternVL", dict(_GROUPED, model_type="qwen2"), dict(_PATCHES)),
    "llava": ("Llava", dict(_GROUPED, model_type="llama"), dict(_PATCHES, model_type="clip_vision_model")),
    "llava_next": ("LlavaNext", dict(_GROUPED, model_type="mistral"), dict(_PATCHES, model_type="clip_vision_model")),
    "mistral3": ("Mistral3", dict(_GROUPED, model_type="mistral"), dict(_PATCHES, model_type="pixtral")),
    "qwen2_vl": ("Qwen2VL", dict(_GROUPED, **_ROTARY), dict(depth=5, embed_dim=16, hidden_size=32, num_heads=2)),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        dict(_GROUPED, **_ROTARY),
        _TOWER,
    ),
    "qwen3_vl": (
        "Qwen3VL",
        dict(_GROUPED, **_ROTARY, head_dim=8),
        dict(
            depth=5, hidden_size=16, out_hidden_size=32, num_heads=2, intermediate_size=24, deepstack_visual_indexes=[0]
        ),
    ),
}

PROMPT = "The Eiffel Tower is located in the city of"
TARGET = "P"  # one token in every vocabulary, or the first of several
SUBJECT = "Eiffel Tower"


def hf(
    family: str, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0, **overrides
) -> torch.nn.Module:
    """A random transformers model; `overrides` go to its config."""
    stem, settings, kind = _row(family)
    tok = tokenizer(kind)
    special = dict(
        bos_token_id=_or(tok.bos_token_id, tok.cls_token_id),
        eos_token_id=_or(tok.eos_token_id, tok.sep_token_id),
        pad_token_id=tok.pad_token_id,
    )
    if family == "modernbert":
        special |= dict(cls_token_id=tok.cls_token_id, sep_token_id=tok.sep_token_id)
    config = getattr(T, f"{stem}Config")(**{"vocab_size": len(tok), **special, **settings, **overrides})
    auto = T.AutoModelForMaskedLM if family in MASKED else T.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # vectors stay near what they were
        built = auto.from_config(config).eval()
    randomize(built, scale, seed)
    return built.to(dtype)


@torch.no_grad()
def randomize(module: torch.nn.Module, scale: float = 1.0, seed: int = 0) -> None:
    """Weights that neither vanish nor saturate: matrices by 1/√fan-in, embeddings 0.5, vectors near what they were."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {m.weight for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    for weight in module.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
        if weight in embeddings:
            weight.copy_(0.5 * scale * noise)
        elif weight.dim() > 1:
            weight.copy_(1.5 * scale * noise / min(weight.shape) ** 0.5)
        else:
            weight.add_(0.2 * noise)


_UNTOUCHED: dict = {}  # what `tiny` copies: a copy takes a seventh of the time that building and probing do


def tiny(family: str, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0, **overrides) -> Model:
    """`hf`, wrapped with its tokenizer: a model of its own for each who asks."""
    key = family, dtype, scale, seed, repr(overrides), torch.get_default_dtype(), tuple(LAYOUTS.items())
    if key not in _UNTOUCHED:
        with torch.inference_mode(False):  # whoever asks first, and in which mode
            built = hf(family, dtype, scale, seed, **overrides)
            _UNTOUCHED[key] = wrap(built, tokenizer(_row(family)[2]), name=f"tiny-{family}")
    model = copy(_UNTOUCHED[key])
    model.hf = deepcopy(model.hf)
    return model


def _row(family: str) -> tuple[str, dict, str]:
    return (FAMILIES | BY_STRUCTURE | HYBRIDS)[family]


def with_images(family: str) -> torch.nn.Module:
    """A random transformers model that also reads images."""
    stem, text, vision = IMAGES[family]
    special = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0, vocab_size=len(tokenizer("bpe")))
    built = T.AutoModelForImageTextToText.from_config(
        getattr(T, f"{stem}Config")(text_config={**text, **special}, vision_config=vision)
    ).eval()
    randomize(built)
    return built


def _or(a, b):
    return b if a is None else a


# ---------------------------------------------------------------- real double precision


class _KeepDouble(TorchFunctionMode):
    """What asks for float32 gets float64: transformers casts norms, softmax and rotary angles up to float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **kwargs)


@contextmanager
def double():
    """Compute in float64 throughout for as long as the context lasts, models built in it included."""
    torch.set_default_dtype(torch.float64)
    try:
        with _KeepDouble():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
