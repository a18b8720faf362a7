"""Numbers of things in words."""

from knowedit.writing.counts import number_of


def test_one_thing_is_singular_and_all_other_numbers_are_plural():
    said = [number_of(n, "held-out prompt") for n in (0, 1, 2, 1138)]
    assert said == ["0 held-out prompts", "1 held-out prompt", "2 held-out prompts", "1,138 held-out prompts"]
