"""`knowedit covariance`: compute the covariance of keys that edits by ROME need, and say how well it is known."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from ..shared.options import DEFAULT_MODEL, AsJson, Device, Dtype, ModelName, RemoteCode, layer_list, load
from ..shared.output import line, print_json, table
from ..shared.progress import progress

SCHEMA = "knowedit.covariance/1"


def covariance(
    layers: Annotated[
        str | None, typer.Option(help="A layer, a range such as 0-29 or a list; by default the one that is edited.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="samples (the model's own, the default), builtin, a .txt or .jsonl file, or a data set (owner/name)."
        ),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of text; by default four a neuron.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compute the covariance of the keys of some layers, or find it in the cache, and report its conditioning."""
    from ...edit.covariance import covariance as compute, default_tokens
    from ...edit.methods.rome import rome_config
    from ...models.cache import cache_root

    chosen = layer_list(layers)
    wrapped = load(model, dtype, device, trust_remote_code)
    chosen = [rome_config(wrapped).layer] if chosen is None else list(chosen)
    counted = []
    started = time.perf_counter()
    with progress("covariance", tokens or default_tokens(wrapped), "token") as step:

        def count(done: int) -> None:
            counted.append(done)
            step(done)

        found = compute(wrapped, chosen, source=text, tokens=tokens, seed=seed, progress=count)
    record = {
        "schema": SCHEMA,
        "model": wrapped.name,
        "source": next(iter(found.values())).source,
        "layers": [{"layer": layer, **C.conditioning()} for layer, C in found.items()],
        "computed": bool(counted),
        "cache": str(cache_root() / "covariance"),
        "seconds": time.perf_counter() - started,
    }
    print_json(record) if as_json else _show(record)


def _show(record: dict) -> None:
    first = record["layers"][0]
    line(f"{record['model']}: keys of {first['tokens']} tokens of {record['source'].get('kind', 'text')}")
    columns = {
        "layer": "{layer}", "tokens a neuron": "{tokens_per_neuron:.1f}", "effective rank": "{effective_rank:.0f}",
        "of": "{neurons}", "largest direction": "{largest_share:.1%}", "condition, shrunk": "{condition:.0f}",
    }  # fmt: skip
    table(list(columns), [[cell.format(**layer) for cell in columns.values()] for layer in record["layers"]])
    if any(layer["fewer_tokens_than_neurons"] for layer in record["layers"]):
        line("Fewer tokens than neurons: C is singular without its shrinkage; take more.")
    how = "computed and kept" if record["computed"] else "found"
    line(f"{how} in {record['cache']}; {record['seconds']:.1f} seconds")
