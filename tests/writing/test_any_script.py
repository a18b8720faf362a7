"""Prompts, subjects and targets of any script, with every sort of tokenizer."""

import pytest
from hypothesis import given, settings, strategies as st
from support.tiny import tokenizer

from knowedit.errors import KnoweditError
from knowedit.prompts import encode, query

DECODERS, ALL = ["bpe", "bpe-bos", "bpe-mask", "sentencepiece"], ["bpe", "sentencepiece", "wordpiece", "bpe-roberta"]
SPACED = {
    "Latin": ("Paris", "São", "Tomé", "Zürich", "is", "O’Brien", "d’Arc", "Łódź", "naïve"),
    "Cyrillic": ("Москва", "Київ", "река", "есть", "Йошкар", "м’ята"),
    "Greek": ("Αθήνα", "Ἀθῆναι", "είναι", "πόλη", "Ρόδος"),
    "Arabic": ("باريس", "القاهرة", "هي", "مدينة", "می‌خواهم", "كِتَاب"),
    "Hebrew": ("ירושלים", "היא", "עִיר", "צה״ל", "פריז"),
    "Devanagari": ("दिल्ली", "राजधानी", "है", "क्‍षेत्र", "भारत"),
    "Korean": ("서울", "수도", "도시", "한국", "부산"),
    "emoji": ("🗼", "🇫🇷", "👩‍🚀", "👍🏽", "❤️", "🏳️‍🌈"),
}
SPACELESS = {
    "Thai": ("กรุงเทพ", "เมือง", "น้ำ", "ประเทศไทย", "คือ"),
    "Chinese": ("北京", "首都", "苹果公司", "是", "𠮷"),
    "Japanese": ("東京", "は", "コンピュータ", "ひらがな", "々"),
}
WORDS = SPACED | SPACELESS
OPENING = ("", "", '"', "'", "“", "«", "(", "¥", "#", "-", "「")
CLOSING = ("", "", "'", "”", "»", ")", ".", "。", "!", "…")


@st.composite
def asked(draw):
    """(prompt, subject, where it is mentioned): once as a word of its own, and now and then inside of others."""
    script = draw(st.sampled_from(sorted(WORDS)))
    space = " " if script in SPACED else ""
    subject = space.join(draw(st.lists(st.sampled_from(WORDS[script]), min_size=1, max_size=2)))
    others = [word for name in (script, draw(st.sampled_from(sorted(WORDS)))) for word in WORDS[name]]
    others = [word for word in others if not {*word} & {*subject}]
    if space and script not in ("emoji", "Korean") and " " not in subject:  # a Korean word goes on with its particles
        others += [subject + "а", "б" + subject, subject + "\u0301"]
    head, tail = (draw(st.lists(st.sampled_from(others), max_size=3)) if others else [] for _ in range(2))
    before, after = space.join([*head, ""]), space.join(["", *tail])
    opened = draw(st.sampled_from(("", '"', "«", "(")))
    prompt = before + opened + subject + after + draw(st.sampled_from(("", " ", "\n", ":", " «", ' "', "’")))
    return prompt, subject, len(before + opened)


def target():
    words = st.sampled_from([word for some in WORDS.values() for word in (*some, "1990", "-5", "100€", " and", "'s")])
    return st.tuples(st.sampled_from(OPENING), words, st.sampled_from(CLOSING)).map("".join)


@pytest.mark.filterwarnings("ignore::knowedit.errors.KnoweditWarning")
@settings(max_examples=150)
@given(kind=st.sampled_from(ALL), asked=asked())
def test_the_lookup_token_belongs_to_the_subjects_own_mention(kind, asked):
    text, subject, start = asked
    masked = kind in ("wordpiece", "bpe-roberta")
    try:
        prompt = encode(tokenizer(kind), text, subject, masked=masked)
    except KnoweditError:
        assert kind in ("sentencepiece", "wordpiece")  # which have not all of these characters
        return
    offsets = tokenizer(kind)(prompt.text, return_offsets_mapping=True)["offset_mapping"]
    inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(subject) and b > start]
    assert prompt.subject == (inside[0], inside[-1] + 1) and prompt.lookup == inside[-1]


@settings(max_examples=200)
@given(kind=st.sampled_from(DECODERS), asked=asked(), target=target())
def test_prompt_separator_and_target_have_the_tokens_of_the_whole_text_or_say_that_they_have_not(kind, asked, target):
    tok = tokenizer(kind)
    try:
        found = query(tok, asked[0], target)
    except KnoweditError:
        assert kind == "sentencepiece"
        return
    assert found.separator.strip() == ""
    whole = tok(found.prompt.text + found.separator + target).input_ids
    whole = whole[: -1 if kind == "bpe-mask" else None]  # which closes a text with [SEP]
    assert (tuple(whole) == found.prompt.ids + found.target_ids) == found.as_written
    if kind != "sentencepiece":  # whose vocabulary has not all of these characters
        assert tok.decode(found.prompt.ids + found.target_ids).endswith(found.prompt.text + found.separator + target)


@pytest.mark.filterwarnings("ignore::knowedit.errors.KnoweditWarning")
@settings(max_examples=150)
@given(
    kind=st.sampled_from([*DECODERS, "bpe-chat", *ALL]),
    text=st.text(max_size=20),
    subject=st.text(max_size=4),
    target=st.text(max_size=6),
)
def test_whatever_is_asked_raises_only_errors_of_ours(kind, text, subject, target):
    masked = kind in ("wordpiece", "bpe-roberta")
    try:
        found = query(tokenizer(kind), text, target, subject or None, masked=masked, chat=kind == "bpe-chat")
    except KnoweditError:
        return
    assert len(found.steps) == len(found.target_ids) > 0
