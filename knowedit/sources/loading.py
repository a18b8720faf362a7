"""`load_source`: facts out of a name or a path, whatever the format; what could not be used is counted and said.

source = load_source("counterfact.json")
source.facts, source.skipped, source.sha256
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, did_you_mean
from ..facts import Fact
from .builtin import builtin_facts, own_facts
from .fields import Fields, Skip
from .formats import FORMATS
from .records import Bad, Placed, put_aside, read_bytes, records
from .relations import of_relation, pararel_templates

NAMES = ("builtin", "azhx/counterfact")  # known by name; a data set of the Hub with the fields of a format is as good
_OWN = ({"template", "target"}, {"prompt", "target"})  # the fields that only our own format has
_PATTERNS = ("pattern_data/graphs_json", "graphs_json", "patterns")  # ParaRel's folders
_TRIPLES = ("trex_lms_vocab", "triples", "TREx")


class UnknownFormatError(InputError):
    """The first record of a source has the fields of no known format."""


@dataclass(frozen=True)
class Source:
    """Facts and where they are from.

    - `name`: as it was asked for; `format`: `builtin`, `facts`, `counterfact`, `counterfact-lite`, `zsre`,
      `wikibigedit`, `pararel`, `relations`, `knowedit`, `mquake` or `rippleedits`.
    - `skipped`: (record, reason) of those that are no facts that can be asked.
    - `sha256`: of the bytes of the files, or of the records of a data set of the Hub.
    """

    name: str
    format: str
    facts: tuple[Fact, ...]
    skipped: tuple[tuple[str, str], ...]
    sha256: str
    path: str | None = None


def load_source(
    name: str,
    *,
    format: str | None = None,
    revision: str | None = None,
    lenient: bool = False,
) -> Source:
    """The facts of `name`: "builtin", a file, a folder, or a data set of the Hub as owner/name.

    **Arguments:**

    - `format`: where it is not to be told from the first record. `revision`: of a data set of the Hub.
    - `lenient`: of a file, skip lines and records that are wrong, too, instead of refusing the whole.

    Raises `InputError` for a source that is not there, is empty or holds records of another shape (naming record and
    field) or an id twice, and `DataError` for a file that is not JSON.
    """
    known = (*FORMATS, "facts")
    if format is not None and format not in known:
        raise InputError(f"no format is called {format!r}{did_you_mean(format, known)}; expected {', '.join(known)}")
    bad: Bad | None = [] if lenient else None
    found, facts, skipped, digest, path = _found(str(name), format, revision, bad)
    skipped = [*(bad or ()), *skipped]
    if not facts:
        why = f": the first of {len(skipped)} that were skipped, {': '.join(skipped[0])}" if skipped else ""
        raise InputError(f"{name!r} holds no facts that can be asked{why}")
    _check_ids(str(name), facts)
    return Source(str(name), found, tuple(facts), tuple(skipped), digest, path)


def read_facts(path: str | Path) -> tuple[Fact, ...]:
    """Facts out of a file of any format that `load_source` knows: JSON, JSON lines, CSV or TSV, gzipped or not.

    Records of no known format are to have the fields of `Fact`. Facts without an id are called by their place. Records
    that cannot be asked are left out; `load_source` tells which. Raises `InputError` for a missing file, a wrong record
    or an id twice, and `DataError` for text that is not what it should be, naming the line.
    """
    path = Path(path).expanduser()
    data = read_bytes(path)
    try:
        _, facts, _ = _of_file(path, data, None, None)
    except UnknownFormatError:
        _, facts, _ = _of_file(path, data, "facts", None)
    if not facts:
        raise InputError(f"{str(path)!r} holds no facts; expected a list of objects, or one a line")
    _check_ids(str(path), facts)
    return tuple(facts)


def _found(name: str, format: str | None, revision: str | None, bad: Bad | None):
    """(format, facts, skipped, sha256, path)"""
    path = Path(name).expanduser()
    if name == "builtin":
        facts = list(builtin_facts())
        return "builtin", facts, [], _sha(json.dumps([f.as_dict() for f in facts], sort_keys=True).encode()), None
    if path.is_dir():
        return _folder(path, format, bad)
    if path.is_file():
        data = read_bytes(path)
        return *_of_file(path, data, format, bad), _sha(data), str(path)
    if name.count("/") == 1 and all(name.split("/")) and not path.suffix:
        rows = list(_hub(name, revision))
        digest = _sha(json.dumps(rows, sort_keys=True, default=str).encode())
        return *_read(name, [(f"record {i}", row) for i, row in enumerate(rows, 1)], format, bad), digest, None
    if name in FORMATS:
        raise InputError(f"{name!r} is a format, not a source: give the path of its file{did_you_mean(name, NAMES)}")
    raise InputError(
        f"there is no source {name!r}{did_you_mean(name, NAMES)}; expected builtin, a file, a folder, or a data set of "
        "the Hub as owner/name"
    )


def _of_file(path: Path, data: bytes, format: str | None, bad: Bad | None):
    """(format, facts, skipped)"""
    placed = records(path, data, bad)
    first = placed[0][1] if placed else None
    if format == "facts" or (format is None and isinstance(first, dict) and any(own <= set(first) for own in _OWN)):
        return "facts", list(own_facts(placed, repr(str(path)), bad)), []
    if isinstance(first, dict) and "samples" in first:
        stem = path.name.removesuffix(".gz").removesuffix(".json")
        placed = [(place, {"file": stem, **record} if isinstance(record, dict) else record) for place, record in placed]
    return _read(str(path), placed, format, bad)


def _read(name: str, placed: list[Placed], format: str | None, bad: Bad | None):
    """(format, facts, skipped) of records."""
    if not placed:
        raise UnknownFormatError(f"{name!r} is empty; expected at least one record")
    format = format or _format_of(name, placed[0][1])
    facts: list[Fact] = []
    skipped: list[tuple[str, str]] = []
    for index, (_, record) in enumerate(placed):
        label = str(record.get("case_id", index)) if isinstance(record, dict) else str(index)
        try:
            for fact in FORMATS[format].read(Fields(record), index):
                if isinstance(fact, Skip):
                    skipped.append((label, str(fact)))
                else:
                    facts.append(fact)
        except Skip as reason:
            skipped.append((label, str(reason)))
        except InputError as error:
            put_aside(bad, f"record {label}", InputError(f"{error}; expected a record of {format}"), repr(name))
    return format, facts, skipped


def _format_of(name: str, record: object) -> str:
    """The format that has most of its fields in the record."""
    if isinstance(record, dict):
        fitting = [format for format, known in FORMATS.items() if known.known_by and set(known.known_by) <= set(record)]
        if fitting:
            return max(fitting, key=lambda format: len(FORMATS[format].known_by))
        if record and all(_is_bags(value) for value in record.values()):
            return "pararel"
    fields = ", ".join(map(repr, list(record)[:6])) if isinstance(record, dict) else type(record).__name__
    raise UnknownFormatError(
        f"the first record of {name!r} has the fields {fields}, those of no known format; name one of "
        f"{', '.join((*FORMATS, 'facts'))}"
    )


def _is_bags(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def _folder(path: Path, format: str | None, bad: Bad | None):
    """A folder of relations' files, or of ParaRel's patterns and LAMA's triples."""
    patterns = next((path / name for name in _PATTERNS if (path / name).is_dir()), None)
    triples = next((path / name for name in _TRIPLES if (path / name).is_dir()), None)
    if patterns is not None and triples is not None:
        return _pararel(path, patterns, triples)
    files = sorted({*path.glob("*.json"), *path.glob("*.json.gz")})
    if not files:
        raise InputError(f"{str(path)!r} holds no .json file; expected relations' files, or ParaRel's folders")
    facts, skipped, digest = [], [], hashlib.sha256()
    formats = set()
    for file in files:
        data = read_bytes(file)
        digest.update(data)
        found, some, left = _of_file(file, data, format, bad)
        formats.add(found)
        facts += some
        skipped += left
    if len(formats) > 1:
        raise InputError(f"{str(path)!r} mixes files of {' and '.join(sorted(formats))}; give one format")
    return formats.pop(), facts, skipped, digest.hexdigest(), str(path)


def _pararel(path: Path, patterns: Path, triples: Path):
    facts: list[Fact] = []
    skipped: list[tuple[str, str]] = []
    digest = hashlib.sha256()
    for file in sorted(patterns.glob("*.jsonl")):
        pairs_file = triples / file.name
        if not pairs_file.exists():
            skipped.append((file.stem, "it has no triples"))
            continue
        read = []
        for part, field in ((file, ("pattern",)), (pairs_file, ("sub_label", "obj_label"))):
            data = read_bytes(part)
            digest.update(data)
            rows = [Fields(record, f"{part.name}, {place}") for place, record in records(part, data)]
            read.append([tuple(row.text(name) for name in field) for row in rows])
        templates = pararel_templates([pattern for (pattern,) in read[0]])
        if not templates:
            skipped.append((file.stem, "none of its patterns ends in the object"))
            continue
        pairs = [(subject, target) for subject, target in read[1]]
        facts += of_relation(f"pararel/{file.stem}", file.stem, None, templates, pairs)
    return "pararel", facts, skipped, digest.hexdigest(), str(path)


def _hub(name: str, revision: str | None) -> Iterable[dict]:
    from datasets import load_dataset

    try:
        found = load_dataset(name, revision=revision)
    except Exception as error:  # whatever datasets or the network raise: the user can only choose another source
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "" if name in NAMES else did_you_mean(name, NAMES)
        raise InputError(f"cannot load the data set {name!r}{hint} from the Hub: {reason}; give a local file") from None
    splits = list(found.values()) if isinstance(found, dict) else [found]  # of a dict in its order: train comes first
    return _rows(splits)


def _rows(splits: list) -> Iterator[dict]:
    for split in splits:
        yield from (dict(row) for row in split)


def _check_ids(name: str, facts: list[Fact]) -> None:
    seen: set[str | None] = set()
    for fact in facts:
        if fact.id in seen:
            raise InputError(f"{name!r} has the id {fact.id!r} twice; ids are unique")
        seen.add(fact.id)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
