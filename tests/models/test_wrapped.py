"""What stands around a transformers model, and models that also read images: taken, or refused with the remedy."""

import peft
import pytest
import torch
import transformers as T
from support.edits import random_edit
from support.tiny import IMAGES, N_LAYERS, PROMPT, SUBJECT, TARGET, hf, tiny, tokenizer, with_images
from torch import nn

import knowedit
from benchmarks.reference.attribution import integrated_gradients
from knowedit import AttributionConfig, InputError, ModelError, attribute, load, wrap
from knowedit.answers import ask
from knowedit.edit.apply import applied, apply
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.models.expansion import expansions
from knowedit.prompts import Query

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # of peft's

# ---------------------------------------------------------------- models that also read images


@pytest.mark.parametrize("family", IMAGES)
def test_the_part_that_reads_text_is_attributed_as_by_the_plain_loop(family):
    model = wrap(with_images(family), tokenizer("bpe"))
    assert (model.n_layers, model.cached) == (N_LAYERS, True)  # the part that reads images has more blocks
    query = model.query("The Eiffel Tower is in", TARGET, SUBJECT)
    query = Query(query.steps[:1], query.target_ids[:1])
    found, step = attribute(model, query, config=AttributionConfig(nodes=6, quadrature="gauss-legendre")), query.prompt
    plain = integrated_gradients(
        model, step.ids, step.read, query.target_ids[0], quadrature="gauss-legendre", nodes=6, batch=4
    )
    assert (found.scores - plain).abs().max() <= 1e-4 * plain.abs().max()


@pytest.mark.parametrize("family", IMAGES)
def test_batches_of_the_part_that_reads_text_give_the_models_own_answers(family):
    model = wrap(with_images(family), tokenizer("bpe"))
    edit = random_edit(model, 1)
    pairs = [("The Eiffel Tower is in", "P"), ("a b", "c"), ("The Eiffel Tower is on", "P")]
    (found,) = score_edits(model, [edit], [pairs])
    with applied(model, edit), torch.no_grad():
        for (prompt, target), answer in zip(pairs, found, strict=True):
            query = model.query(prompt, target)
            ids = torch.tensor([query.steps[-1].ids])
            log_p = model.hf(input_ids=ids).logits.float().log_softmax(-1)[0]
            wanted = [log_p[step.read, token].item() for step, token in zip(query.steps, query.target_ids, strict=True)]
            assert answer.log_p == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_saved_model_that_also_reads_images_is_loaded(family, tmp_path):
    made = with_images(family)
    made.save_pretrained(tmp_path)
    tokenizer("bpe").save_pretrained(tmp_path)
    model = load(tmp_path)
    assert type(model.hf) is type(made)
    query = model.query(PROMPT, TARGET)
    assert ask(model, [query]) == ask(wrap(made, tokenizer("bpe")), [query])


def test_tokens_that_see_those_behind_them_are_refused():
    text = dict(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8)
    config = T.PaliGemmaConfig(
        text_config=T.GemmaConfig(**text), vision_config=T.SiglipVisionConfig(**vision, patch_size=4), projection_dim=32
    )
    with pytest.raises(ModelError, match=r"PaliGemma.* tokens see those behind them, and it is no masked"):
        wrap(T.AutoModelForImageTextToText.from_config(config), tokenizer("bpe"))


# ---------------------------------------------------------------- adapters


def adapted(**options):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, target_modules=["down_proj", "up_proj", "q_proj"], init_lora_weights=False, lora_dropout=0.5, **options
    )
    return peft.get_peft_model(hf("llama"), config)


def test_a_peft_model_is_taken_with_its_adapters_on():
    around = adapted()
    model = wrap(around.train(), tokenizer("bpe-bos"))
    around.eval()
    ids = torch.tensor([model.encode(PROMPT).ids])
    with torch.no_grad():
        wanted = around(input_ids=ids).logits[0, -1].softmax(-1).max().item()
        with knowedit.suppress(model, [(1, index) for index in range(model.n_neurons)]):
            assert not torch.equal(around(input_ids=ids).logits[0, -1].softmax(-1).max(), torch.tensor(wanted))
    (answer,) = ask(model, [model.query(PROMPT, TARGET)])
    assert answer.top[0][1] == pytest.approx(wanted, rel=1e-5)


def test_neurons_of_a_peft_model_are_attributed_as_by_the_plain_loop():
    model = wrap(adapted(), tokenizer("bpe-bos"))
    query = model.query(PROMPT, TARGET, SUBJECT)
    query = Query(query.steps[:1], query.target_ids[:1])
    found, step = attribute(model, query, config=AttributionConfig(nodes=6, quadrature="gauss-legendre")), query.prompt
    plain = integrated_gradients(
        model, step.ids, step.read, query.target_ids[0], quadrature="gauss-legendre", nodes=6, batch=4
    )
    assert (found.scores - plain).abs().max() <= 1e-4 * plain.abs().max()
    assert {one.up for one in expansions(model).values()} == {"mlp.up_proj"}


@pytest.mark.parametrize("mode", ["in-place", "hook"])
def test_an_edit_goes_below_an_adapter_and_comes_off(mode):
    plain = tiny("llama")
    edit, around = random_edit(plain, 1), adapted()
    model = wrap(around, tokenizer("bpe-bos"))
    before = {name: value.clone() for name, value in around.state_dict().items()}
    ids = torch.tensor([model.encode(PROMPT).ids])
    with torch.no_grad():
        clean = around(input_ids=ids).logits
        handle = apply(model, edit, mode=mode)
        with around.disable_adapter(), applied(plain, edit, mode=mode):
            torch.testing.assert_close(around(input_ids=ids).logits, plain.hf(input_ids=ids).logits)
        assert not torch.equal(around(input_ids=ids).logits, clean)
        handle.revert()
        assert torch.equal(around(input_ids=ids).logits, clean)
    assert all(torch.equal(value, before[name]) for name, value in around.state_dict().items())


def test_adapters_that_come_after_the_wrap_are_seen():
    model = tiny("llama")
    before = ask(model, [model.query(PROMPT, TARGET)])
    torch.manual_seed(0)
    around = peft.get_peft_model(model.hf, peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False))
    after = ask(model, [model.query(PROMPT, TARGET)])
    assert after != before
    assert after == ask(wrap(around, model.tokenizer), [model.query(PROMPT, TARGET)])


# ---------------------------------------------------------------- what stands around a model


class Judge(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.critic = nn.Linear(2, 2)
        self.policy = model


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (nn.DataParallel, "DataParallel is something around a LlamaForCausalLM; wrap its .module"),
        (
            lambda model: torch.compile(model, backend="eager"),
            "OptimizedModule is something around a LlamaForCausalLM; wrap its ._orig_mod",
        ),
        (torch.optim.swa_utils.AveragedModel, "AveragedModel is something around a LlamaForCausalLM; wrap its .module"),
        (Judge, "Judge is something around a LlamaForCausalLM; wrap its .policy"),
        (
            lambda model: T.pipeline("text-generation", model=model, tokenizer=tokenizer("bpe-bos")),
            "TextGenerationPipeline is something around a LlamaForCausalLM; wrap its .model",
        ),
        (lambda _: "gpt2", "str is no transformers model; give a model of transformers, or its name to knowedit.load"),
        (lambda _: nn.Linear(2, 2), "Linear is no transformers model; give a model of transformers"),
        (
            lambda model: peft.get_peft_model(
                model, peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
            ),
            r"puts virtual tokens before each prompt, .*; wrap its get_base_model\(\) to look at the model",
        ),
        (
            lambda model: model.to("meta"),
            r"the weights of model.embed_tokens of LlamaForCausalLM have no values \(meta\); load it with from_pretr",
        ),
    ],
)
def test_what_stands_around_a_model_is_refused_with_the_remedy(build, said):
    with pytest.raises(ModelError, match=said) as error:
        wrap(build(hf("llama")), tokenizer("bpe-bos"))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (torch.jit.script, "down_proj of LlamaForCausalLM was made by torch.jit, whose modules take no hooks"),
        (torch.nn.utils.parametrizations.weight_norm, r"make it plain by .*_parametrizations\(module, 'weight'\)"),
    ],
)
def test_weights_that_no_hook_and_no_edit_reaches_are_refused_with_the_remedy(change, said):
    model = hf("llama")
    model.model.layers[0].mlp.down_proj = change(model.model.layers[0].mlp.down_proj)
    with pytest.raises(ModelError, match=said):
        wrap(model, tokenizer("bpe-bos"))


@pytest.mark.parametrize("given", [None, "gpt2", 3])
def test_what_is_no_tokenizer_is_refused_at_once(given):
    with pytest.raises(InputError, match="the tokenizer is .*, expected one of transformers"):
        wrap(hf("llama"), given)


def test_dynamically_quantized_weights_are_refused_with_the_remedy():
    class Quantized(nn.Linear):  # as torch.ao.nn.quantized.dynamic.Linear has it
        def weight(self):
            return None

        def __init__(self):
            nn.Module.__init__(self)

    model = hf("llama")
    model.model.layers[0].mlp.up_proj = Quantized()
    with pytest.raises(ModelError, match=r"0.mlp.up_proj of LlamaForCausalLM is quantized .*; wrap the model before"):
        wrap(model, tokenizer("bpe-bos"))
