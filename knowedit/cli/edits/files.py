"""`knowedit generate`, `diff`, `show` and `export`: what can be done with edits that were saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..shared.facts import choose_facts
from ..shared.options import DEFAULT_MODEL, AsJson, Chat, Device, Dtype, EditFolders, ModelName, RemoteCode, load
from ..shared.output import line, print_json, table
from ..shared.progress import progress

GENERATE_SCHEMA = "knowedit.generate/1"
DIFF_SCHEMA = "knowedit.diff/1"
SHOW_SCHEMA = "knowedit.show/1"
EXPORT_SCHEMA = "knowedit.exported/1"
FORMATS = ("peft", "checkpoint")


# ---------------------------------------------------------------- generate


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to go on with.")],
    edit: EditFolders = [],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 30,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw, as the model's own settings say, instead of the first choices.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed for --sample.")] = 0,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    chat: Chat = False,
    as_json: AsJson = False,
) -> None:
    """What the model goes on with, without and with edits, side by side.

    The text without comes from the same model after they were taken off.
    """
    from ...edit.apply import stacked
    from ...errors import InputError

    if tokens < 1:
        raise InputError(f"{tokens} new tokens are wanted, expected 1 or more")
    edits = _loaded(edit)
    wrapped = load(model, dtype, device, trust_remote_code)
    if wrapped.masked:
        raise InputError(f"{wrapped.name} is a masked model, which generates no text; see knowedit diff")
    ids = wrapped.encode(prompt, chat=chat).ids
    limit = getattr(wrapped.hf.config, "max_position_embeddings", None)
    if limit and len(ids) + tokens > limit:
        raise InputError(
            f"the prompt has {len(ids)} tokens, and {tokens} more exceed the {limit} of {wrapped.name}; take fewer"
        )
    edited = None
    if edits:
        with stacked(wrapped, edits):
            edited = _continued(wrapped, ids, tokens, sample, seed)
    unedited = _continued(wrapped, ids, tokens, sample, seed)
    if as_json:
        record = {"schema": GENERATE_SCHEMA, "model": wrapped.name, "prompt": prompt, "edits": _hashes(edits)}
        print_json(record | {"sample": sample, "seed": seed, "unedited": unedited, "edited": edited})
        return
    line(prompt)
    line()
    if edits:
        table(["without the edit" + "s" * (len(edits) > 1), "with"], [(unedited, edited)])
    else:
        line(unedited)


def _continued(wrapped, ids: Sequence[int], tokens: int, sample: bool, seed: int) -> str:
    import torch
    from transformers import GenerationConfig

    from ...models.checks import quiet

    tokenizer = wrapped.tokenizer
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    config = GenerationConfig(do_sample=sample, max_new_tokens=tokens, num_beams=1, pad_token_id=pad)
    row = torch.tensor([ids], device=wrapped.device)
    devices = [wrapped.device] if wrapped.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), quiet():
        torch.manual_seed(seed)
        out = wrapped.hf.generate(row, attention_mask=torch.ones_like(row), generation_config=config)
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


# ---------------------------------------------------------------- diff


def diff(
    edit: EditFolders = [],  # noqa: B006
    facts: Annotated[
        str, typer.Option(help="A JSONL file of facts, or `builtin`: their prompts are asked.")
    ] = "builtin",
    relation: Annotated[str | None, typer.Option(help="Only facts of this relation.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many, evenly over the relations.")] = None,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Which prompts does the edited model answer differently? Its first choice before and after, for many facts."""
    from ...edit.apply import stacked
    from ...errors import InputError
    from ...selection import evenly

    if not edit:
        raise InputError("name an edit with --edit DIR, the folder that it was saved to")
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit}, expected 1 or more")
    edits = _loaded(edit)
    chosen = evenly(choose_facts(facts, relation), limit)
    wrapped = load(model, dtype, device, trust_remote_code)
    queries = [wrapped.query(fact.prompt, fact.target, fact.subject) for fact in chosen]
    with stacked(wrapped, edits):  # first, so that an edit of another model is refused at once
        after = _answers(wrapped, queries, "with the edit")
    before = _answers(wrapped, queries, "without")
    own = {fact.subject for one in edits for fact in one.facts}
    changed = [
        {
            "id": fact.id, "prompt": fact.prompt, "target": fact.target, "edited_subject": fact.subject in own,
            "before": list(old.top[0]), "after": list(new.top[0]),
        }
        for fact, old, new in zip(chosen, before, after, strict=True)
        if old.top[0][0] != new.top[0][0]
    ]  # fmt: skip
    right = {"before": sum(a.known for a in before), "after": sum(a.known for a in after)}
    record = {"schema": DIFF_SCHEMA, "model": wrapped.name, "edits": _hashes(edits), "facts": facts}
    record |= {"asked": len(chosen), "right": right, "changed": changed}
    print_json(record) if as_json else _show_diff(record)


def _answers(wrapped, queries: list, what: str) -> list:
    from ...answers import ask

    with progress(what, len(queries), "prompt") as step:
        return ask(wrapped, queries, progress=step)


def _show_diff(record: dict) -> None:
    changed, right = record["changed"], record["right"]
    if changed:
        rows = [
            (c["id"], c["prompt"], *(f"{c[when][0]!r} {c[when][1]:.2f}" for when in ("before", "after")),
             "edited subject" if c["edited_subject"] else "")
            for c in changed
        ]  # fmt: skip
        table(["id", "prompt", "before", "after", ""], rows)
        line()
    others = sum(not c["edited_subject"] for c in changed)
    line(
        f"{len(changed)} of {record['asked']} prompts have another first choice, "
        f"{others} of them about other subjects; right are {right['before']} before, {right['after']} after"
    )


# ---------------------------------------------------------------- show


def show(
    folder: Annotated[Path, typer.Argument(help="A saved edit.")],
    as_json: AsJson = False,
) -> None:
    """What a saved edit is: its facts, how it was made, and the size of the change. Loads no model."""
    (edit,) = _loaded([folder])
    record = {
        "schema": SHOW_SCHEMA,
        "content_hash": edit.content_hash,
        "model": edit.model,
        "method": edit.method,
        "seed": edit.seed,
        "facts": [fact.as_dict() for fact in edit.facts],
        "weights": {
            path: {"shape": list(delta.shape), "rank": delta.rank, "dense": not hasattr(delta, "u"),
                   "norm": delta.norm(), "base": edit.bases[path]}
            for path, delta in sorted(edit.deltas.items())
        },
        "config": dict(edit.config),
        "notes": dict(edit.notes),
        "versions": dict(edit.versions),
        "created": edit.created,
        "bytes": sum(file.stat().st_size for file in folder.expanduser().iterdir()),
    }  # fmt: skip
    print_json(record) if as_json else _show(record)


def _show(record: dict) -> None:
    for fact in record["facts"]:
        new = "" if fact["target_new"] is None else f" → {fact['target_new']}"
        line(f"{fact['template'].replace('{}', fact['subject'])}: {fact['target']}{new}")
    line(f"by {record['method']} on {record['model']}, {record['bytes'] / 1000:.1f} kB, seed {record['seed']}")
    line()
    table(
        ["weight", "shape", "change", "‖ΔW‖"],
        [
            (path, " × ".join(map(str, w["shape"])), "dense" if w["dense"] else f"rank {w['rank']}", f"{w['norm']:.4g}")
            for path, w in record["weights"].items()
        ],
    )
    line()
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    rows = {"created": record["created"], "versions": versions, "content hash": record["content_hash"]}
    for what in ("config", "notes"):
        rows |= {f"{what}: {name}": _short(value) for name, value in record[what].items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        line(f"{name:<{width}}  {value}")


def _short(value) -> str:
    """A JSON value on one line, numbers to four digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- export


def export(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Saved edits, in the order of application.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    to: Annotated[str, typer.Option(help="peft, a LoRA adapter, or checkpoint, the merged model.")],
    base: Annotated[
        str | None, typer.Option(help="With peft: the name under which others load the base model.")
    ] = None,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write edits for other tools: a PEFT LoRA adapter, or a whole checkpoint with the edits in its weights."""
    from ...edit.export import to_checkpoint, to_peft
    from ...errors import InputError, did_you_mean
    from ...files import check_new

    if to not in FORMATS:
        raise InputError(f"edits are exported to {to!r}{did_you_mean(to, FORMATS)}, expected peft or checkpoint")
    if base is not None and to != "peft":
        raise InputError("--base names the base model of a PEFT adapter; a checkpoint has none, leave it out")
    out = check_new(out)
    edits = _loaded(folders)
    wrapped = load(model, dtype, device, trust_remote_code)
    to_peft(edits, wrapped, out, base=base) if to == "peft" else to_checkpoint(edits, wrapped, out)
    if as_json:
        print_json({"schema": EXPORT_SCHEMA, "model": wrapped.name, "to": to, "edits": _hashes(edits), "out": str(out)})
        return
    what = "a PEFT adapter" if to == "peft" else "a checkpoint"
    line(f"{what} of {wrapped.name} with {len(edits)} edit{'s' * (len(edits) > 1)}: {out}")


# ---------------------------------------------------------------- what they share


def _loaded(folders: Sequence[Path]) -> list:
    from ...edit.edit import load_edit

    return [load_edit(folder) for folder in folders]


def _hashes(edits: Sequence) -> list[str]:
    return [edit.content_hash for edit in edits]
