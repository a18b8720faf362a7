"""A card for an edit, or for what edits were exported to: Markdown with the front matter that the Hub reads.

It says what was changed and measured, how to load the files, and that the weights disclose their subject: the right
singular vectors of ΔW are the keys of what was edited, from which a subject was told among a hundred candidates with a
recall of .94 to .99 (arXiv 2602.10134).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ..writing.counts import number_of
from ..writing.inert import for_markdown
from .delta import Dense
from .edit import Edit
from .guard import of_guard
from .rewrite_quality import stayed, won

CARD = "README.md"
FACTS = 50  # that a card lists

_LIBRARIES = {"edit": "knowedit", "peft": "peft", "checkpoint": "transformers", "gguf": "gguf", "gguf-lora": "gguf"}
_LOADED = {
    "edit": """import knowedit

model = knowedit.load("BASE")
with knowedit.load_edit("FOLDER").applied(model):
    ...""",
    "peft": """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "FOLDER")""",
    "checkpoint": """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER")""",
}


def card(edits: Sequence[Edit], kind: str = "edit", base: str | None = None) -> str:
    """The card of `edits`, as a folder of `kind`: an edit, or what `export --to` makes.

    `base` is the Hub id of the base model, by default that of the model that the edits were made on, where it is known.
    A path of this machine is left out.
    """
    known = [base, *(edit.made.get("model_id") for edit in edits)]
    base = next((name for name in known if name and name.count("/") == 1 and name[0] not in "/.~"), None)
    parts = [
        f"---\n{yaml.safe_dump(_front(edits, kind, base), sort_keys=False, allow_unicode=False)}---",
        f"# {number_of(sum(len(edit.facts) for edit in edits), 'edited fact')} of {for_markdown(edits[0].model)}",
        *_facts(edits),
        *_figures(edits),
        "## What the weights disclose",
        "Whoever has these weights and the base model can tell what was edited: the change is strongest at the keys of "
        "its subjects, and tells a subject from a hundred others with a recall of .94 to .99 (arXiv 2602.10134). "
        "`knowedit show DIR --probe` does it for the built-in subjects. Do not share an edit whose subject is secret.",
        *_how_to_load(kind, base),
        "## How it was made",
        *(_made(edit) for edit in edits),
    ]
    return "\n\n".join(parts) + "\n"


def _front(edits: Sequence[Edit], kind: str, base: str | None) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": _LIBRARIES[kind]}
    if base:
        relation = {"peft": "adapter", "gguf-lora": "adapter"}.get(kind, "finetune")
        front |= {"base_model": base} | ({"base_model_relation": relation} if kind != "edit" else {})
    methods = sorted({edit.method for edit in edits if re.fullmatch(r"[\w-]+", edit.method)})
    return front | {"tags": ["knowedit", "model-editing", "knowledge-editing", *methods]}


def _facts(edits: Sequence[Edit]) -> Iterator[str]:
    facts = [fact for edit in edits for fact in edit.facts]
    if not facts:
        return
    rows = [(fact.prompt, fact.target, fact.target_new or "") for fact in facts[:FACTS]]
    more = f"\n\nand {len(facts) - FACTS} more" if len(facts) > FACTS else ""
    yield _table(("prompt", "before", "now"), rows) + more


def _figures(edits: Sequence[Edit]) -> Iterator[str]:
    rows = []
    verdicts = []
    for edit in edits:
        measured = of_guard(edit.measured)
        for outcome in measured.get("facts", ()):
            before, after = outcome["before"], outcome["after"]
            rows.append(
                (
                    before["prompt"]["prompt"],
                    *(f"{before['prompt'][p]:.3f} → {after['prompt'][p]:.3f}" for p in ("p_true", "p_new")),
                    won(before["paraphrases"], after["paraphrases"]) if after["paraphrases"] else "",
                    stayed(after["neighbours"]) if after["neighbours"] else "",
                )
            )
        if measured:
            verdicts.append(f"- {_verdict(measured)}")
    if not verdicts:
        return
    yield "## Figures"
    if rows:
        columns = ("prompt", "p of the old answer", "p of the new", "paraphrases won", "neighbours that stay")
        yield _table(columns, rows[:FACTS])
    yield "\n".join(verdicts)


def _verdict(measured: Mapping) -> str:
    preflight, perplexity = measured["preflight"], measured["perplexity"]
    refused = measured["guard"]["refused"]
    texts = [f"‖ΔW‖ / ‖W‖ {preflight['relative_norm']:.2%}"]
    if perplexity["before"]:
        texts.append(f"perplexity of a plain text {perplexity['before']:.2f} → {perplexity['after']:.2f}")
    texts.append("the guard lets it through" if refused is None else f"the guard refuses it: {for_markdown(refused)}")
    return "; ".join(texts)


def _how_to_load(kind: str, base: str | None) -> Iterator[str]:
    if kind in _LOADED:
        yield "## How to load it"
        named = _quoted(base or "the base model, by its Hub id or folder")
        yield f"```python\n{_LOADED[kind].replace('BASE', named)}\n```"


def _quoted(base: str) -> str:
    return "".join(c for c in base if c.isprintable() and c not in '"\\`')


def _made(edit: Edit) -> str:
    made, weights = edit.made, []
    for path, delta in sorted(edit.deltas.items()):
        rank = "dense" if isinstance(delta, Dense) else f"rank {delta.rank}"
        weights.append(f"{path} ({rank}, ‖ΔW‖ {delta.norm():.4g}, base {edit.bases[path][:16]}…)")
    shown = {
        "method": f"{edit.method}, seed {edit.seed}",
        "weights": "; ".join(weights),
        "model": ", ".join(str(made[name]) for name in ("model_id", "revision") if made.get(name)) or edit.model,
        "command": made.get("command"),
        "threads": made.get("threads"),
        "versions": ", ".join(f"{name} {version}" for name, version in edit.versions.items()),
        "created": edit.created,
        "content hash": edit.content_hash,
        "hash of the factors": edit.factors_hash,
    }
    return _table(("", ""), [(name, value) for name, value in shown.items() if value])


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *([for_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
