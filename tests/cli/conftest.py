"""Commands run in this process, on the trained tiny model as a directory."""

import pytest
from support.trained import trained

from knowedit.cli import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The trained tiny model as a directory, as a user would have one."""
    place = tmp_path_factory.mktemp("model")
    model = trained()
    model.hf.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture
def run(capsys, folder, monkeypatch):
    """Run a command in this process, as if from a shell: (exit status, stdout, stderr)."""

    def call(*arguments, model=folder):
        arguments = [*arguments, *(["--model", model] if model else [])]
        monkeypatch.setattr("sys.argv", ["knowedit", *arguments])
        with pytest.raises(SystemExit) as end:
            main(arguments)
        done = capsys.readouterr()
        return end.value.code, done.out, done.err

    return call


@pytest.fixture(scope="session")
def own_cache_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def own_cache(own_cache_folder, monkeypatch):
    """What commands cache lies in a folder of the tests', which is empty at first."""
    monkeypatch.setenv("KNOWEDIT_CACHE", own_cache_folder)
