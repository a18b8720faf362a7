"""What a record of the neuron study holds, and how it is read back.

id, relation, subject
located     the fact's neurons, as a `NeuronSet` is saved
proof       the raw `Effect` of the neurons on held-out prompts; null without neurons or without such a prompt
rivals      by name other sets of as many neurons, whose effects the proof holds too
faithfulness  the curves of all neurons by their scores, as `Faithfulness` has them; null where `proof` is
stability   by setting: number of neurons, and their overlap with the located ones
seconds     what the two steps took
"""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError, InputError
from ...locate.neurons import NeuronSet
from ...locate.proof.effect import CHANGED, Effect
from ..runs.folder import RunFolder

RANDOM = {"activation": "random", "layer": "random_by_layer"}  # what the controls of a proof are called in figures


def neurons_of(row: dict) -> NeuronSet:
    """The located neurons of a record."""
    return NeuronSet.from_dict(row["located"])


def effect_of(row: dict) -> Effect | None:
    """The raw effect of a record's neurons; None where none was measured."""
    return None if row["proof"] is None else Effect.from_dict(row["proof"])


def mean_probabilities(effect: Effect, located: str = "located") -> dict[str, dict[str, float]]:
    """The target's mean probability with each set of neurons suppressed and amplified.

    The sets are the neurons called `located`, the rivals, and the random ones: `random` is matched by layer and
    activation, `random_by_layer` by layer only.
    """
    sets = {
        located: {what: getattr(effect, what) for what in CHANGED},
        **effect.rivals,
        **{name: effect.control[kind] for kind, name in RANDOM.items()},
    }
    return {
        name: {what: float(values.mean()) for what, values in probabilities.items()}
        for name, probabilities in sets.items()
    }


def read_located(folder: str | Path, weights_hash: str | None = None) -> tuple[NeuronSet, ...]:
    """The located neurons of every fact in the folder of a `knowedit locate --facts` or `bench neurons` run.

    Raises `InputError` for a folder that holds no such run, and `DataError` for damaged records and for neurons located
    on other weights than those with `weights_hash`.
    """
    run = RunFolder(folder)
    if run.manifest.get("study") != "neurons":
        raise InputError(
            f"{str(folder)!r} holds no located neurons but a run of {run.manifest.get('study')!r}; give the folder "
            "that `knowedit locate --facts` or `knowedit bench neurons` wrote"
        )
    located = []
    for row in run.rows():
        if "error" in row:
            continue
        try:
            neurons = neurons_of(row)
        except (KeyError, DataError) as error:
            raise DataError(f"the record {row['id']!r} of {str(folder)!r} is damaged: {error}") from None
        if weights_hash is not None and neurons.weights_hash != weights_hash:
            raise DataError(f"{str(folder)!r} was located on other weights than this model's; locate its facts again")
        located.append(neurons)
    return tuple(located)
