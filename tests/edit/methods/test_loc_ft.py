"""Fine-tuning of one projection on all facts: the numbers of training a copy of the model, and nothing else touched."""

from dataclasses import replace

import pytest
import torch
from support.rounding import ADAM, PASS, assert_near, near
from support.studies import records, source, study
from support.tiny import SUBJECT, tiny
from support.trained import trained
from support.training import Trained

from knowedit import Fact, InputError
from knowedit.answers import ask
from knowedit.edit.apply import applied
from knowedit.edit.methods.loc_ft import LocFTConfig, loc_ft
from knowedit.evaluate.runs.engine import run_study
from knowedit.models.adapter import Model

CONFIG = LocFTConfig(layer=1, passes=3, batch=2, lr=5e-3)
ASKED = (("The {} is in", "Rome"), ("{} was built in", "R"), ("Who made the {}? It was", "b c"))
FACTS = [Fact(template, SUBJECT, "P", target_new=new, id=new) for template, new in ASKED]


def plainly_trained(model: Model, facts, config: LocFTConfig) -> tuple[torch.Tensor, list[float]]:
    """ΔW and losses where the weight of a copy is written, each target's tokens asked by a whole pass of its own."""
    copy = Trained(model, config.layer)
    hf, adam = copy.hf, torch.optim.Adam([copy.weight], lr=config.lr)
    losses = []
    for _ in range(config.passes):
        total = 0.0
        for start in range(0, len(facts), config.batch):
            of_facts = []
            for fact in facts[start : start + config.batch]:
                query = model.query(fact.prompt, fact.target_new, fact.subject)
                ids = [*query.prompt.ids, *query.target_ids]
                targets = [*query.target_ids, model.tokenizer.eos_token_id] if config.ends else [*query.target_ids]
                at = range(len(query.prompt.ids) - 1, len(query.prompt.ids) - 1 + len(targets))
                log_p = [hf(input_ids=torch.tensor([ids[: i + 1]])).logits[0, i].log_softmax(-1) for i in at]
                of_facts.append(-sum(row[token] for row, token in zip(log_p, targets, strict=True)) / len(targets))
            loss = sum(of_facts) / len(of_facts)
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += loss.item() * len(of_facts)
        losses.append(total / len(facts))
    return copy.delta, losses


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_training_a_copy_of_the_model_on_batches_of_facts(family, ends, doubled):
    model, config = tiny(family), replace(CONFIG, ends=ends)
    before = model.weights_hash()
    edit = loc_ft(model, FACTS, config)
    delta, losses = plainly_trained(model, FACTS, config)
    assert_near(edit.deltas[model.down_path(1)].matrix(), delta, size=ADAM, operations=2 * PASS * config.passes)
    assert edit.notes["losses"] == near(losses, size=ADAM, operations=2 * PASS * config.passes)
    assert edit.facts == tuple(FACTS) and model.weights_hash() == before


def test_a_model_says_what_it_was_trained_to_say_and_then_ends():
    model = trained()
    facts = source().facts
    end = model.tokenizer.eos_token_id
    edit = loc_ft(model, facts, LocFTConfig(layer=1, lr=0.02, passes=60, batch=2))
    assert edit.notes["losses"][-1] < edit.notes["losses"][0] / 3
    with applied(model, edit):
        said = ask(model, [model.query(fact.prompt, fact.target_new, fact.subject) for fact in facts])
    assert sum(answer.greedy for answer in said) >= 5
    with applied(model, edit):
        texts = [f"{fact.prompt} {fact.target_new}" for fact in facts]
        last = [model.hf(torch.tensor([model.encode(text).ids])).logits[0, -1].argmax().item() for text in texts]
    assert last.count(end) >= 5, "the end of the text is learned, too"


def test_a_batch_of_a_study_is_one_edit(tmp_path):
    settings = {"passes": 2, "lr": 0.01}
    rows = records(run_study(study(method="loc_ft", settings=settings, batch=3), tmp_path / "run", progress=False))
    assert [row["edit"]["facts"] for row in rows] == [3] * 6
    assert len({row["edit"]["content_hash"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"passes": 0}, "passes is 0"), ({"batch": 1.5}, "batch is 1.5"), ({"lr": -1}, "lr is -1"),
        ({"layer": 99}, "layer 99"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(InputError, match=said):
        loc_ft(trained(), source().facts, LocFTConfig(**settings))


def test_what_it_refuses():
    with pytest.raises(InputError, match="no facts to fine-tune on"):
        loc_ft(trained(), [])
    with pytest.raises(InputError, match="training diverged: the loss became .* smaller lr"):
        loc_ft(tiny("gpt2"), FACTS, replace(CONFIG, lr=1e30))
