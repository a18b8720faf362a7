"""Speed of integrated gradients over all layers, beside the field's loop, alternately in one run.

    python -m benchmarks.speed.locate [--rounds 3]            the default model: our sweep and the loop's algorithm
    python -m benchmarks.speed.locate --package [--rounds 3]  the PyPI package itself, on a random 12-layer GPT-2
    python -m benchmarks.speed.locate --growth                how cost grows with layers, tokens, nodes and prompts

Operations are counted, not measured: matrix products of the blocks' weights and of the unembedding, forward and
back, for every row (a token of an altered copy of the prompt).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import knowedit
from knowedit.locate.attribution import AttributionConfig, attribute
from knowedit.models.adapter import frozen

from ..reference.attribution import integrated_gradients
from ..results import save

PROMPT, TARGET = "The Eiffel Tower is located in the city of", "Paris"
CONFIGS = {
    "20 nodes, the peer's rule": AttributionConfig(nodes=20, quadrature="eleuther"),
    "8 nodes, Gauss-Legendre": AttributionConfig(nodes=8),
    "auto, every gap below 1e-3": AttributionConfig(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--package", action="store_true")
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    if options.package:
        save("speed/locate_package", package(options.rounds))
    elif options.growth:
        save("speed/locate_growth", growth())
    else:
        save("speed/locate", default_model(options.rounds))


def default_model(rounds: int) -> dict:
    model = knowedit.load()
    query = model.query(PROMPT, TARGET)
    with frozen(model):  # spares the loop the graph of its weights, which the package keeps
        integrated_gradients(model, query.prompt.ids, query.prompt.read, query.target_ids[0], layers=range(1))
    times: dict[str, list[float]] = {name: [] for name in ("loop", *CONFIGS)}
    found = {}
    for _ in range(rounds):
        for name, config in CONFIGS.items():
            attribute(model, query, config=config) if name not in found else None  # warm up once
            started = time.perf_counter()
            found[name] = attribute(model, query, config=config)
            times[name].append(time.perf_counter() - started)
        started = time.perf_counter()
        with frozen(model):
            scores = integrated_gradients(model, query.prompt.ids, query.prompt.read, query.target_ids[0])
        times["loop"].append(time.perf_counter() - started)
    peak = matrix_peak(model)
    same = found["20 nodes, the peer's rule"]
    return {
        "prompt": PROMPT,
        "tokens": len(query.prompt.ids),
        "layers": model.n_layers,
        "loop_seconds": times["loop"],
        "matrix_peak_gflops": peak,
        "largest_difference_at_equal_nodes": ((same.scores - scores).abs().max() / scores.abs().max()).item(),
        "sweeps": {
            name: {
                "seconds": times[name],
                "ratio_by_round": [a / b for a, b in zip(times["loop"], times[name], strict=True)],
                "ratio_median": statistics.median(a / b for a, b in zip(times["loop"], times[name], strict=True)),
                "gap_layer_0": found[name].gap[0].item(),
                "gap_other_layers": found[name].gap[1:].max().item(),
                "rows": found[name].rows,
                "row_layers": found[name].row_layers,
                "gflop": gflop(model, found[name]),
                "share_of_peak": gflop(model, found[name]) / statistics.median(times[name]) / peak,
            }
            for name in CONFIGS
        },
    }


def gflop(model, found) -> float:
    """Matrix products of a sweep: 2·weights forward and as many back, by row and layer, and for the head by row."""
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.dim() == 2)
    head = model.unembedding.weight.numel()
    return 4 * (block * found.row_layers + head * found.rows) / 1e9


def matrix_peak(model) -> float:
    """GFLOP/s of a large product of the model's own width."""
    x, w = torch.randn(2048, model.d_model), torch.randn(model.d_model, 4096)
    best = float("inf")
    for _ in range(30):
        started = time.perf_counter()
        x @ w
        best = min(best, time.perf_counter() - started)
    return 2 * x.numel() * w.shape[1] / best / 1e9


def package(rounds: int) -> dict:
    """The package's own code. Its GPT-2 neurons are pre-activations, so only the time is compared."""
    import logging

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    logging.getLogger("transformers").setLevel(logging.ERROR)
    from knowledge_neurons import KnowledgeNeurons

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([f"{PROMPT} {TARGET}"], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=50257)).eval()
    ours = knowedit.wrap(hf, tokenizer)
    theirs = KnowledgeNeurons(hf, tokenizer, model_type="gpt2", device="cpu")
    # the package fails on targets of two tokens, and so takes one that its tiny tokenizer has whole
    target = next(word for word in (" city", " located", " of") if len(tokenizer.encode(word)) == 1)
    query = ours.query(PROMPT, target)
    length = len(query.prompt.ids)
    config = AttributionConfig(nodes=20, quadrature="eleuther")
    times: dict[str, list[float]] = {"package": [], "sweep": []}
    attribute(ours, query, config=config)
    for _ in range(rounds):
        started = time.perf_counter()
        attribute(ours, query, config=config)
        times["sweep"].append(time.perf_counter() - started)
        started = time.perf_counter()
        for layer in range(ours.n_layers):
            theirs.get_scores_for_layer(PROMPT, target, layer_idx=layer, batch_size=10, steps=20)
        times["package"].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(times["package"], times["sweep"], strict=True)]
    return {
        "model": "GPT-2 small, random weights",
        "tokens": length,
        "nodes": 20,
        **{f"{name}_seconds": seconds for name, seconds in times.items()},
        "ratio_by_round": ratios,
        "ratio_median": statistics.median(ratios),
    }


def growth() -> dict:
    """Seconds (median of 5) as one quantity grows: layers and tokens on the default model, nodes, prompts."""
    model = knowedit.load()
    texts = ["Paris is the capital of France. " * n + PROMPT for n in (0, 2, 6, 14)]
    tokens = {len(model.encode(t).ids): _median(model, [t], 8) for t in texts}
    nodes = {n: _median(model, [PROMPT], n) for n in (2, 4, 8, 16, 32)}
    prompts = {n: _median(model, [PROMPT] * n, 8) for n in (1, 2, 4)}
    layers = {}
    for n in (5, 10, 20, 30):
        layers[n] = _median(_shallow(model, n), [PROMPT], 8)
    return {"tokens": tokens, "nodes": nodes, "prompts": prompts, "layers": layers}


def _shallow(model, n: int):
    """The same model cut after `n` blocks."""
    hf = type(model.hf)._from_config(type(model.hf.config)(**{**model.hf.config.to_dict(), "num_hidden_layers": n}))
    hf.load_state_dict(model.hf.state_dict(), strict=False)
    return knowedit.wrap(hf, model.tokenizer)


def _median(model, prompts: list[str], nodes: int) -> float:
    config = AttributionConfig(nodes=nodes)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        for prompt in prompts:
            attribute(model, prompt, TARGET, config)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
