"""One kind of bar: it is told how much is done in all, and does not appear for nothing."""

import sys

from knowedit.cli.shared.progress import progress


def test_steps_are_items_done_so_far(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("counting", 10, "item") as step:
        step(3)
        step(7, "counting on")
    shown = capsys.readouterr().err
    assert "7/10" in shown and "counting on" in shown


def test_there_is_no_bar_but_on_a_terminal(capsys, caplog):
    with caplog.at_level("INFO", "knowedit"), progress("counting", 10, "item") as step:
        step(3)
        step(7)
    assert capsys.readouterr().err == ""
    assert caplog.messages == ["counting, 10 items"]


def test_a_bar_that_is_never_told_anything_does_not_appear(capsys):
    with progress("counting", 10, "item"):
        pass
    assert capsys.readouterr().err == ""
