"""What does not fit into a device's memory is done in halves, with the same results, wherever rows share a pass."""

from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from support.rounding import ADAM, assert_near
from support.tiny import tiny

from knowedit.answers import ask
from knowedit.edit.covariance import covariance
from knowedit.edit.methods.fine_tune import FineTuneConfig, fine_tune_many
from knowedit.errors import KnoweditWarning, ModelError
from knowedit.evaluate.edits.generation import generate
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.facts import Fact
from knowedit.locate import integration_path
from knowedit.locate.attribution import AttributionConfig, attribute, attribute_many
from knowedit.locate.rankings import rank, rank_many
from knowedit.memory.corpus_scan import scan
from knowedit.models.passes import batches
from knowedit.models.passes.batches import halving
from knowedit.models.passes.scaled_answers import ScaledAnswers
from knowedit.recall.flow.knockout import attention_knockout
from knowedit.recall.trace.exact import TraceConfig, trace

FACTS = (
    Fact("{} is located in the city of", "The Eiffel Tower", "Paris", target_new="Rome"),
    Fact("The capital of {} is", "Japan", "Tokyo", target_new="Paris"),
    Fact("{} is the capital of", "Rome", "Italy", target_new="France"),
)
FACT = FACTS[0]
PAIRS = [(f"{word} {fact.prompt}", fact.target) for fact in FACTS for word in ("Now", "Here", "They say that")]
SETS = [[(0, 1)], [(1, 2), (2, 3)], [(0, 4), (2, 5)]]


def query(model, fact=FACT):
    return model.query_of(fact)


WORKS = {
    "attribution": lambda model: attribute(model, query(model), config=AttributionConfig(nodes=4)).scores,
    "attribution of prompts": lambda model: [
        part.scores for part in attribute_many(model, map(model.query_of, FACTS), AttributionConfig(nodes=2))
    ],
    "gradient": lambda model: list(rank_many(model, map(model.query_of, FACTS), "gradient")),
    "ablation": lambda model: rank(model, query(model), method="ablation"),
    "covariance": lambda model: covariance(model, [2], tokens=300, cache=mkdtemp())[2].C,
    "scan": lambda model: [scan(model, tokens=300).mean, scan(model, tokens=300).places],
    "trace": lambda model: trace(model, FACT.prompt, "Paris", FACT.subject, TraceConfig(draws=2)).effects["mlp"],
    "knockout": lambda model: list(attention_knockout(model, query(model)).after.values()),
    "scaled": lambda model: ScaledAnswers(model, [query(model)]).scaled(SETS, 2.0)[0],
    "kept": lambda model: ScaledAnswers(model, [query(model)]).kept(torch.eye(model.n_neurons)[:6, None].bool(), [1])[
        0
    ],
    "ask": lambda model: [answer.log_p for answer in ask(model, [query(model, fact) for fact in FACTS])],
    "scores": lambda model: [answer.log_p for answers in score_edits(model, [None], [PAIRS]) for answer in answers],
    "fine-tuning": lambda model: [
        next(iter(edit.deltas.values())).matrix() for edit in fine_tune_many(model, FACTS, FineTuneConfig(steps=3))
    ],
    "texts": lambda model: [
        [ord(character) for character in text] for text in generate(model, [f.prompt for f in FACTS], tokens=3, top_k=5)
    ],
}


def flat(values) -> torch.Tensor:
    if isinstance(values, list | tuple):
        return torch.cat([flat(value) for value in values])
    return torch.as_tensor(np.asarray(values, dtype=np.float64)).flatten()


@pytest.mark.parametrize("name", WORKS)
def test_halves_give_what_the_whole_gives(name, doubled, monkeypatch):
    model = tiny("llama", torch.float64)
    whole = flat(WORKS[name](model))
    fitting, sizes = batches._fitting, []

    def small(work, part):
        done = fitting(work, part)  # and its memory is gone at the very end
        sizes.append(len(part))
        return done if len(part) < 2 else []

    monkeypatch.setattr(batches, "_fitting", small)
    with pytest.warns(KnoweditWarning, match="at once do not fit into the memory of cpu; they go on in halves"):
        halves = flat(WORKS[name](model))
    assert max(sizes) > 1 and sizes[-1] == 1
    assert_near(halves, whole, size=whole.abs().max() * (ADAM if name == "fine-tuning" else 1))


def test_a_sweep_of_attribution_takes_as_many_rows_as_fit(doubled, monkeypatch):
    model = tiny("llama", torch.float64)
    work = lambda: attribute(model, query(model), config=AttributionConfig(nodes=8))  # noqa: E731
    whole, sweep, rows = work(), integration_path.sweep, []

    def small(recording, joining, *arguments, **options):
        rows.append(sum(joining))
        if rows[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sweep(recording, joining, *arguments, **options)

    monkeypatch.setattr(integration_path, "sweep", small)
    with pytest.warns(KnoweditWarning, match="points of paths at once do not fit"):
        halves = work()
    assert_near(halves.scores, whole.scores)
    assert halves.rows == whole.rows == sum(n for n in rows if n <= 5)
    assert sum(n > 5 for n in rows) < 5, "what comes later is no longer than what fitted"


def test_parts_come_in_order_and_are_halved_once(recwarn):
    model, tried = tiny("llama"), []

    def work(part):
        tried.append(part)
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(part)

    found = list(halving(model, [[1, 2, 3, 4, 5], [6], [7, 8, 9]], work, "rows"))
    assert found == [([1, 2], 3), ([3, 4], 7), ([5], 5), ([6], 6), ([7, 8], 15), ([9], 9)]
    assert tried == [[1, 2, 3, 4, 5], *(part for part, _ in found)]
    assert [str(w.message) for w in recwarn] == [
        "5 rows at once do not fit into the memory of cpu; they go on in halves"
    ]


def test_what_does_not_fit_by_itself_is_said():
    def work(part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ModelError, match="one of the rows alone does not fit into the memory of cpu; give tiny-llama"):
        list(halving(tiny("llama"), [[1]], work, "rows"))
