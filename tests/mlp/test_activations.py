"""Values of many prompts, padded into batches, are those of each prompt alone."""

import pytest
import torch
from support.tiny import FAMILIES, PROMPT, tiny

from knowedit import InputError
from knowedit.mlp.activations import collect, stages_of, text_positions
from knowedit.models.expansion import expansions, watching

TEXTS = (PROMPT, "Paris is", "The capital of France is")


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_values_are_each_prompts_own(family, monkeypatch):
    model = tiny(family)
    prompts = [model.encode(text) for text in TEXTS]
    found = expansions(model)
    together = collect(model, prompts, lambda p: text_positions(model, p), found)
    alone = []
    for prompt in prompts:
        ids = torch.tensor([prompt.ids])
        with torch.no_grad(), watching(model, found) as seen:
            model.hf(input_ids=ids, attention_mask=torch.ones_like(ids))
        alone.append({(layer, stage): getattr(seen[layer], stage)[text_positions(model, prompt)]
                      for layer, one in found.items() for stage in stages_of(one)})  # fmt: skip
    for layer, stages in together.items():
        assert tuple(stages) == stages_of(found[layer])
        for stage, values in stages.items():
            wanted = torch.cat([one[layer, stage] for one in alone])
            assert torch.allclose(values, wanted, atol=2e-4, rtol=1e-4), (layer, stage)
    monkeypatch.setattr("knowedit.mlp.activations.BATCH_TOKENS", 1)  # each prompt in a pass of its own
    again = collect(model, prompts, lambda p: text_positions(model, p), found, ("output",))
    assert torch.allclose(again[1]["output"], together[1]["output"], atol=2e-4)
    assert list(again[1]) == ["output"]


def test_the_first_token_padding_and_special_tokens_are_left_out():
    bert = tiny("bert")
    prompt = bert.encode(PROMPT)
    kept = text_positions(bert, prompt)
    assert kept == list(range(1, len(prompt.ids) - 1)) and prompt.read in kept  # no [CLS], no [SEP], but the mask
    llama = tiny("llama")
    assert text_positions(llama, llama.encode(PROMPT)) == list(range(1, len(llama.encode(PROMPT).ids)))


def test_a_prompt_longer_than_the_context_is_refused():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="takes at most 64"):
        collect(model, [model.encode("a b c " * 40)], lambda p: [0], expansions(model))
