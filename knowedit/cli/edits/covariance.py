"""`knowedit covariance`: compute the covariance of keys that edits by ROME need, and say how well it is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from ...display.result import Table
from ..shared.command import Printout, run_command
from ..shared.options import SEEDS, ModelOptions, Output, layer_list
from ..shared.progress import Clock, progress


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
    tokens: Annotated[int | None, typer.Option(help="Tokens of text; by default 4 a neuron, 8,192 at least.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", **SEEDS)] = 0,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Compute the covariance of the keys of some layers, or find it in the cache, and report its conditioning."""
    from ...edit.covariance import covariance, default_tokens
    from ...edit.methods.rome import rome_config
    from ...models.cache import cache_root

    chosen = layer_list(layers)

    def run(model):
        at = [rome_config(model).layer] if chosen is None else list(chosen)
        clock, counted = Clock(), []
        with progress("covariance", tokens or default_tokens(model), "token") as step:

            def count(done: int) -> None:
                counted.append(done)
                step(done)

            by_layer = covariance(model, at, source=text, tokens=tokens, seed=seed, progress=count)
        record = {
            "model": model.name,
            "source": next(iter(by_layer.values())).source,
            "layers": [{"layer": layer, **C.conditioning()} for layer, C in by_layer.items()],
            "computed": bool(counted),
            "cache": str(cache_root() / "covariance"),
            "seconds": clock.lap(),
        }
        return Printout(record, _conditioning(record))

    run_command("knowedit.covariance/1", run, model, output)


def _conditioning(record: dict) -> Iterator[str | Table]:
    """A row for each layer."""
    layers = record["layers"]
    yield f"{record['model']}: keys of {layers[0]['tokens']} tokens of {record['source'].get('kind', 'text')}"
    columns = {
        "layer": "{layer}",
        "tokens a neuron": "{tokens_per_neuron:.1f}",
        "effective rank": "{effective_rank:.0f}",
        "of": "{neurons}",
        "largest direction": "{largest_share:.1%}",
        "condition, shrunk": "{condition:.0f}",
    }
    yield Table(list(columns), [[cell.format(**layer) for cell in columns.values()] for layer in layers])
    if any(layer["fewer_tokens_than_neurons"] for layer in layers):
        yield "Fewer tokens than neurons: C is singular without its shrinkage; take more."
    how = "computed and kept" if record["computed"] else "found"
    yield f"{how} in {record['cache']}; {record['seconds']:.1f} seconds"
