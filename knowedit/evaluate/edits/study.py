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
from functools import cached_property, partial

import numpy as np
import torch

from ...answers import Answer
from ...edit.apply import apply, unedited
from ...edit.delta import LowRank
from ...edit.edit import Edit, check_request, make_edit
from ...edit.methods.method import Editor, config_dict
from ...edit.methods.table import find_method, method_config, prepare
from ...errors import InputError, KnoweditError
from ...facts import Fact
from ...models.adapter import Model
from ...selection import Keep, choose, known
from ...sources import Source
from ...statistics import Estimate
from ..runs.study import FactStudy, error_line
from .drift import Drift
from .generation import Writing, writings
from .metrics import Observation, check_metric, measure, metrics_of, pairs_of
from .references import References, read_references
from .scoring import score_edits
from .summary import summarise, summary

Answers = dict[tuple[str, str], Answer]
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

    def usable(self, facts: Sequence[Fact]) -> list[Fact]:
        """The facts of a source that can be edited: those with a new target."""
        return [fact for fact in facts if fact.target_new is not None]

    def chosen(self, facts: Sequence[Fact], keep: Keep | None = None) -> list[Fact]:
        """The facts that the study is about, of those of its source; `keep` as `choose` takes it."""
        return choose(self.usable(facts), limit=self.limit, sample=self.sample, seed=self.seed, keep=keep)


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
        self.metrics = metrics_of(self.source.format)
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
                self.model.query_of(fact, check_request(fact))
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
        answers = self._answers([None] * n + edits, [*facts, *facts])
        answered = time.perf_counter()
        drifts = self._drifts(facts, edits)
        notes = {edit: _notes(edit) for edit in edits}
        wrote_before, wrote_after = (self._writings(facts, of_facts) for of_facts in ([None] * n, edits))
        rows = [
            {
                **_about(fact),
                "before": self._measured(fact, answers[i], wrote_before[i]),
                "after": self._measured(fact, answers[n + i], wrote_after[i], **drifts[i]),
                "edit": notes[edit],
            }
            for i, (fact, edit) in enumerate(zip(facts, edits, strict=True))
        ]
        done = time.perf_counter()
        seconds = {"edit": (edited - start) / n, "score": (answered - edited) / n, "other": (done - answered) / n}
        return [{**row, "seconds": seconds} for row in rows]

    # ---------------------------------------------------------------- sequential edits

    def _one_after_the_other(self, facts: Sequence[Fact]) -> list[dict]:
        rows = []
        with unedited(self.model):  # one by one, since a resumed batch is smaller, which would show in the last bits
            before = [self._as_it_is(fact) for fact in facts]
        for fact, metrics_before in zip(facts, before, strict=True):
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
            (drift,) = self._drifts([fact], [None])
            row = {
                **_about(fact),
                "before": metrics_before,
                "after": self._as_it_is(fact, **drift),
                "edit": {**_notes(edit), **self._factors(edit)},
            }
            if len(self._so_far) in self.settings.checkpoints:
                row["checkpoint"] = self._checkpoint(row["after"])
            row["seconds"] = {"edit": edited - start, "score": time.perf_counter() - edited}
            rows.append(row)
        return rows

    def _as_it_is(self, fact: Fact, **drift) -> dict[str, float | None]:
        """The metrics of a fact with what is on the model."""
        (answers,) = self._answers([None], [fact])
        (writing,) = self._writings([fact], [None])
        return self._measured(fact, answers, writing, **drift)

    def _checkpoint(self, last: dict[str, float | None]) -> dict:
        """The metrics of all records edited so far under all edits that are on; `last` are those of the last record."""
        facts = self._so_far
        answers = self._answers([None] * len(facts), facts)
        means = summarise(map(self._measured, facts, answers), self.settings.seed)
        for metric in self.metrics:
            if metric.of_model and metric.name in last:
                means[metric.name] = Estimate(last[metric.name], None, None, 1)
        return {"edits": len(facts), "metrics": {name: mean.as_dict() for name, mean in means.items()}}

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
        deltas = {} if edit is None else edit.deltas
        low_rank = {path: delta for path, delta in deltas.items() if isinstance(delta, LowRank)}
        if edit is None or len(low_rank) < len(deltas):
            return {}
        layers = self.model.down_layers()
        return {
            "factors": {str(layers[path]): [_encoded(d.u), _encoded(d.v)] for path, d in low_rank.items()},
        }

    # ---------------------------------------------------------------- asking

    def _answers(self, edits: Sequence[Edit | None], facts: Sequence[Fact]) -> list[Answers]:
        """By (prompt, target), what the model says to all that the metrics ask about each fact, under its edit."""
        pairs = [pairs_of(fact, self.metrics) for fact in facts]
        asked = [[(*pair, fact.separator) for pair in of_fact] for fact, of_fact in zip(facts, pairs, strict=True)]
        answers = score_edits(self.model, edits, asked)
        return [dict(zip(of_fact, said, strict=True)) for of_fact, said in zip(pairs, answers, strict=True)]

    def _writings(self, facts: Sequence[Fact], edits: Sequence[Edit | None]) -> Sequence[Writing | None]:
        if not self.settings.generate:
            return [None] * len(facts)
        return writings(self.model, facts, edits, seed=self.settings.seed)

    def _drifts(self, facts: Sequence[Fact], edits: Sequence[Edit | None]) -> list[dict[str, float | None]]:
        """Fields of each fact's `Observation`."""
        if not self.settings.perplexity:
            return [{} for _ in facts]
        essence = self.drift.essence(facts, edits)
        unique = list(dict.fromkeys(edits))
        rises = dict(zip(unique, self.drift.perplexity(unique), strict=True))
        return [
            {"perplexity_rise": rises[edit], "essence_drift": drift} for edit, drift in zip(edits, essence, strict=True)
        ]

    def _measured(
        self, fact: Fact, answers: Answers, writing: Writing | None = None, **drift
    ) -> dict[str, float | None]:
        references = None if writing is None else self.references
        return measure(Observation(fact, answers, writing, references, **drift), self.metrics)

    @cached_property
    def _editor(self) -> Editor:
        return prepare(self.model, self.settings.method, self.method_settings, self.source.facts)

    def chosen_facts(self) -> list[Fact]:
        config = self.settings
        if not config.usable(self.source.facts):
            raise InputError(f"no fact of {self.source.name!r} has a new target to be edited to; choose another source")
        keep = partial(known, self.model) if config.known_only else None
        facts = config.chosen(self.source.facts, keep)
        if not facts:
            raise InputError(
                f"{self.model.name} knows none of the facts of {self.source.name!r}; leave out --known-only"
            )
        return facts


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
