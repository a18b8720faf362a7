"""A tokenizer as the metadata of a GGUF file, of one of the two kinds that llama.cpp calls `gpt2` and `llama`.

`gpt2` is byte-level BPE. llama.cpp does not read how a text is split before the merges; it knows some ways by name,
which are told by their regular expressions.

`llama` is BPE as SentencePiece does it, over characters with bytes to fall back on: it has a score a token and no
merges, and joins whichever two pieces make the token of the highest score. Merges say the same where every way to split
a token is one of them, and those of one token follow each other.

A tokenizer of neither kind is refused, since it would give other tokens there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

import gguf

from ..errors import ModelError
from ..models.adapter import Model
from .gguf_families import REMEDY

_SPACE = "▁"
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

    Raises `ModelError` for a tokenizer that llama.cpp has no kind for, or with more tokens than the model.
    """
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    known = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    bpe = known["model"].get("type") == "BPE"
    pieces = bpe and known["model"].get("byte_fallback")
    split, scores = _split(known) if bpe and not pieces else None, _scores(known) if pieces else None
    if split is None and scores is None:
        raise ModelError(
            f"the tokenizer of {model.name} is no byte-level BPE that splits texts in a way that llama.cpp has a name "
            f"for, and no BPE of SentencePiece; {REMEDY}"
        )
    largest = max([*known["model"]["vocab"].values(), *(added["id"] for added in known["added_tokens"])])
    if largest >= model.vocabulary:
        raise ModelError(
            f"the tokenizer of {model.name} has the id {largest}, its model has {model.vocabulary} tokens; "
            "resize its vocabulary (resize_token_embeddings), or take the tokenizer that it came with"
        )
    tokens, types = _tokens(known, model.vocabulary)
    writer.add_tokenizer_model("gpt2" if scores is None else "llama")
    writer.add_tokenizer_pre(split or "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores is None:
        writer.add_token_merges([" ".join(pair) for pair in _merges(known)])
    else:
        writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
        writer.add_add_space_prefix(_prefixed(known))
    for name in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
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


def _merges(known: dict) -> list[tuple[str, str]]:
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in known["model"]["merges"]]


def _scores(known: dict) -> dict[str, float] | None:
    """A score of each token that merges make, the highest for what is merged first; None where scores cannot say it."""
    vocabulary, last = known["model"]["vocab"], None
    made: dict[str, float] = {}
    ways: Counter[str] = Counter()
    for rank, (left, right) in enumerate(_merges(known)):
        token = left + right
        if token != last and token in made:
            return None
        last = token
        made.setdefault(token, float(-1 - rank))
        ways[token] += 1
    whole = {added["content"] for added in known["added_tokens"]}
    for token in vocabulary:
        splits = sum(token[:i] in vocabulary and token[i:] in vocabulary for i in range(1, len(token)))
        if splits != ways[token] and token not in whole:
            return None
    return made if _prefixed(known) is not None else None


def _prefixed(known: dict) -> bool | None:
    """Whether a space is put before a text, spaces being "▁"; None where texts are made ready in another way."""
    steps = [*_parts(known.get("normalizer"), "normalizers"), *_parts(known.get("pre_tokenizer"), "pretokenizers")]
    kinds = [step["type"] for step in steps]
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if kinds == ["Metaspace"] and steps[0]["replacement"] == _SPACE:
        return steps[0]["prepend_scheme"] != "never"
    if kinds[-1:] == ["Split"] and steps[-1]["pattern"] == {"String": " "}:
        steps = steps[:-1]  # of no effect, since no space is left
    if steps == [replaced]:
        return False
    return True if steps == [{"type": "Prepend", "prepend": _SPACE}, replaced] else None


def _parts(step: dict | None, parts: str) -> list[dict]:
    return [] if step is None else step.get(parts, [step])


def _tokens(known: dict, size: int) -> tuple[list[str], list[int]]:
    """Tokens by id, and what each is; ids without a token are filled up."""
    kind, pieces = gguf.TokenType, known["model"].get("byte_fallback")
    tokens, types = [f"[PAD{i}]" for i in range(size)], [int(kind.UNUSED)] * size
    for token, i in known["model"]["vocab"].items():
        tokens[i] = token
        types[i] = int(kind.BYTE if pieces and re.fullmatch("<0x[0-9A-F]{2}>", token) else kind.NORMAL)
    for added in known["added_tokens"]:
        plain = pieces and not added["special"]  # found in a text before its spaces are replaced
        tokens[added["id"]] = added["content"].replace(_SPACE, " ") if plain else added["content"]
        types[added["id"]] = int(kind.CONTROL if added["special"] else kind.USER_DEFINED)
    if pieces:
        types[known["model"]["vocab"][known["model"]["unk_token"]]] = int(kind.UNKNOWN)
    return tokens, types
