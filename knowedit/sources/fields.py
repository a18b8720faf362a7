"""JSON records of others, looked up field by field: what is missing or of another type is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..errors import InputError
from ..facts import number_as_text, templated


class Skip(Exception):
    """Why a record cannot be used."""


class Fields:
    """A JSON object whose fields are asked for by name and type. Raises `InputError` that names the field."""

    def __init__(self, record: object, name: str = ""):
        if not isinstance(record, Mapping):
            raise InputError(f"{name or 'it'} is {shown(record)}, expected an object")
        self.record, self.name = record, name

    def text(self, name: str, default: str | None = None) -> str:
        value = number_as_text(self._get(name, default))
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self._path(name)} is {shown(value)}, expected text that is not empty")
        return value

    def texts(self, name: str, default: Sequence | None = None) -> tuple[str, ...]:
        value = self._get(name, default)
        if isinstance(value, list | tuple):
            value = [number_as_text(item) for item in value]
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise InputError(f"{self._path(name)} is {shown(value)}, expected a list of texts")
        return tuple(v for v in value if v.strip())

    def object(self, name: str) -> Fields:
        return Fields(self._get(name, None), self._path(name))

    def objects(self, name: str, default: Sequence | None = None) -> list[Fields]:
        value = self._get(name, default)
        if not isinstance(value, list | tuple):
            raise InputError(f"{self._path(name)} is {shown(value)}, expected a list of objects")
        return [Fields(v, f"{self._path(name)}[{i}]") for i, v in enumerate(value)]

    def _get(self, name: str, default):
        """`default` where the field is missing or null: tables of the Hub have null for a field that a record lacks."""
        value = self.record.get(name)
        if name not in self.record and default is None:
            raise InputError(f"there is no field {self._path(name)!r}")
        return default if value is None else value

    def _path(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def template_of(prompt: str, subject: str) -> str:
    """Raises `Skip` where the subject is not in the prompt."""
    if subject not in prompt and "{}" not in prompt:
        raise Skip(f"its subject {subject!r} is not in its prompt {prompt!r}")
    try:
        return templated(prompt, subject)
    except InputError as error:
        raise Skip(str(error)) from None


def flat(value: object) -> Iterator[str]:
    value = number_as_text(value)
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from flat(item)


def first(value: object) -> str | None:
    return next(flat(value), None)


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
