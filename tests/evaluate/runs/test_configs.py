"""Installed configs: each is whole, its command is one that the command line takes, and its name finds it."""

import shlex

import pytest

from knowedit.errors import InputError
from knowedit.evaluate.edits.config import EditStudyConfig
from knowedit.evaluate.neurons.study import NeuronStudyConfig
from knowedit.evaluate.runs.configs import find_config, named_configs, read_config
from knowedit.settings import overridden, parse_settings

DEFAULTS = {"edit": EditStudyConfig(), "neurons": NeuronStudyConfig()}


@pytest.mark.parametrize("name", named_configs())
def test_a_config_says_what_it_is_and_has_settings_that_its_study_knows(name):
    config = find_config(name)
    assert config.words.endswith(".") and len(config.words) > 30
    settings = overridden(DEFAULTS[config.study], config.settings)
    assert settings.as_dict() == overridden(DEFAULTS[config.study], read_config(name, config.study)).as_dict()
    words = shlex.split(config.command)
    assert words[:5] == ["knowedit", "bench", config.study, "--config", name]
    assert words[-2:] == ["--out", f"runs/{name}"]
    wanted = [word for word in words if word.isupper() or word.endswith(".jsonl")]  # what the user has to bring
    assert all(word in config.needs for word in wanted)


def test_settings_that_a_command_changes_leave_the_config_as_it_is():
    settings = read_config("rome_gpt2-xl_counterfact", "edit")
    settings["limit"] = 3
    assert find_config("rome_gpt2-xl_counterfact").settings["limit"] == 7500


def test_a_file_is_a_config_whatever_its_name(tmp_path):
    for name in ("mine.yaml", "mine"):
        (tmp_path / name).write_text("study: neurons\nlimit: 3\n")
        assert read_config(str(tmp_path / name), "neurons") == {"limit": 3}


def test_names_that_none_has_and_names_of_other_studies():
    with pytest.raises(InputError, match="no config is called 'rome_gpt2-xl' .did you mean .*bench configs` lists"):
        read_config("rome_gpt2-xl", "edit")
    with pytest.raises(InputError, match="'kn_smollm2' is for `knowedit bench edit`, this is `knowedit bench neurons`"):
        read_config("kn_smollm2", "neurons")


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "+1e-3", "0.001"])
def test_numbers_with_an_exponent_are_numbers_on_the_command_line_and_in_files(text, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(f"study: edit\nsettings: {{lr: {text}}}\n")
    assert parse_settings([f"search.lr={text}"]) == {"search": {"lr": 1e-3}}
    assert read_config(str(file), "edit")["settings"] == {"lr": 1e-3}
    assert parse_settings([f"key='{text}'", "other=e3", "sha=1e"]) == {"key": text, "other": "e3", "sha": "1e"}
