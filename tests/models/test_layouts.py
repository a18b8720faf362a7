"""A family is a row of the table: with it, a model of a family that nobody has heard of is located and edited."""

import math

import pytest
import torch
import transformers as T
from support.rounding import near_probability
from support.tiny import DECODERS, FAMILIES, MASKED, PROMPT, SUBJECT, TARGET, hf, tiny, tokenizer

from knowedit import AttributionConfig, Fact, LayoutError, ModelError, RomeConfig, attribute, rome, wrap
from knowedit.answers import ask
from knowedit.edit.apply import applied
from knowedit.edit.covariance import Covariance
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.models.layouts import LAYOUTS, Layout, heads_path
from knowedit.models.loading import auto_class
from knowedit.models.passes.replay import record

ROW = Layout("model.stack", "look", "think.write", ("model.ending",), heads="join", trees=True)


class ToyConfig(T.LlamaConfig):
    model_type = "toy"


class ToyForCausalLM(T.LlamaForCausalLM):
    config_class = ToyConfig


def toy() -> torch.nn.Module:
    """The tiny Llama as a family of its own, whose parts have names that tell nobody what they are."""
    model = hf("llama")
    model.__class__, model.config.__class__ = ToyForCausalLM, ToyConfig
    for block in model.model.layers:
        rename(block.self_attn, "o_proj", "join")
        rename(block, "self_attn", "look")
        rename(block.mlp, "down_proj", "write")
        rename(block, "mlp", "think")
    rename(model.model, "layers", "stack")
    rename(model.model, "norm", "ending")
    return model


def rename(module: torch.nn.Module, old: str, new: str) -> None:
    """Give a submodule another name. The module's own code still finds it by the old one."""
    module._modules[new] = module._modules.pop(old)
    found_by_old = {old: property(lambda self: self._modules[new])}
    module.__class__ = type(f"Toy{type(module).__name__}", (type(module),), found_by_old)


def test_a_family_of_its_own_is_refused_with_the_remedy():
    with pytest.raises(LayoutError, match=r"expected one down-projection .* found none; pass layout=knowedit.Layout"):
        wrap(toy(), tokenizer("bpe-bos"))


def test_its_row_is_all_that_a_family_needs_to_be_located_and_edited(monkeypatch):
    monkeypatch.setitem(LAYOUTS, "toy", ROW)
    model, llama = wrap(toy(), tokenizer("bpe-bos")), tiny("llama")
    located = attribute(model, PROMPT, TARGET, AttributionConfig(nodes=8))
    assert torch.equal(located.scores, attribute(llama, PROMPT, TARGET, AttributionConfig(nodes=8)).scores)
    assert model.heads(1) is model.blocks[1].look.join

    fact = Fact(PROMPT.replace(SUBJECT, "{}"), SUBJECT, TARGET, target_new="R")
    keys = record(model, model.encode(fact.prompt).ids).neurons[1]
    C = Covariance(1, keys.T @ keys / len(keys), len(keys), {})
    config = RomeConfig(layer=1, contexts=(), search=VStarSearch(steps=20), preserve=0.0)
    edit, wanted = (rome(m, fact, config, covariance=C) for m in (model, llama))
    assert list(edit.deltas) == ["model.stack.1.think.write"]
    assert torch.equal(edit.deltas["model.stack.1.think.write"].u, wanted.deltas["model.layers.1.mlp.down_proj"].u)
    queries = [model.query(fact.prompt, target) for target in (fact.target, fact.target_new)]
    before = ask(model, queries)
    with applied(model, edit):
        after = ask(model, queries)
    assert after[1].probability > 1.5 * before[1].probability
    pairs = [[(fact.prompt, target) for target in (fact.target, fact.target_new)]]
    (scores,) = score_edits(model, [edit], pairs)  # as trees, as the row allows
    assert [score.per_token for score in scores] == pytest.approx([a.per_token for a in after], rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rows_heads_are_where_their_name_alone_finds_them(family):
    model = tiny(family)
    nameless = Layout("", "", "", ())
    assert (
        model.layout.heads == heads_path(nameless, model.attention(0)) == heads_path(model.layout, model.attention(0))
    )
    assert model.heads_weight(0).shape[0] == model.d_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_names_no_head_is_a_masked_model_where_the_row_says_so(family):
    config = hf(family).config
    config.architectures = None
    auto = T.AutoModelForMaskedLM if family in MASKED else T.AutoModelForCausalLM
    assert auto_class(config, family) is auto
    assert LAYOUTS[family].encoder == (family not in DECODERS)


def test_a_config_of_no_language_model_is_refused():
    with pytest.raises(ModelError, match="'a picture' is a vit model, which is no language model; choose another"):
        auto_class(T.ViTConfig(), "a picture")


def test_a_family_whose_blocks_give_lists_is_found_by_structure():
    """OpenAI's first GPT, which also keeps no cache: its prompts are run whole."""
    torch.manual_seed(0)
    tokens = tokenizer("bpe-bos")
    config = T.OpenAIGPTConfig(vocab_size=len(tokens), n_embd=32, n_layer=3, n_head=4, n_positions=128)
    model = wrap(T.OpenAIGPTLMHeadModel(config).eval(), tokens)
    query = model.query(PROMPT, TARGET, SUBJECT)
    assert not model.cached
    assert attribute(model, query, config=AttributionConfig(nodes=8)).missing.max() < 1e-3
    with torch.no_grad():
        row = model.hf(input_ids=torch.tensor([query.steps[-1].ids])).logits[0].log_softmax(-1)
    log_p = sum(row[step.read, token].item() for step, token in zip(query.steps, query.target_ids, strict=True))
    (answer,) = ask(model, [query])
    assert answer.probability == near_probability(math.exp(log_p))
