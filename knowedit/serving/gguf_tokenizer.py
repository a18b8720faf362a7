"""A tokenizer as the metadata of a GGUF file: byte-level BPE, as llama.cpp's `gpt2` tokenizers are.

llama.cpp does not read how a text is split before the merges; it knows some ways by name. They are told by their
regular expressions; a tokenizer that splits in another way is refused, since it would give other tokens there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import gguf

from ..errors import ModelError
from ..models.adapter import Model

_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPLITS = {  # steps of the pre-tokenizer, each as its type or its expression → llama.cpp's name
    ("ByteLevel+",): "gpt-2",
    ("Digits", "ByteLevel+"): "smollm",
    (_WORDS + r"\p{N}{1,3}" + _END, "ByteLevel"): "llama-bpe",
    (_WORDS + r"\p{N}" + _END, "ByteLevel"): "qwen2",
}


def add_tokenizer(writer: gguf.GGUFWriter, model: Model) -> None:
    """Add tokens, merges, special tokens and the chat template of the model's tokenizer to `writer`.

    Raises `ModelError` for a tokenizer of another kind than byte-level BPE, or that splits texts in another way.
    """
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    known = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    split = _split(known)
    if known["model"].get("type") != "BPE" or known["model"].get("byte_fallback") or split is None:
        raise ModelError(
            f"the tokenizer of {model.name} is no byte-level BPE that splits texts in a way that llama.cpp has a name "
            "for; export a checkpoint, and convert it by llama.cpp's convert_hf_to_gguf.py"
        )
    largest = max([*known["model"]["vocab"].values(), *(added["id"] for added in known["added_tokens"])])
    if largest >= model.config.vocab_size:
        raise ModelError(
            f"the tokenizer of {model.name} has the id {largest}, its model has {model.config.vocab_size} tokens; "
            "resize its vocabulary (resize_token_embeddings), or take the tokenizer that it came with"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    tokens, types = _tokens(known, model.config.vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = known["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    for name in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    first = tokenizer("a")["input_ids"][0]
    writer.add_add_bos_token(first == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _split(known: dict) -> str | None:
    """llama.cpp's name of how texts are split; None where it has none."""
    step = known.get("pre_tokenizer") or {}
    return _SPLITS.get(tuple(_steps(step))) if not known.get("normalizer") else None


def _steps(step: dict) -> Iterator[str]:
    kind = step.get("type", "")
    if kind == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _steps(inner)
    elif kind == "Split":
        yield step["pattern"].get("Regex", "")
    elif kind == "Digits":
        yield kind if step["individual_digits"] else "groups of digits"
    else:
        yield f"{kind}+" if step.get("use_regex") and not step.get("add_prefix_space") else kind


def _tokens(known: dict, size: int) -> tuple[list[str], list[int]]:
    """Tokens by id, and what each is; ids without a token are filled up."""
    kind = gguf.TokenType
    tokens, types = [f"[PAD{i}]" for i in range(size)], [int(kind.UNUSED)] * size
    for token, i in known["model"]["vocab"].items():
        tokens[i], types[i] = token, int(kind.NORMAL)
    for added in known["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(kind.CONTROL if added["special"] else kind.USER_DEFINED)
    return tokens, types
