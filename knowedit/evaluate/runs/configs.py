"""The settings of a study: the installed ones, by name, and those in a YAML file of the user's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from ...errors import DataError, InputError, did_you_mean
from ...settings import read_yaml

STUDIES = ("edit", "neurons")
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class NamedConfig:
    """An installed config: `words` say what it is, `needs` what has to be there, `command` runs it."""

    name: str
    study: str
    words: str
    needs: str | None
    command: str
    settings: dict

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


@cache
def named_configs() -> dict[str, NamedConfig]:
    """The installed configs by name."""
    text = resources.files("knowedit").joinpath("data", "bench.yaml").read_text(encoding="utf-8")
    return {name: _named(name, dict(settings)) for name, settings in read_yaml(text)["configs"].items()}


def _named(name: str, settings: dict) -> NamedConfig:
    study, words, needs, options = (settings.pop(field, None) for field in ("study", "words", "needs", "options"))
    command = " ".join(filter(None, (f"knowedit bench {study} --config {name}", options, f"--out runs/{name}")))
    return NamedConfig(name, study, words, needs, command, settings)


def find_config(name: str) -> NamedConfig:
    """The installed config called `name`. Raises `InputError` for a name that none has."""
    configs = named_configs()
    if name not in configs:
        raise InputError(
            f"no config is called {name!r}{did_you_mean(name, configs)}; `knowedit bench configs` lists them, "
            "and a file of your own ends in .yaml"
        )
    return configs[name]


def read_config(name: str, study: str) -> dict:
    """The settings of an installed config, or of a YAML file: `study: edit` (or `neurons`) and the study's settings.

    Raises `InputError` for a name that no config has, for a file that is not there or for another study, and
    `DataError` where a file is no YAML mapping.
    """
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES or path.is_file():
        of_study, settings = _read(path)
    else:
        config = find_config(name)
        of_study, settings = config.study, dict(config.settings)
    if of_study != study:
        raise InputError(f"{name!r} is for `knowedit bench {of_study}`, this is `knowedit bench {study}`")
    return settings


def _read(path: Path) -> tuple[str, dict]:
    """The study and its settings."""
    try:
        settings = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config {str(path)!r}: {error.strerror}; give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{str(path)!r} is not YAML: {reason}") from None
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise DataError(f"{str(path)!r} holds no settings; expected lines such as `study: edit`")
    study = settings.pop("study", None)
    if study not in STUDIES:
        raise InputError(f"{str(path)!r} is for the study {study!r}, expected `study: edit` or `study: neurons`")
    return study, settings
