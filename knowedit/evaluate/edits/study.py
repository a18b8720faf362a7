"""`knowedit bench edit`: what edits do, record by record, each beside the unedited model.

The edits of a batch are made together and never applied: everything is asked in shared forward passes in which each
row has its own edit (`scoring.py`). A method that changes many facts by one edit makes one of each batch, and the
records say by `content_hash` which edit they are under. Sequential edits all stay on; after some numbers of them
(`checkpoints`) every record edited so far is asked again. With a method that changes many facts by one edit a sequence
is a set that grows: its edit takes the place of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cached_property, partial

from ...answers import Answer
from ...edit.apply import Handle, apply, unedited
from ...edit.edit import Edit, check_request
from ...edit.methods.method import Editor, config_dict
from ...edit.methods.table import find_method, method_config, prepare
from ...errors import InputError, KnoweditError
from ...facts import Fact
from ...models.adapter import Model
from ...selection import known
from ...sources import Source
from ...statistics import Estimate
from ..runs.study import FactStudy, error_line
from .config import EditStudyConfig
from .drift import Drift
from .generation import Writing, writings
from .kept_edit import edit_of, factors_of
from .metrics import Observation, measure, metrics_of, pairs_of
from .references import References, read_references
from .scoring import score_edits
from .summary import summarise, summary

Answers = dict[tuple[str, str], Answer]
NOTES = ("steps", "probability", "clamped", "k_C_inv_k", "shared", "others")  # of an edit, kept in its record


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
        self._held: Handle | None = None  # the edit of all facts so far, of a method that changes facts together

    @classmethod
    def from_config(cls, config: EditStudyConfig, **loading):
        return super().from_config(config, references=_references(config), **loading)  # told before a model is loaded

    def identity(self) -> dict:
        snippets = {} if self.references is None else {"snippets": self.references.sha256}
        return {**super().identity(), **snippets}

    def run(self, batch: list[str]) -> list[dict]:
        facts = [self.facts[i] for i in batch]
        if self.sequential:
            return self._growing(facts) if self.method.together else self._one_after_the_other(facts)
        return self._together(facts) if self.method.together else self._side_by_side(facts)

    def restore(self, rows: list[dict]) -> None:
        if self.method.together:
            self._so_far = [self.facts[row["id"]] for row in rows if "error" not in row]
            self._hold(self._editor(self._so_far))
            return
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
                "edit": {**_notes(edit), **factors_of(self.model, edit)},
            }
            if len(self._so_far) in self.settings.checkpoints:
                row["checkpoint"] = self._checkpoint(row["after"])
            row["seconds"] = {"edit": edited - start, "score": time.perf_counter() - edited}
            rows.append(row)
        return rows

    def _growing(self, facts: Sequence[Fact]) -> list[dict]:
        """The records of facts that join those so far in one edit, which takes the place of the edit before.

        Facts up to a checkpoint, and up to the end of a batch, join together, and are asked when they have joined.
        """
        rows: list[dict] = []
        joining: list[Fact] = []
        for place, fact in enumerate(facts, 1):
            try:
                self.model.query_of(fact, check_request(fact))
                joining.append(fact)
            except KnoweditError as error:
                rows.append({"id": fact.id, "error": error_line(error)})
            if joining and (place == len(facts) or len(self._so_far) + len(joining) in self.settings.checkpoints):
                rows += self._joined(joining)
                joining = []
        return rows

    def _joined(self, facts: Sequence[Fact]) -> list[dict]:
        """The records of facts that have joined those so far, the last one with its checkpoint."""
        with unedited(self.model):  # one by one, since a resumed batch is smaller, which would show in the last bits
            before = [self._as_it_is(fact) for fact in facts]
        start = time.perf_counter()
        try:
            edits = self._editor([*self._so_far, *facts])
        except Exception as error:  # those before stay on
            return [{"id": fact.id, "error": error_line(error)} for fact in facts]
        self._hold(edits)
        self._so_far += facts
        edited = time.perf_counter()
        drifts = self._drifts(facts, [None] * len(facts))
        rows = [
            {**_about(fact), "before": metrics, "after": self._as_it_is(fact, **drift), "edit": _notes(edit)}
            for fact, metrics, drift, edit in zip(facts, before, drifts, edits[-len(facts) :], strict=True)
        ]
        if len(self._so_far) in self.settings.checkpoints:
            rows[-1]["checkpoint"] = self._checkpoint(rows[-1]["after"])
        seconds = {"edit": (edited - start) / len(facts), "score": (time.perf_counter() - edited) / len(facts)}
        return [{**row, "seconds": seconds} for row in rows]

    def _hold(self, edits: Sequence[Edit | None]) -> None:
        """Put the one edit of all facts so far on, in the place of the one before."""
        if self._held is not None:
            self._held.revert()
        edit = next(filter(None, edits), None)
        self._held = None if edit is None else apply(self.model, edit)

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
        return edit_of(self.model, fact, notes)

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
