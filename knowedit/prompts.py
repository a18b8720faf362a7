"""Prompts and targets as token ids, with the positions that matter.

Positions come from the tokenizer's character offsets, so they hold with and without a BOS token, for byte-level
BPE, sentencepiece and WordPiece, for subjects of several tokens and for text beyond ASCII.

Two kinds of model, one kind of prompt: a decoder reads its answer at the last token, a masked model at its mask.
Where a masked model is given a prompt without a mask, the mask and a full stop are put behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import InputError

MASK = "[MASK]"  # accepted in any masked model's prompts, whatever its own mask token is


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

    - `text`: what was tokenized (after the chat template, if one was used).
    - `ids`: token ids, special tokens included.
    - `read`: index of the read position, where the answer is predicted.
    - `lookup`: index of the lookup position, the subject's last token; None where no subject was named.
    - `subject`: indices (first, last + 1) of the subject's tokens, or None.
    """

    text: str
    ids: tuple[int, ...]
    read: int
    lookup: int | None = None
    subject: tuple[int, int] | None = None

    def position(self, where: str | int) -> int:
        """The index of `"read"`, `"lookup"` or a token index (negative ones count from the end)."""
        if where == "read":
            return self.read
        if where == "lookup":
            if self.lookup is None:
                raise InputError("the lookup position needs a subject: name it with --subject (or subject=)")
            return self.lookup
        if isinstance(where, int) and -len(self.ids) <= where < len(self.ids):
            return where % len(self.ids)
        raise InputError(
            f"position {where!r} is not 'read', 'lookup' or one of the prompt's {len(self.ids)} token indices"
        )


@dataclass(frozen=True)
class Row:
    """Token ids that are run in one pass.

    - `reads`: (index, token) of each token of a target that is predicted in it.
    - `lookup`: index of the lookup position, or None.
    """

    ids: tuple[int, ...]
    reads: tuple[tuple[int, int], ...]
    lookup: int | None = None


@dataclass(frozen=True)
class Query:
    """A prompt and the tokens of its target, teacher-forced.

    `steps[j]` is the prompt whose read position predicts `target_ids[j]`, given the target tokens before it.
    """

    steps: tuple[Prompt, ...]
    target_ids: tuple[int, ...]

    @property
    def prompt(self) -> Prompt:
        return self.steps[0]

    def rows(self, masked: bool) -> list[Row]:
        """The rows that read the whole target: one in a decoder, one for each token in a `masked` model."""
        reads = [(step.read, token) for step, token in zip(self.steps, self.target_ids, strict=True)]
        if masked:  # each step has its own masks
            return [Row(step.ids, (read,), step.lookup) for step, read in zip(self.steps, reads, strict=True)]
        return [Row(self.steps[-1].ids, tuple(reads), self.prompt.lookup)]


def encode(tokenizer, text: str, subject: str | None = None, *, masked: bool = False, chat: bool = False) -> Prompt:
    """Tokenize `text` and find its read and lookup positions.

    A subject that occurs several times counts where it occurs last, where all that was said of it is known.
    Raises `InputError` for empty text, a subject that is not in it, or a wrong number of masks.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("the prompt is empty, expected text that the target continues")
    if masked:
        text = _with_mask(tokenizer, text)
    if subject is not None and (not subject.strip() or subject not in text):
        raise InputError(f"subject {subject!r} is not in the prompt {text!r}: write it as it stands there")
    asked = text.rstrip(" ")  # the answer brings its own space, so that of the prompt would be one too many
    text = _chat(tokenizer, asked) if chat else asked
    # within what was asked: the words around it in a chat template are not the subject
    start = None if subject is None else text.rindex(asked) + asked.rindex(subject)
    return _tokenize(tokenizer, text, None if start is None else (start, start + len(subject)), masked, chat)


def query(
    tokenizer, text: str, target: str, subject: str | None = None, *, masked: bool = False, chat: bool = False
) -> Query:
    """Tokenize a prompt and its target: one read position for each token of the target.

    The target gets a leading space where words are written with one and the prompt does not end in white space;
    a target that already starts with white space is taken as it is. Raises `InputError` for an empty target or
    one that the tokenizer does not know.
    """
    prompt = encode(tokenizer, text, subject, masked=masked, chat=chat)
    if not isinstance(target, str) or not target.strip():
        raise InputError("the target is empty, expected the text that should follow the prompt")
    ids = _masked_target(tokenizer, prompt, target) if masked else _target(tokenizer, prompt, target, chat)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or (unknown is not None and unknown in ids):
        raise InputError(f"the tokenizer does not know the target {target!r} (unknown token); choose another target")
    return with_target_ids(prompt, ids, mask_id=tokenizer.mask_token_id if masked else None)


def with_target_ids(prompt: Prompt, target_ids: tuple[int, ...], mask_id: int | None = None) -> Query:
    """`prompt` teacher-forced with given target tokens (a mask is widened to as many masks)."""
    steps = []
    for j in range(len(target_ids)):
        before = prompt.ids[: prompt.read + 1] if mask_id is None else prompt.ids[: prompt.read]
        after = prompt.ids[prompt.read + 1 :]
        masks = () if mask_id is None else (mask_id,) * (len(target_ids) - j)
        ids = (*before, *target_ids[:j], *masks, *after)
        steps.append(replace(prompt, ids=ids, read=prompt.read + j))
    return Query(tuple(steps), tuple(target_ids))


def _tokenize(tokenizer, text: str, span: tuple[int, int] | None, masked: bool, chat: bool) -> Prompt:
    ids, offsets = _offsets(tokenizer, text, special=not chat)
    if masked:
        read = ids.index(tokenizer.mask_token_id)
    else:  # some tokenizers close a text with a special token, behind which nothing is ever predicted
        while len(ids) > 1 and offsets[len(ids) - 1] == (0, 0) and ids[-1] in tokenizer.all_special_ids:
            ids = ids[:-1]
        read = len(ids) - 1
    prompt = Prompt(text, tuple(ids), read)
    if span is None:
        return prompt
    tokens = _tokens_in(offsets, *span)
    if not tokens:
        raise InputError(f"the tokenizer leaves nothing of the subject {text[slice(*span)]!r}; choose another prompt")
    return replace(prompt, lookup=tokens[-1], subject=(tokens[0], tokens[-1] + 1))


def _offsets(tokenizer, text: str, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} gives no character offsets; load the fast tokenizer of this model instead"
        )
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [tuple(o) for o in encoded["offset_mapping"]]


def _tokens_in(offsets: list[tuple[int, int]], start: int, end: int) -> list[int]:
    return [i for i, (a, b) in enumerate(offsets) if a < end and b > start]


def _spaced(text: str, target: str) -> str:
    """`target` with the separator that belongs between it and `text`."""
    joins = target[0].isspace() or not text or text[-1].isspace() or text[-1] in "([{\"'“‘«-/"
    return target if joins or not _word_like(target[0]) or _wide(target[0]) else " " + target


def _word_like(character: str) -> bool:
    return character.isalnum() or character in "\"'“‘«($€£#@-+"


def _wide(character: str) -> bool:
    """Scripts that are written without spaces: CJK, kana, Thai, Lao, Khmer, Burmese."""
    code = ord(character)
    return (
        0x2E80 <= code <= 0x9FFF
        or 0x20000 <= code <= 0x3FFFF
        or 0x0E00 <= code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
    )


def _target(tokenizer, prompt: Prompt, target: str, chat: bool) -> tuple[int, ...]:
    text = prompt.text
    spaced = _spaced(text, target)
    joint, offsets = _offsets(tokenizer, text + spaced, special=not chat)
    n = len(prompt.ids)
    inside = _tokens_in(offsets, len(text), len(text) + len(spaced))
    if tuple(joint[:n]) == prompt.ids and inside and inside[0] == n:
        return tuple(joint[i] for i in inside)
    # the target's first letters merge with the prompt's last ones: the prompt's own tokens win, as they do at run time
    return tuple(tokenizer(spaced, add_special_tokens=False)["input_ids"])


def _masked_target(tokenizer, prompt: Prompt, target: str) -> tuple[int, ...]:
    before, after = prompt.text.split(tokenizer.mask_token)
    text = before + target.strip() + after
    ids, offsets = _offsets(tokenizer, text)
    return tuple(ids[i] for i in _tokens_in(offsets, len(before), len(before) + len(target.strip())))


def _with_mask(tokenizer, text: str) -> str:
    text = text.replace(MASK, tokenizer.mask_token)
    found = text.count(tokenizer.mask_token)
    if found > 1:
        raise InputError(f"the prompt {text!r} has {found} masks, expected one; a longer target widens it by itself")
    return text if found else f"{text.rstrip()} {tokenizer.mask_token}."


def _chat(tokenizer, text: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("this model's tokenizer has no chat template; leave --chat out or choose an instruct model")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
