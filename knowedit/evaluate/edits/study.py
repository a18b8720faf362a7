"""`knowedit bench edit`: what edits do, record by record, each beside the unedited model.

The edits of a batch are made together and never applied: everything is asked in shared forward passes in which each
row has its own edit (`scoring.py`). A method that changes many facts by one edit makes one of each batch, and the
records say by `content_hash` which edit they are under. Sequential edits all stay on; after some numbers of them
(`checkpoints`) every record edited so far is asked again. With a method that changes many facts by one edit a sequence
is a set that grows: its edit takes the place of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial

from ...answers import Answer
from ...edit.apply import Handle, apply, unedited
from ...edit.edit import Edit, check_request
from ...edit.methods.method import Editor, config_dict
from ...edit.methods.table import find_method, method_config, prepare
from ...errors import InputError, KnoweditError
from ...facts import Fact
from ...models.adapter import Model
from ...models.length import check_length
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
            return self._one_after_the_other(facts)
        return self._together(facts) if self.method.together else self._side_by_side(facts)

    def restore(self, rows: list[dict]) -> None:
        if self.method.together:
            self._put_on([self.facts[row["id"]] for row in rows if "error" not in row])
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
        editable, refused = self._editable(facts)
        try:
            rows = self._side_by_side(editable) if editable else []
        except Exception as error:  # to try facts alone would measure another edit
            rows = _failed(editable, error)
        return [*rows, *refused]

    def _editable(self, facts: Sequence[Fact]) -> tuple[list[Fact], list[dict]]:
        """The facts that can be asked and edited, and the records of the others."""
        editable: list[Fact] = []
        refused: list[dict] = []
        for fact in facts:
            try:
                self.model.query_of(fact, check_request(fact))
                for prompt, target in pairs_of(fact, self.metrics):
                    for row in self.model.query(prompt, target, separator=fact.separator).rows(self.model.masked):
                        check_length(self.model, row.ids)
                editable.append(fact)
            except KnoweditError as error:
                refused += _failed([fact], error)
        return editable, refused

    def _side_by_side(self, facts: Sequence[Fact]) -> list[dict]:
        """The records of facts, each asked under the edit that changes it; no edit is applied."""
        start = time.perf_counter()
        for fact in facts:
            check_request(fact)
        edits = self._editor(facts)
        edited = time.perf_counter()
        n = len(facts)
        nothing: list[Sequence[Fact]] = [()] * n
        held: list[Sequence[Fact]] = [(fact,) for fact in facts]
        answers = self._answers([None] * n + edits, [*facts, *facts], nothing + held)
        answered = time.perf_counter()
        drifts = self._drifts(facts, edits)
        notes = {edit: _notes(edit) for edit in edits}
        wrote_before, wrote_after = self._writings(facts, [None] * n, nothing), self._writings(facts, edits, held)
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
        """The records of facts that join those so far, each asked when it has joined."""
        editable, rows = self._editable(facts)
        with unedited(self.model):  # one by one, since a resumed batch is smaller, which would show in the last bits
            before = {fact.id: self._as_it_is(fact, ()) for fact in editable}
        for part in self._joining(editable):
            start = time.perf_counter()
            try:
                edits = self._put_on(part)
            except Exception as error:  # one record must not end a run
                rows += _failed(part, error)
                continue
            edited = time.perf_counter()
            drifts = self._drifts(part, [None] * len(part))
            joined = [
                {
                    **_about(fact),
                    "before": before[fact.id],
                    "after": self._as_it_is(fact, self._so_far, **drift),
                    "edit": notes,
                }
                for fact, drift, notes in zip(part, drifts, map(self._kept, edits), strict=True)
            ]
            if len(self._so_far) in self.settings.checkpoints:
                joined[-1]["checkpoint"] = self._checkpoint(joined[-1]["after"])
            seconds = {"edit": (edited - start) / len(part), "score": (time.perf_counter() - edited) / len(part)}
            rows += [{**row, "seconds": seconds} for row in joined]
        return rows

    def _joining(self, facts: Sequence[Fact]) -> Iterator[list[Fact]]:
        """Facts one by one; those of a method that changes facts together up to a checkpoint, and the last ones."""
        part: list[Fact] = []
        for fact in facts:
            part.append(fact)
            if not self.method.together or len(self._so_far) + len(part) in self.settings.checkpoints:
                yield part
                part = []
        if part:
            yield part

    def _put_on(self, facts: Sequence[Fact]) -> list[Edit | None]:
        """Put the edits of `facts` on, above those so far; one edit of all takes the place of the one before."""
        if self.method.together:
            edits = self._editor([*self._so_far, *facts])
            if self._held is not None:
                self._held.revert()
            edit = next(filter(None, edits), None)
            self._held = None if edit is None else apply(self.model, edit)
            edits = edits[len(self._so_far) :]
        else:
            edits = self._editor(facts)
            for edit in filter(None, edits):
                apply(self.model, edit)
        self._so_far += facts
        return edits

    def _kept(self, edit: Edit | None) -> dict:
        """What a record keeps of its edit, and of one of its own also the factors, to put it on again."""
        return _notes(edit) | ({} if self.method.together else factors_of(self.model, edit))

    def _as_it_is(self, fact: Fact, held: Sequence[Fact], **drift) -> dict[str, float | None]:
        """The metrics of a fact with what is on the model, where the facts of `held` are to hold."""
        (answers,) = self._answers([None], [fact], [held])
        (writing,) = self._writings([fact], [None], [held])
        return self._measured(fact, answers, writing, **drift)

    def _checkpoint(self, last: dict[str, float | None]) -> dict:
        """The metrics of all records edited so far under all edits that are on; `last` are those of the last record."""
        facts = self._so_far
        answers = self._answers([None] * len(facts), facts, [facts] * len(facts))
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

    def _answers(
        self, edits: Sequence[Edit | None], facts: Sequence[Fact], held: Sequence[Sequence[Fact]]
    ) -> list[Answers]:
        """By (prompt, target), what the model says to all that the metrics ask about each fact, under its edit, where
        its `held` facts are to hold."""
        pairs = [pairs_of(fact, self.metrics) for fact in facts]
        asked = [
            [(self._asked(prompt, holding), target, fact.separator) for prompt, target in of_fact]
            for fact, of_fact, holding in zip(facts, pairs, held, strict=True)
        ]
        answers = score_edits(self.model, edits, asked)
        return [dict(zip(of_fact, said, strict=True)) for of_fact, said in zip(pairs, answers, strict=True)]

    def _writings(
        self, facts: Sequence[Fact], edits: Sequence[Edit | None], held: Sequence[Sequence[Fact]]
    ) -> Sequence[Writing | None]:
        if not self.settings.generate:
            return [None] * len(facts)
        asked = [partial(self._asked, held=holding) for holding in held]
        return writings(self.model, facts, edits, asked, seed=self.settings.seed)

    def _asked(self, prompt: str, held: Sequence[Fact]) -> str:
        """What is asked in the place of a prompt, where some facts are to hold."""
        if not held or self._editor.asked is None:
            return prompt
        return self._editor.asked(prompt, held)

    def _drifts(self, facts: Sequence[Fact], edits: Sequence[Edit | None]) -> list[dict[str, float | None]]:
        """Fields of each fact's `Observation`; what facts in the prompt do to a subject is no drift of the weights."""
        if not self.settings.perplexity:
            return [{} for _ in facts]
        essence = [None] * len(facts) if self._editor.asked else self.drift.essence(facts, edits)
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


def _failed(facts: Sequence[Fact], error: Exception) -> list[dict]:
    return [{"id": fact.id, "error": error_line(error)} for fact in facts]


def _about(fact: Fact) -> dict:
    return {"id": fact.id, "relation": fact.relation_name or fact.relation, "subject": fact.subject}


def _notes(edit: Edit | None) -> dict:
    """What a record keeps of its edit. Records of facts that were changed together have one `content_hash`."""
    if edit is None:
        return {"method": None}
    kept = {name: edit.notes[name] for name in NOTES if name in edit.notes}
    norm = sum(delta.norm() ** 2 for delta in edit.deltas.values()) ** 0.5
    return {"method": edit.method, "content_hash": edit.content_hash, "facts": len(edit.facts), "norm": norm, **kept}
