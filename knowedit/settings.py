"""Settings by name: `key=value` options and nested mappings, checked against the dataclasses that they fill."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import yaml

from .errors import InputError, did_you_mean

T = TypeVar("T")


def overridden(settings: T, values: Mapping[str, Any], what: str = "setting") -> T:
    """The frozen dataclass `settings` with `values` in its place, also of dataclasses inside it.

    Raises `InputError` for a name that it does not have, and whatever its own checks raise.
    """
    known = {field.name for field in fields(cast(Any, settings))}
    changed = {}
    for name, value in values.items():
        if name not in known:
            raise InputError(
                f"no {what} is called {name!r}{did_you_mean(str(name), known)}; there are {', '.join(sorted(known))}"
            )
        old = getattr(settings, name)
        if is_dataclass(old):
            if not isinstance(value, Mapping):
                raise InputError(
                    f"{name} is {value!r}, expected settings of its own, such as {name}.{fields(old)[0].name}"
                )
            value = overridden(old, value, f"{name} setting")
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        changed[name] = value
    try:
        return replace(cast(Any, settings), **changed)
    except TypeError as error:  # a comparison of a text with a number in a check
        raise InputError(f"a {what} of {dict(values)!r} has a wrong type: {error}") from None


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; PyYAML asks for a dot in it and takes it as a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """What YAML text says, in plain values. Raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader


def parse_settings(pairs: Sequence[str]) -> dict:
    """`["search.lr=0.5", "key=mean"]` as nested settings; values as YAML reads them."""
    settings: dict = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not all(part.strip() for part in name.split(".")):
            raise InputError(f"the setting is {pair!r}, expected NAME=VALUE, such as search.lr=0.5")
        *path, last = (part.strip() for part in name.split("."))
        inner = settings
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise InputError(f"the setting {part!r} is given as a value and as {pair!r}")
        try:
            inner[last] = read_yaml(value)
        except yaml.YAMLError:
            raise InputError(f"the value of the setting {pair!r} cannot be read; put text into quotes") from None
    return settings


def merged(first: Mapping, second: Mapping) -> dict:
    """`one` with `other` over it, mappings inside them likewise."""
    result = dict(first)
    for name, value in second.items():
        mappings = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if mappings else value
    return result
