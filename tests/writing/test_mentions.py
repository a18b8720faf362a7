"""Where a subject is mentioned: as words of their own before anything else."""

import pytest

from knowedit.writing.mentions import mention


@pytest.mark.parametrize(
    ("text", "subject", "before"),
    [
        ("Where was Ann, the daughter of Hanna and Annette, born? She was born in", "Ann", "Where was "),
        ("Rome was, said the Romeo of the story, built by", "Rome", ""),
        ("Apollo 1 came before Apollo 11, which", "Apollo 1", ""),
        ("The Java of Javanese is", "Java", "The "),
        ("Рим — не Римский, а город", "Рим", ""),
        ("सीता और गीतासीता", "सीता", ""),
        ("Ann or Ann\u0301a", "Ann", ""),  # a mark makes another letter of the last one
        ("snake and snake_case", "snake", ""),
        ("👩 is not 👩‍👧", "👩", ""),  # a part of another picture
        ("👍 is not 👍🏽", "👍", ""),
        ("کتاب و کتاب\u200cها", "کتاب", ""),  # the Persian plural, behind a half-space
    ],
)
def test_a_mention_of_its_own_goes_before_letters_of_other_words(text, subject, before):
    assert mention(text, subject) == (len(before), len(before) + len(subject), True)


@pytest.mark.parametrize(
    ("text", "subject", "before"),
    [
        ("C was there before C++, C# and Objective-C, and it was made by", "C", ""),
        ("Is Rome's mayor from Rome-by-the-sea?", "Rome", "Is "),
        ("Jean was, says Jean-Luc, born in", "Jean", ""),
        ("Luc was, says Jean‑Luc, born in", "Luc", ""),
        ("Neil met O'Neil in", "Neil", ""),
        ("Node is not Node.js, which is", "Node", ""),
        ("Of 3 and 3.5 and 3,000 the first is", "3", "Of "),
        ("AT is not AT&T, but", "AT", ""),
    ],
)
def test_a_word_goes_before_a_part_of_a_compound(text, subject, before):
    assert mention(text, subject) == (len(before), len(before) + len(subject), True)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Paris, Texas. Paris is in", "Paris"),
        ("Is the mayor of Rome from Rome's sea side?", "Rome"),
        ("Was the Paris-based firm in Paris?", "Paris"),
        ("Ankara büyük; Ankara'da", "Ankara"),
        ("The Paris-based firm, a Paris-born one, is in", "Paris"),  # compounds only
        ("Ann and/or Ann, Ann.", "Ann"),
        ("日本は日本語の国", "日本"),
        ("กรุงเทพเป็นเมืองหลวงของไทย กรุงเทพอยู่ใน", "กรุงเทพ"),
        ("서울은 한국의 수도이고 서울의 강은", "서울"),
        ("The band is called C++, C++ is", "C++"),
        ("aaa", "aa"),
    ],
)
def test_of_several_mentions_the_last_counts(text, subject):
    assert mention(text, subject)[:2] == (text.rindex(subject), text.rindex(subject) + len(subject))
    assert mention(text, subject).whole == (text != "aaa")


@pytest.mark.parametrize(
    ("text", "subject"), [("Annette and Hanna", "Ann"), ("남서울 대학", "서울"), ("בפריז", "פריז")]
)
def test_a_mention_inside_a_word_is_the_last_resort_and_known_as_one(text, subject):
    start = text.lower().rindex(subject.lower()) if subject != "Ann" else 0
    assert mention(text, subject) == (start, start + len(subject), False)


@pytest.mark.parametrize("subject", ["Rome", "", " ", "annette"])
def test_what_is_not_mentioned_has_no_place(subject):
    assert mention("Annette and Hanna", subject) is None
