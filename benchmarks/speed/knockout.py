"""Attention knockout of all layers of one fact: the growing sweep against the plain loop of the paper.

    python -m benchmarks.speed.knockout [--rounds N]

Both block the same edges in the same windows, for each of the sets subject, relation, last and first: every window of
every set is one row. The plain loop runs the whole prompt through the whole model once for each, with a mask of its
own written for this model and the probability from the last token's logits. (The paper's own code does just this.)
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import knowedit
from knowedit.hooks import hooked
from knowedit.recall.flow.knockout import attention_knockout, source_sets, windows

from ..results import save

PROMPT, SUBJECT, TARGET = "The Eiffel Tower is located in the city of", "Eiffel Tower", "Paris"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = knowedit.load()
    query = model.query(PROMPT, TARGET, SUBJECT)
    found = attention_knockout(model, query)  # warm up, and the windows that both have
    times: dict[str, list[float]] = {"sweep": [], "loop": []}
    for _ in range(options.rounds):
        started = time.perf_counter()
        found = attention_knockout(model, query)
        times["sweep"].append(time.perf_counter() - started)
        started = time.perf_counter()
        plain = plain_knockout(model, query, found.window)
        times["loop"].append(time.perf_counter() - started)
    ratios = [loop / sweep for loop, sweep in zip(times["loop"], times["sweep"], strict=True)]
    gap = max(abs(a - b) for name in plain for a, b in zip(plain[name], found.after[name], strict=True))
    save(
        "speed/knockout",
        {
            "prompt": PROMPT,
            "tokens": len(query.prompt.ids),
            "layers": model.n_layers,
            "window": found.window,
            "knockouts": sum(map(len, plain.values())),
            "sweep_seconds": times["sweep"],
            "loop_seconds": times["loop"],
            "ratio_by_round": ratios,
            "ratio_median": statistics.median(ratios),
            "largest_difference_of_probability": gap,
        },
    )


@torch.no_grad()
def plain_knockout(model, query, width: int) -> dict[str, list[float]]:
    """The target's probability by set and layer, one run of the whole model for each."""
    tokens = torch.tensor([query.prompt.ids])
    (target,) = query.target_ids
    read, found = query.prompt.read, {}
    for name, sources in source_sets(query).items():
        rows = [_one(model, tokens, read, sources, layers, target) for layers in windows(model.n_layers, width)]
        found[name] = rows
    return found


def _one(model, tokens, read: int, sources: tuple[int, ...], layers: tuple[int, ...], target: int) -> float:
    length = tokens.shape[1]
    mask = torch.full((length, length), torch.finfo(model.dtype).min).triu(1)
    mask[read, list(sources)] = torch.finfo(model.dtype).min

    def masked(_, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None].to(model.dtype)}

    blocks = [model.blocks[layer] for layer in layers]
    hooks = [lambda b=block: b.register_forward_pre_hook(masked, with_kwargs=True) for block in blocks]
    with hooked(*hooks):
        logits = model.hf(input_ids=tokens).logits[0, read]
    return logits.float().softmax(-1)[target].item()


if __name__ == "__main__":
    main()
