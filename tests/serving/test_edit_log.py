"""The log tells who did what, loses nothing, and refuses what was changed behind its back."""

import dataclasses
import shutil

import pytest
from support.edits import random_edit
from support.tiny import tiny

from knowedit import DataError, InputError
from knowedit.edit.export import to_peft
from knowedit.models.cache import sha256_file
from knowedit.serving.edit_log import LOG, EditLog, user


@pytest.fixture
def folder(tmp_path):
    """Two edits, of which `b` was made first."""
    (tmp_path / "edits").mkdir()
    for name, when in (("a", "2026-02-01T00:00:00Z"), ("b", "2026-01-01T00:00:00Z")):
        edit = random_edit(tiny("llama"), 1, seed=ord(name))
        dataclasses.replace(edit, created=when).save(tmp_path / "edits" / name)
    return tmp_path / "edits"


def test_edits_are_logged_once_oldest_first(folder):
    log = EditLog(folder)
    assert log.record("ada") == ["b", "a"] and log.record("ada") == []
    again = EditLog(folder)
    assert again.entries == log.entries and again.last == log.last
    entry = again.entries["a"]
    assert entry.who == "ada" and entry.facts == ("Eiffel Tower is located in the city of: Paris → Rome",)
    assert entry.content_hash == log.live()[1].content_hash and entry.bases == log.live()[1].bases


def test_an_edit_with_figures_of_somebodys_own_is_logged(folder):
    dataclasses.replace(random_edit(tiny("llama"), 1, seed=3), measured={"accuracy": 0.9}).save(folder / "c")
    log = EditLog(folder)
    assert "c" in log.record("ada") and list(log.table())


def test_one_of_two_is_revoked_and_log_and_export_agree_by_hash(folder, tmp_path):
    model, log = tiny("llama"), EditLog(folder)
    log.record("ada")
    out = to_peft(log.live(without="b"), model, tmp_path / "left")
    log.revoke("b", "grace", "wrong city", exported=out)
    again = EditLog(folder)
    revoked = again.entries["b"].revoked
    assert (revoked.who, revoked.why) == ("grace", "wrong city") and again.entries["a"].revoked is None
    assert revoked.exported == {path.name: sha256_file(path) for path in out.iterdir()}
    (left,) = again.live()
    alone = to_peft(left, model, tmp_path / "alone")  # as if the other had never been
    assert sha256_file(alone / "adapter_model.safetensors") == revoked.exported["adapter_model.safetensors"]
    with pytest.raises(InputError, match="was revoked on .* by grace"):
        again.revoke("b", "ada")
    with pytest.raises(InputError, match="has no edit 'c'"):
        again.revoke("c", "ada")


def tampered(change):
    def at(folder):
        lines = (folder / LOG).read_bytes().splitlines(keepends=True)
        (folder / LOG).write_bytes(b"".join(change(lines)))

    return at


TAMPERED = {
    "another name": tampered(lambda lines: [lines[0].replace(b"ada", b"eve"), *lines[1:]]),
    "a line gone": tampered(lambda lines: lines[1:]),
    "two in another order": tampered(lambda lines: [lines[1], lines[0], lines[2]]),
    "a line twice": tampered(lambda lines: [*lines, lines[-1]]),
    "an edit changed": lambda folder: forge(folder / "a"),
    "an edit gone": lambda folder: shutil.rmtree(folder / "a"),
}


def forge(folder):
    shutil.rmtree(folder)
    random_edit(tiny("llama"), 1, seed=99).save(folder)


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_changed_is_refused_in_one_line(how, folder):
    log = EditLog(folder)
    log.record("ada")
    log.revoke("b", "ada")
    TAMPERED[how](folder)
    with pytest.raises(DataError, match="the log of .* does not hold") as caught:
        EditLog(folder)
    assert "\n" not in str(caught.value)


def test_a_line_that_was_cut_off_counts_for_nothing(folder):
    log = EditLog(folder)
    log.record("ada")
    last = log.last
    log.revoke("b", "ada")
    (folder / LOG).write_bytes((folder / LOG).read_bytes()[:-9])
    again = EditLog(folder)
    assert again.entries["b"].revoked is None and again.last == last
    again.revoke("b", "ada")
    assert EditLog(folder).entries["b"].revoked


def test_who_is_git_s_user_or_the_system_s(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(tmp_path / "none"))
    monkeypatch.setenv("LOGNAME", "somebody")
    assert user(tmp_path) == "somebody"
    (tmp_path / "config").write_text("[user]\n\tname = Ada\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    assert user(tmp_path) == "Ada"
