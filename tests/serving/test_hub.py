"""An edit goes to the Hub in one commit with its card; nothing goes that is not sound."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from support.edits import random_edit
from support.tiny import tiny

from knowedit import DataError, InputError
from knowedit.serving.hub import push_to_hub


class Api:
    """A Hub that notes what it is sent."""

    def __init__(self, token=None):
        self.said.append(("token", token))

    def create_repo(self, repo, private, exist_ok):
        self.said.append(("repo", repo, private, exist_ok))

    def create_commit(self, repo, operations, commit_message):
        self.said.append(("commit", repo, {op.path_in_repo: op.path_or_fileobj for op in operations}, commit_message))
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Api, "said", [], raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return Api.said


@pytest.fixture
def folder(tmp_path):
    return random_edit(tiny("llama"), 1).save(tmp_path / "edit")


def test_the_files_and_the_card_are_one_commit(hub, folder):
    assert push_to_hub(folder, "me/edit", private=True, token="t") == "https://hub/me/edit/commit/1"
    token, repo, (_, _, files, message) = hub
    assert token == ("token", "t") and repo == ("repo", "me/edit", True, True)
    assert sorted(files) == ["README.md", "edit.json", "edit.safetensors"] and message.startswith("Edit ")
    assert files["edit.json"] == (folder / "edit.json").read_bytes() and b"disclose" in files["README.md"]
    (folder / "README.md").write_text("mine")
    push_to_hub(folder, "me/edit")
    assert hub[-1][2]["README.md"] == b"mine"


def test_nothing_is_sent_of_what_is_damaged_or_named_wrongly(hub, folder):
    for repo in ("edit", "a/b/c", "/x", ""):
        with pytest.raises(InputError, match="expected owner/name"):
            push_to_hub(folder, repo)
    (folder / "edit.json").write_text("{}")
    with pytest.raises(DataError):
        push_to_hub(folder, "me/edit")
    assert hub == []


def test_a_hub_that_refuses_is_one_line(hub, folder, monkeypatch):
    def refused(self, *_, **__):
        raise OSError("401 Unauthorized\nfor url")

    monkeypatch.setattr(Api, "create_repo", refused)
    with pytest.raises(InputError, match="cannot write 'me/edit' on the Hub: 401 Unauthorized") as caught:
        push_to_hub(folder, "me/edit")
    assert "\n" not in str(caught.value)
