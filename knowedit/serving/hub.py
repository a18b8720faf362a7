"""An edit to the Hub: its two files and its card, in one commit."""

from __future__ import annotations

from pathlib import Path

from ..edit.card import CARD, card
from ..edit.edit import load_edit
from ..edit.storage import FACTORS, RECORD
from ..errors import InputError
from ..models.checks import one_line


def push_to_hub(folder: str | Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload the edit in `folder` to the model repository `repo` (owner/name), made if need be; return its address.

    The edit is read first, as `load_edit` does, and its own card goes along if it has one. `token` is by default that
    of `hf auth login` or `HF_TOKEN`. Raises `InputError` where the Hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder).expanduser()
    edit = load_edit(folder)
    if repo.count("/") != 1 or not all(part.strip() for part in repo.split("/")):
        raise InputError(f"the repository is {repo!r}, expected owner/name")
    own = folder / CARD
    text = own.read_bytes() if own.is_file() else card([edit]).encode()
    files = {CARD: text, **{name: (folder / name).read_bytes() for name in (FACTORS, RECORD)}}
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=f"Edit {edit.content_hash[:12]} by {edit.method}")
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise InputError(
            f"cannot write {repo!r} on the Hub: {one_line(error, 200)}; connect, or log in by `hf auth login`"
        ) from None
    return str(commit.commit_url)
