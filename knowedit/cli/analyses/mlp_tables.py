"""What `knowedit mlp` prints for people."""

from __future__ import annotations

from ..shared.output import line, table

_PARTS = {"mlp": "MLPs", "attention": "attention", "scores": "attention scores", "embeddings": "embeddings",
          "unembedding": "unembedding", "other": "norms and others"}  # fmt: skip


def _power(exponent: float) -> str:
    return f"{10**exponent:,.0f}" if exponent < 7 else f"10^{exponent:.1f}"


def show_anatomy(found, probe, layer: int) -> None:
    line(f"Anatomy of {found.model} on {found.tokens} tokens of {found.texts} texts, without each text's first token")
    line("Shape flow: " + " → ".join(f"{width} {stage}" for stage, width in found.flow))
    one = found.layer(layer)
    line(f"Layer {layer}; {found.activation} reads {found.nonlinear}, {one.below_zero.text('share')} of it below zero")
    rows = [
        (s.name, s.width, f"{s.least:.3g}", f"{s.quantiles[1]:.3g}", f"{s.quantiles[4]:.3g}", f"{s.quantiles[7]:.3g}",
         f"{s.most:.3g}", f"{s.dimension:.1f}")
        for s in one.stages
    ]  # fmt: skip
    table(["stage", "width", "least", "1 %", "median", "99 %", "most", "effective dimension"], rows)
    if probe is None:
        line("No linear probe: that takes facts of two relations or more, each with three subjects and templates.")
        return
    n = sum(probe.relations.values())
    line(f"Linear probe of {len(probe.relations)} relations at layer {layer} (n = {n}, chance {probe.chance:.1%}):")
    table(["stage", "right"], [(stage, e.text("share")) for stage, e in probe.accuracy[layer].items()])


def show_imputation(found, layer: int) -> None:
    from ...mlp.imputation import Imputation

    if isinstance(found, Imputation):
        line(f"Imputation: {found.dimensions} dimensions of an MLP's output set to their mean, by layer")
        line(f"{found.prompt} → {found.target}   log p = {found.log_probability:.3f}")
        columns = zip(found.highest, found.control(), found.moved, found.moved_random, strict=True)
        rows = [
            (i, f"{top:.3f}", random.text(".3f"), f"{moved:.2f}", "" if by is None else f"{by:.2f}")
            for i, (top, random, moved, by) in enumerate(columns)
        ]
        table(["layer", "highest", "random", "change of highest", "of random"], rows)
        return
    n = found.each[0].dimensions
    line(f"Imputation on {len(found.each)} facts: change of log p, {n} dimensions set to their mean, by layer")
    rows = zip(found.highest, found.random, found.difference, strict=True)
    table(
        ["layer", "highest", "random", "difference"],
        [(i, *(estimate.text() for estimate in row)) for i, row in enumerate(rows)],
    )


def show_geometry(found, gates, layer: int) -> None:
    line(f"Geometry of the value vectors of {found.model}, {found.d} dimensions")
    rows = [
        (o.layer, f"{o.closest:.1f}°", f"{o.closest_random:.1f}°", f"{o.cosine.value:.4f}", f"{o.cosine_random:.4f}",
         f"{o.interference.value:.2f}", f"{o.interference_random:.2f}", f"{o.dimension:.0f}",
         f"{o.dimension_random:.0f}")
        for o in found.layers
    ]  # fmt: skip
    table(["layer", "closest", "random", "mean |cos|", "random", "interference", "random", "dimension", "random"], rows)
    line()
    line("How many directions fit: random ones with less than one pair closer, and e^(d cos²/4)")
    widths = list(dict.fromkeys(fit.d for fit in found.fits))
    by_angle = {}
    for fit in found.fits:
        by_angle.setdefault(fit.angle, {})[fit.d] = fit
    table(
        ["angle", *(name for d in widths for name in (f"d = {d}", "bound"))],
        [
            (f"{angle:g}°", *(text for d in widths for text in (_power(fits[d].expected), _power(fits[d].bound))))
            for angle, fits in by_angle.items()
        ],
    )
    line()
    if gates is None:
        line("No AND-gate test: no subject has two words or more.")
        return
    line(
        f"AND gates: the {gates.strongest} strongest neurons of layer {layer}, {gates.facts} subjects of several words"
    )
    names = {"and": "need both parts", "first": "the first part is enough", "last": "the last part is enough",
             "either": "either part is enough"}  # fmt: skip
    rows = [(names[kind], estimates[layer].text("share")) for kind, estimates in gates.shares.items()]
    table(["", "share"], [*rows, ("need both parts of this subject", gates.and_swapped[layer].text("share"))])
    table(
        ["strongest AND gates", "neuron", "whole", "first alone", "last alone"],
        [(s, f"{at}/{i}", f"{w:.2f}", f"{a:.2f}", f"{b:.2f}") for s, at, i, w, a, b in gates.examples[:5]],
    )


def show_accounting(found, layer: int | None) -> None:
    line(f"Accounting of {found.model}: {found.layers} layers, {found.d_model} → {found.n_neurons} → {found.d_model}")
    rows = [
        (_PARTS[name], f"{part.parameters:,}", f"{part.parameters / found.parameters:.1%}", f"{part.flops:,}",
         f"{part.flops / found.flops:.1%}")
        for name, part in found.parts.items()
    ]  # fmt: skip
    total = ("all", f"{found.parameters:,}", "", f"{found.flops:,}", "")
    table(["part", "parameters", "", f"operations a token, {found.tokens} tokens long", ""], [*rows, total])
    if found.tied:
        line("The unembedding is the token embedding, and is counted there.")


def show_precision(found, layer: int | None) -> None:
    line(
        f"{found.model} at fewer bits: {found.facts} facts, neurons of {found.neuron_facts}, {found.edits} edited facts"
    )
    names = [("full precision", "") if level.bits is None else (level.part, level.bits) for level in found.levels]
    rows = [
        (
            *name,
            f"{o.error:.3f}",
            o.known.text("share"),
            o.probability.text(),
            o.found_again.text("share"),
            o.suppressed.text(),
        )
        for name, o in zip(names, found.levels, strict=True)
    ]
    columns = ["quantized", "bits", "‖ΔW‖/‖W‖", "known", "probability", "neurons found again", "suppressing them"]
    table(columns, rows)
    if not found.edits:
        return
    line()
    line(
        "Edits: the new answer is the first choice; it is likelier than the old one, on the prompt and in other words;"
    )
    line("neighbours keep theirs. Where both answers have become nothing, half of these comparisons are chance.")
    columns = ["edited", "efficacy", "paraphrase", "neighbourhood"]
    rows = [
        (*name, *(getattr(o, c).text("share") for c in columns)) for name, o in zip(names, found.levels, strict=True)
    ]
    table(["quantized", "bits", "first choice", *columns[1:]], rows)


SHOW = {
    "anatomy": show_anatomy,
    "imputation": show_imputation,
    "geometry": show_geometry,
    "accounting": show_accounting,
    "precision": show_precision,
}
