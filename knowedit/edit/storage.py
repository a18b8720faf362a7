"""An edit as a folder: `edit.safetensors` with the factors, `edit.json` with everything else.

The JSON carries the SHA-256 of the factors, the edit's content hash and a checksum of its own text, and must be byte
for byte what this file would write. So a bit that flips anywhere, in either file, is refused and never read as
another edit. The folder appears whole, by a rename, or not at all. No file that it names is opened, and nothing is
ever unpickled; whether the edit fits a model is seen when it is applied.

There are three hashes, for three questions:

- the SHA-256 of `edit.json`, and by it of the factors: are these files, to the bit, those that were written?
- `factors_hash`, the SHA-256 of `edit.safetensors`: is ΔW the same to the bit, whatever the record says?
- `content_hash`, over the request and what ΔW does, rounded: was the same edit made again? Another number of threads
  adds in another order, which moves ΔW by some 1e-6 of its norm. So of each ΔW only its norm counts, to a sixteenth,
  and rᵀ ΔW s for 16 fixed pairs of signs r and s, to a sixteenth of the norm. Two ΔW that differ by a share ε of their
  norm have other hashes with a probability of some 270 ε a weight, where one of these 17 numbers lies that near to a
  boundary. It takes no effort to make another ΔW with these numbers: against intent only the others hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import DataError, InputError
from ..files import sha256
from ..models.checks import one_line
from .delta import Delta, Dense, LowRank

SCHEMA = "knowedit.edit/2"
FACTORS, RECORD = "edit.safetensors", "edit.json"
_LARGEST = {FACTORS: 2**34, RECORD: 2**26}  # bytes that are read: dense changes of every layer of 8 B parameters fit

_FIELDS: dict[str, type] = {
    "schema": str,
    "content": dict,
    "content_hash": str,
    "created": str,
    "versions": dict,
    "notes": dict,
    "made": dict,
    "measured": dict,
    "factors_sha256": str,
    "checksum": str,
}
_CONTENT: dict[str, type] = {"method": str, "config": dict, "facts": list, "model": str, "seed": int, "bases": dict}
_KINDS = ({"u", "v"}, {"delta"})  # the tensors of one module: low rank, dense


_DIRECTIONS, _GRID = 16, 16  # pairs of signs of a weight; steps of a norm


@dataclass(frozen=True, eq=False)
class Stored:
    """What a folder holds: the changes, and as JSON values `content` (what the edit is) and the rest of its record."""

    deltas: Mapping[str, Delta]
    content: Mapping[str, Any]
    versions: Mapping[str, str]
    notes: Mapping[str, Any]
    made: Mapping[str, Any]
    measured: Mapping[str, Any]
    created: str
    content_hash: str = ""  # as it was read


def content_hash(content: Mapping[str, Any], deltas: Mapping[str, Delta]) -> str:
    """SHA-256 over `content` and what each ΔW does, rounded as this file says, by module path."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode())
    for path, delta in sorted(deltas.items()):
        digest.update(f"{path} {delta.shape} {_rounded(path, delta)}".encode())
    return digest.hexdigest()


def factors_hash(deltas: Mapping[str, Delta]) -> str:
    """SHA-256 of the file of factors: of every bit of them."""
    return sha256(save(_named_tensors(deltas)))


def _rounded(path: str, delta: Delta) -> list[int]:
    """ln ‖ΔW‖ and rᵀ ΔW s / ‖ΔW‖ for pairs of signs, in whole steps of the grid; nothing of a ΔW that is zero."""
    if not (norm := delta.norm()):
        return []
    left, right = (_signs(f"{path} {side}", size) for side, size in zip("rs", delta.shape, strict=True))
    if isinstance(delta, Dense):
        sketch = ((left @ delta.delta.double()) * right).sum(1)
    else:
        sketch = ((left @ delta.u.double()) * (right @ delta.v.double())).sum(1)
    return [round(value * _GRID) for value in (math.log(norm), *(sketch / norm).tolist())]


def _signs(seed: str, size: int) -> Tensor:
    """(directions, size) of ±1, float64, the same everywhere: the bits of SHAKE-256 of `seed`."""
    bits = hashlib.shake_256(seed.encode()).digest((_DIRECTIONS * size + 7) // 8)
    signs = np.unpackbits(np.frombuffer(bits, np.uint8))[: _DIRECTIONS * size].reshape(_DIRECTIONS, size)
    return torch.from_numpy(signs * 2.0 - 1.0)


# ---------------------------------------------------------------- writing


def write(folder: Path, stored: Stored) -> None:
    """Write factors and record into `folder`. Raises `InputError` for provenance that is not plain JSON."""
    factors = save(_named_tensors(stored.deltas))
    _write(folder / FACTORS, factors)
    _write(folder / RECORD, _rendered(_record(stored, factors)))


def _named_tensors(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    return {
        f"{path}:{name}": tensor.clone()  # safetensors wants no two in the same memory
        for path, delta in sorted(deltas.items())
        for name, tensor in delta.tensors().items()
    }


def _record(stored: Stored, factors: bytes) -> dict:
    try:
        record = {
            "schema": SCHEMA,
            "content": dict(stored.content),
            "content_hash": content_hash(stored.content, stored.deltas),
            "created": stored.created or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": dict(stored.versions),
            "notes": dict(stored.notes),
            "made": dict(stored.made),
            "measured": dict(stored.measured),
            "factors_sha256": sha256(factors),
        }
        record = json.loads(json.dumps(record, allow_nan=False))  # tuples become lists, as they do when it is read
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the config, notes and figures of this edit are not plain JSON ({one_line(error)}); leave such values out"
        ) from None
    return {**record, "checksum": _checksum(record)}


def _checksum(record: Mapping) -> str:
    return sha256(_rendered({k: v for k, v in record.items() if k != "checksum"}))


def _rendered(record: Mapping) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------- reading


def read(folder: Path) -> Stored:
    """What `write` wrote. Raises `DataError` for files that are damaged or of another schema."""
    record = _parsed(_read(folder / RECORD))
    factors = _read(folder / FACTORS)
    if sha256(factors) != record["factors_sha256"]:
        raise DataError(f"{FACTORS} is damaged, or belongs to another edit: it has another SHA-256 than expected")
    return Stored(
        _deltas(factors),
        record["content"],
        record["versions"],
        record["notes"],
        record["made"],
        record["measured"],
        record["created"],
        record["content_hash"],
    )


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path.name} is not there, or is no plain file")
    if (size := path.stat().st_size) > (most := _LARGEST[path.name]):
        raise DataError(f"{path.name} has {size} bytes, expected at most {most}")
    return path.read_bytes()


def _parsed(raw: bytes) -> dict:
    """The record, with every field of its type."""
    try:
        record = json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError):
        raise DataError(f"{RECORD} is no JSON, or damaged") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise DataError(f"{RECORD} is of schema {schema!r}, expected {SCHEMA!r}")
    try:
        sound = raw == _rendered(record) and record.get("checksum") == _checksum(record)
    except (ValueError, RecursionError):  # NaN, or nested too deeply to write
        sound = False
    if not sound:
        raise DataError(f"{RECORD} is damaged: its checksum or its form is another than expected")
    _check_fields("the record", record, _FIELDS)
    _check_fields("the content", record["content"], _CONTENT)
    for name, texts in (("bases", record["content"]["bases"]), ("versions", record["versions"])):
        if not all(isinstance(text, str) for text in texts.values()):
            raise DataError(f"{name} is no object of texts")
    return record


def _check_fields(what: str, found: dict, expected: dict[str, type]) -> None:
    if set(found) != set(expected):
        raise DataError(f"{what} has the fields {sorted(found)}, expected {sorted(expected)}")
    for name, kind in expected.items():
        if type(found[name]) is not kind:  # a bool is no seed
            raise DataError(f"{name} is of type {type(found[name]).__name__}, expected {kind.__name__}")


def _deltas(factors: bytes) -> dict[str, Delta]:
    try:
        tensors = load(factors)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{FACTORS} cannot be read ({one_line(error)})") from None
    by_path: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        path, _, name = full_name.rpartition(":")
        if tensor.dtype != torch.float32:
            raise DataError(f"the factor {full_name!r} is {tensor.dtype}, expected float32")
        by_path.setdefault(path, {})[name] = tensor
    for path, named in by_path.items():
        if set(named) not in _KINDS:
            raise DataError(f"{path!r} has the tensors {sorted(named)}, expected u and v, or delta")
    return {path: Dense(**named) if "delta" in named else LowRank(**named) for path, named in by_path.items()}
