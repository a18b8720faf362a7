"""One door to all exports, and the proof that an adapter does what its edits do."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ..edit.apply import stacked
from ..edit.edit import Edit
from ..edit.export import mode_of, to_checkpoint, to_peft
from ..errors import InputError, ModelError
from ..hooks import measuring
from ..models.adapter import Model
from ..models.checks import quiet


def export(
    edits: Sequence[Edit],
    model: Model,
    folder: str | Path,
    to: str,
    *,
    base: str | None = None,
    type: str | None = None,
) -> float | None:
    """Write `edits` to a new folder as `to` says: `"peft"`, `"checkpoint"`, `"gguf"` or `"gguf-lora"`.

    Returns the largest difference of logits between the edited model and the adapter as PEFT loads it; None for other
    formats and where PEFT is not installed. Raises `InputError` for another format, and what the exports raise.
    """
    if to == "checkpoint":
        to_checkpoint(edits, model, folder)
    elif to == "peft":
        written = to_peft(edits, model, folder, base=base)
        if importlib.util.find_spec("peft") is None:
            return None
        try:
            return adapter_gap(written, edits, model)
        except BaseException:
            shutil.rmtree(written)
            raise
    elif to in ("gguf", "gguf-lora"):
        from .gguf_file import to_gguf, to_gguf_lora

        to_gguf(edits, model, folder, type=type) if to == "gguf" else to_gguf_lora(edits, model, folder)
    else:
        raise InputError(f"the format is {to!r}, expected peft, checkpoint, gguf or gguf-lora")
    return None


@torch.no_grad()
def adapter_gap(folder: Path, edits: Sequence[Edit], model: Model) -> float:
    """The largest difference of logits, on the facts' prompts, between `edits` on `model` and the adapter in `folder`.

    PEFT puts the adapter around the model's own modules and takes it off again. Raises `ModelError` where the adapter
    changes no logit though the edits do: it matched no module.
    """
    import peft

    prompts = [fact.prompt for edit in edits for fact in edit.facts][:8] or ["The"]
    rows = [torch.tensor([model.encode(prompt).ids], device=model.device) for prompt in prompts]

    def logits(hf) -> list[torch.Tensor]:
        with measuring(hf):
            return [hf(input_ids=row, attention_mask=torch.ones_like(row)).logits.float() for row in rows]

    def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
        return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))

    unedited = logits(model.hf)
    with stacked(model, edits, mode=mode_of(edits)):
        edited = logits(model.hf)
    trained = {name: parameter.requires_grad for name, parameter in model.hf.named_parameters()}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers 5 for a property by its old name
        wrapped = peft.PeftModel.from_pretrained(model.hf, str(folder))
        try:
            adapted = logits(wrapped)
        finally:
            wrapped.unload()
            for name, parameter in model.hf.named_parameters():
                parameter.requires_grad_(trained[name])
    if difference(edited, unedited) and not difference(adapted, unedited):
        raise ModelError(
            f"the adapter in {str(folder)!r} changes nothing as PEFT loads it; export a checkpoint instead"
        )
    return difference(adapted, edited)
