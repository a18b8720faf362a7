"""The table and the figure of docs/findings.md, made from the committed results/findings.json; a test compares them.

python -m benchmarks.quality.findings_table            prints the table
python -m benchmarks.quality.findings_table --write    puts it into the page, and draws the figure
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from knowedit.edit.rewrite_quality import PARTS
from knowedit.report.figures.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, figure, save

from ..table import load

DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURE = DOCS / "findings.md", DOCS / "figures" / "findings.svg"
START, END = "<!-- findings -->\n", "<!-- end of findings -->"

Row = tuple[str, str, str, str]
"""What was measured, what came out, of how many, what is reported of other models."""

_KINDS = {"state": "states", "mlp": "MLP windows", "attention": "attention windows"}
_HIDDEN = {"subject": "the subject", "relation": "the rest of the prompt", "last": "the last token itself"}
_SILENT = {"mlp": "MLPs", "attention": "attention"}
_EARLY = dict.fromkeys(("state", "mlp"), "middle layers at the subject's last token (Meng et al. 2022)")
_POSITION = {"read": "the last token", "lookup": "the subject's last token"}


def table() -> str:
    """Markdown."""
    sections = load("quality/findings")["sections"]
    there = {names: told for names, told in _ROWS.items() if set(names) <= set(sections)}
    rows = [row for names, told in there.items() for row in told(*(sections[name] for name in names))]
    lines = ["| measured | this model | n | reported of others |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def percent(one: dict, sign: bool = False) -> str:
    """A share with its interval."""
    form = "{:+.0f}" if sign else "{:.1f}"
    text = form.format(100 * one["value"])
    if one["low"] is None:
        return f"**{text} %**"
    return f"**{text} %** ({form.format(100 * one['low'])} to {form.format(100 * one['high'])})"


def number(one: dict, digits: int = 1) -> str:
    text = f"**{one['value']:.{digits}f}**"
    return text if one["low"] is None else f"{text} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"


def _traced(found: dict, how: str) -> Iterator[Row]:
    n = str(found["n"])
    of = f"{how} trace"
    yield (
        f"{of}: what the noise takes away, of p = {found['clean']['value']:.2f}",
        percent(found["total_effect"]),
        n,
        "",
    )
    for kind, one in found["kinds"].items():
        peak, early = one["peak"], one["at_subject_end"]
        where = f"layer {peak['layer']}, *{peak['token']}* token: {percent(peak['effect'])}"
        yield (
            f"{of}: where restored {_KINDS[kind]} bring back most",
            where,
            str(peak["effect"]["n"]),
            _EARLY.get(kind, ""),
        )
        told = f"layer {early['layer']}: {percent(early['effect'])}; a fact's own peak: layer "
        yield (
            f"{of}: the same at the subject's last token alone",
            told + number(early["layer_in_a_fact"]),
            str(early["effect"]["n"]),
            "",
        )


def _exact(found: dict) -> Iterator[Row]:
    yield from _traced(found, "exact")
    yield from _traced(found["fast"], "fast")
    ranks = found["rank_correlation_of_the_fast_mode"]
    told = "; ".join(f"{_KINDS[kind]} {number(one, 2)}" for kind, one in ranks.items())
    yield "rank correlation of the fast with the exact trace, mean over facts", told, str(found["n"]), ""


def _edges(found: dict) -> Iterator[Row]:
    yield from _knocked(found, "hiding {} from the last token", _HIDDEN)


def _sublayers(found: dict) -> Iterator[Row]:
    yield from _knocked(found, "silencing the {} at the subject's last token", _SILENT)


def _knocked(found: dict, what: str, names: dict[str, str]) -> Iterator[Row]:
    for name, one in found["sets"].items():
        told = f"{what.replace('{}', names[name])} in {found['window']} layers: change of p(answer)"
        yield told, f"{percent(one, True)} around layer {one['layer']}", str(one["n"]), ""


def _attributes(found: dict) -> Iterator[Row]:
    peak, told = found["peak"], found["separation"]
    yield (
        "attributes rate at the subject's last token, highest",
        f"{percent(peak)} after layer {peak['layer']}; other subjects' {percent(found['control_there'])}",
        str(peak["n"]),
        "about 50 %, with the words of Wikipedia (Geva et al. 2023)†",
    )
    yield (
        "an attribute's logit there is above another subject's, highest",
        f"{percent(told)} after layer {told['layer']}",
        str(told["n"]),
        "",
    )


def _extraction(found: dict) -> Iterator[Row]:
    yield from _events(found, "", {"attention": "about 68 % (Geva et al. 2023)†"})


def _normed(found: dict) -> Iterator[Row]:
    yield from _events(found, ", through the final norm", {})


def _events(found: dict, how: str, reported: dict[str, str]) -> Iterator[Row]:
    for name, one in found["any_layer"].items():
        title = {"heads": "a head", "mlp": "an MLP", "attention": "an attention sublayer"}[name]
        yield f"facts with an extraction event of {title}{how}", percent(one), str(one["n"]), reported.get(name, "")


def _neurons(found: dict) -> Iterator[Row]:
    n = str(found["n"])
    for position, one in found["located"].items():
        yield (
            f"neurons located at {_POSITION[position]}, layers 2 to 29",
            f"{number(one['neurons'])}, in layer {number(one['mean_layer'])} on average",
            n,
            "",
        )
    names = {
        "traced mlp × lookup": "traced MLPs and located neurons, both at the subject's last token",
        "traced mlp × read": "traced MLPs there and neurons located at the last token",
        "traced attention × read": "traced attention and located neurons, both at the last token",
        "lookup × read": "neurons located at the subject's last token and at the last token",
    }
    for name, title in names.items():
        one = found["overlap"][name]
        yield (
            f"overlap by layer of {title}",
            f"{percent(one['share'])}; {percent(one['more'], True)} beside shifted layers",
            n,
            "",
        )


def _sparsity(found: dict) -> Iterator[Row]:
    texts = f"{found['texts']} texts"
    least, most = found["least"], found["most"]
    span = f"{percent(found['active'])}; layer {least['layer']} {percent(least)}, layer {most['layer']} {percent(most)}"
    yield "active neurons, mean of layers, least, most", span, texts, "10 to 50 % (Geva et al. 2021)†"
    yield "neurons that carry a layer (effective share)", percent(found["effective"]), texts, ""
    for where, title in (("kept_at_last_token", "the last token"), ("kept_at_all_tokens", "every token")):
        for one in found[where]:
            if one["share"] in (0.05, 0.1, 0.3):
                yield (
                    f"p left when each layer keeps its strongest {one['share']:.0%} at {title}".replace("%", " %"),
                    f"{percent(one['ratio'])}; at random {percent(one['random_ratio'])}",
                    str(one["ratio"]["n"]),
                    "",
                )
    said = found["compositional"]
    layers = sorted(said["layers"], key=lambda one: one["share"]["value"])
    least, most = layers[0], layers[-1]
    yield (
        "predictions of a layer that none of its active neurons makes, mean of layers, least, most",
        f"{percent(said['mean'])}; layer {least['layer']} {percent(least['share'])}, "
        f"layer {most['layer']} {percent(most['share'])}",
        f"{least['tokens']} tokens of {least['share']['n']} texts",
        "at least 68 % (Geva et al. 2021)†",
    )


def _editing(found: dict) -> Iterator[Row]:
    n = str(found["n"])
    layers = {one["layer"]: one for one in found["layers"]}
    best, table = layers[found["best"]], layers[found["table"]]
    for one in layers.values():
        three = ", ".join(f"{name} {100 * one[name]['value']:.1f}" for name in PARTS)
        yield f"edits of layer {one['layer']}: Score ({three})", percent(one["Score"]), n, ""
    told = f"**layer {best['layer']}**; the table's layer {table['layer']} {percent(table['behind'], True)} of Score"
    yield "the best of these layers to edit, and how far behind is the table's", told, n, ""
    lost = ", ".join(f"{one['facts']}: {100 * one['lost']:.1f}" for one in found["choosing"])
    draws = f"{found['choosing'][0]['draws']:,} draws"
    yield "Score points lost on other facts when the layer is chosen by so many facts", lost, draws, ""
    yield "the layer that `--layer auto` chooses", f"**{found['chosen_by_auto']}**", "", ""
    for name, one in found["rank_correlation_with"].items():
        yield f"rank correlation over layers of the Score with *{name}*", number(one, 2), f"{one['n']} layers", ""
    within = "rank correlation over facts, in a layer, of *traced mlp at subject end* with what the edit reaches, mean"
    yield within, number(found["rank_correlation_in_a_layer"], 2), n, "none (Hase et al. 2023)"


_ROWS = {
    ("exact",): _exact,
    ("edges",): _edges,
    ("sublayers",): _sublayers,
    ("attributes",): _attributes,
    ("extraction",): _extraction,
    ("extraction_normed",): _normed,
    ("neurons",): _neurons,
    ("sparsity",): _sparsity,
    ("editing",): _editing,
}


# ---------------------------------------------------------------- the figure


def draw(path: Path) -> None:
    sections = load("quality/findings")["sections"]
    there = {names: panel for names, panel in _PANELS.items() if set(names) <= set(sections)}
    rows = -(-len(there) // 2)
    with figure(10, 3.6 * rows, rows=rows, columns=2, squeeze=False) as (fig, axes):
        for one, (names, panel) in zip(axes.flat, there.items(), strict=False):
            panel(one, *(sections[name] for name in names))
            one.set_xlabel("layer")
            one.yaxis.set_major_formatter(PercentFormatter(1))
        for one in axes.flat[len(there) :]:
            one.set_visible(False)
        save(fig, path)


def _draw_traces(axes: Axes, found: dict) -> None:
    for kind, colour in (("state", GREY), ("mlp", ORANGE), ("attention", BLUE)):
        curves = found["kinds"][kind]["curves"]
        axes.plot(curves["last subject"], color=colour, label=f"{_KINDS[kind]}, subject")
        axes.plot(curves["last"], color=colour, linestyle=":", label=f"{_KINDS[kind]}, last token")
    axes.set_title(f"Trace of {found['n']} facts: what comes back")
    axes.set_ylabel("probability of the answer")
    _legend(axes)


def _draw_knockouts(axes: Axes, edges: dict, sublayers: dict) -> None:
    for name, colour in (("relation", ORANGE), ("subject", BLUE), ("last", GREEN)):
        curve = edges["sets"][name]["curve"]
        axes.plot(curve, color=colour, label=f"hide {_HIDDEN[name]}")
    for name, colour in (("mlp", PURPLE), ("attention", GREY)):
        curve = sublayers["sets"][name]["curve"]
        axes.plot(curve, color=colour, linestyle="--", label=f"no {_SILENT[name]} at the subject")
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.set_title(f"Knockouts of {edges['window']} layers around each")
    axes.set_ylabel("change of p(answer)")
    _legend(axes)


def _draw_sparsity(axes: Axes, found: dict) -> None:
    axes.plot(found["curves"]["active"], color=BLUE, label="active neurons")
    axes.plot(found["curves"]["effective"], color=ORANGE, label="neurons that carry the layer")
    layers = found["compositional"]["layers"]
    share = [one["share"]["value"] for one in layers]
    axes.plot([one["layer"] for one in layers], share, color=GREEN, label="compositional predictions")
    axes.set_ylim(0, 1.03)
    axes.set_title("How many neurons work, and whether one alone does")
    axes.set_ylabel("share")
    _legend(axes)


def _draw_layers(axes: Axes, neurons: dict, editing: dict) -> None:
    names = {
        "traced mlp": ("traced MLPs, subject", ORANGE),
        "lookup": ("attributed to neurons, subject", PURPLE),
        "read": ("attributed to neurons, last", BLUE),
    }
    for name, (label, colour) in names.items():
        axes.plot(neurons["profiles"][name], color=colour, label=label)
    axes.set_ylabel("share of the effect")
    axes.set_title("Traced, located, and best to edit")
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    layers = editing["layers"]
    score = [one["Score"] for one in layers]
    ends = [[one["value"] - one["low"] for one in score], [one["high"] - one["value"] for one in score]]
    right.errorbar([one["layer"] for one in layers], [one["value"] for one in score], ends, fmt="s", color=GREEN)
    right.set_ylim(0, 1.03)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_ylabel("Score of edits (squares)", color=GREEN)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Below the panel, where no curve is."""
    axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


_PANELS = {
    ("exact",): _draw_traces,
    ("edges", "sublayers"): _draw_knockouts,
    ("sparsity",): _draw_sparsity,
    ("neurons", "editing"): _draw_layers,
}


def main() -> None:
    text = table()
    if "--write" not in sys.argv[1:]:
        print(text)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + START + text + END + after, encoding="utf-8")
    draw(FIGURE)


if __name__ == "__main__":
    main()
