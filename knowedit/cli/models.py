"""`knowedit models` and `knowedit neuron`: what can be loaded, and what one neuron says."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import DEFAULT_MODEL, AsJson, Device, Dtype, ModelName, RemoteCode, load
from .output import line, print_json, table

NEURON_SCHEMA = "knowedit.neuron/1"


def list_models(as_json: AsJson = False) -> None:
    """List the models that can be loaded by alias, and the architectures that are known."""
    from ..models.layouts import LAYOUTS
    from ..models.loading import ALIASES

    aliases = [{"alias": name, "source": str(source)} for name, source in ALIASES.items()]
    if as_json:
        print_json({"aliases": aliases, "architectures": sorted(LAYOUTS)})
        return
    table(["alias", "model"], [(a["alias"], a["source"]) for a in aliases])
    line(f"Architectures, from the Hub, a directory or a GGUF file: {', '.join(sorted(LAYOUTS))};")
    line("others are looked at by structure.")


def neuron(
    layer: Annotated[int, typer.Argument(help="Layer, from 0.")],
    index: Annotated[int, typer.Argument(help="Index of the neuron in its layer, from 0.")],
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """What one neuron's value vector promotes and suppresses in the vocabulary, for a positive activation."""
    from ..locate.neurons import vocabulary

    wrapped = load(model, dtype, device, trust_remote_code)
    wrapped.check_neuron(layer, index)
    promotes, suppresses = vocabulary(wrapped, layer, index, n=12)
    norm = wrapped.down_weight(layer)[:, index].float().norm().item()
    if as_json:
        record = {"schema": NEURON_SCHEMA, "model": wrapped.name, "layer": layer, "index": index, "value_norm": norm}
        print_json(record | {"promotes": promotes, "suppresses": suppresses})
        return
    line(f"neuron {layer}/{index} of {wrapped.name}: value vector of norm {norm:.3f}")
    line(f"promotes   {'  '.join(map(repr, promotes))}")
    line(f"suppresses {'  '.join(map(repr, suppresses))}")
    line("A negative activation swaps the two.")
