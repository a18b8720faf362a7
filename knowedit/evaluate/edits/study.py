"""`knowedit bench edit`: what edits do, record by record, each beside the unedited model.

The edits of a batch are made together and never applied: everything is asked in shared forward passes in which each
row has its own edit (`scoring.py`). A method that changes many facts by one edit makes one of each batch, and the
records say by `content_hash` which edit they are under. Sequential edits all stay on; after some numbers of them
(`checkpoints`) every record edited so far is asked again.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import torch

from ...edit.apply import apply, unedited
from ...edit.delta import LowRank
from ...edit.edit import Edit, check_request, make_edit
from ...edit.methods.method import Editor, config_dict
from ...edit.methods.table import find_method, method_config, prepare
from ...errors import InputError, KnoweditError
from ...facts import Fact
from ...models.adapter import Model
from ...selection import Known, choose, known_to
from ...sources import Source
from ..runs.study import FactStudy, error_line
from .drift import Drift
from .generation import generation_metrics
from .metrics import asked_of, check_metric, record_metrics, summarise, zsre_asked, zsre_metrics
from .references import References, read_references
from .scoring import Score, score_edits
from .summary import summary

Metrics = dict[str, float | None]
NOTES = ("steps", "probability", "clamped", "k_C_inv_k", "shared", "others")  # of an edit, kept in its record


@dataclass(frozen=True)
class EditStudyConfig:
    """What is edited, how, and what is measured.

    - `source`, `format`, `revision`: as `load_source` takes them.
    - `known_only`: only facts whose target is the model's first choice.
    - `limit`, `sample`, `seed`: as `choose` takes them: the first so many of these facts, or so many drawn.
    - `method`, `settings`, `layer`: as `method_config` takes them; settings by default those of the model.
    - `sequential`: edits stay on; `checkpoints`: after how many all records so far are asked again.
    - `batch`: records that are edited and asked together; with a method that changes facts together, by one edit.
    - `metrics`: of the summary; empty for all that there are.
    - `perplexity`: relative rise on a short plain text, and drift of the subject's essence, for every record.
    - `generate`: also what the model writes of its own accord, and the probes of the facts.
    - `snippets`: a folder with ROME's reference texts, for RS of what it writes.
    """

    source: str = "builtin"
    model: str = "smollm2-135m"
    dtype: str | None = None
    method: str = "rome"
    settings: Mapping = field(default_factory=dict)
    layer: int | None = None
    sequential: bool = False
    checkpoints: tuple[int, ...] = (1, 10, 100, 1000)
    batch: int = 32
    metrics: tuple[str, ...] = ()
    known_only: bool = False
    perplexity: bool = False
    generate: bool = False
    snippets: str | None = None
    format: str | None = None
    revision: str | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def __post_init__(self):
        method_config(self.method, self.settings, self.layer)
        for name in self.metrics:
            check_metric(name)
        if not isinstance(self.batch, int) or self.batch < 1:
            raise InputError(f"the batch is {self.batch!r}, expected a number of records from 1 on")
        if self.snippets is not None and not self.generate:
            raise InputError("snippets are what generated text is held against; add --generate")
        checkpoints = tuple(self.checkpoints)
        if not all(isinstance(n, int) and n > 0 for n in checkpoints) or list(checkpoints) != sorted(set(checkpoints)):
            raise InputError(
                f"the checkpoints are {list(checkpoints)}, expected rising numbers of edits, such as 1, 10"
            )

    def as_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "settings": dict(self.settings), "checkpoints": list(self.checkpoints),
                "metrics": list(self.metrics)}  # fmt: skip


class EditStudy(FactStudy):
    """A `Study` of edits."""

    name = "edit"

    def __init__(
        self,
        config: EditStudyConfig,
        model: Model,
        source: Source | None = None,
        references: References | None = None,
    ):
        """`source` and `references`, the texts for RS: by default those that `config` names."""
        if config.generate and model.masked:
            raise InputError(f"{model.name} is a masked model, which generates no text; leave out --generate")
        super().__init__(config, model, source)
        self.references = references or _references(config)
        self.drift = Drift(model)
        self.sequential = config.sequential
        self.skipped += _without_new_target(self.source)
        self.method = find_method(config.method)
        self.method_settings = method_config(config.method, config.settings, config.layer, model)
        self.config = {**config.as_dict(), "resolved": config_dict(self.method_settings)}
        self._so_far: list[Fact] = []

    @classmethod
    def from_config(cls, config: EditStudyConfig, **loading):
        return super().from_config(config, references=_references(config), **loading)  # told before a model is loaded

    def identity(self) -> dict:
        snippets = {} if self.references is None else {"snippets": self.references.sha256}
        return {**super().identity(), **snippets}

    def run(self, batch: list[str]) -> list[dict]:
        facts = [self.facts[i] for i in batch]
        if self.sequential:
            return self._one_after_the_other(facts)
        return self._together(facts) if self.method.together else self._side_by_side(facts)

    def restore(self, rows: list[dict]) -> None:
        for row in rows:
            if "error" not in row:
                fact = self.facts[row["id"]]
                edit = self._again(fact, row["edit"])
                if edit is not None:
                    apply(self.model, edit)
                self._so_far.append(fact)

    def summarise(self, rows: Iterable[dict]) -> dict:
        return {**summary(rows, self.settings.metrics, self.settings.seed), "skipped": len(self.skipped)}

    # ---------------------------------------------------------------- edits beside the unedited model

    def _together(self, facts: Sequence[Fact]) -> list[dict]:
        """The records of facts that one edit changes; a fact that cannot be asked is left out of it, with its error."""
        editable: list[Fact] = []
        errors: dict[str | None, str] = {}
        for fact in facts:
            try:
                self.model.query(fact.prompt, check_request(fact), fact.subject)
                editable.append(fact)
            except KnoweditError as error:
                errors[fact.id] = error_line(error)
        try:
            rows = self._side_by_side(editable) if editable else []
        except Exception as error:  # to try facts alone would measure another edit
            rows, errors = [], errors | {fact.id: error_line(error) for fact in editable}
        return [*rows, *({"id": id, "error": error} for id, error in errors.items())]

    def _side_by_side(self, facts: Sequence[Fact]) -> list[dict]:
        """The records of facts, each asked under the edit that changes it; no edit is applied."""
        start = time.perf_counter()
        for fact in facts:
            check_request(fact)
        edits = self._editor(facts)
        edited = time.perf_counter()
        n = len(facts)
        metrics = self._ask([None] * n + edits, [*facts, *facts])
        scored = time.perf_counter()
        drifts = self._drifts(facts, edits)
        writing = zip(self._written(facts, [None] * n), self._written(facts, edits), strict=True)
        notes = {edit: _notes(edit) for edit in edits}
        rows = [
            {
                **_about(fact),
                "before": {**before, **written_before},
                "after": {**after, **drift, **written_after},
                "perplexity": rise,
                "edit": notes[edit],
            }
            for fact, edit, before, after, (rise, drift), (written_before, written_after) in zip(
                facts, edits, metrics[:n], metrics[n:], drifts, writing, strict=True
            )
        ]
        done = time.perf_counter()
        seconds = {"edit": (edited - start) / n, "score": (scored - edited) / n, "other": (done - scored) / n}
        return [{**row, "seconds": seconds} for row in rows]

    def _written(self, facts: Sequence[Fact], edits: Sequence[Edit | None]) -> list[Metrics]:
        """What is measured of free writing."""
        if not self.settings.generate:
            return [{} for _ in facts]
        return generation_metrics(self.model, facts, edits, seed=self.settings.seed, references=self.references)

    def _drifts(self, facts: Sequence[Fact], edits: Sequence[Edit | None]) -> list[tuple[float | None, Metrics]]:
        """Relative rise of perplexity, and drift of the essence."""
        if not self.settings.perplexity:
            return [(None, {}) for _ in facts]
        essences = self.drift.essence(facts, edits)
        unique = list(dict.fromkeys(edits))
        rises = dict(zip(unique, self.drift.perplexity(unique), strict=True))
        return [
            (rises[edit], {} if essence is None else {"essence": essence})
            for edit, essence in zip(edits, essences, strict=True)
        ]

    # ---------------------------------------------------------------- sequential edits

    def _one_after_the_other(self, facts: Sequence[Fact]) -> list[dict]:
        rows = []
        with unedited(self.model):  # one by one, since a resumed batch is smaller, which would show in the last bits
            before = [(self._ask([None], [fact])[0], self._written([fact], [None])[0]) for fact in facts]
        for fact, (metrics_before, written_before) in zip(facts, before, strict=True):
            start = time.perf_counter()
            try:
                check_request(fact)
                (edit,) = self._editor([fact])
            except Exception as error:  # one record must not end a run
                rows.append({"id": fact.id, "error": error_line(error)})
                continue
            if edit is not None:
                apply(self.model, edit)
            self._so_far.append(fact)
            edited = time.perf_counter()
            (after,) = self._ask([None], [fact])
            ((rise, drift),) = self._drifts([fact], [None])
            (written_after,) = self._written([fact], [None])
            row = {
                **_about(fact),
                "before": {**metrics_before, **written_before},
                "after": {**after, **drift, **written_after},
                "perplexity": rise,
                "edit": {**_notes(edit), **self._factors(edit)},
            }
            if len(self._so_far) in self.settings.checkpoints:
                row["checkpoint"] = self._checkpoint()
            row["seconds"] = {"edit": edited - start, "score": time.perf_counter() - edited}
            rows.append(row)
        return rows

    def _checkpoint(self) -> dict:
        """All records edited so far, and plain text, under all edits that are on."""
        metrics = summarise(self._ask([None] * len(self._so_far), self._so_far), self.settings.seed)
        rise = self.drift.perplexity([None])[0] if self.settings.perplexity else None
        return {"edits": len(self._so_far), "metrics": metrics, "perplexity": rise}

    def _again(self, fact: Fact, notes: dict) -> Edit | None:
        """The edit of a finished record, bit for bit: from its factors, or made again where it is not of low rank."""
        if notes.get("method") is None:
            return None
        if "factors" not in notes:
            return self._editor([fact])[0]
        deltas = {int(layer): LowRank(*(_decoded(f) for f in pair)) for layer, pair in notes["factors"].items()}
        return make_edit(self.model, deltas, method=notes["method"], config={}, facts=[fact])

    def _factors(self, edit: Edit | None) -> dict:
        """The factors of an edit of low rank as text, by layer: exact, and as whole as the record itself."""
        if edit is None or not all(isinstance(delta, LowRank) for delta in edit.deltas.values()):
            return {}
        layers = self.model.down_layers()
        return {
            "factors": {str(layers[path]): [_encoded(d.u), _encoded(d.v)] for path, d in edit.deltas.items()},
        }

    # ---------------------------------------------------------------- asking

    def _ask(self, edits: Sequence[Edit | None], facts: Sequence[Fact]) -> list[Metrics]:
        pairs = [self._pairs(fact) for fact in facts]
        scores = score_edits(self.model, edits, pairs)
        return [self._metrics(fact, own) for fact, own in zip(facts, scores, strict=True)]

    def _pairs(self, fact: Fact) -> list[tuple[str, str]]:
        pairs = [(a.prompt, target) for a in asked_of(fact) for target in (a.target_new, a.target_true)]
        return pairs + ([(prompt, target) for _, prompt, target in zsre_asked(fact)] if self._zsre else [])

    def _metrics(self, fact: Fact, scores: Sequence[Score]) -> Metrics:
        n = 2 * len(asked_of(fact))
        metrics = record_metrics(fact, scores[0:n:2], scores[1:n:2])
        if self._zsre:
            metrics |= zsre_metrics(fact, scores[n:])
        return metrics

    @cached_property
    def _editor(self) -> Editor:
        return prepare(self.model, self.settings.method, self.method_settings, self.source.facts)

    @cached_property
    def _zsre(self) -> bool:
        return self.source.format == "zsre"

    def chosen_facts(self) -> list[Fact]:
        if not usable_facts(self.source):
            raise InputError(f"no fact of {self.source.name!r} has a new target to be edited to; choose another source")
        facts = chosen_facts(self.settings, self.source, known_to(self.model) if self.settings.known_only else None)
        if not facts:
            raise InputError(
                f"{self.model.name} knows none of the facts of {self.source.name!r}; leave out --known-only"
            )
        return facts


def usable_facts(source: Source) -> list[Fact]:
    """The facts of a source that can be edited: those with a new target."""
    return [fact for fact in source.facts if fact.target_new is not None]


def chosen_facts(config: EditStudyConfig, source: Source, known: Known | None = None) -> list[Fact]:
    """The facts that `config` chooses, in their order; those that the model knows where `known` tells."""
    facts = usable_facts(source)
    return choose(facts, limit=config.limit, sample=config.sample, seed=config.seed, known=known)


def _references(config: EditStudyConfig) -> References | None:
    return None if config.snippets is None else read_references(config.snippets)


def _without_new_target(source: Source) -> list[tuple[str, str]]:
    return [(fact.id, "it has no new target to be edited to") for fact in source.facts if fact.target_new is None]


def _about(fact: Fact) -> dict:
    return {"id": fact.id, "relation": fact.relation_name or fact.relation, "subject": fact.subject}


def _notes(edit: Edit | None) -> dict:
    """What a record keeps of its edit. Records of facts that were changed together have one `content_hash`."""
    if edit is None:
        return {"method": None}
    kept = {name: edit.notes[name] for name in NOTES if name in edit.notes}
    norm = sum(delta.norm() ** 2 for delta in edit.deltas.values()) ** 0.5
    return {"method": edit.method, "content_hash": edit.content_hash, "facts": len(edit.facts), "norm": norm, **kept}


def _encoded(factor: torch.Tensor) -> dict:
    return {"shape": list(factor.shape), "float32": base64.b64encode(factor.contiguous().numpy().tobytes()).decode()}


def _decoded(record: dict) -> torch.Tensor:
    values = np.frombuffer(base64.b64decode(record["float32"]), dtype="<f4")
    return torch.from_numpy(values.reshape(record["shape"]).copy())
