"""An edit is a value: what is to be added to which down-projections, and where it came from.

    edit = knowedit.rome(model, fact)
    with edit.applied(model):
        ...
    edit.save("eiffel-in-rome")

Making an edit never touches a model; `apply.py` does, and takes it back. Methods make edits by `make_edit`, after
`check_request`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch

from ..errors import DataError, InputError
from ..facts import Fact
from ..files import new_folder
from ..models.adapter import Model
from ..models.checks import one_line
from ..version import versions
from . import storage
from .apply import Handle, applied
from .delta import Delta, weight_hash


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a model's down-projections, with its provenance.

    - `deltas`: module path inside the transformers model → what is added to its weight.
    - `bases`: module path → `weight_hash` of the weight that the edit was made for.
    - `method`, `config`, `seed`: how it was made; `facts`: what for.
    - `model`: the model's name; `versions`: of knowedit, torch and transformers.
    - `notes`: what the method measured on the way (JSON values): steps, losses, kᵀC⁻¹k and the like.
    - `made`: the model's id and revision where they are known, the number of threads, the command.
    - `measured`: pre-flight, figures before and after, and the guard's verdict, where somebody measured (`checked`).
    - `created`: a time stamp. `content_hash` is over none of `versions`, `notes`, `made`, `measured` and `created`.

    The same request on the same model with the same seed gives the same `content_hash`, but for a boundary case
    (`storage.py`); with the same number of threads it gives the same `factors_hash`, and so the same bits.
    """

    deltas: Mapping[str, Delta]
    bases: Mapping[str, str]
    method: str
    config: Mapping = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()
    model: str = ""
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping = field(default_factory=dict)
    made: Mapping = field(default_factory=dict)
    measured: Mapping = field(default_factory=dict)
    created: str = ""

    def __post_init__(self):
        for name in ("deltas", "bases", "config", "versions", "notes", "made", "measured"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        if not self.deltas:
            raise InputError("an edit without a change, expected at least one module path with its factors")
        if set(self.deltas) != set(self.bases):
            raise InputError("an edit names the base of every weight that it changes, and of no other")

    def applied(self, model: Model) -> AbstractContextManager[Handle]:
        """The edit is on `model` while the context lasts; the model is bit-identical after, also on exceptions."""
        return applied(model, self)

    def save(self, folder: str | Path) -> Path:
        """Write the edit to a new folder: factors as safetensors, provenance as JSON, all or nothing."""
        return save_edit(self, folder)

    @property
    def content_hash(self) -> str:
        """SHA-256 over what the change does, rounded, what it is for and how it was made."""
        return storage.content_hash(self.content(), self.deltas)

    @property
    def factors_hash(self) -> str:
        """SHA-256 over every bit of the change."""
        return storage.factors_hash(self.deltas)

    def content(self) -> dict:
        """What besides the factors makes the edit what it is, for JSON."""
        return {
            "method": self.method,
            "config": dict(self.config),
            "facts": [fact.as_dict() for fact in self.facts],
            "model": self.model,
            "seed": self.seed,
            "bases": dict(self.bases),
        }


def save_edit(edit: Edit, folder: str | Path) -> Path:
    """Write `edit` to the new `folder` and return its path. An edit without a time stamp gets one.

    Raises `InputError` where the folder exists or cannot be written, and for provenance that is not plain JSON;
    nothing is left behind then.
    """
    with new_folder(folder) as new:
        rest = (edit.versions, edit.notes, edit.made, edit.measured, edit.created)
        stored = storage.Stored(edit.deltas, edit.content(), *rest)
        storage.write(new, stored)
        _check_readable(new)
    return Path(folder).expanduser()


def load_edit(folder: str | Path) -> Edit:
    """Read an edit that was written by `save_edit`.

    Raises `InputError` where there is no such folder, `DataError` for files that are damaged, of another schema, or
    that hold anything else than a sound edit.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is no folder; give one that an edit was saved to")
    try:
        return _loaded(folder)
    except (InputError, DataError, OSError) as error:
        raise DataError(
            f"{str(folder)!r} holds no sound edit: {one_line(error)}; get a good copy, or make the edit again"
        ) from None


def _check_readable(folder: Path) -> None:
    try:
        _loaded(folder)  # which compares the content hash
    except (InputError, DataError) as error:
        raise InputError(
            f"this edit would not be read as it is ({one_line(error)}); say all of it in plain JSON with text as keys"
        ) from None


def _loaded(folder: Path) -> Edit:
    stored = storage.read(folder)
    content = stored.content
    edit = Edit(
        deltas=stored.deltas,
        bases=content["bases"],
        method=content["method"],
        config=content["config"],
        facts=tuple(Fact.from_dict(fact) for fact in content["facts"]),
        model=content["model"],
        seed=content["seed"],
        versions=stored.versions,
        notes=stored.notes,
        made=stored.made,
        measured=stored.measured,
        created=stored.created,
    )
    if edit.content_hash != stored.content_hash:
        raise DataError("its content hash is another than expected")
    return edit


def check_request(fact: Fact) -> str:
    """What the model is to say of the fact from now on: its `target_new`.

    Raises `InputError` where that is missing, empty or what the fact already says.
    """
    target_new = fact.target_new
    if target_new is None:
        raise InputError(
            f"the fact {fact.id or fact.subject!r} has no target_new; name what the model is to say instead"
        )
    if not isinstance(target_new, str) or not target_new.strip():
        raise InputError(f"target_new is {target_new!r}, expected the text that is to follow the prompt")
    if target_new.strip() == fact.target.strip():
        raise InputError(f"the new answer {target_new!r} is the fact's own target; name what is to be said instead")
    return target_new


def origin(model: Model) -> dict[str, str | None]:
    """The Hub id that `model` was loaded by and its commit, None where they are not known.

    The revision of a converted GGUF file is the SHA-256 of that file.
    """
    place = getattr(model.hf, "name_or_path", "") or ""
    revision = getattr(model.config, "_commit_hash", None)
    if gguf := re.search(r"gguf-([0-9a-f]{64})-", Path(place).name):
        revision = f"gguf {gguf[1]}"
    hub = place.count("/") == 1 and not Path(place).exists()
    return {"model_id": place if hub else None, "revision": revision}


def make_edit(
    model: Model,
    deltas: Mapping[int, Delta],
    *,
    method: str,
    config: Mapping,
    facts: Sequence[Fact],
    seed: int = 0,
    notes: Mapping | None = None,
    hashes: Mapping[int, str] | None = None,
) -> Edit:
    """An `Edit` of the down-projections of `model`: `deltas` by layer, `config` and `notes` as JSON values.

    `hashes`: of the weights by layer, where they are known (`weight_hash`).

    Raises `InputError` for a change of another shape than the weight's.
    """
    for layer, delta in deltas.items():
        if delta.shape != model.down_shape(layer):
            raise InputError(
                f"the change of layer {layer} is {delta.shape}, expected {model.down_shape(layer)} as {model.name} has"
            )
    known = hashes or {}
    return Edit(
        deltas={model.down_path(layer): delta for layer, delta in deltas.items()},
        bases={model.down_path(layer): known.get(layer) or weight_hash(model.down_weight(layer)) for layer in deltas},
        method=method,
        config=config,
        facts=tuple(facts),
        model=model.name,
        seed=seed,
        versions=versions(),
        notes=notes or {},
        made={**origin(model), "threads": torch.get_num_threads()},
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
