"""`knowedit lens`: what the residual stream predicts after each layer, and which parts make the logit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ..shared.facts import check_choice
from ..shared.options import (
    DEFAULT_MODEL,
    AsJson,
    Chat,
    Device,
    Dtype,
    FactId,
    FigurePath,
    ModelName,
    Prompt,
    RemoteCode,
    Subject,
    Target,
    load,
)
from ..shared.output import line, print_json, table

SCHEMA = "knowedit.lens/1"
_COLUMNS = 6  # layers, in the table of all positions


def lens(
    prompt: Prompt = None,
    subject: Subject = None,
    target: Target = None,
    foil: Annotated[
        str | None, typer.Option(help="Another answer: the parts then make the logits' difference.")
    ] = None,
    fact: FactId = None,
    positions: Annotated[str, typer.Option(help="read, lookup, all, or token indices such as 0,4,-1.")] = "read",
    top: Annotated[int, typer.Option(help="First choices that are shown.")] = 5,
    heads: Annotated[int, typer.Option(help="The strongest heads that are shown.")] = 10,
    neurons: Annotated[int, typer.Option(help="The strongest neurons that are shown.")] = 10,
    edit: Annotated[list[Path], typer.Option("--edit", help="Also with this saved edit. Repeat it.")] = [],  # noqa: B006
    figure: FigurePath = None,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    chat: Chat = False,
    as_json: AsJson = False,
) -> None:
    """What does the model predict after each layer, and what do layers, heads and neurons add to the answer's logit?

    With --edit and no PROMPT the edit's own fact is asked, its old answer against the new one.
    """
    from ...edit.edit import load_edit
    from ...errors import InputError

    for name, number, least in (("top", top, 1), ("heads", heads, 0), ("neurons", neurons, 0)):
        if number < least:
            raise InputError(f"--{name} is {number}, expected a number from {least} on")
    if figure is not None:
        from ...report.figures.drawing import check_path

        figure = check_path(figure)
    edits = [load_edit(folder) for folder in edit]
    asked = _asked(prompt, subject, target, foil, fact, edits)
    places = _positions(positions)
    wrapped = load(model, dtype, device, trust_remote_code)
    record, drawn = _run(wrapped, asked, places, top, heads, neurons, edits, chat)
    if figure is not None:
        from ...report.figures.lens import lens_figure

        (found, parts), (edited, edited_parts) = drawn
        lens_figure(figure, found, parts, edited=edited, edited_parts=edited_parts, title=asked["prompt"])
    print_json(record) if as_json else _show(record)


def _asked(prompt, subject, target, foil, fact: str | None, edits: list) -> dict:
    """What is asked, before a model is there: a prompt, a built-in fact, or the fact of the only edit."""
    from ...errors import InputError
    from ...facts import SLOT, fill, templated
    from ...sources import find_fact

    if prompt is None and fact is None and len(edits) == 1 and len(edits[0].facts) == 1:
        (one,) = edits[0].facts
        foil = foil or one.target_new
    elif fact is not None:
        check_choice(prompt, fact)
        one = find_fact(fact)
    else:
        check_choice(prompt, fact)
        if subject is not None:
            prompt = fill(templated(prompt, subject), subject)
        elif SLOT in prompt:
            raise InputError(f"a prompt with {SLOT} needs --subject, which takes its place")
        return {"prompt": prompt, "subject": subject, "target": target, "foil": foil}
    return {"prompt": one.prompt, "subject": one.subject, "target": target or one.target, "foil": foil}


def _positions(text: str) -> str | list:
    from ...errors import InputError

    if text == "all":
        return text
    try:
        return [part if part in ("read", "lookup") else int(part) for part in text.replace(" ", "").split(",")]
    except ValueError:
        raise InputError(f"the positions are {text!r}, expected read, lookup, all or indices such as 0,4,-1") from None


def _run(wrapped, asked: dict, places, top: int, heads: int, neurons: int, edits: list, chat: bool):
    """The record, and what of it can be drawn: (lens, contributions) without and with the edits."""
    from ...edit.apply import stacked
    from ...errors import ModelError
    from ...recall.lens.decomposition import check_additive, logit_attribution
    from ...recall.lens.projection import aim, logit_lens as read

    refused = None
    try:
        check_additive(wrapped)
    except ModelError as error:  # the lens works all the same
        refused = str(error)
    aimed = aim(wrapped, asked["prompt"], asked["target"], asked["foil"], subject=asked["subject"], chat=chat)
    drawn = [(None, None), (None, None)]
    with ExitStack() as stack:
        for i, some in enumerate(([], edits)[: 1 + bool(edits)]):
            stack.enter_context(stacked(wrapped, some))
            found = read(wrapped, aimed, positions=_with_read(places), top=top)
            drawn[i] = (found, None if refused else logit_attribution(wrapped, aimed))
    record = {"schema": SCHEMA, "model": wrapped.name, "prompt": asked["prompt"], "subject": asked["subject"]}
    record |= {"edits": [one.content_hash for one in edits], "contributions_refused": refused}
    for name, (found, parts) in zip(("unedited", "edited"), drawn, strict=True):
        record[name] = None if found is None else {
            "lens": found.as_dict(), "contributions": None if parts is None else parts.as_dict(heads, neurons)
        }  # fmt: skip
    return record, drawn


def _with_read(places):
    """The answer's position is always looked at."""
    return places if places == "all" else [*places, "read"]


# ---------------------------------------------------------------- for people


def _show(record: dict) -> None:
    found = record["unedited"]["lens"]
    both = [record[when]["lens"] for when in ("unedited", "edited") if record[when]]
    against = "" if found["foil"] is None else f" (against {found['foil']!r})"
    line(f"{record['prompt']} → {found['target']!r}{against}")
    for when, one in zip(("", "with the edit: "), both, strict=False):
        line(when + _settled(one))
    line()
    _show_layers(both)
    if len(found["positions"]) > 1:
        for when, one in zip(("", ", with the edit"), both, strict=False):
            line()
            _show_positions(one, when)
    if record["contributions_refused"]:
        line()
        line(f"No parts of the logit: {record['contributions_refused']}")
        return
    for when, what in (("", "unedited"), (", with the edit", "edited")):
        if record[what]:
            line()
            _show_parts(record[what]["contributions"], when)


def _at_read(found: dict) -> dict:
    return next(p for p in found["positions"] if p["position"] == found["read"])


def _settled(found: dict) -> str:
    place = _at_read(found)
    last = place["layers"][-1]
    told = f"{found['target']!r} has probability {last['probability']:.3f} and rank {last['rank']} after the last layer"
    if place["settled"] is None:
        return told
    return f"{told}; it is the first choice from {_layer(place['settled'])} on"


def _layer(layer: int) -> str:
    return "the embeddings" if layer < 0 else f"layer {layer}"


def _show_layers(both: list[dict]) -> None:
    """The read position by layer, without and with edits side by side."""
    names = [both[0]["target"], *([] if both[0]["foil"] is None else [both[0]["foil"]])]
    columns = ["after"]
    for when in ("", " edited")[: len(both)]:
        columns += [part for name in names for part in (f"p {name.strip()}{when}", "rank")] + [f"first choices{when}"]
    rows = []
    for states in zip(*(_at_read(found)["layers"] for found in both), strict=True):
        row = ["embeddings" if states[0]["layer"] < 0 else states[0]["layer"]]
        for state in states:
            row += [f"{state['probability']:.4f}", state["rank"]]
            if len(names) == 2:
                row += [f"{state['foil_probability']:.4f}", state["foil_rank"]]
            row.append("  ".join(f"{token!r} {p:.2f}" for token, p in state["top"][: 5 if len(both) == 1 else 2]))
        rows.append(row)
    table(columns, rows, title="Logit lens at the read position")


def _show_positions(found: dict, when: str) -> None:
    """First choices at every position, after some of the layers."""
    n = len(found["positions"][0]["layers"])
    chosen = sorted({round(i * (n - 1) / _COLUMNS) for i in range(1, _COLUMNS + 1)})
    rows = [
        (p["position"], repr(p["token"]), *(f"{p['layers'][i]['top'][0][0]!r}" for i in chosen))
        for p in found["positions"]
    ]
    columns = ["position", "token", *(f"after {found['positions'][0]['layers'][i]['layer']}" for i in chosen)]
    table(columns, rows, title=f"First choices by position{when}")


def _show_parts(parts: dict, when: str) -> None:
    what = f"the logit of {parts['target']!r}" + ("" if parts["foil"] is None else f" over {parts['foil']!r}")
    same = abs(parts["capped"] - parts["logit"]) <= 1e-3  # but for rounding
    capped = "" if same else f" (after the cap {parts['capped']:.3f})"
    line(f"Direct logit attribution{when}: {what} is {parts['logit']:.3f}{capped}")
    sums = {name: sum(row[name] for row in parts["layers"]) for name in ("attention", "mlp")}
    line(
        f"embeddings {parts['embedding']:+.3f}, attention {sums['attention']:+.3f}, MLP {sums['mlp']:+.3f}, "
        f"biases of norm and head {parts['bias']:+.3f}: together {parts['total']:.3f}"
    )
    line(f"check: parts − logit {parts['gap']:.1e}, heads and neurons − their sublayer {parts['sublayer_gap']:.1e}")
    line()
    biased = any(row["attention_bias"] or row["mlp_bias"] for row in parts["layers"])
    names = ("attention", "mlp", *(("attention_bias", "mlp_bias") if biased else ()))
    heading = ("attention", "MLP", *(("of it bias", "of it bias") if biased else ()))
    table(["layer", *heading], [(row["layer"], *(f"{row[n]:+.3f}" for n in names)) for row in parts["layers"]])
    for title, rows in (
        ("Strongest heads", [(f"{h['layer']}.{h['head']}", f"{h['contribution']:+.3f}") for h in parts["heads"]]),
        ("Strongest neurons", [
            (f"{n['layer']}/{n['index']}", f"{n['contribution']:+.3f}", f"{n['activation']:+.2f}")
            for n in parts["neurons"]
        ]),
    ):  # fmt: skip
        if rows:
            line()
            line(title)
            table([title.split()[1][:-1], "adds", "activation"][: len(rows[0])], rows)
