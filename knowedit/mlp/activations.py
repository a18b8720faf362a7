"""What goes through the MLPs on many prompts, stage by stage.

    input → gate, up → neurons → output          gated
    input → up → neurons → output                plain

`gate` and `up` are before the nonlinearity, `neurons` are what the down-projection reads, `output` is what it puts
out. Prompts of about one length share a pass; padding is never among the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..hooks import Enough, ending_early, hooked, on_output
from ..models.adapter import Model
from ..models.expansion import Expansion, watching
from ..models.length import check_length
from ..models.passes.batches import batches, padded
from ..progress import Progress, silent
from ..prompts import Prompt

STAGES = ("input", "gate", "up", "neurons", "output")
BATCH_TOKENS = 1024

Values = dict[int, dict[str, Tensor]]
"""layer → stage → (values, width), float32 or wider, on the CPU."""


def stages_of(expansion: Expansion) -> tuple[str, ...]:
    """The stages that a layer has."""
    return STAGES if expansion.gated else tuple(stage for stage in STAGES if stage != "gate")


def text_positions(model: Model, prompt: Prompt) -> list[int]:
    """The tokens of a prompt without its first, where decoders keep massive activations, and without special ones."""
    special = set(model.tokenizer.all_special_ids) - {model.tokenizer.mask_token_id}
    return [i for i, token in enumerate(prompt.ids) if i and token not in special]


@torch.no_grad()
def collect(
    model: Model,
    prompts: Sequence[Prompt],
    positions: Callable[[Prompt], Sequence[int]],
    expansions: dict[int, Expansion],
    stages: Sequence[str] = STAGES,
    progress: Progress = silent,
) -> Values:
    """Run `prompts` and keep some `stages` of the layers of `expansions` at the `positions` of each prompt.

    Values stand in the order of prompts and positions. `progress` counts prompts.

    Raises `InputError` for a prompt that is too long.
    """
    for prompt in prompts:
        check_length(model, prompt.ids)
    places = [list(positions(prompt)) for prompt in prompts]
    layer_stages = {layer: [s for s in stages_of(expansion) if s in stages] for layer, expansion in expansions.items()}
    parts: dict[int, dict[str, dict[int, Tensor]]] = {
        layer: {s: {} for s in names} for layer, names in layer_stages.items()
    }
    last = max(expansions)

    def enough(_) -> None:
        raise Enough

    done = 0
    for batch in batches([len(prompt.ids) for prompt in prompts], tokens=BATCH_TOKENS):
        tokens, seen = (t.to(model.device) for t in padded([prompts[i].ids for i in batch]))
        with ending_early(), watching(model, expansions) as passed, hooked(on_output(model.blocks[last], enough)):
            model.run(tokens, attention_mask=seen)
        for layer, names in layer_stages.items():
            for stage in names:
                values = getattr(passed[layer], stage)
                for row, index in enumerate(batch):
                    at = torch.tensor(places[index], dtype=torch.long, device=values.device) + row * tokens.shape[1]
                    parts[layer][stage][index] = _kept(values[at])
        done += len(batch)
        progress(done)
    return {
        layer: {stage: torch.cat([by_prompt[i] for i in range(len(prompts))]) for stage, by_prompt in collected.items()}
        for layer, collected in parts.items()
    }


def _kept(values: Tensor) -> Tensor:
    return (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).cpu()
