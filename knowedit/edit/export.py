"""Edits for other people's tools: a PEFT LoRA adapter, or a merged checkpoint.

    to_peft([edit], model, "eiffel-lora")              # PeftModel.from_pretrained(base, "eiffel-lora")
    to_checkpoint([edit], model, "eiffel-checkpoint")  # AutoModelForCausalLM.from_pretrained("eiffel-checkpoint")

ΔW = u vᵀ is a LoRA adapter with A = vᵀ and B = u, of scale alpha / r = 1. Several edits of one weight are one adapter
of the sum of their ranks, [u₁ u₂] [v₁ v₂]ᵀ. A and B are oriented as (out, in) also for a Conv1D, of which only
`fan_in_fan_out` tells. Modules are named by full path: a bare `c_proj` would match attention's too. Merged in float32
a rank-one edit has the bits of W + u vᵀ; in half precision too where PEFT keeps its factors in float32, its default.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from transformers.pytorch_utils import Conv1D

from ..errors import InputError, ModelError
from ..files import new_folder
from ..models.adapter import Model
from ..models.checks import quiet
from .apply import edits_on, stacked
from .card import CARD, card
from .delta import Dense
from .edit import Edit

PROVENANCE = "knowedit.json"  # in every export, beside its card: which edits, of which facts


def to_peft(edits: Edit | Sequence[Edit], model: Model, folder: str | Path, *, base: str | None = None) -> Path:
    """Write `edits`, one after the other on `model`, as a PEFT LoRA adapter to a new folder, and return its path.

    `base` is the name under which users of the adapter load the model: by default the directory or Hub id that it was
    loaded from, else `model.name`.

    Raises `InputError` for a dense change, which is no LoRA adapter, for a folder that exists or cannot be written
    and where edits are on `model`; and what `apply` raises for edits of another model.
    """
    edits = listed(edits, model, low_rank=True)
    with new_folder(folder) as temporary, stacked(model, edits, mode=mode_of(edits)):  # each is checked where it is
        tensors, ranks = {}, {}
        for path, (u, v) in factors(edits).items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = v.T.contiguous()  # (k, in)
            tensors[f"base_model.model.{path}.lora_B.weight"] = u.contiguous()  # (out, k)
            ranks[path] = u.shape[1]
        (temporary / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        _write_json(temporary / "adapter_config.json", _config(model, ranks, base or _loaded_from(model)))
        write_provenance(temporary, edits, "peft", base or _loaded_from(model))
    return Path(folder).expanduser()


def to_checkpoint(edits: Edit | Sequence[Edit], model: Model, folder: str | Path) -> Path:
    """Write `model` with `edits` in its weights, and its tokenizer, to a new folder by `save_pretrained`.

    The model is bit-identical afterwards. Raises `InputError` for a folder that exists or cannot be written and where
    edits are on `model`; and what `apply` raises.
    """
    edits = listed(edits, model)
    with new_folder(folder) as temporary, stacked(model, edits), quiet():
        model.hf.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        write_provenance(temporary, edits, "checkpoint")
    return Path(folder).expanduser()


def _loaded_from(model: Model) -> str:
    place = getattr(model.hf, "name_or_path", "") or model.name
    return str(Path(place).absolute()) if Path(place).is_dir() else place


def listed(edits: Edit | Sequence[Edit], model: Model, *, low_rank: bool = False) -> list[Edit]:
    """One edit or several as a list. Raises `InputError` for none, where edits are on `model`, and for a dense change
    where `low_rank` ones are needed."""
    edits = [edits] if isinstance(edits, Edit) else list(edits)
    if not edits:
        raise InputError("there is no edit to export, expected one or more")
    for edit in edits if low_rank else ():
        if dense := [path for path, delta in edit.deltas.items() if isinstance(delta, Dense)]:
            raise InputError(
                f"the edit by {edit.method} changes {dense[0]} densely, which no LoRA adapter of small rank holds; "
                "export a checkpoint instead"
            )
    if on := edits_on(model):
        raise InputError(
            f"{model.name} has edits on it ({len(on)}), and only those that are named are exported; revert them first"
        )
    return edits


def mode_of(edits: Sequence[Edit]) -> str:
    """How low-rank `edits` are put on a model: offloaded weights can be hooked, but not stacked."""
    touched = [path for edit in edits for path in edit.deltas]
    return "hook" if len(set(touched)) == len(touched) else "in-place"


def factors(edits: Sequence[Edit]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By module path u (out, k) and v (in, k) of the sum of the edits' changes, which are all of low rank."""
    joined = {}
    for path in sorted({path for edit in edits for path in edit.deltas}):
        deltas = [edit.deltas[path] for edit in edits if path in edit.deltas]
        u, v = (torch.cat([getattr(delta, name) for delta in deltas], dim=1) for name in ("u", "v"))
        joined[path] = u, v
    return joined


def _config(model: Model, ranks: dict[str, int], base: str) -> dict:
    usual, _ = Counter(ranks.values()).most_common(1)[0]
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": None if model.masked else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": _fan_in_fan_out(model, ranks),
        "inference_mode": True,
        "target_modules": list(ranks),
    }


def _fan_in_fan_out(model: Model, paths) -> bool:
    kinds = {isinstance(model.hf.get_submodule(path), Conv1D) for path in paths}
    if len(kinds) > 1:
        raise ModelError(f"{model.name} mixes Conv1D and Linear projections, for which PEFT needs an adapter each")
    return kinds.pop()


def write_provenance(folder: Path, edits: Sequence[Edit], kind: str, base: str | None = None) -> None:
    """Write what was exported, for programs and as a card, into `folder`."""
    known = [{"content_hash": edit.content_hash, **edit.content()} for edit in edits]
    _write_json(folder / PROVENANCE, {"schema": "knowedit.export/1", "edits": known})
    (folder / CARD).write_text(card(edits, kind, base), encoding="utf-8")


def _write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
