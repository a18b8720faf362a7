"""Positions and target tokens, against the tokens that one would point at by eye."""

from copy import copy

import pytest
from hypothesis import given, settings, strategies as st
from support.tiny import PROMPT, tokenizer

from knowedit.errors import InputError, KnoweditWarning
from knowedit.prompts import encode, query, with_target_ids
from knowedit.writing.mentions import mention

DECODER = ["bpe", "bpe-bos", "sentencepiece"]
MASKED = ["wordpiece", "bpe-roberta", "bpe-mask"]


def words(kind, ids):
    return tokenizer(kind).convert_ids_to_tokens(list(ids))


def text(kind, ids):
    return tokenizer(kind).decode(list(ids), clean_up_tokenization_spaces=False).strip()


# ------------------------------------------------------------------ positions


@pytest.mark.parametrize("kind", DECODER)
def test_read_is_the_last_token_and_lookup_the_last_of_the_subject(kind):
    prompt = encode(tokenizer(kind), PROMPT, "Eiffel Tower")
    assert prompt.read == len(prompt.ids) - 1
    first, after = prompt.subject
    assert after - first > 1  # a subject of several tokens
    assert text(kind, prompt.ids[first:after]) == "Eiffel Tower"
    assert prompt.lookup == after - 1
    assert text(kind, prompt.ids[: prompt.lookup + 1]).endswith("The Eiffel Tower")


def test_bos_shifts_positions_by_one():
    without, with_bos = (encode(tokenizer(kind), PROMPT, "Eiffel Tower") for kind in ("bpe", "bpe-bos"))
    assert with_bos.ids[0] == tokenizer("bpe-bos").bos_token_id
    assert (with_bos.read, with_bos.lookup) == (without.read + 1, without.lookup + 1)
    assert words("bpe", without.ids) == words("bpe-bos", with_bos.ids[1:])


@pytest.mark.parametrize("kind", DECODER + ["wordpiece"])
def test_a_subject_at_the_start_has_its_tokens_found(kind):
    prompt = encode(tokenizer(kind), "Paris is the capital of", "Paris", masked=kind == "wordpiece")
    assert text(kind, prompt.ids[slice(*prompt.subject)]) == "Paris"


@pytest.mark.parametrize("kind", DECODER)
def test_of_a_subject_that_occurs_twice_the_last_counts(kind):
    prompt = encode(tokenizer(kind), "Paris is a city. The capital Paris is in", "Paris")
    assert text(kind, prompt.ids[prompt.subject[1] :]) == "is in"


@pytest.mark.parametrize("kind", DECODER + ["wordpiece"])
@pytest.mark.parametrize("subject", ["São Tomé", "東京", "Zürich"])
def test_subjects_beyond_ascii(kind, subject):
    prompt = encode(tokenizer(kind), f"The capital {subject} is in", subject, masked=kind == "wordpiece")
    found = text(kind, prompt.ids[slice(*prompt.subject)])
    assert found.replace(" ", "") == subject.replace(" ", "")
    assert words(kind, prompt.ids)[prompt.lookup + 1].strip("Ġ▁") == "is"


def test_an_emoji_of_several_bytes_is_one_subject():
    prompt = encode(tokenizer("bpe"), "The flag 🗼 is of", "🗼")
    first, after = prompt.subject
    assert text("bpe", prompt.ids[first:after]) == "🗼"
    assert after - first >= 4  # four bytes


@pytest.mark.parametrize("kind", DECODER)
@pytest.mark.parametrize("spaces", [" ", "   "])
def test_trailing_spaces_change_nothing(kind, spaces):
    assert query(tokenizer(kind), PROMPT + spaces, "Paris") == query(tokenizer(kind), PROMPT, "Paris")


def test_position_names_and_indices():
    prompt = encode(tokenizer("bpe"), PROMPT, "Eiffel Tower")
    assert prompt.position("read") == prompt.read
    assert prompt.position("lookup") == prompt.lookup
    assert prompt.position(2) == 2
    assert prompt.position(-1) == prompt.read
    for wrong in ("middle", len(prompt.ids), -len(prompt.ids) - 1, 1.5):
        with pytest.raises(InputError, match="is not 'read', 'lookup' or one of the prompt's 14 token"):
            prompt.position(wrong)
    with pytest.raises(InputError, match="needs a subject"):
        encode(tokenizer("bpe"), PROMPT).position("lookup")


@pytest.mark.parametrize("empty", ["", "  ", "\n", None])
def test_empty_prompts_are_refused(empty):
    with pytest.raises(InputError, match="prompt is empty"):
        encode(tokenizer("bpe"), empty)


@pytest.mark.parametrize("kind", DECODER)
@pytest.mark.parametrize("text", ["The capital of France", "The capital of France ", "The capital of France\n"])
def test_white_space_around_a_subject_is_no_part_of_it(kind, text):
    for subject in ("France", "France ", " France"):
        found = encode(tokenizer(kind), text, subject)
        assert words(kind, found.ids)[found.lookup].strip("Ġ▁") in ("France", "e", "ce", "nce")
        assert found == encode(tokenizer(kind), text, "France")


def test_a_subject_is_looked_up_where_it_is_a_word_of_its_own():
    found = encode(tokenizer("bpe"), "Where was Ann, the daughter of Hanna and Annette, born in", "Ann")
    assert tokenizer("bpe").decode(found.ids[: found.lookup + 1]) == "Where was Ann"


def test_a_subject_inside_a_word_is_said():
    with pytest.warns(KnoweditWarning, match="the subject 'Ital' is only a part of a word in 'The Italian is'"):
        encode(tokenizer("bpe"), "The Italian is", "Ital")


@pytest.mark.parametrize("subject", ["Big Ben", "", " ", "eiffel tower"])
def test_a_subject_that_is_not_in_the_prompt_is_refused(subject):
    with pytest.raises(InputError, match="is not in the prompt"):
        encode(tokenizer("bpe"), PROMPT, subject)


def test_slow_tokenizers_are_refused_by_name():
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(InputError, match="SlowTokenizer gives no character offsets; load the fast tokenizer"):
        encode(SlowTokenizer(), PROMPT)


# ------------------------------------------------------------------ targets of decoders


@pytest.mark.parametrize("kind", DECODER)
def test_a_target_gets_its_space_once(kind):
    plain, spaced = query(tokenizer(kind), PROMPT, "Paris"), query(tokenizer(kind), PROMPT, " Paris")
    assert plain.target_ids == spaced.target_ids
    assert words(kind, plain.target_ids) == ["▁Paris" if kind == "sentencepiece" else "ĠParis"]


@pytest.mark.parametrize("ending", ["is (", 'is "', "is non-", "is\n"])
def test_no_space_behind_what_joins(ending):
    found = query(tokenizer("bpe"), "The capital of France " + ending, "Paris")
    assert words("bpe", found.target_ids)[0].startswith("P")


def test_punctuation_as_a_target_gets_no_space():
    assert words("bpe", query(tokenizer("bpe"), PROMPT, ".").target_ids) == ["."]


@pytest.mark.parametrize("kind", DECODER)
@pytest.mark.parametrize(("prompt", "between"), [("The capital of Japan is", " "), ("東京", "")])
def test_the_script_of_the_prompt_says_whether_a_space_stands_before_a_target_without_spaces(kind, prompt, between):
    found = query(tokenizer(kind), prompt, "東京")
    assert found.separator == between
    assert tokenizer(kind).decode(list(found.steps[0].ids + found.target_ids)).endswith(f"{prompt}{between}東京")


@pytest.mark.parametrize("kind", DECODER)
def test_targets_of_several_tokens_are_teacher_forced(kind):
    found = query(tokenizer(kind), PROMPT, "Zurichq", "Eiffel Tower")
    n = len(found.target_ids)
    assert n > 1 and len(found.steps) == n
    for j, step in enumerate(found.steps):
        assert step.ids == found.prompt.ids + found.target_ids[:j]
        assert step.read == len(step.ids) - 1
        assert step.lookup == found.prompt.lookup
    assert text(kind, found.target_ids) == "Zurichq"


def test_the_prompts_own_tokens_win_over_a_merge_with_the_target():
    tok = tokenizer("bpe")
    head = encode(tok, "Tower '")
    found = query(tok, "Tower '", "s")  # the tokenizer's own pattern would cut "'s" off as one piece
    assert found.prompt.ids == head.ids
    assert words("bpe", found.target_ids) == ["s"]


@pytest.mark.parametrize("target", ["", "  ", None])
def test_empty_targets_are_refused(target):
    with pytest.raises(InputError, match="target is empty"):
        query(tokenizer("bpe"), PROMPT, target)


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_targets_that_the_tokenizer_does_not_know_are_refused(kind):
    with pytest.raises(InputError, match="does not know the target '🗼'"):
        query(tokenizer(kind), PROMPT, "🗼", masked=kind == "wordpiece")


def test_given_target_ids_are_taken_as_they_are():
    prompt = encode(tokenizer("bpe"), PROMPT)
    found = with_target_ids(prompt, (7, 8, 9))
    assert [s.ids[len(prompt.ids) :] for s in found.steps] == [(), (7,), (7, 8)]
    assert [s.read - prompt.read for s in found.steps] == [0, 1, 2]


@pytest.mark.parametrize("kind", DECODER)
def test_a_separator_can_be_said(kind):
    tok = tokenizer(kind)
    none, space = (query(tok, "Paris is a", "b", separator=said) for said in ("", " "))
    assert tok.decode(none.steps[0].ids + none.target_ids).endswith("Paris is ab")
    assert space.target_ids == query(tok, "Paris is a", "b").target_ids != none.target_ids
    assert (none.separator, space.separator) == ("", " ")


def test_a_typed_space_is_the_separator_where_the_script_needs_none():
    assert [query(tokenizer("bpe"), text, "Tokyo").separator for text in ("東京", "東京 ", "東京  ")] == ["", " ", " "]


@pytest.mark.parametrize("wrong", [", ", "-", 3])
def test_a_separator_is_white_space(wrong):
    with pytest.raises(InputError, match="the separator is .*, expected white space or nothing"):
        query(tokenizer("bpe"), PROMPT, "Paris", separator=wrong)


def test_a_masked_model_takes_no_separator():
    with pytest.raises(InputError, match=r"put \[MASK\] where the target belongs"):
        query(tokenizer("wordpiece"), PROMPT, "Paris", masked=True, separator="")


def test_a_query_says_whether_the_text_has_its_tokens():
    assert query(tokenizer("bpe"), PROMPT, "Paris").as_written
    assert not query(tokenizer("bpe"), "The city of P", "aris", separator="").as_written


@pytest.mark.parametrize("kind", DECODER)
def test_a_target_that_merges_with_the_prompt_gets_no_space_for_that(kind):
    found = query(tokenizer(kind), "The city of P", "aris", separator="")
    assert not found.as_written  # "Paris" is one token, or has others
    assert tokenizer(kind).decode(found.steps[0].ids + found.target_ids).endswith("of Paris")


def test_the_first_token_with_the_other_separator_is_known():
    tok = tokenizer("bpe")
    assert words("bpe", [query(tok, PROMPT, "Paris").other_start]) == ["Paris"]
    assert words("bpe", [query(tok, PROMPT + " (", "Paris").other_start]) == ["ĠParis"]
    assert query(tok, PROMPT, "Paris", separator=" ").other_start is None  # who says it knows it


# ------------------------------------------------------------------ masked models


@pytest.mark.parametrize("kind", MASKED)
def test_masks_by_any_name_or_none(kind):
    tok = tokenizer(kind)
    wanted = query(tok, "The capital of France is [MASK].", "Paris", "France", masked=True)
    assert wanted.prompt.ids[wanted.prompt.read] == tok.mask_token_id
    assert text(kind, wanted.target_ids) == "Paris"
    for same in (
        "The capital of France is",
        "The capital of France is ",
        f"The capital of France is {tok.mask_token}.",
        "The capital of France is <mask>.",
    ):
        assert query(tok, same, "Paris", "France", masked=True) == wanted
    assert text(kind, [wanted.prompt.ids[wanted.prompt.lookup]]) == "France"


def test_a_roberta_mask_takes_the_space_before_it_and_the_target_brings_it_back():
    found = query(tokenizer("bpe-roberta"), "The capital of France is <mask>.", "Paris", masked=True)
    assert words("bpe-roberta", found.prompt.ids)[-4:] == ["Ġis", "<mask>", ".", "</s>"]
    assert words("bpe-roberta", found.target_ids) == ["ĠParis"]


@pytest.mark.parametrize("kind", MASKED)
def test_a_mask_may_come_first(kind):
    found = query(tokenizer(kind), "[MASK] is the capital of France.", "Paris", "France", masked=True)
    assert found.prompt.read == 1
    assert words(kind, found.target_ids) == ["Paris"]


@pytest.mark.parametrize("kind", MASKED)
def test_targets_of_several_tokens_widen_the_mask(kind):
    tok = tokenizer(kind)
    found = query(tok, "The capital of France is [MASK].", "Bordeauxs", "France", masked=True)
    n = len(found.target_ids)
    assert n > 1
    lengths = {len(step.ids) for step in found.steps}
    assert len(lengths) == 1  # one mask a token, whatever is filled in already
    for j, step in enumerate(found.steps):
        assert step.ids.count(tok.mask_token_id) == n - j
        assert step.ids[step.read] == tok.mask_token_id
        assert step.ids[found.prompt.read : step.read] == found.target_ids[:j]


@pytest.mark.parametrize("kind", MASKED)
def test_several_masks_are_refused(kind):
    with pytest.raises(InputError, match="has 2 masks, expected one"):
        query(tokenizer(kind), "The [MASK] of France is [MASK].", "Paris", masked=True)


def test_a_masked_prompt_in_a_decoder_is_plain_text():
    with pytest.warns(KnoweditWarning, match=r"\[MASK\] is plain text to a decoder, which answers at the end of"):
        prompt = encode(tokenizer("bpe"), "The city of [MASK]")
    assert prompt.read == len(prompt.ids) - 1
    assert prompt.text == "The city of [MASK]"


def test_a_decoders_closing_token_is_left_out():
    found = encode(tokenizer("bpe-mask"), "The city of")  # closes texts with [SEP], as some decoders' tokenizers do
    assert words("bpe-mask", found.ids)[-1] == "Ġof"


# ------------------------------------------------------------------ chat


def test_chat_wraps_the_prompt_and_keeps_its_positions():
    tok = tokenizer("bpe-chat")
    found = query(tok, "The capital of France is", "Paris", "France", chat=True)
    assert found.prompt.text == "<|user|>The capital of France is<|end|><|assistant|>"
    assert words("bpe-chat", found.prompt.ids)[-1] == "<|assistant|>"
    assert found.prompt.read == len(found.prompt.ids) - 1
    assert text("bpe-chat", [found.prompt.ids[found.prompt.lookup]]) == "France"


TRIMMING = "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}{% if add_generation_prompt %} {% endif %}"


def chatting(template):
    tok = copy(tokenizer("bpe"))
    tok.chat_template = template
    return tok


@pytest.mark.parametrize("text", ["  The capital of France is\n", "The capital of France is \n ", "France"])
def test_a_chat_template_may_trim_the_prompt(text):
    found = encode(chatting(TRIMMING), text, "France", chat=True)
    assert found.text == f"[{text.strip()}] "
    first, after = found.subject
    assert tokenizer("bpe").decode(found.ids[first:after]).strip("[ ]") == "France"


def test_a_chat_template_that_changes_the_prompt_is_refused_where_a_subject_is_in_it():
    shouting = chatting("{% for m in messages %}{{ m['content'] | upper }}:{% endfor %}")
    assert encode(shouting, "The capital of France is", chat=True).text == "THE CAPITAL OF FRANCE IS:"
    with pytest.raises(InputError, match="the chat template changes the prompt"):
        encode(shouting, "The capital of France is", "France", chat=True)


@pytest.mark.parametrize(("before", "separator"), [("", ""), (" ", " "), ("\n", "\n")])
def test_a_chat_template_says_what_stands_before_an_answer(before, separator):
    template = "{% for m in messages %}<{{ m['role'] }}>BEFORE{{ m['content'] }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    tok = chatting(template.replace("BEFORE", before))
    assert query(tok, "The capital of France is", "Paris", chat=True).separator == separator


def test_chat_needs_a_template():
    with pytest.raises(InputError, match="no chat template"):
        encode(tokenizer("bpe"), PROMPT, chat=True)


# ------------------------------------------------------------------ any text


@pytest.mark.filterwarnings("ignore::knowedit.errors.KnoweditWarning")  # of subjects inside words
@settings(max_examples=150)
@given(
    kind=st.sampled_from(DECODER),
    head=st.text(max_size=12),
    subject=st.text(min_size=1, max_size=8).filter(lambda s: s.strip() and s == s.strip()),
    tail=st.text(max_size=12),
)
def test_the_subjects_tokens_cover_the_subject_in_any_text(kind, head, subject, tail):
    prompt = encode(tokenizer(kind), head + subject + tail, subject)
    offsets = tokenizer(kind)(prompt.text, return_offsets_mapping=True)["offset_mapping"]
    start = mention(prompt.text, subject).start
    first, after = prompt.subject
    assert 0 <= first <= prompt.lookup == after - 1 < len(prompt.ids)
    assert offsets[first][0] <= start
    assert offsets[after - 1][1] >= start + len(subject)


def test_a_decoder_reads_a_target_in_one_row_and_a_masked_model_in_one_for_each_token():
    found = query(tokenizer("bpe"), "The capital of France is", "Bordeauxs", "France")
    (row,) = found.rows(masked=False)
    n, read = len(found.target_ids), found.prompt.read
    assert n > 1 and row.ids == found.prompt.ids + found.target_ids[:-1] and row.lookup == found.prompt.lookup
    assert row.reads == tuple((read + j, token) for j, token in enumerate(found.target_ids))
    found = query(tokenizer("wordpiece"), "The capital of France is [MASK].", "Bordeauxs", masked=True)
    rows = found.rows(masked=True)
    assert [row.ids for row in rows] == [step.ids for step in found.steps] and len(rows) > 1
    assert [row.reads for row in rows] == [
        ((step.read, token),) for step, token in zip(found.steps, found.target_ids, strict=True)
    ]
