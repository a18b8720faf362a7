"""The settings of a study in a YAML file."""

from __future__ import annotations

from pathlib import Path

import yaml

from ...errors import DataError, InputError

STUDIES = ("edit", "neurons")


def read_config(path: str | Path, study: str) -> dict:
    """The settings in a YAML file: `study: edit` (or `neurons`) and the settings of that study.

    Raises `InputError` for a file that is not there or for another study, `DataError` where it is no YAML mapping.
    """
    path = Path(path).expanduser()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config {str(path)!r}: {error.strerror}; give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{str(path)!r} is not YAML: {reason}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{str(path)!r} holds no settings; expected lines such as `study: edit`")
    named = found.pop("study", None)
    if named not in STUDIES:
        raise InputError(f"{str(path)!r} is for the study {named!r}, expected `study: edit` or `study: neurons`")
    if named != study:
        raise InputError(f"{str(path)!r} is for `knowedit bench {named}`, this is `knowedit bench {study}`")
    return found
