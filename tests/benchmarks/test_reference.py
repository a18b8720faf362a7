"""The plain loops that nothing else is compared with give what the library gives, on a tiny model."""

import pytest
import torch
from support.tiny import PROMPT, SUBJECT, TARGET, tiny

from benchmarks.reference.covariance import plain_covariance
from benchmarks.reference.knockout import plain_knockout
from benchmarks.reference.scoring import batched, one_by_one
from benchmarks.speed.covariance import one_pass
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.recall.flow.knockout import attention_knockout
from knowedit.texts.corpus import corpus


@pytest.fixture
def model(doubled):
    return tiny("llama", torch.float64)


def test_knockouts_one_by_one(model):
    query = model.query(PROMPT, ".", SUBJECT)
    sweep = attention_knockout(model, query, window=2).after
    loop = plain_knockout(model, query, 2)
    assert sweep.keys() == loop.keys()
    for name, probabilities in loop.items():
        assert sweep[name] == pytest.approx(probabilities, rel=1e-9)


def test_covariances_one_layer_at_a_time():
    model = tiny("llama")
    batches = [rows[:4] for rows in corpus("builtin").batches(model, 64)]
    together = one_pass(model, batches, range(model.n_layers))
    for layer, C in together.items():
        assert torch.allclose(C, plain_covariance(model, batches, layer), rtol=1e-4, atol=1e-6)


def test_scores_in_a_padded_batch_and_one_by_one(model):
    pairs = [(PROMPT, TARGET), ("The capital of Japan is", "Tokyo"), ("Paris is the capital of France, and", TARGET)]
    (ours,) = score_edits(model, [None], [pairs])
    for way in (batched, one_by_one):
        for plain, score in zip(way(model, pairs), ours, strict=True):
            assert plain.log_p == pytest.approx(score.log_p, abs=1e-9) and plain.ranks == score.ranks
