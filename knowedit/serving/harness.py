"""The tasks of lm-evaluation-harness on a model with and without edits, on the same documents.

    result = evaluate(model, [edit], ["hellaswag", "lambada_openai"], limit=200)

The harness runs around the model as it is loaded, so what it sees is what else is measured here. Differences are paired
by document: each has its interval over the documents.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..display.result import Record, Table
from ..edit.apply import stacked
from ..edit.edit import Edit
from ..errors import InputError
from ..hooks import measuring
from ..models.adapter import Model
from ..models.checks import one_line, quiet
from ..statistics import Estimate, mean
from ..writing.counts import number_of


@dataclass(frozen=True)
class TaskMetric:
    """A metric of a task without and with the edits; `difference` is paired by document, where it has a value of each.

    `version`: the task's.
    """

    task: str
    metric: str
    before: float
    after: float
    difference: Estimate | None
    documents: int
    version: str


@dataclass(frozen=True)
class HarnessResult(Record):
    """What the harness measured, a row a metric. `lm_eval` is its version, `shots` and `limit` what was asked for."""

    model: str
    edits: tuple[str, ...]
    lm_eval: str
    shots: int | None
    limit: int | None
    metrics: tuple[TaskMetric, ...]

    def table(self) -> Iterator[str | Table]:
        edits = number_of(len(self.edits), "edit")
        yield f"{self.model} without and with {edits}, lm-eval {self.lm_eval}"
        rows = [
            (m.task, m.metric, f"{m.before:.4f}", f"{m.after:.4f}", m.difference and m.difference.text(), m.documents)
            for m in self.metrics
        ]
        yield Table(("task", "metric", "without", "with", "difference", "n"), rows)


def check_installed() -> None:
    """Raise `InputError` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed; `pip install 'knowedit[lm-eval]'` brings it")


def evaluate(
    model: Model,
    edits: Sequence[Edit],
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch: int = 8,
    include: str | Path | None = None,
    seed: int = 0,
) -> HarnessResult:
    """Run `tasks` by name on `model` with `edits` one above the other, then without them.

    **Arguments:**

    - `limit`: the first so many documents of each task. `shots`: examples before each, by default the task's own.
    - `batch`: rows at once. `include`: a folder of tasks of your own, as YAML files.

    Raises `InputError` where lm-eval is not installed, knows no such task or cannot get its data, and for a masked
    model.
    """
    check_installed()
    if model.masked:
        raise InputError(f"{model.name} is a masked model, for which lm-eval has no tasks; see knowedit diff")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(Path(include).expanduser()))
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise InputError(f"lm-eval knows no task {unknown[0]!r}; `lm-eval ls tasks` lists them")
    with quiet():
        harness = HFLM(pretrained=model.hf, tokenizer=model.tokenizer, batch_size=batch, device=str(model.device))

    def run() -> Mapping:
        try:
            with measuring(model.hf), quiet():
                return lm_eval.simple_evaluate(
                    harness, tasks=list(tasks), task_manager=manager, limit=limit, num_fewshot=shots, bootstrap_iters=0,
                    random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
                )  # fmt: skip
        except Exception as error:  # whatever a task, its data set or the network raise
            raise InputError(f"lm-eval cannot run {', '.join(tasks)}: {one_line(error)}; try another task") from error

    with stacked(model, edits):
        after = run()
    before = run()
    metrics = [metric for task in before["results"] for metric in _metrics(task, before, after)]
    hashes = tuple(edit.content_hash for edit in edits)
    return HarnessResult(model.name, hashes, str(before["lm_eval_version"]), shots, limit, tuple(metrics))


def _metrics(task: str, before: Mapping, after: Mapping) -> Iterator[TaskMetric]:
    for key, value in before["results"][task].items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        old, new = (_values(run, task, name, filtered) for run in (before, after))
        shared = sorted(set(old) & set(new))
        difference = mean([new[document] - old[document] for document in shared]) if shared else None
        documents = before["n-samples"].get(task, {}).get("effective", 0)
        metric = name if filtered == "none" else f"{name} ({filtered})"
        found = after["results"][task][key]
        yield TaskMetric(task, metric, value, found, difference, documents, str(before["versions"].get(task)))


def _values(run: Mapping, task: str, metric: str, filtered: str) -> dict[int, float]:
    """The metric of each document, where it is a number."""
    return {
        sample["doc_id"]: float(sample[metric])
        for sample in run["samples"].get(task, ())
        if sample["filter"] == filtered and isinstance(sample.get(metric), int | float)
    }
