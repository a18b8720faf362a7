"""Speed of integrated gradients over all layers, beside the field's loop and the PyPI package, and how cost grows.

Operations are counted, not measured: matrix products of the blocks' weights and of the unembedding, forward and
back, for every row (a token of an altered copy of the prompt).
"""

from __future__ import annotations

import logging
from functools import partial

import torch

import knowedit
from knowedit.locate.attribution import Attribution, AttributionConfig, attribute
from knowedit.models.adapter import Model, frozen

from ..reference.attribution import integrated_gradients
from ..registry import benchmark
from ..samples import PROMPT, TARGET
from ..timing import Stopwatch, alternated

PEER = "20 nodes, the peer's rule"
CONFIGS = {
    PEER: AttributionConfig(nodes=20, quadrature="eleuther"),
    "8 nodes, Gauss-Legendre": AttributionConfig(nodes=8),
    "auto, every gap below 1e-3": AttributionConfig(),
}


@benchmark("speed.locate", "How much faster than the field's loop are the scores of all neurons of all layers?")
def locate(rounds: int = 3) -> dict:
    """The default model; the loop's algorithm and ours in three settings."""
    model = knowedit.load()
    query = model.query(PROMPT, TARGET)
    ids, read, target = query.prompt.ids, query.prompt.read, query.target_ids[0]

    def loop(layers: range | None = None) -> torch.Tensor:
        with frozen(model):  # spares the loop the graph of its weights, which the package keeps
            return integrated_gradients(model, ids, read, target, layers=layers)

    sweeps = {name: partial(attribute, model, query, config=config) for name, config in CONFIGS.items()}
    alternated(1, sweeps | {"loop": lambda: loop(range(1))})  # warm up
    watch, results = alternated(rounds, sweeps | {"loop": loop})
    peak, scores = matrix_peak(model), results["loop"]
    difference = (results[PEER].scores - scores).abs().max() / scores.abs().max()
    return {
        "prompt": PROMPT,
        "tokens": len(ids),
        "layers": model.n_layers,
        "loop_seconds": watch.seconds["loop"],
        "matrix_peak_gflops": peak,
        "largest_difference_at_equal_nodes": difference.item(),
        "sweeps": {
            name: {
                "seconds": watch.seconds[name],
                **watch.ratio("loop", name),
                "gap_layer_0": results[name].gap[0].item(),
                "gap_other_layers": results[name].gap[1:].max().item(),
                "rows": results[name].rows,
                "row_layers": results[name].row_layers,
                "gflop": gflop(model, results[name]),
                "share_of_peak": gflop(model, results[name]) / watch.median(name) / peak,
            }
            for name in CONFIGS
        },
    }


@locate.row
def locate_row(record: dict) -> list[str]:
    return [
        f"{name}: **{sweep['ratio_median']:.1f}×**; gap {sweep['gap_layer_0']:.1e} in layer 0, "
        f"{sweep['gap_other_layers']:.1e} elsewhere"
        for name, sweep in record["sweeps"].items()
    ] + [f"the loop takes {min(record['loop_seconds']):.0f}–{max(record['loop_seconds']):.0f} s"]


def gflop(model: Model, attribution: Attribution) -> float:
    """Matrix products of a sweep: 2·weights forward and as many back, by row and layer, and for the head by row."""
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.dim() == 2)
    head = model.unembedding.weight.numel()
    return 4 * (block * attribution.row_layers + head * attribution.rows) / 1e9


def matrix_peak(model: Model) -> float:
    """GFLOP/s of a large product of the model's own width."""
    x, w = torch.randn(2048, model.d_model), torch.randn(model.d_model, 4096)
    watch, _ = alternated(30, {"product": lambda: x @ w})
    return 2 * x.numel() * w.shape[1] / min(watch.seconds["product"]) / 1e9


@benchmark("speed.locate_package", "How much faster than the PyPI package `knowledge-neurons`?")
def locate_package(rounds: int = 3) -> dict:
    """GPT-2 small with random weights. The package scores pre-activations there, so only the time is compared."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from knowledge_neurons import KnowledgeNeurons
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=50257)).eval()
    model = knowedit.wrap(hf, tokenizer)
    package = KnowledgeNeurons(hf, tokenizer, model_type="gpt2", device="cpu")
    # the package fails on targets of two tokens, and so takes one that its tiny tokenizer has whole
    target = next(word for word in (" city", " located", " of") if len(tokenizer.encode(word)) == 1)
    query = model.query(PROMPT, target)
    sweep = partial(attribute, model, query, config=CONFIGS[PEER])

    def loop() -> None:
        for layer in range(model.n_layers):
            package.get_scores_for_layer(PROMPT, target, layer_idx=layer, batch_size=10, steps=20)

    sweep()  # warm up
    watch, _ = alternated(rounds, {"sweep": sweep, "package": loop})
    about = {"model": "GPT-2 small, random weights", "tokens": len(query.prompt.ids), "nodes": 20}
    return about | {"seconds": watch.seconds} | watch.ratio("package", "sweep")


@locate_package.row
def locate_package_row(record: dict) -> list[str]:
    return [f"{record['model']}, {record['nodes']} nodes: **{record['ratio_median']:.1f}×**"]


def _tokenizer():
    """A tokenizer that knows the words of the prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([f"{PROMPT} {TARGET}"], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@benchmark("speed.locate_growth", "How does the time of a sweep grow with tokens, nodes, prompts and layers?")
def locate_growth(rounds: int = 5) -> dict:
    """Median seconds as one quantity grows, the others as in the prompt, with 8 nodes and all layers."""
    model = knowedit.load()
    texts = ["Paris is the capital of France. " * n + PROMPT for n in (0, 2, 6, 14)]
    return {
        "tokens": {len(model.encode(text).ids): _seconds(rounds, model, [text]) for text in texts},
        "nodes": {n: _seconds(rounds, model, [PROMPT], n) for n in (2, 4, 8, 16, 32)},
        "prompts": {n: _seconds(rounds, model, [PROMPT] * n) for n in (1, 2, 4)},
        "layers": {n: _seconds(rounds, _shallow(model, n), [PROMPT]) for n in (5, 10, 20, 30)},
    }


@locate_growth.row
def locate_growth_row(record: dict) -> list[str]:
    curves = {name: record[name] for name in ("tokens", "nodes", "prompts", "layers")}
    return [f"{name}: " + ", ".join(f"{n} {s:.1f} s" for n, s in curve.items()) for name, curve in curves.items()]


def _shallow(model: Model, n: int) -> Model:
    """The same model cut after `n` blocks."""
    hf = type(model.hf)._from_config(type(model.hf.config)(**{**model.hf.config.to_dict(), "num_hidden_layers": n}))
    hf.load_state_dict(model.hf.state_dict(), strict=False)
    return knowedit.wrap(hf, model.tokenizer)


def _seconds(rounds: int, model: Model, prompts: list[str], nodes: int = 8) -> float:
    config = AttributionConfig(nodes=nodes)
    watch = Stopwatch()
    for name in ("warm up", *["sweep"] * rounds):
        watch(name, lambda: [attribute(model, prompt, TARGET, config) for prompt in prompts])
    return watch.median("sweep")
