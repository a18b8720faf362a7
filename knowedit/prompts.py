"""Prompts and targets as token ids, with the positions that matter.

Positions come from the tokenizer's character offsets, so they hold with and without a BOS token, for byte-level
BPE, sentencepiece and WordPiece, for subjects of several tokens and for text beyond ASCII.

Two kinds of model, one kind of prompt: a decoder reads its answer at the last token, a masked model at its mask.
Where a masked model is given a prompt without a mask, the mask and a full stop are put behind it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .errors import InputError, KnoweditWarning
from .writing.mentions import mention
from .writing.scripts import mostly_spaceless
from .writing.separators import check_separator, joins_what_precedes, separator as fitting

MASK = "[MASK]"
_MASKS = (MASK, "<mask>")  # accepted in any masked model's prompts, whatever its own mask token is


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

    - `steps[j]`: the prompt whose read position predicts `target_ids[j]`, given the target tokens before it.
    - `separator`: the white space between prompt and target; None where token ids or a mask were given.
    - `other_start`: the first token that the target would have with the other separator, if that is another one.
    - `as_written`: whether the text as a whole has these tokens. Where the target's first letters would merge with the
      prompt's last ones it has not: then the prompt's own tokens stay, as they do when a model writes on.
    """

    steps: tuple[Prompt, ...]
    target_ids: tuple[int, ...]
    separator: str | None = None
    other_start: int | None = None
    as_written: bool = True

    @property
    def prompt(self) -> Prompt:
        return self.steps[0]

    def scaled_at(self, position: str | int, reads: Sequence[int]) -> list[int]:
        """Where neurons are scaled for tokens of the target that are read at `reads`.

        There for `"read"`, at the prompt's lookup position for `"lookup"`, at all of these for `"both"`, or at a token
        index of the prompt. Raises `InputError` as `Prompt.position` does.
        """
        if position == "read":
            return list(reads)
        at = self.prompt.position("lookup" if position == "both" else position)
        return sorted({at, *reads}) if position == "both" else [at]

    def rows(self, masked: bool) -> list[Row]:
        """The rows that read the whole target: one in a decoder, one for each token in a `masked` model."""
        reads = [(step.read, token) for step, token in zip(self.steps, self.target_ids, strict=True)]
        if masked:  # each step has its own masks
            return [Row(step.ids, (read,), step.lookup) for step, read in zip(self.steps, reads, strict=True)]
        return [Row(self.steps[-1].ids, tuple(reads), self.prompt.lookup)]


def encode(tokenizer, text: str, subject: str | None = None, *, masked: bool = False, chat: bool = False) -> Prompt:
    """Tokenize `text` and find its read and lookup positions.

    Of several mentions of a subject the last counts, where all that was said of it is known (`writing.mentions`).
    Raises `InputError` for empty text, a subject that is not in it, a wrong number of masks, or a chat template that
    changes what was asked. Warns of a subject that is only mentioned inside a word, and of a mask before a decoder.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("the prompt is empty, expected text that the target continues")
    if masked:
        text = _with_mask(tokenizer, text)
    elif mask := next((mask for mask in _MASKS if mask in text), None):
        message = f"{mask} is plain text to a decoder, which answers at the end of {text!r}; end the prompt there"
        warnings.warn(message, KnoweditWarning, stacklevel=2)
    asked = text.rstrip(" ")  # the answer brings its own space, so that of the prompt would be one too many
    text = _chat(tokenizer, asked) if chat else asked
    if subject is None:
        return _tokenize(tokenizer, text, None, masked, chat)
    place = mention(asked, subject.strip())
    if place is None:
        raise InputError(f"subject {subject!r} is not in the prompt {asked!r}: write it as it stands there")
    if not place.whole:
        message = f"the subject {subject!r} is only a part of a word in {asked!r}; its tokens there are taken"
        warnings.warn(message, KnoweditWarning, stacklevel=2)
    start = _start_in(text, asked)  # the words around it in a chat template are not the subject
    return _tokenize(tokenizer, text, (start + place.start, start + place.end), masked, chat)


def query(
    tokenizer,
    text: str,
    target: str,
    subject: str | None = None,
    *,
    masked: bool = False,
    chat: bool = False,
    separator: str | None = None,
) -> Query:
    """Tokenize a prompt and its target: one read position for each token of the target.

    Before the target stands `separator`, white space or nothing. By default it is what `text` ends with, what the
    chat template puts there, or what both sides need (`writing.separators`); a target that starts with white space is
    taken as it is. Raises `InputError` for an empty target and one that the tokenizer does not know, for a separator
    that is no white space, and for one in a masked model, where the mask stands where the target belongs.
    """
    prompt = encode(tokenizer, text, subject, masked=masked, chat=chat)
    if not isinstance(target, str) or not target.strip():
        raise InputError("the target is empty, expected the text that should follow the prompt")
    check_separator(separator)
    if masked:
        if separator is not None:
            raise InputError(f"a separator is for decoders; put {MASK} where the target belongs in the prompt {text!r}")
        ids = _known(tokenizer, target, _masked_target(tokenizer, prompt, target))
        return with_target_ids(prompt, ids, tokenizer.mask_token_id)
    typed = text[len(text.rstrip(" ")) :]
    if separator is not None:
        between = ("" if chat else typed) + separator
    elif chat:
        between = _chat_separator(tokenizer, prompt.text, text.rstrip(" "), target)
    elif typed and not target[0].isspace():
        between = "" if joins_what_precedes(prompt.text, target) else " "
    else:
        between = fitting(prompt.text, target)
    found, as_written = _target(tokenizer, prompt, between + target, chat)
    start = None
    if separator is None:
        other, _ = _target(tokenizer, prompt, ("" if between else " ") + target.lstrip(), chat)
        start = other[0] if other and found and other[0] != found[0] else None
    plain = with_target_ids(prompt, _known(tokenizer, target, found))
    return replace(plain, separator=between, other_start=start, as_written=as_written)


def _known(tokenizer, target: str, ids: tuple[int, ...]) -> tuple[int, ...]:
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not ids or (unknown is not None and unknown in ids):
        raise InputError(f"the tokenizer does not know the target {target!r} (unknown token); choose another target")
    return ids


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


def _target(tokenizer, prompt: Prompt, spaced: str, chat: bool) -> tuple[tuple[int, ...], bool]:
    """The tokens of a target with its separator behind `prompt`, and whether the whole text has them there."""
    text = prompt.text
    joint, offsets = _offsets(tokenizer, text + spaced, special=not chat)
    n = len(prompt.ids)
    inside = _tokens_in(offsets, len(text), len(text) + len(spaced))
    if tuple(joint[:n]) == prompt.ids and inside and inside[0] == n:
        return tuple(joint[i] for i in inside), True
    # the target's first letters merge with the prompt's last ones: the prompt's own tokens win, as they do at run time
    alone, offsets = _offsets(tokenizer, f"\n{spaced}", special=False)  # a tokenizer may put a space before a text
    inside = _tokens_in(offsets, 1, 1 + len(spaced))
    if not inside or offsets[inside[0]][0] < 1:
        return tuple(tokenizer(spaced, add_special_tokens=False)["input_ids"]), False
    return tuple(alone[i] for i in inside), False


def _masked_target(tokenizer, prompt: Prompt, target: str) -> tuple[int, ...]:
    before, after = prompt.text.split(tokenizer.mask_token)
    text = before + target.strip() + after
    ids, offsets = _offsets(tokenizer, text)
    return tuple(ids[i] for i in _tokens_in(offsets, len(before), len(before) + len(target.strip())))


def _with_mask(tokenizer, text: str) -> str:
    for mask in _MASKS:
        text = text.replace(mask, tokenizer.mask_token)
    found = text.count(tokenizer.mask_token)
    if found > 1:
        raise InputError(f"the prompt {text!r} has {found} masks, expected one; a longer target widens it by itself")
    if found:
        return text
    between, stop = ("", "。") if mostly_spaceless(text) else (" ", ".")
    return f"{text.rstrip()}{between}{tokenizer.mask_token}{stop}"


def _chat(tokenizer, text: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("this model's tokenizer has no chat template; leave --chat out or choose an instruct model")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )


def _chat_separator(tokenizer, before: str, asked: str, target: str) -> str:
    """What the template itself puts between its last words and an answer; nothing where that cannot be seen."""
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": target.strip()}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    between, found, _ = whole.removeprefix(before).partition(target.strip())
    return between if found and whole.startswith(before) and not between.strip() else ""


def _start_in(text: str, asked: str) -> int:
    """Where `asked` begins in `text`, which a chat template may have made of it."""
    start = text.rfind(asked.strip())
    if start < 0:
        raise InputError(
            f"the chat template changes the prompt {asked!r}, so the place of its subject is unknown; leave --chat out"
        )
    return start - (len(asked) - len(asked.lstrip()))
