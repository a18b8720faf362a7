"""`knowedit generate`, `diff`, `show` and `export`: what can be done with edits that were saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ...display.result import Table
from ...serving.formats import FORMATS
from ...writing.counts import number_of
from ..shared.command import Printout, run_command
from ..shared.facts import choose_facts
from ..shared.help import choice
from ..shared.options import SEEDS, Chat, EditFolders, ModelOptions, Output
from ..shared.progress import progress

TYPES = ("f32", "f16", "bf16", "q8_0")

# ---------------------------------------------------------------- generate


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to go on with.")],
    edit: EditFolders = [],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 30,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw, as the model's own settings say, instead of the first choices.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed for --sample.", **SEEDS)] = 0,
    chat: Chat = False,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """What the model goes on with, without and with edits, side by side.

    The text without comes from the same model after they were taken off.
    """
    from ...edit.apply import stacked
    from ...errors import InputError
    from ...models.length import positions

    if tokens < 1:
        raise InputError(f"{tokens} new tokens are asked for, expected 1 or more")
    edits = loaded(edit)

    def run(model):
        if model.masked:
            raise InputError(f"{model.name} is a masked model, which generates no text; see knowedit diff")
        ids = model.encode(prompt, chat=chat).ids
        limit = positions(model)
        if limit and len(ids) + tokens > limit:
            raise InputError(
                f"the prompt has {len(ids)} tokens, and {tokens} more exceed the {limit} of {model.name}; take fewer"
            )
        edited = None
        if edits:
            with stacked(model, edits):
                edited = _continued(model, ids, tokens, sample, seed)
        unedited = _continued(model, ids, tokens, sample, seed)
        record = {"model": model.name, "prompt": prompt, "edits": _hashes(edits), "sample": sample, "seed": seed}
        columns = ("without the edit" + "s" * (len(edits) > 1), "with")
        beside = unedited if edited is None else Table(columns, [(unedited, edited)])
        return Printout(record | {"unedited": unedited, "edited": edited}, (prompt, "", beside))

    run_command("knowedit.generate/1", run, model, output)


def _continued(model, ids: Sequence[int], tokens: int, sample: bool, seed: int) -> str:
    import torch
    from transformers import GenerationConfig

    from ...hooks import measuring
    from ...models.checks import quiet

    tokenizer = model.tokenizer
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    config = GenerationConfig(do_sample=sample, max_new_tokens=tokens, num_beams=1, pad_token_id=pad)
    row = torch.tensor([ids], device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), measuring(model.hf), torch.no_grad(), quiet():
        torch.manual_seed(seed)
        out = model.hf.generate(row, attention_mask=torch.ones_like(row), generation_config=config)
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


# ---------------------------------------------------------------- diff


def diff(
    edit: EditFolders = [],  # noqa: B006
    facts: Annotated[str, typer.Option(help="A file of facts, or `builtin`: their prompts are asked.")] = "builtin",
    relation: Annotated[str | None, typer.Option(help="Only facts of this relation.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="The largest number of facts, evenly over the relations.", min=1)
    ] = None,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Which prompts does the edited model answer differently? Its first choice before and after, for many facts."""
    from ...edit.apply import stacked
    from ...errors import InputError
    from ...selection import evenly

    if not edit:
        raise InputError("name an edit with --edit DIR, the folder that it was saved to")
    edits = loaded(edit)
    chosen = evenly(choose_facts(facts, relation), limit)
    subjects = {fact.subject for edit in edits for fact in edit.facts if fact.subject is not None}

    def run(model):
        queries = [model.query_of(fact) for fact in chosen]
        with stacked(model, edits):  # first, so that an edit of another model is refused at once
            after = _answers(model, queries, "with the edit")
        before = _answers(model, queries, "without")
        changed = [
            {
                "id": fact.id,
                "prompt": fact.prompt,
                "target": fact.target,
                "edited_subject": fact.subject in subjects,
                "before": old.top[0],
                "after": new.top[0],
            }
            for fact, old, new in zip(chosen, before, after, strict=True)
            if old.top[0][0] != new.top[0][0]
        ]
        right = {"before": sum(a.known for a in before), "after": sum(a.known for a in after)}
        record = {"model": model.name, "edits": _hashes(edits), "facts": facts, "asked": len(chosen)}
        record |= {"right": right, "changed": changed}
        return Printout(record, _difference(record))

    run_command("knowedit.diff/1", run, model, output)


def _difference(record: dict) -> Iterator[str | Table]:
    """A row for each prompt with another first choice, and how many there are."""
    changed, right = record["changed"], record["right"]
    if changed:
        rows = []
        for change in changed:
            choices = (f"{word!r} {p:.2f}" for word, p in (change["before"], change["after"]))
            rows.append((change["id"], change["prompt"], *choices, "edited subject" * change["edited_subject"]))
        yield Table(("id", "prompt", "before, p of first token", "after, p of first token", ""), rows)
        yield ""
    others = sum(not change["edited_subject"] for change in changed)
    yield (
        f"Prompts with another first choice: {len(changed)} of {record['asked']}, {others} of them about other "
        f"subjects. Right answers: {right['before']} before, {right['after']} after."
    )


def _answers(model, queries: list, what: str) -> list:
    from ...answers import ask

    with progress(what, len(queries), "prompt") as step:
        return ask(model, queries, progress=step)


# ---------------------------------------------------------------- show


def show(
    folder: Annotated[Path, typer.Argument(help="A saved edit.")],
    card: Annotated[bool, typer.Option("--card", help="Write its card, a README.md, into the folder.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Load the model, and tell by the weights alone which subjects they act on.")
    ] = False,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """What a saved edit is: its facts, how it was made, what was measured, and the size of the change.

    Loads no model without --probe. An edit's weights disclose its subject to whoever has the model: --probe shows it.
    """
    from ...edit.card import CARD, card as card_of
    from ...errors import InputError
    from ...files import check_new, write_text

    if card and probe:
        raise InputError("--card writes a file and --probe tries subjects; ask for one of them")
    (edit,) = loaded([folder])
    if card:
        path = check_new(folder.expanduser() / CARD)
        write_text(path, card_of([edit]))
        wrote = Printout({"card": str(path)}, (f"the card of this edit: {path}",))
        run_command("knowedit.card/1", lambda _: wrote, None, output)
    elif probe:
        from ...serving.disclosure import acts_on

        run_command("knowedit.probe/1", lambda loaded: acts_on(loaded, edit), model, output)
    else:
        record = _record(edit, folder.expanduser())
        run_command("knowedit.show/1", lambda _: Printout(record, _shown(record)), None, output)


def _record(edit, folder: Path) -> dict[str, Any]:
    """What is in the folder of an edit."""
    from ...edit.storage import RECORD
    from ...models.cache import sha256_file

    return {
        "content_hash": edit.content_hash,
        "model": edit.model,
        "method": edit.method,
        "seed": edit.seed,
        "facts": [fact.as_dict() for fact in edit.facts],
        "weights": {
            path: {
                "shape": delta.shape,
                "rank": delta.rank,
                "dense": not hasattr(delta, "u"),
                "norm": delta.norm(),
                "base": edit.bases[path],
            }
            for path, delta in sorted(edit.deltas.items())
        },
        "config": dict(edit.config),
        "notes": dict(edit.notes),
        "made": dict(edit.made),
        "measured": dict(edit.measured),
        "versions": dict(edit.versions),
        "created": edit.created,
        "file_hash": sha256_file(folder / RECORD),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }


def _shown(record: dict) -> Iterator[str | Table]:
    """The facts of an edit, the weights that it changes, and how it was made."""
    from ...edit.guard import of_guard
    from ...facts import fill

    for fact in record["facts"]:
        new = f" → {fact['target_new']}" if fact.get("target_new") else ""
        yield f"{fill(fact['template'], fact['subject'])}: {fact['target']}{new}"
    yield f"by {record['method']} on {record['model']}, {record['bytes'] / 1000:.1f} kB, seed {record['seed']}"
    yield ""
    rows = []
    for path, weight in record["weights"].items():
        change = "dense" if weight["dense"] else f"rank {weight['rank']}"
        rows.append((path, " × ".join(map(str, weight["shape"])), change, f"{weight['norm']:.4g}"))
    yield Table(("weight", "shape", "change", "‖ΔW‖"), rows)
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    values = {"created": record["created"], "versions": versions}
    values |= {"content hash": record["content_hash"], "file hash": record["file_hash"]}
    values |= {name.replace("_", " "): str(value) for name, value in record["made"].items() if value is not None}
    if measured := of_guard(record["measured"]):
        refused = measured["guard"]["refused"]
        values["guard"] = "lets it through" if refused is None else f"refuses it: {refused}"
    for what in ("config", "notes"):
        values |= {f"{what}: {name}": _short(value) for name, value in record[what].items()}
    width = max(map(len, values))
    for name, value in values.items():
        yield f"{name:<{width}}  {value}"


def _short(value: Any) -> str:
    """A JSON value on one line, numbers to four digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- export


Base = Annotated[
    str | None, typer.Option(help="With peft: the Hub id or directory under which others load the base model.")
]
MatrixType = Annotated[
    str | None, choice(TYPES, "--type", help="With gguf: of the matrices; by default what the model has.")
]


def check_export(out: Path, to: str, base: str | None, type: str | None) -> Path:
    """The new folder `out`. Raises `InputError` where it cannot be made, and for options of another format."""
    from ...errors import InputError
    from ...files import check_new

    if base is not None and to != "peft":
        raise InputError(f"--base names the base model of a PEFT adapter, found --to {to}; leave it out")
    if type is not None and to != "gguf":
        raise InputError(f"--type is of the matrices of a GGUF model, found --to {to}; leave it out")
    return check_new(out)


def export(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Saved edits, in the order of application.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    to: Annotated[
        str,
        choice(
            FORMATS,
            "--to",
            help="peft: a LoRA adapter. checkpoint: the merged model. gguf: the merged model for llama.cpp. "
            "gguf-lora: a LoRA adapter for llama.cpp.",
        ),
    ],
    base: Base = None,
    type: MatrixType = None,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Write edits for other tools, as an adapter or in the weights of a whole model, with a card.

    A PEFT adapter is loaded again by PEFT, where that is installed, and its logits are compared.
    """
    from ...serving.export import export as write

    out = check_export(out, to, base, type)
    edits = loaded(folders)

    def run(model):
        gap = write(edits, model, out, to, base=base, type=type)
        record = {"model": model.name, "to": to, "edits": _hashes(edits), "out": str(out), "logit_gap": gap}
        text = f"{FORMATS[to]} of {model.name} with {number_of(len(edits), 'edit')}: {out}"
        return Printout(record, (text, *reloaded(to, gap), *about_base(to, base, model)))

    run_command("knowedit.exported/1", run, model, output)


def reloaded(to: str, gap: float | None) -> Iterator[str]:
    """What came of loading an adapter again."""
    if gap is not None:
        yield f"loaded again by PEFT, its logits are those of the edited model to within {gap:.1e}"
    elif to == "peft":
        yield "not loaded again: PEFT is not installed"


def about_base(to: str, base: str | None, model) -> Iterator[str]:
    """That an adapter names a folder of this machine as its base model, where it does."""
    from ...edit.edit import origin

    if to == "peft" and base is None and origin(model)["model_id"] is None:
        yield "its base model is named by a folder of this machine; --base ID names it as the Hub does"


# ---------------------------------------------------------------- what they share


def loaded(folders: Sequence[Path]) -> list:
    from ...edit.edit import load_edit

    return [load_edit(folder) for folder in folders]


def _hashes(edits: Sequence) -> list[str]:
    return [edit.content_hash for edit in edits]
